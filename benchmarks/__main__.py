"""``python -m benchmarks [NAME …]``: run them, print ratios, write raw numbers to results/."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import distributed
from dask.system import CPU_COUNT

from . import boots, bursts, idle, tallies, ticks

BENCHMARKS = {module.__name__.rpartition(".")[2]: module for module in (ticks, tallies, idle, boots, bursts)}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    results: dict[str, Any] = {
        "machine": {
            "cpus": CPU_COUNT,
            "python": platform.python_version(),
            "distributed": distributed.__version__,
        }
    }
    for name in names or BENCHMARKS:
        print(f"== {name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}", flush=True)
        results[name] = BENCHMARKS[name].run()
        print(json.dumps(results[name], indent=1), flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"raw numbers: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
