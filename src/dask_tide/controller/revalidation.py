"""Revalidation: whether what was decided still holds when it is about to be done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dask_tide.model import Code, Phase, Release, Snapshot, Why, why

from . import observe

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler


def veto(scheduler: Scheduler, workers: Iterable[tuple[str, str]], *, busy: bool) -> Why | None:
    """Why these workers cannot be drained after all; None: they can.

    Parameters
    ----------
    scheduler
        Whose workers.
    workers
        Their names and addresses, as they were when that was decided.
    busy
        Whether they go even if they have tasks.
    """
    for name, address in workers:
        ws = scheduler.workers.get(address)
        if ws is None:
            return why(Code.LEFT)
        if str(ws.name) != name:
            return why(Code.NEW_ADDRESS)
        if ws.processing and not busy:
            return why(Code.BECAME_BUSY, tasks=len(ws.processing))
    return None


def releasable(scheduler: Scheduler, release: Release, snapshot: Snapshot) -> list[str]:
    """The units of ``release`` that may still go undrained: no worker of theirs has registered meanwhile.

    One that has may have been given a task.
    """
    registered = set(observe.owners(scheduler, {unit.name for unit in snapshot.units}))
    # The scheduler may not know for minutes that the worker of one that has failed is gone.
    registered -= {unit.name for unit in snapshot.units if unit.phase is Phase.FAILED}
    return [unit for unit in release.units if unit not in registered]
