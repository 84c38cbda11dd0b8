"""Since: for how long something has been so with workers, as far as their heartbeats tell."""

from __future__ import annotations

from collections.abc import Iterable

from distributed.scheduler import heartbeat_interval

__all__ = ["Since"]

#: So long at least it must have been so; and two heartbeats must have told it.
_CERTAIN_S = 3.0


class Since:
    """Since when it has been so, by a worker's address."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def look(self, now_s: float, addresses: Iterable[str], workers: int) -> dict[str, float]:
        """For how long it has been so without a break, of those of whom that is certain.

        Parameters
        ----------
        now_s
            The time.
        addresses
            Of those with whom it is so now.
        workers
            How many the scheduler has: of many, heartbeats are rare.
        """
        self._since_s = {address: self._since_s.get(address, now_s) for address in addresses}
        certain_s = max(_CERTAIN_S, 2 * heartbeat_interval(workers))
        lasts_s = {address: now_s - since_s for address, since_s in self._since_s.items()}
        return {address: seconds for address, seconds in lasts_s.items() if seconds > certain_s}
