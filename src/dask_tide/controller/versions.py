"""Versions: workers whose Dask is another one than the scheduler's.

Dask itself says so to the worker alone, whose log goes with it; and such a worker may end at its first task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from distributed.versions import get_versions

from dask_tide.model import Code, Why, owner_of, why

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

__all__ = ["Versions"]

logger = logging.getLogger("distributed.tide.controller")


class Versions:
    """Tells of units with another ``distributed`` than the scheduler, of each version once per pool.

    Parameters
    ----------
    scheduler
        Whose workers.
    tell
        Called with what should be in the journal: pool, unit, reason.
    """

    def __init__(self, scheduler: Scheduler, *, tell: Callable[[str, str, Why], None]) -> None:
        self._scheduler = scheduler
        self._tell = tell
        self._ours = str(get_versions()["packages"]["distributed"])
        #: Workers with another one that have not been told of.
        self._others: list[WorkerState] = []
        self._told: set[tuple[str, str]] = set()

    def look(self, ws: WorkerState) -> None:
        """See what a worker has that has just registered; when it is told, it may have ended."""
        if _version(ws) not in (self._ours, ""):
            self._others.append(ws)

    def tell(self, pool_of: Mapping[str, str]) -> None:
        """Tell of those whose units are known.

        Parameters
        ----------
        pool_of
            All units' pools.
        """
        others, self._others = self._others, []
        for ws in others:
            if unit := owner_of(ws.name, pool_of):
                self._tell_of(pool_of[unit], unit, ws)
            elif ws.address in self._scheduler.workers:  # the platform may show its unit later
                self._others.append(ws)

    def _tell_of(self, pool: str, unit: str, ws: WorkerState) -> None:
        version = _version(ws)
        if (pool, version) in self._told:
            return
        self._told.add((pool, version))
        reason = why(Code.VERSIONS, worker=str(ws.name), version=version, scheduler=self._ours)
        self._tell(pool, unit, reason)
        logger.warning("Pool %s: %s", pool, reason)


def _version(ws: WorkerState) -> str:
    """Of a worker's ``distributed``; empty: it does not say."""
    return str(((ws.versions or {}).get("packages") or {}).get("distributed") or "")
