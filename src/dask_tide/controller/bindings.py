"""Bindings: unfinished tasks that may run on certain workers or hosts only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from distributed.core import Status

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, TaskState, WorkerState

#: Addresses and hosts; any of them will do.
_Where: TypeAlias = "tuple[frozenset[str], frozenset[str]]"
#: What a worker is that may still be given a task.
_STAYING = (Status.init, Status.running, Status.paused)


class Bindings:
    """Who is needed by such tasks, and who runs them. Told of each change by the tally."""

    def __init__(self) -> None:
        self._where: dict[Any, _Where] = {}
        self._runs_on: dict[Any, str] = {}
        #: How many unfinished tasks may run only there.
        self._wanted: Counter[_Where] = Counter()
        #: How many of them each worker has been given, by address.
        self._given: Counter[str] = Counter()

    def add(self, ts: TaskState) -> None:
        """A task is unfinished, and bound."""
        where = frozenset(ts.worker_restrictions or ()), frozenset(ts.host_restrictions or ())
        self._where[ts.key] = where
        self._wanted[where] += 1
        if ts.processing_on is not None:
            self._runs_on[ts.key] = ts.processing_on.address
            self._given[ts.processing_on.address] += 1

    def remove(self, key: Any) -> None:
        """It has finished, or has changed."""
        _less(self._wanted, self._where.pop(key))
        if (address := self._runs_on.pop(key, None)) is not None:
            _less(self._given, address)

    def clear(self) -> None:
        """There are no tasks any more."""
        for counted in (self._where, self._runs_on, self._wanted, self._given):
            counted.clear()

    def taken(self, ws: WorkerState) -> int:
        """How many of its tasks are bound, or need resources; but for seceded ones."""
        return self.given(ws) + sum(ts.key not in self._where for ts in restricted(ws))

    def given(self, ws: WorkerState) -> int:
        """How many bound tasks this worker has been given, but for seceded ones."""
        if not (given := self._given.get(ws.address, 0)):
            return 0
        return given - sum(ts.key in self._where for ts in ws.long_running)

    def needed(self, scheduler: Scheduler) -> dict[str, str]:
        """Idle workers without which such tasks could never run, by address, and why.

        Of several that could run them, all of them idle, one is enough.
        """
        needed: dict[str, str] = {}
        for where, tasks in self._wanted.items():
            able = _staying(scheduler, where)
            if able and not any(ws.processing for ws in able):
                kept = min(able, key=lambda ws: ws.address)
                words = f"{tasks} unfinished task{'' if tasks == 1 else 's'} may run on no other worker"
                if len(able) > 1:
                    words = f"{words} than it and {len(able) - 1} more"
                needed.setdefault(kept.address, words)
        return needed

    def left_behind(self, scheduler: Scheduler, ws: WorkerState) -> int:
        """How many such tasks could never run if this worker went, beside those that it has been given."""
        tasks = 0
        for where, wanted in self._wanted.items():
            addresses, hosts = where
            if ws.address not in addresses and ws.host not in hosts:
                continue
            if all(other is ws for other in _staying(scheduler, where)):
                tasks += wanted - sum(self._where.get(ts.key) == where for ts in ws.processing)
        return tasks


def restricted(ws: WorkerState) -> list[TaskState]:
    """The tasks of this worker that need resources, but for seceded ones."""
    return [ts for ts in ws.processing if ts.resource_restrictions and ts not in ws.long_running]


def _staying(scheduler: Scheduler, where: _Where) -> list[WorkerState]:
    """Those of these workers that may still be given a task."""
    addresses, hosts = where
    able = [ws for address in addresses if (ws := scheduler.workers.get(address)) is not None]
    if hosts:
        able += [ws for ws in scheduler.workers.values() if ws.host in hosts]
    return [ws for ws in able if ws.status in _STAYING]


def _less(counted: Counter[Any], what: Any) -> None:
    counted[what] -= 1
    if not counted[what]:
        del counted[what]
