"""Turned away: workers that register when their unit has been given back already.

Between "stop" and its end a unit that was starting may get as far as registering. The scheduler would give it
tasks at once, and their results would have to find another worker before it is gone; there may be none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from distributed.core import Status

from .drain import set_status

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

_OP = "worker-status-change"


class TurnedAway:
    """Keeps tasks from them.

    A worker tells the scheduler that it runs when it has registered, which would overrule what was decided
    meanwhile, and Dask has no hook for that: so its handler is called by way of ours.

    Parameters
    ----------
    scheduler
        Whose workers.
    is_going
        Whether a worker, by its name, belongs to a unit that was given back or is being stopped.
    """

    def __init__(self, scheduler: Scheduler, is_going: Callable[[str], bool]) -> None:
        self._scheduler = scheduler
        self._is_going = is_going
        self._addresses: set[str] = set()
        self._handle: Callable[..., None] = scheduler.handle_worker_status_change

    def start(self) -> None:
        """Heed what workers say."""
        self._handle = self._scheduler.stream_handlers[_OP]
        self._scheduler.stream_handlers[_OP] = self._heed

    def stop(self) -> None:
        """Undo :meth:`start`."""
        if self._scheduler.stream_handlers.get(_OP) == self._heed:
            self._scheduler.stream_handlers[_OP] = self._handle

    def look(self, ws: WorkerState) -> None:
        """Look at one that registers just now."""
        if self._is_going(str(ws.name)):
            self._addresses.add(ws.address)
            set_status(self._scheduler, ws, Status.closing_gracefully, f"tide-turned-away-{ws.address}")

    def look_again(self) -> None:
        """Put those back to work whose unit stays after all."""
        for address in list(self._addresses):
            ws = self._scheduler.workers.get(address)
            if ws is None or not self._is_going(str(ws.name)):
                self._addresses.remove(address)
                if ws is not None:
                    set_status(self._scheduler, ws, Status.running, f"tide-stays-{address}")

    def _heed(self, status: str, worker: str, stimulus_id: str) -> None:
        """A worker says what it does."""
        if worker in self._addresses and status == Status.running.name:
            return  # it has not read yet what it was told
        self._handle(status=status, worker=worker, stimulus_id=stimulus_id)
