"""Departure: what a worker does between being told to end and its exit.

Stock Dask gives a worker 10 s to close and moves nothing away: what only it held is computed
again. Here it first gives everything away, over the RPC that every scheduler has, so that the
scheduler need not know this project. Within the deadline (``tide.departure.timeout``):

1. While the worker takes part in a P2P shuffle it stays at work, for half of the time: when one of
   its workers leaves, a shuffle begins again, with all that it was made of.
2. The worker takes no new task, and hands back those that it has not started.
3. The scheduler copies elsewhere what only this worker holds (``retire_workers``), once at
   the start and again whenever one of the running tasks has finished.
4. When no task is left, it copies the rest and strikes the worker off.
5. The process closes and exits as it would have done without us.

Where nobody can take the results, it asks again until the deadline, since a new worker may
come. At the deadline it leaves all the same, says what is lost with it, and has itself struck
off as *expected*: nothing that was running counts as having killed a worker.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes
from distributed import Nanny, Worker
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.core import FatalCommClosedError, connect
from distributed.core import Status, send_recv
from distributed.protocol import pickle
from distributed.worker import WORKER_ANY_RUNNING
from distributed.worker_state_machine import FreeKeysEvent, RescheduleMsg
from tornado.ioloop import PeriodicCallback

from dask_tide import parking, readiness

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.comm.core import Comm

__all__ = ["Leaver", "depart", "departs", "futures", "shuffles", "turn_away"]

# Below `distributed`, since Dask shows no other logger's INFO.
logger = logging.getLogger("distributed.tide.departure")

#: How often the scheduler is asked what the worker still has to do.
POLL_S = 0.1
#: How often what has been copied already is looked at again: who received it may have left since.
COPY_AGAIN_S = 2.0
#: How long to wait after the scheduler has found nobody to take the results.
RETRY_S = 1.0
#: For what part of the deadline a P2P shuffle is waited for; the rest is for what it leaves here.
SHUFFLE_PART = 0.5
#: How long nobody may listen at the scheduler's address until it counts as gone. A scheduler that
#: is merely busy does not: the kernel accepts the connection in its stead.
REACH_S = 5.0
#: How long a worker may take to start that was told to go meanwhile: one that waits for a scheduler
#: holds nothing.
STARTING_S = 10.0
#: How long the last two requests, and closing the worker, may take after the deadline.
CLOSE_S = 2.0
#: How many keys a message names.
NAMED = 20

#: Name of the callback that a worker has which departs.
_CALLBACK = "tide-departure"

Leaver = Nanny | Worker

#: Workers of this process whose nannies depart.
_announced: weakref.WeakSet[Worker] = weakref.WeakSet()


async def depart(server: Leaver, timeout_s: float) -> None:
    """Drain a worker, then close it and its nanny. A nanny that is parked has nothing to drain.

    Parameters
    ----------
    server
        A nanny, which departs with its worker, or a worker that has none.
    timeout_s
        How long the drain may take; closing comes after it.
    """
    start = time.monotonic()
    readiness.withdraw(server)
    if isinstance(server, Nanny):
        parking.dismiss(server)
        # It learns late that its worker is up, and what runs there may be a second old already.
        while _starts(server) and time.monotonic() < start + min(timeout_s, STARTING_S):  # noqa: ASYNC110 -- it has no event
            await asyncio.sleep(POLL_S)
    # If not, Dask is closing it already, perhaps since the scheduler has gone; or it has not started.
    running = server.status in WORKER_ANY_RUNNING
    if isinstance(server, Nanny):
        # Told so by a worker that is about to end. (A worker's own such status may also mean that it is being
        # drained, and still runs tasks.)
        running = running and server.status != Status.closing_gracefully and _has_worker(server)
        # Else it would start a new worker if this one ended before it.
        server.close_gracefully(reason="SIGTERM")
    if running and server.worker_address:
        await _leave_scheduler(server, server.worker_address, timeout_s)
    if isinstance(server, Nanny):
        await parking.end_worker(server)
        await server.close(timeout=CLOSE_S, reason="SIGTERM")
    else:
        # Its threads are daemons: a task that did not finish in time does not hold up the exit.
        closed = server.close(timeout=CLOSE_S, executor_wait=False, nanny=False, reason="SIGTERM")
        await asyncio.wait_for(closed, 2 * CLOSE_S)


def _starts(nanny: Nanny) -> bool:
    """Whether its worker's process starts, for the first time or again."""
    return nanny.status == Status.init or (
        nanny.process is not None and nanny.process.status == Status.starting
    )


def _has_worker(nanny: Nanny) -> bool:
    """Whether its worker's address is that of a worker: after a restart it is the old one's for a while."""
    return nanny.process is not None and nanny.process.status == Status.running


async def _leave_scheduler(server: Leaver, address: str, timeout_s: float) -> None:
    logger.info("SIGTERM: worker %s leaves, within %g s, and gives away what it has.", address, timeout_s)
    start = time.monotonic()
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            if isinstance(server, Nanny):
                with suppress(OSError):  # the worker has ended: what follows will tell
                    await server.rpc(address).run(function=pickle.dumps(announce))
            await _outlast_shuffles(server, address, start + SHUFFLE_PART * timeout_s)
            await _drain(server, address)
    except OSError as error:  # a TimeoutError is one
        if not deadline.expired():
            logger.warning("Worker %s leaves at once, the scheduler cannot be reached: %s", address, error)
            return
    else:
        logger.info("Worker %s has left after %.1f s; nothing is lost.", address, time.monotonic() - start)
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await _report_lost(server, address, timeout_s)
    except (OSError, KeyError):
        logger.warning(
            "Worker %s leaves after %g s; the scheduler does not say what is lost.", address, timeout_s
        )
    try:
        if isinstance(server, Worker):
            # The scheduler will tell it to close, in the way that waits 30 s for a thread at work.
            server.executors.clear()
        async with asyncio.timeout(CLOSE_S):
            # Expected: what it still runs must not be held responsible for its end. (`close=False` cannot be
            # said: an RPC takes an argument of that name for its own.)
            await server.scheduler.unregister(address=address, expected=True, stimulus_id=_stimulus_id())
    except OSError:
        logger.warning("Worker %s could not tell the scheduler that it leaves.", address)


async def _outlast_shuffles(server: Leaver, address: str, until_s: float) -> None:
    """Return when no P2P shuffle relies on the worker any more, or at that moment."""
    said = False
    while time.monotonic() < until_s and await _shuffles(server, address):
        if not said:
            logger.info("Worker %s waits for a P2P shuffle to end that it takes part in.", address)
            said = True
        await asyncio.sleep(POLL_S)


async def _shuffles(server: Leaver, address: str) -> bool:
    if isinstance(server, Worker):
        return shuffles(server)
    try:
        answer = await server.rpc(address).run(function=pickle.dumps(shuffles))
    except OSError:  # the worker has ended
        return False
    return bool(answer["status"] == "OK" and answer["result"])


def shuffles(dask_worker: Worker) -> bool:
    """Whether a worker takes part in a P2P shuffle that is not over: its outputs are part of it.

    Parameters
    ----------
    dask_worker
        The worker, in whose event loop this must run. The name is what Dask's ``run`` wants.
    """
    plugin: Any = dask_worker.extensions.get("shuffle")
    return bool(plugin is not None and plugin.heartbeat())


async def _drain(server: Leaver, address: str) -> None:
    """Return when the scheduler has struck the empty worker off."""
    if isinstance(server, Worker):
        turn_away(server)
    else:
        with suppress(OSError):  # the worker has ended: the scheduler will know, or say what is lost
            await server.rpc(address).run(function=pickle.dumps(turn_away))
    # One connection for all: it breaks when the scheduler goes. A pool would try for 30 s to make a new one.
    comm = await _connect(server)
    try:
        await _retire(server, comm, address)
    finally:
        comm.abort()


async def _connect(server: Leaver) -> Comm:
    """Connect to the scheduler, however busy it is.

    Raises
    ------
    OSError
        Nobody listens there, or not to us.
    """
    address = server.scheduler.address
    said = False
    while True:
        try:
            comm: Comm = await connect(address, timeout=REACH_S, **server.connection_args)
            return comm
        except FatalCommClosedError:  # a certificate that is not taken, say
            raise
        except OSError:
            # With TLS both sides have to say something first, which a busy one does not.
            if not await _listens(address):
                raise
            if not said:
                logger.info("The scheduler listens and does not answer; it is asked again.")
            said = True


async def _listens(address: str) -> bool:
    try:
        host, port = parse_host_port(parse_address(address)[1])
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, ValueError):
        return False
    writer.transport.abort()
    return True


async def _retire(server: Leaver, comm: Comm, address: str) -> None:
    safe: set[Key] | None = None  # what it had to do when all that it held was last copied
    copied_s = 0.0
    refused = False
    while True:
        # First this: the scheduler logs whoever asks for the tasks of a worker that it does not know.
        if not await send_recv(comm, op="ncores", workers=[address]):
            return  # somebody else has struck it off
        try:
            tasks = set((await send_recv(comm, op="processing", workers=[address]))[address])
        except KeyError:
            return  # in this moment
        if tasks and tasks == safe and time.monotonic() < copied_s + COPY_AGAIN_S:
            await asyncio.sleep(POLL_S)
            continue
        # Only when no task was left *after* the scheduler stopped giving it new ones (the first retirement
        # sees to that) has the scheduler heard of all its results, and may it be struck off.
        done = safe is not None and not tasks
        retired = await send_recv(
            comm,
            op="retire_workers",
            workers=[address],
            remove=done,
            close_workers=False,
            stimulus_id=_stimulus_id(),
        )
        if address in retired:
            if done:
                return
            copied_s = time.monotonic()
            if tasks and tasks != safe:
                logger.info("Worker %s finishes %d tasks first: %s", address, len(tasks), _names(tasks))
            safe = tasks
        else:
            # Dask sets it to the status it had: closing_gracefully, since `turn_away` comes first.
            if not refused:
                logger.warning(
                    "Nobody can take what worker %s holds; asking again until the deadline.", address
                )
            refused = True
            await _copy_beside_actors(server, comm, address)
            await asyncio.sleep(RETRY_S)


async def _copy_beside_actors(server: Leaver, comm: Comm, address: str) -> None:
    """Copy what can be: of a worker that has an actor ``retire_workers`` copies nothing."""
    workers = (await send_recv(comm, op="identity"))["workers"]
    others = [other for other, one in workers.items() if other != address and one["status"] == "running"]
    keys: list[Key] = []
    if isinstance(server, Worker):
        keys = results(server)
    else:
        with suppress(OSError):  # the worker has ended
            answer = await server.rpc(address).run(function=pickle.dumps(results))
            keys = answer["result"] if answer["status"] == "OK" else []
    if keys and others:
        # To one of them; what one of them has already is left alone. A key may have been released since, or
        # all of them have stopped: the next attempt will know.
        with suppress(KeyError, ValueError):
            await send_recv(comm, op="replicate", keys=keys, n=1, workers=others, delete=False)


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
    client = dask_worker._client
    if client is None or client not in Worker._initialized_clients or not client.refcount:
        return []
    gc.collect()  # those that a task has let go may refer to one another
    await asyncio.sleep(0)  # that they have gone is heard in the next round
    wanted = [key for key, state in client.futures.items() if state.status not in ("cancelled", "lost")]
    return [key for key in wanted if key in client.refcount]


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
        callback = PeriodicCallback(partial(_hand_back, dask_worker), POLL_S * 1000)
        # The worker stops it when it closes.
        dask_worker.periodic_callbacks[_CALLBACK] = callback
        callback.start()
        dask_worker.stream_handlers["worker-status-change"] = partial(_heed, dask_worker)
    _hand_back(dask_worker)


def _heed(worker: Worker, status: str, stimulus_id: str) -> None:
    """The scheduler gives a worker another status; one that departs does not go back to work."""
    if status != Status.running.name:
        worker.handle_worker_status_change(status, stimulus_id)


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
    stimulus_id = _stimulus_id()
    worker.handle_stimulus(FreeKeysEvent(keys=keys, stimulus_id=stimulus_id))
    for key in keys:
        worker.batched_send(RescheduleMsg(key=key, stimulus_id=stimulus_id).to_dict())
    logger.info("Worker %s hands back %d tasks: %s", worker.address, len(keys), _names(keys))


async def _report_lost(server: Leaver, address: str, timeout_s: float) -> None:
    scheduler = server.scheduler
    if not await scheduler.ncores(workers=[address]):
        return  # somebody else has struck it off
    tasks = (await scheduler.processing(workers=[address]))[address]
    held = (await scheduler.has_what(workers=[address]))[address]
    holders = await scheduler.who_has(keys=held)
    lost = [key for key in held if set(holders[key]) <= {address}]
    size = sum((await scheduler.nbytes(keys=lost, summary=False)).values())
    logger.warning(
        "Worker %s leaves after %g s. %d results (%s) are lost with it: %s. %d tasks did not finish: %s.",
        address,
        timeout_s,
        len(lost),
        format_bytes(size),
        _names(lost),
        len(tasks),
        _names(tasks),
    )


def _names(keys: Collection[Key]) -> str:
    named = ", ".join(sorted(map(str, keys))[:NAMED])
    return (f"{named} and {len(keys) - NAMED} more" if len(keys) > NAMED else named) or "none"


def _stimulus_id() -> str:
    return f"tide-departure-{time.time()}"
