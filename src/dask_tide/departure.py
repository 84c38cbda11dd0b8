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
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes
from distributed import Nanny, Worker
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.core import FatalCommClosedError, connect
from distributed.core import Status, send_recv
from distributed.protocol import pickle
from distributed.worker import WORKER_ANY_RUNNING

from dask_tide import parking, readiness
from dask_tide.leaving import announce, futures, names, new_stimulus, results, shuffles, turn_away

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.comm.core import Comm

__all__ = ["Leaver", "depart"]

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
#: How long a nanny's worker may take then to say of what tasks have left futures on it.
ANSWER_S = 1.0

Leaver = Nanny | Worker


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
                await _ask(server, address, announce)
            await _outlast_shuffles(server, address, start + SHUFFLE_PART * timeout_s)
            left = await _drain(server, address)
    except OSError as error:  # a TimeoutError is one
        if not deadline.expired():
            logger.warning("Worker %s leaves at once, the scheduler cannot be reached: %s", address, error)
            return
    else:
        took_s = time.monotonic() - start
        if left:
            logger.warning("Worker %s has left after %.1f s. %s", address, took_s, _forgotten(left))
        else:
            logger.info("Worker %s has left after %.1f s; nothing is lost.", address, took_s)
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            there = await _report_lost(server, address, timeout_s)
    except (OSError, KeyError):
        logger.warning(
            "Worker %s leaves after %g s; the scheduler does not say what is lost.", address, timeout_s
        )
    else:
        if there:
            await _report_left(server, address)
    try:
        if isinstance(server, Worker):
            # The scheduler will tell it to close, in the way that waits 30 s for a thread at work.
            server.executors.clear()
        async with asyncio.timeout(CLOSE_S):
            # Expected: what it still runs must not be held responsible for its end. (`close=False` cannot be
            # said: an RPC takes an argument of that name for its own.)
            await server.scheduler.unregister(address=address, expected=True, stimulus_id=new_stimulus())
    except OSError:
        logger.warning("Worker %s could not tell the scheduler that it leaves.", address)


async def _outlast_shuffles(server: Leaver, address: str, until_s: float) -> None:
    """Return when no P2P shuffle relies on the worker any more, or at that moment."""
    said = False
    while time.monotonic() < until_s and await _ask(server, address, shuffles):
        if not said:
            logger.info("Worker %s waits for a P2P shuffle to end that it takes part in.", address)
            said = True
        await asyncio.sleep(POLL_S)


async def _ask(server: Leaver, address: str, function: Callable[[Worker], Any]) -> Any:
    """What a function says that is called with the worker, in its event loop; None: it has ended."""
    if isinstance(server, Worker):
        said = function(server)
        return await said if isinstance(said, Awaitable) else said
    try:
        answer = await server.rpc(address).run(function=pickle.dumps(function))
    except OSError:
        return None
    return answer["result"] if answer["status"] == "OK" else None


async def _drain(server: Leaver, address: str) -> Collection[Key]:
    """Return when the scheduler has struck the empty worker off; of what it had left futures then."""
    # If it has ended, the scheduler will know, or say what is lost.
    await _ask(server, address, turn_away)
    # One connection for all: it breaks when the scheduler goes. A pool would try for 30 s to make a new one.
    comm = await _connect(server)
    try:
        return await _retire(server, comm, address)
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


async def _retire(server: Leaver, comm: Comm, address: str) -> Collection[Key]:
    safe: set[Key] | None = None  # what it had to do when all that it held was last copied
    left: Collection[Key] = ()
    copied_s = 0.0
    refused = False
    while True:
        # First this: the scheduler logs whoever asks for the tasks of a worker that it does not know.
        if not await send_recv(comm, op="ncores", workers=[address]):
            return left  # somebody else has struck it off
        try:
            tasks = set((await send_recv(comm, op="processing", workers=[address]))[address])
        except KeyError:
            return left  # in this moment
        if tasks and tasks == safe and time.monotonic() < copied_s + COPY_AGAIN_S:
            await asyncio.sleep(POLL_S)
            continue
        # Only when no task was left *after* the scheduler stopped giving it new ones (the first retirement
        # sees to that) has the scheduler heard of all its results, and may it be struck off.
        done = safe is not None and not tasks
        if done:
            left = await _ask(server, address, futures) or ()
        retired = await send_recv(
            comm,
            op="retire_workers",
            workers=[address],
            remove=done,
            close_workers=False,
            stimulus_id=new_stimulus(),
        )
        if address in retired:
            if done:
                return left
            copied_s = time.monotonic()
            if tasks and tasks != safe:
                logger.info("Worker %s finishes %d tasks first: %s", address, len(tasks), names(tasks))
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
    keys = await _ask(server, address, results)
    if keys and others:
        # To one of them; what one of them has already is left alone. A key may have been released since, or
        # all of them have stopped: the next attempt will know.
        with suppress(KeyError, ValueError):
            await send_recv(comm, op="replicate", keys=keys, n=1, workers=others, delete=False)


def _forgotten(left: Collection[Key]) -> str:
    return (
        f"Tasks have left futures of {len(left)} results on it; "
        f"what nobody else wants of these is forgotten: {names(left)}."
    )


async def _report_lost(server: Leaver, address: str, timeout_s: float) -> bool:
    """Say what is lost with the worker, if nobody else has struck it off; whether that is so."""
    scheduler = server.scheduler
    if not await scheduler.ncores(workers=[address]):
        return False
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
        names(lost),
        len(tasks),
        names(tasks),
    )
    return True


async def _report_left(server: Leaver, address: str) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            left = await _ask(server, address, futures)
    except TimeoutError:
        logger.warning("Worker %s does not say whether tasks have left futures on it.", address)
    else:
        if left:
            logger.warning("Worker %s: %s", address, _forgotten(left))
