"""Closing: the preload that lets a worker end in peace.

A drained worker is closed by the scheduler and at about the same time told to stop by the provider. SIGTERM
makes ``dask worker`` cancel the close that is under way, whereupon it waits for ever for what
it has cancelled. From the teardown on, the process is about to end, and SIGTERM has nothing to add.
"""

from __future__ import annotations

import signal

__all__ = ["dask_teardown"]


def dask_teardown(worker: object) -> None:  # noqa: ARG001
    """Ignore SIGTERM from now on; Dask calls it when the worker starts to close."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
