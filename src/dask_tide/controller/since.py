"""Since: for how long something has been so with workers, as far as their heartbeats tell.

A worker whose task holds the interpreter's lock is silent: what it said last may be long past.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from distributed.scheduler import heartbeat_interval

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

__all__ = ["Since"]

#: So long at least it must have been so; and two heartbeats must have told it.
_CERTAIN_S = 3.0


class _Told(NamedTuple):
    """Since when it has been so, and when that was last told: on our clock, and on the scheduler's."""

    since_s: float
    told_s: float
    last_seen: float


class Since:
    """Since when it has been so, by a worker's address."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def look(self, now_s: float, so: Iterable[WorkerState], workers: int) -> dict[str, float]:
        """For how long it has been so without a break, of those of whom that is certain.

        Parameters
        ----------
        now_s
            The time.
        so
            Those with whom it is so now.
        workers
            How many the scheduler has: of many, heartbeats are rare.
        """
        before, self._told = self._told, {}
        for ws in so:
            told = before.get(ws.address) or _Told(now_s, now_s, ws.last_seen)
            if ws.last_seen != told.last_seen:
                told = _Told(told.since_s, now_s, ws.last_seen)
            self._told[ws.address] = told
        certain_s = max(_CERTAIN_S, 2 * heartbeat_interval(workers))
        lasts_s = {address: told.told_s - told.since_s for address, told in self._told.items()}
        return {address: seconds for address, seconds in lasts_s.items() if seconds > certain_s}
