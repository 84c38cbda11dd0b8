"""Preparing: workers that have registered, and whose plugins are being set up before they can work.

A plugin may install packages or load a model, and Dask counts its worker as running meanwhile: the worker
sends no heartbeat until all of them are done. What that takes is a part of each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

#: Dask's own, which takes no time.
_NO_TIME = frozenset({"shuffle"})


class Preparing:
    """Which units' workers prepare."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: When workers were heard of at first, by address.
        self._first_s: dict[str, float] = {}

    def units(self, owned_by: Sequence[str]) -> set[str]:
        """Those none of whose workers was heard of since it registered, where there is something to set up.

        Parameters
        ----------
        owned_by
            The unit of each of the scheduler's workers, in their order; empty: nobody's.
        """
        if not self._scheduler.worker_plugins.keys() - _NO_TIME:
            return set()
        first_s: dict[str, float] = {}
        silent: set[str] = set()
        heard: set[str] = set()
        for ws, unit in zip(self._scheduler.workers.values(), owned_by, strict=True):
            first_s[ws.address] = self._first_s.get(ws.address, ws.last_seen)
            (heard if ws.has_what or ws.last_seen > first_s[ws.address] else silent).add(unit)
        self._first_s = first_s
        return silent - heard
