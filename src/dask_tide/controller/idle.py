"""Idle: whom Dask takes for idle though tasks wait behind others there.

Work stealing takes no task from a worker that counts as idle, which is one with less than half of the usual
work. Dask looks at that when tasks of the worker itself change. Where those run on, and so do those of the
others by which it was judged, it counts as idle for ever: one that has come for what waits there gets
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler


def look_again(scheduler: Scheduler) -> None:
    """Have Dask judge them anew, where somebody else has nothing to do."""
    idle = [*scheduler.idle.values()]
    if any(not ws.processing for ws in idle):
        for ws in idle:
            if len(ws.processing) > ws.nthreads:
                scheduler.check_idle_saturated(ws)
