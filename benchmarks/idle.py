"""Idle: CPU time of a scheduler process with the controller and no work, and of a stock one."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from . import scheduler

SETTLE_S, WATCH_S = 5.0, 30.0


def _share(*options: str) -> float:
    """CPU seconds per second of a `dask scheduler` and all of its children, after it has settled."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler.json")
        with subprocess.Popen(scheduler.command(file, *options), stderr=subprocess.DEVNULL) as process:
            try:
                while not (file.exists() and json.loads(file.read_text() or "{}")):
                    time.sleep(0.05)
                time.sleep(SETTLE_S)
                began_s, used_s = time.perf_counter(), _used(process.pid)
                time.sleep(WATCH_S)
                return (_used(process.pid) - used_s) / (time.perf_counter() - began_s)
            finally:
                process.terminate()
                process.wait(20)


def _used(pid: int) -> float:
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in [root, *root.children(recursive=True)])


def run() -> dict[str, Any]:
    """Both, one after the other."""
    stock, tide = _share(), _share("--preload", "dask_tide.preload")
    return {
        "stock_share_of_a_core": round(stock, 4),
        "tide_share_of_a_core": round(tide, 4),
        "ratios": {"tide / stock": round(tide / stock, 2) if stock else None},
        "aim": "< 0.01 of a core",
        "reached": tide < 0.01,
    }
