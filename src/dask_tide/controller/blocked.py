"""Blocked: threads that run what was cancelled, and workers that have no others.

Python cannot stop a thread: a task that somebody has cancelled runs on, maybe for hours. The scheduler has
forgotten it, takes its thread to be free and sends the next tasks there, where they wait; and work stealing
does not fetch them back, since they seem to be about to start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from distributed.scheduler import heartbeat_interval

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

__all__ = ["Blocked"]

#: So long at least it must have been so; and two heartbeats must have told it.
_CERTAIN_S = 3.0


class Blocked:
    """Since when workers with tasks have had such threads, as far as heartbeats tell.

    Attributes
    ----------
    threads
        By a worker's address, how many of its threads run what was cancelled, while others wait there.
    """

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}
        self.threads: dict[str, int] = {}

    def look(self, now_s: float, workers: Sequence[WorkerState]) -> None:
        """See how it stands with all of the scheduler's workers."""
        seen = {ws.address: threads for ws in workers if ws.processing and (threads := _cancelled(ws))}
        self._since_s = {address: self._since_s.get(address, now_s) for address in seen}
        certain_s = max(_CERTAIN_S, 2 * heartbeat_interval(len(workers)))
        self.threads = {
            address: threads
            for address, threads in seen.items()
            if now_s - self._since_s[address] > certain_s
        }

    def units(
        self, now_s: float, workers: Sequence[WorkerState], owners: Sequence[str], boot_s: Mapping[str, float]
    ) -> Iterator[str]:
        """Units with a worker that has no other threads, which another one would have replaced by now.

        Parameters
        ----------
        now_s
            The time.
        workers
            All of the scheduler's, as in :meth:`look`.
        owners
            The unit of each; empty: nobody's.
        boot_s
            By unit, what the start of another one takes.
        """
        for ws, unit in zip(workers, owners, strict=True):
            stuck = unit and self.threads.get(ws.address, 0) >= ws.nthreads
            if stuck and now_s - self._since_s[ws.address] > boot_s.get(unit, 0.0):
                yield unit


def _cancelled(ws: WorkerState) -> int:
    """Threads that run cancelled tasks; the last heartbeat counts transfers and seceded tasks, too."""
    counts = ws.metrics.get("task_counts") or {}
    return max(0, min(int(counts.get("cancelled", 0)), ws.nthreads - int(counts.get("executing", 0))))
