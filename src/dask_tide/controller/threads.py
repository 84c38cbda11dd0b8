"""Threads: a slow disk must hold up neither the scheduler nor its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: How long who closes waits for a disk.
_FINISH_S = 5.0


async def aside(function: Callable[..., None], *arguments: object) -> None:
    """Call a function that raises nothing in a thread; where there are none (the interpreter ends), here."""
    try:
        await asyncio.to_thread(function, *arguments)
    except RuntimeError:
        function(*arguments)


async def finished(task: asyncio.Task[None] | None) -> bool:
    """Wait for a task, but not for ever; whether it has ended. What it raises is not raised here."""
    return task is None or task in (await asyncio.wait([task], timeout=_FINISH_S))[0]
