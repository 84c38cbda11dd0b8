"""The parts of a benchmark: chosen by name, measured one after the other, told and written down."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import distributed
from dask.system import CPU_COUNT

from benchmarks.kubernetes.figures import Figures

__all__ = ["chosen", "measure"]

RESULTS = Path(__file__).parent / "results"


def chosen(
    parser: argparse.ArgumentParser, parts: Mapping[str, ModuleType], names: Iterable[str]
) -> dict[str, ModuleType]:
    """The parts of these names; with none, all. An unknown name ends the program with a message."""
    if unknown := set(names) - parts.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return {name: part for name, part in parts.items() if name in names or not names}


def measure(
    title: str, parts: Mapping[str, ModuleType], run: Callable[[Any], Iterable[Figures]], **machine: Any
) -> None:
    """Measure, print tables, and write raw numbers to ``results/TITLE-….json``.

    Parameters
    ----------
    title
        What is measured.
    parts
        Modules by name; the first line of their docstring says what each does.
    run
        Measures one of them: gives its figures as often as there are more of them. What there was is
        written and told even if it fails then.
    machine
        What else is to be known of the circumstances.
    """
    # So that clusters are cleaned up then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, Any] = {
        "machine": {
            "cpus": CPU_COUNT,
            "python": platform.python_version(),
            "distributed": distributed.__version__,
            **machine,
        }
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime(f"{title}-%Y%m%d-%H%M%S.json")
    for name, part in parts.items():
        print(f"== {name}: {(part.__doc__ or '').splitlines()[0]}", flush=True)
        began_s, found = time.perf_counter(), Figures()
        try:
            for found in run(part):
                results[name] = found.raw | {"table": found.rows, "took_s": time.perf_counter() - began_s}
                path.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            print(found.table(), flush=True)
    print(f"raw numbers: {path}")
