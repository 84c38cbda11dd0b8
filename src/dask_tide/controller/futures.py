"""Futures: what tasks have asked for others, and left futures of, is there as long as their worker is.

A task may submit others, persist a collection or scatter data, and return the futures. They are its worker's
client's. Where that result is copied to another worker they are nobody's, and when the first one leaves, what
they stand for is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.core import rpc
from distributed.protocol import pickle

from dask_tide import leaving
from dask_tide.errors import DrainRefused, words

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

__all__ = ["FuturesLeft", "check"]

#: How the names of such clients begin.
_CLIENT = "Client-worker-"


class FuturesLeft(DrainRefused):
    """Nobody but tasks that have run on a worker has futures of some results.

    Attributes
    ----------
    ws
        The worker.
    """

    def __init__(self, scheduler: Scheduler, ws: WorkerState, keys: list[Any]) -> None:
        which = f"future of {keys[0]}" if len(keys) == 1 else f"{len(keys)} futures ({keys[0]}, …)"
        super().__init__(f"tasks have left the only {which} on worker {ws.name}")
        self.ws = ws
        self._results = [scheduler.tasks.get(key) for key in keys]

    def lasts(self) -> bool:
        """Whether all of them are still wanted, and by nobody else."""
        return all(ts is not None and len(ts.who_wants or ()) == 1 for ts in self._results)


async def check(scheduler: Scheduler, ws: WorkerState) -> None:
    """See that tasks have no futures on this worker. While some run there these may be their own.

    Raises
    ------
    FuturesLeft
        They have, of what nobody else wants.
    DrainRefused
        The worker is there and does not say.
    """
    if not any(client.startswith(_CLIENT) for client in scheduler.clients):
        return
    try:
        # The scheduler may not have heard yet of what such a task has submitted.
        async with rpc(ws.address, connection_args=scheduler.connection_args) as worker:
            answer = await worker.run(function=pickle.dumps(leaving.futures))
    except OSError as error:
        if scheduler.workers.get(ws.address) is not ws:
            return
        raise _unknown(ws, words(error)) from error
    except Exception:  # noqa: BLE001 -- whatever is raised there by reading this: it lacks this project
        return
    if answer["status"] != "OK":
        raise _unknown(ws, answer["exception_text"])
    tasks = ((key, scheduler.tasks.get(key)) for key in answer["result"])
    left = [key for key, ts in tasks if ts is None or len(ts.who_wants or ()) <= 1]
    if left:
        raise FuturesLeft(scheduler, ws, left)


def _unknown(ws: WorkerState, why: str) -> DrainRefused:
    return DrainRefused(f"worker {ws.name} does not say whether tasks have left futures there: {why}")
