"""Leaks: paused workers whose memory is full of what is no result.

A worker that is paused starts nothing. Where results fill its memory it goes on when they move or are
forgotten; what a task's library has kept, or has not given back to the system, stays until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dask.config
from distributed.core import Status
from distributed.scheduler import heartbeat_interval

from .clock import now_s
from .ledger import PoolRecord

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

__all__ = ["Leaks"]

#: So long at least it must have been so; and two heartbeats must have told it.
_CERTAIN_S = 3.0
#: Where a worker pauses by default, as a share of its memory limit.
_PAUSE = 0.8
#: States of tasks, on a worker, whose code may be running.
_AT_WORK = ("executing", "long-running", "cancelled", "resumed")


class Leaks:
    """Since when workers that run nothing have been so, as far as heartbeats tell.

    Attributes
    ----------
    full
        Addresses of those that another one would have replaced by now.
    """

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}
        self.full: set[str] = set()

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
        ratio = dask.config.get("distributed.worker.memory.pause", _PAUSE) or _PAUSE
        seen = {
            ws.address: record.boot_s or 0.0
            for ws, record in zip(workers, records, strict=True)
            # A fresh one that is as full as that would be paused, too.
            if record and _leaks(ws) and record.baseline_bytes < ratio * ws.memory_limit
        }
        self._since_s = {address: self._since_s.get(address, now_s) for address in seen}
        certain_s = max(_CERTAIN_S, 2 * heartbeat_interval(len(workers)))
        self.full = {
            address
            for address, boot_s in seen.items()
            if now_s - self._since_s[address] > max(certain_s, boot_s)
        }


def take_back(scheduler: Scheduler, addresses: Iterable[str]) -> None:
    """Have the tasks that wait on these full workers run elsewhere, once somebody comes.

    There may be nobody yet who could fetch them from there; and none of them can have begun.
    """
    waiting = [ts.key for address in addresses for ts in scheduler.workers[address].processing]
    scheduler.transitions(dict.fromkeys(waiting, "released"), f"tide-leaks-{now_s()}")


def _leaks(ws: WorkerState) -> bool:
    """Whether it is paused and runs nothing, with no result in memory: a worker that gets full spills them.

    Their sizes alone would not tell: Dask takes an object that it does not know to have some 50 bytes.
    """
    if ws.status is not Status.paused or ws.executing:
        return False
    counts = ws.metrics.get("task_counts") or {}
    if any(counts.get(state) for state in _AT_WORK):
        return False
    spilled = ws.metrics.get("spilled_bytes") or {}
    return ws.nbytes <= int(spilled.get("memory", 0))
