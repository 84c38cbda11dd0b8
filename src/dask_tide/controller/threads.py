"""Threads: a slow disk must hold up neither the scheduler nor its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

#: How long who closes waits for a disk.
_FINISH_S = 5.0


async def aside(function: Callable[..., None], *arguments: object) -> None:
    """Call a function that raises nothing in a thread; where there are none (the interpreter ends), here."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        function(*arguments)
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(done.set)

    try:
        # None of asyncio's: at its end, and at the interpreter's, these are waited for without end.
        threading.Thread(target=run, name="tide-disk", daemon=True).start()
    except RuntimeError:
        function(*arguments)
    else:
        await done.wait()


async def finished(task: asyncio.Task[None] | None) -> bool:
    """Wait for a task, but not for ever; whether it has ended. What it raises is not raised here."""
    return task is None or task in (await asyncio.wait([task], timeout=_FINISH_S))[0]
