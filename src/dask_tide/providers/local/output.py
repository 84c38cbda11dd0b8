"""Output: what a worker's process prints is part of its logs. A preload of the worker's."""

from __future__ import annotations

import os

from distributed import Worker

__all__ = ["dask_setup"]

#: How much of the end is told.
TAIL_BYTES = 1 << 16


async def dask_setup(worker: Worker) -> None:
    """Have it answer with what it, its tasks and their subprocesses have printed and logged.

    Dask's own answer is what Dask itself has logged, which is part of that.
    """
    worker.handlers["get_logs"] = _get_logs


def _get_logs(n: int | None = None) -> list[tuple[str, str]]:
    """The last ``n`` lines, as one entry of a log: a traceback reads from top to bottom."""
    size_bytes = os.fstat(1).st_size
    text = os.pread(1, TAIL_BYTES, max(0, size_bytes - TAIL_BYTES)).decode(errors="replace")
    return [("INFO", "\n".join(text.splitlines()[-n:] if n else text.splitlines()))]
