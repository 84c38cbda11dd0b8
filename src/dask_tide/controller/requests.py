"""Requests: what clients have workers do without a task. While one lasts its idle workers stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.comm.core import Comm
    from distributed.scheduler import WorkerState

__all__ = ["Requests"]


class Requests:
    """Those that are under way, and those that may come.

    Parameters
    ----------
    wake
        Called when one has ended.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        #: Of whom something is asked (None: of all), the connection of who asks, and whether to take data.
        self._under_way: list[tuple[Collection[str] | None, Comm | None, bool]] = []
        #: Until when a client may be about to connect to some.
        self._expected_until_s = 0.0

    @contextmanager
    def asked(
        self, workers: Collection[str] | None, comm: Comm | None = None, *, data: bool = False
    ) -> Iterator[None]:
        """Something is asked of these, by name or address (None: of all), by way of ``comm``.

        If it is to take ``data``, these are lost if a worker goes.
        """
        request = workers, comm, data
        self._under_way.append(request)
        try:
            yield
        finally:
            self._under_way.remove(request)
            self._wake()

    def expect(self, until_s: float) -> None:
        """Something may be asked of any, until then."""
        self._expected_until_s = max(self._expected_until_s, until_s)

    def any(self, now_s: float) -> bool:
        """Whether something is asked, or may be."""
        return now_s < self._expected_until_s or bool(self._standing())

    def answering(self, now_s: float, workers: Iterable[WorkerState], *, data: bool = False) -> set[str]:
        """Addresses of those of ``workers`` of whom something is asked, or may be; or only to take data."""
        if not self.any(now_s):
            return set()
        asked = self._standing(data=data)
        everybody = now_s < self._expected_until_s or None in asked
        named = {name for names in asked for name in names or ()}
        return {ws.address for ws in workers if everybody or ws.address in named or ws.name in named}

    def _standing(self, *, data: bool = False) -> list[Collection[str] | None]:
        """Of whom those ask who are still there."""
        return [
            workers
            for workers, comm, of_data in self._under_way
            if (comm is None or not comm.closed()) and (of_data or not data)
        ]
