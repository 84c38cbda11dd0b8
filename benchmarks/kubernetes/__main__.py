"""``python -m benchmarks.kubernetes [PART …]``: measure, print tables, write raw numbers to results/."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import distributed
from dask.system import CPU_COUNT

from . import nodes, peer, plane, shrink, size
from .clusters import Clusters
from .figures import SMALL, Sizes

#: Those on fake nodes come first: each change of cluster takes some seconds.
PARTS = {"plane": plane, "size": size, "shrink": shrink, "nodes": nodes}


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kubernetes")
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="a tenth of it, to see whether it works")
    arguments = parser.parse_args()
    if unknown := set(arguments.part) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    chosen = [part for part in PARTS if part in arguments.part or not arguments.part]
    results: dict[str, Any] = {
        "machine": {
            "cpus": CPU_COUNT,
            "python": platform.python_version(),
            "distributed": distributed.__version__,
            "small": arguments.small,
        }
    }
    if {"plane", "nodes"} & set(chosen):
        peer.environment()
    # So that it cleans up then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Clusters() as clusters:
        for part in chosen:
            print(f"== {part}: {(PARTS[part].__doc__ or '').splitlines()[0]}", flush=True)
            began_s = time.perf_counter()
            found = PARTS[part].run(clusters, SMALL if arguments.small else Sizes())
            results[part] = found.raw | {"table": found.rows, "took_s": time.perf_counter() - began_s}
            print(found.table(), flush=True)
    folder = Path(__file__).parents[1] / "results"
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("kubernetes-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"raw numbers: {path}")


if __name__ == "__main__":
    main()
