"""Parking: what becomes of a worker that is given back where the platform starts again what ends.

A ReplicaSet's pods are restarted whenever they exit, until its scale has been lowered. So a
drained worker must leave the scheduler and its process must not end. It *parks*:

1. The scheduler has the worker's nanny run :func:`park`. From now on the readiness port is closed
   (unready pods are the first that a ReplicaSet gives up), and the nanny starts no worker again.
2. The scheduler strikes the worker off, with all of its results copied elsewhere, and has the
   nanny run :func:`vacate`. (Were that lost, the worker would end at its next heartbeat.)
3. The worker's process ends, which gives its memory back. The nanny's process waits for SIGTERM,
   upon which it exits at once with 0.

:func:`unpark` undoes the first step: the drain was refused. Whoever has it parked must still be
there: a nanny keeps a connection to the scheduler, and is not parked any more once that breaks.
Its process then ends as any worker's does that has lost its scheduler, with the usual code, so
that the platform starts it again and it registers anew.

A worker without a nanny cannot park: it would keep all its memory. Nor can a nanny that does not
load :mod:`dask_tide.preload`, since its process would end. Neither of them does anything but say so.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from distributed import Nanny, Worker
from distributed.comm.core import Comm, connect
from distributed.core import Status

from dask_tide import readiness

__all__ = ["dismiss", "end_worker", "hold", "join", "leave", "park", "parked", "unpark", "vacate"]

# Below `distributed`, since Dask shows no other logger's INFO.
logger = logging.getLogger("distributed.tide.parking")

#: How long connecting to the scheduler may take; it has just told us to.
REACH_S = 5.0
#: How long a worker that has nothing left to do may take to close, before it is killed.
CLOSE_S = 2.0
#: How long the kernel may take to clear away a process that was killed.
KILLED_S = 20.0


@dataclass(eq=False)
class _Berth:
    """A nanny that can park, and whether it does.

    Attributes
    ----------
    order
        Of the last instruction that was followed.
    comm
        While it is parked: a connection to the scheduler, on which nothing is said.
    watch
        Waits for the end of that connection.
    released
        Set while it is not parked.
    turn
        Instructions are followed one after the other.
    dismissed
        Whether the process is about to end, so that there is nothing to park.
    """

    order: int = -1
    comm: Comm | None = None
    watch: asyncio.Task[None] | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    dismissed: bool = False


_berths: WeakKeyDictionary[Nanny, _Berth] = WeakKeyDictionary()


def join(nanny: Nanny) -> None:
    """Let a nanny be parked; only where :func:`hold` will be called when it closes."""
    _berths[nanny] = _Berth()


def leave(nanny: Nanny) -> None:
    """Undo :func:`join`; where it was not done, do nothing."""
    _release(nanny)
    _berths.pop(nanny, None)


def parked(nanny: Nanny) -> bool:
    """Whether a nanny is parked, or will be as soon as its worker has left."""
    berth = _berths.get(nanny)
    return berth is not None and berth.comm is not None


async def park(dask_worker: Nanny | Worker, order: int | None = None) -> None:
    """Have a nanny's process outlive its worker; idempotent. If it has got SIGTERM, do nothing.

    Parameters
    ----------
    dask_worker
        The nanny, in whose event loop this must run. The name is what Dask's ``run`` wants.
    order
        Instructions may overtake one another on their way: one with a lower number than the last
        that was followed is ignored. None: it is the newest.

    Raises
    ------
    RuntimeError
        If it cannot park, or its worker is ending by itself.
    OSError
        If the scheduler cannot be reached.
    """
    nanny, berth = _berth(dask_worker)
    async with berth.turn:
        if _overtaken(berth, order) or not _to_be_parked(nanny, berth):
            return
        comm = await connect(nanny.scheduler.address, timeout=REACH_S, **nanny.connection_args)
        try:
            if not _to_be_parked(nanny, berth):  # SIGTERM has come meanwhile
                comm.abort()
                return
        except RuntimeError:
            comm.abort()
            raise
        berth.comm = comm
        berth.released.clear()
        berth.watch = asyncio.create_task(_watch(nanny, comm), name="tide-parking")
        readiness.withdraw(nanny)

        async def close() -> None:
            await nanny.close(reason="parked")

        async def instantiate() -> Status:
            # Whether the worker has crashed or a client restarts all of them: this one does not come back.
            nanny._ongoing_background_tasks.call_soon(close)
            return Status.closing_gracefully

        # Dask asks for a worker's process in this one place, and has no hook there.
        nanny.instantiate = instantiate  # type: ignore[method-assign]
        logger.info("Worker %s is to be parked.", nanny.worker_address)


async def unpark(dask_worker: Nanny | Worker, order: int | None = None) -> None:
    """Undo :func:`park`; where it was not done, do nothing.

    If its worker has ended meanwhile, the nanny's process ends too, for the platform to start it
    again.

    Parameters
    ----------
    dask_worker, order
        See :func:`park`.
    """
    nanny, berth = _berth(dask_worker)
    async with berth.turn:
        if not _overtaken(berth, order) and _release(nanny):
            readiness.restore(nanny)
            logger.info("Worker %s is not to be parked any more.", nanny.worker_address)


async def vacate(dask_worker: Nanny | Worker) -> None:
    """The worker has left the scheduler: end its process. If its nanny is not parked, do nothing.

    Parameters
    ----------
    dask_worker
        See :func:`park`.
    """
    nanny, _ = _berth(dask_worker)
    if parked(nanny):
        await end_worker(nanny)


async def end_worker(nanny: Nanny) -> None:
    """End the process of a nanny's worker; what its threads do is not waited for."""
    process = nanny.process
    if process is None or process.status in (Status.init, Status.stopped):
        return
    try:
        await process.kill(timeout=CLOSE_S, executor_wait=False, reason="tide")
    except TimeoutError:
        # It was killed then, but older versions give it a fifth of that time to be seen as dead. On a busy
        # machine it takes longer, and their nanny could never be closed any more.
        async with asyncio.timeout(KILLED_S):
            await process.stopped.wait()


async def hold(nanny: Nanny) -> None:
    """When a nanny that is parked closes: end its worker, then return when it is released."""
    berth = _berths.get(nanny)
    if berth is None or berth.comm is None:
        return
    await end_worker(nanny)
    logger.info("Parked: the worker has left the scheduler. This process ends on SIGTERM.")
    await berth.released.wait()
    logger.info("Not parked any more; the process ends.")


def dismiss(nanny: Nanny) -> None:
    """The process is told to end: if it is parked, it is no more, and will not be again."""
    _release(nanny)
    if (berth := _berths.get(nanny)) is not None:
        berth.dismissed = True


def _release(nanny: Nanny) -> bool:
    """Let the process of a parked nanny end when its worker has; whether it was parked."""
    berth = _berths.get(nanny)
    if berth is None or berth.comm is None:
        return False
    assert berth.watch is not None
    berth.watch.cancel()
    berth.comm.abort()
    berth.watch = berth.comm = None
    del nanny.instantiate  # our own; the class has Dask's
    berth.released.set()
    return True


async def _watch(nanny: Nanny, comm: Comm) -> None:
    try:
        await comm.read()
    except OSError:
        # The port stays closed: the worker has lost its scheduler, too.
        logger.warning("The scheduler that had this worker parked has gone.")
        _release(nanny)


def _berth(server: Nanny | Worker) -> tuple[Nanny, _Berth]:
    if not isinstance(server, Nanny):
        raise RuntimeError("a worker without a nanny cannot be parked")
    berth = _berths.get(server)
    if berth is None:
        raise RuntimeError("the nanny does not load dask_tide.preload (--preload-nanny), or has closed")
    return server, berth


def _overtaken(berth: _Berth, order: int | None) -> bool:
    if order is None:
        return False
    if order < berth.order:
        return True
    berth.order = order
    return False


def _to_be_parked(nanny: Nanny, berth: _Berth) -> bool:
    if berth.comm is not None or berth.dismissed:
        return False
    if nanny.status is not Status.running:
        raise RuntimeError(f"the nanny is not running but {nanny.status.name}")
    return True
