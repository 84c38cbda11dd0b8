"""A scheduler as a process of its own, with nothing around it that costs time."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["command"]


def command(file: Path, *options: str) -> list[str]:
    """Command of a ``dask scheduler`` on loopback that writes its address to ``file``."""
    usual = "--host 127.0.0.1 --port 0 --no-dashboard --scheduler-file"
    return [sys.executable, "-m", "distributed.cli.dask_scheduler", *usual.split(), str(file), *options]
