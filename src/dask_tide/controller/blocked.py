"""Blocked: workers all of whose threads run what was cancelled.

Python cannot stop a thread: a task that somebody has cancelled runs on, maybe for hours. The scheduler has
forgotten it, takes its thread to be free and sends the next tasks there, where they wait; and work stealing
does not fetch them back, since they seem to be about to start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

__all__ = ["Blocked", "cancelled"]

#: Heartbeats tell, and one may be old.
_CERTAIN_S = 3.0


def cancelled(ws: WorkerState) -> int:
    """Threads that run cancelled tasks, as of the last heartbeat."""
    return int((ws.metrics.get("task_counts") or {}).get("cancelled", 0))


class Blocked:
    """Since when each such worker has been so, with tasks that wait for it."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def units(
        self, now_s: float, workers: Sequence[WorkerState], owners: Sequence[str], boot_s: Mapping[str, float]
    ) -> Iterator[str]:
        """Units that another one would have replaced by now.

        Parameters
        ----------
        now_s
            The time.
        workers
            All of the scheduler's.
        owners
            The unit of each; empty: nobody's.
        boot_s
            By unit, what the start of another one takes.
        """
        stuck = {
            ws.address: unit
            for ws, unit in zip(workers, owners, strict=True)
            if unit and ws.processing and cancelled(ws) >= ws.nthreads
        }
        self._since_s = {address: self._since_s.get(address, now_s) for address in stuck}
        for address, unit in stuck.items():
            if now_s - self._since_s[address] > max(_CERTAIN_S, boot_s.get(unit, 0.0)):
                yield unit
