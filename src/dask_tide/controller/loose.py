"""Loose: tasks that would rather run on certain workers, and are forgotten where those never come.

A task with ``allow_other_workers=True`` that becomes ready while nobody runs waits for a worker, as all do.
When one comes, Dask gives it the tasks that it is a valid worker of, which for these it is not.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from .clock import now_s

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

__all__ = ["Loose"]


class Loose:
    """Gives such tasks to whoever runs.

    Parameters
    ----------
    scheduler
        Whose tasks.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: When the newest task was put aside that was looked at, on the scheduler's clock for that.
        self._looked_s = 0.0

    def look(self) -> None:
        """See to those that were put aside before somebody ran; each is looked at once."""
        scheduler = self._scheduler
        if not scheduler.running or not scheduler.unrunnable:
            return
        loose, newest_s = [], self._looked_s
        for ts in reversed(scheduler.unrunnable):  # the newest comes first
            since_s = scheduler.unrunnable[ts]
            if since_s < self._looked_s:
                break
            newest_s = max(newest_s, since_s)
            if ts.loose_restrictions and not (ts.resource_restrictions and scheduler.valid_workers(ts)):
                loose.append(ts)
        self._looked_s = newest_s
        # Recommendations are processed last in, first out.
        loose.sort(key=attrgetter("priority"), reverse=True)
        for ts in loose:
            if ts.resource_restrictions:
                # With those Dask would forget what it needs as well, and take anybody.
                ts.worker_restrictions = ts.host_restrictions = None
                ts.loose_restrictions = False
        if loose:
            scheduler.transitions({ts.key: "processing" for ts in loose}, f"tide-loose-{now_s()}")
