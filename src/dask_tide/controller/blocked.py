"""Blocked: threads that run what was cancelled, and workers that have no others.

Python cannot stop a thread: a task that somebody has cancelled runs on, maybe for hours. The scheduler has
forgotten it, takes its thread to be free and sends the next tasks there, where they wait; and work stealing
does not fetch them back, since they seem to be about to start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .ledger import PoolRecord
from .since import Since

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

__all__ = ["Blocked"]

#: States of tasks, on a worker, that lack nothing but a thread, or a resource that a thread has.
_WAITING = ("ready", "constrained")


class Blocked:
    """Since when workers with tasks have had such threads, as far as heartbeats tell.

    Attributes
    ----------
    threads
        By a worker's address, how many of its threads that is at the most.
    stuck
        Addresses of those that have no others, and that another one would have replaced by now.
    """

    def __init__(self) -> None:
        self._since = Since()
        self.threads: dict[str, int] = {}
        self.stuck: set[str] = set()

    def look(
        self, now_s: float, workers: Sequence[WorkerState], records: Sequence[PoolRecord | None]
    ) -> None:
        """See how it stands with all of the scheduler's workers.

        Parameters
        ----------
        now_s
            The time.
        workers
            All of the scheduler's.
        records
            What is known of each one's pool; None: it is nobody's.
        """
        seen = {ws.address: threads for ws in workers if ws.processing and (threads := _cancelled(ws))}
        lasts_s = self._since.look(now_s, (ws for ws in workers if ws.address in seen), len(workers))
        self.threads = {address: seen[address] for address in lasts_s}
        if not lasts_s:
            self.stuck = set()
            return
        self.stuck = {
            ws.address
            for ws, record in zip(workers, records, strict=True)
            if record
            and _somebody_waits(ws)
            and self.threads.get(ws.address, 0) >= ws.nthreads
            and lasts_s[ws.address] > (record.boot_s or 0.0)
        }


def _cancelled(ws: WorkerState) -> int:
    """Threads that run cancelled tasks, beside others; heartbeats count transfers and seceded ones, too."""
    if len(ws.processing) <= len(ws.long_running):
        return 0
    counts = ws.metrics.get("task_counts") or {}
    return max(0, min(int(counts.get("cancelled", 0)), ws.nthreads - int(counts.get("executing", 0))))


def _somebody_waits(ws: WorkerState) -> bool:
    """Whether a task waits there for a thread: where one was free, it would have started."""
    counts = ws.metrics.get("task_counts") or {}
    return any(counts.get(state) for state in _WAITING)
