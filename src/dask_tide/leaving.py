"""Leaving: what a worker that is about to go does, and is asked, in its own event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.core import Status
from distributed.worker import WORKER_ANY_RUNNING
from distributed.worker_state_machine import AddKeysMsg, FreeKeysEvent, RescheduleMsg
from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Client

__all__ = ["announce", "departs", "futures", "names", "new_stimulus", "results", "shuffles", "turn_away"]

# Below `distributed`, since Dask shows no other logger's INFO.
logger = logging.getLogger("distributed.tide.departure")

#: How often new tasks are handed back.
_PAUSE_S = 0.1
#: How many keys a message names.
_NAMED = 20

#: Name of the callback that a worker has which departs.
_CALLBACK = "tide-departure"

#: How the stimuli of Dask's active memory manager begin.
_SURPLUS = "active_memory_manager-"

#: Workers of this process whose nannies depart.
_announced: weakref.WeakSet[Worker] = weakref.WeakSet()


def shuffles(dask_worker: Worker) -> bool:
    """Whether a worker takes part in a P2P shuffle that is not over: its outputs are part of it.

    Parameters
    ----------
    dask_worker
        The worker, in whose event loop this must run. The name is what Dask's ``run`` wants.
    """
    plugin: Any = dask_worker.extensions.get("shuffle")
    return bool(plugin is not None and plugin.heartbeat())


def results(dask_worker: Worker) -> list[Key]:
    """Keys of what a worker holds, without its actors."""
    return list(dask_worker.data)


async def futures(dask_worker: Worker) -> list[Key]:
    """Keys of what tasks of a worker have asked for, and somebody there still has a future of.

    Parameters
    ----------
    dask_worker
        The worker, in whose event loop this must run. The name is what Dask's ``run`` wants.
    """
    client = _client(dask_worker)
    if client is None:
        return []
    if not dask_worker.state.executing and not dask_worker.state.long_running:
        gc.collect()  # those that a task has let go may refer to one another
    await asyncio.sleep(0)  # that they have gone is heard in the next round
    known = list(client.futures.items())  # at once: tasks ask for more in their threads
    wanted = [key for key, state in known if state.status not in ("cancelled", "lost")]
    return [key for key in wanted if key in client.refcount]


def _client(worker: Worker) -> Client | None:
    """That of its tasks, if they have asked for others and somebody here still has futures of these."""
    client = worker._client
    if client is None or client not in Worker._initialized_clients or not client.refcount:
        return None
    return client


def turn_away(dask_worker: Worker) -> None:
    """Let a worker take no new task and hand back those that it has not started.

    It goes on doing so: tasks may be on their way, and a scheduler that could not retire a
    worker may set it to running again.

    Parameters
    ----------
    dask_worker
        The worker, in whose event loop this must run. The name is what Dask's ``run`` wants.
    """
    if _CALLBACK not in dask_worker.periodic_callbacks:
        callback = PeriodicCallback(partial(_hand_back, dask_worker), _PAUSE_S * 1000)
        # The worker stops it when it closes.
        dask_worker.periodic_callbacks[_CALLBACK] = callback
        callback.start()
        handlers = dask_worker.stream_handlers
        handlers["worker-status-change"] = partial(_heed, dask_worker)
        handlers["remove-replicas"] = partial(_keep_surplus, dask_worker, handlers["remove-replicas"])
    _hand_back(dask_worker)


def _heed(worker: Worker, status: str, stimulus_id: str) -> None:
    """The scheduler gives a worker another status; one that departs does not go back to work."""
    if status != Status.running.name:
        worker.handle_worker_status_change(status, stimulus_id)


def _keep_surplus(
    worker: Worker, remove: Callable[..., Any], keys: Collection[Key], stimulus_id: str
) -> None:
    """The scheduler has results removed; surplus ones stay where tasks have left futures.

    These may be in them and would go with them: at the end nobody would know that they have been left.
    """
    if not stimulus_id.startswith(_SURPLUS) or _client(worker) is None:
        remove(keys=keys, stimulus_id=stimulus_id)
    elif kept := [key for key in keys if key in worker.data]:
        # So says a worker that refuses. It is another stimulus, since the scheduler repeats it when it
        # wants none of them at all.
        worker.batched_send(AddKeysMsg(keys=kept, stimulus_id=new_stimulus()).to_dict())


def announce(dask_worker: Worker) -> None:
    """Let a worker know that its nanny departs with it; it goes on working until :func:`turn_away`."""
    _announced.add(dask_worker)


def departs(worker: Worker) -> bool:
    """Whether it has begun to depart, or its nanny has."""
    return worker in _announced or _CALLBACK in worker.periodic_callbacks


def _hand_back(worker: Worker) -> None:
    if worker.status not in WORKER_ANY_RUNNING:
        return
    if worker.status != Status.closing_gracefully:
        # Tells the scheduler, and starts none of the tasks that are ready.
        worker.status = Status.closing_gracefully
    state = worker.state
    keys = [ts.key for tasks in (state.waiting, state.ready, state.constrained) for ts in tasks]
    if not keys:
        return
    # First forget them, then say so, as a task does that raises Reschedule: the scheduler's _reschedule
    # relies on never hearing of them again. Both in one turn of the loop: none can start in between.
    stimulus = new_stimulus()
    worker.handle_stimulus(FreeKeysEvent(keys=keys, stimulus_id=stimulus))
    for key in keys:
        worker.batched_send(RescheduleMsg(key=key, stimulus_id=stimulus).to_dict())
    logger.info("Worker %s hands back %d tasks: %s", worker.address, len(keys), names(keys))


def names(keys: Collection[Key]) -> str:
    """As they are told: the first ones, and how many more."""
    named = ", ".join(sorted(map(str, keys))[:_NAMED])
    return (f"{named} and {len(keys) - _NAMED} more" if len(keys) > _NAMED else named) or "none"


def new_stimulus() -> str:
    """Under which the scheduler and the worker remember what is done now."""
    return f"tide-departure-{time.time()}"
