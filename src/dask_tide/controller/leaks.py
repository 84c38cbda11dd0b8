"""Leaks: paused workers whose memory is full of what is no result.

A worker that is paused starts nothing. Where results fill its memory it goes on when they move or are
forgotten; what a task's library has kept, or has not given back to the system, stays until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dask.config
from distributed.core import Status

from .clock import now_s
from .ledger import PoolRecord
from .since import Since

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

__all__ = ["Leaks"]

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
        self._since = Since()
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
        lasts_s = self._since.look(now_s, (ws for ws in workers if ws.address in seen), len(workers))
        self.full = {address for address, seconds in lasts_s.items() if seconds > seen[address]}


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
