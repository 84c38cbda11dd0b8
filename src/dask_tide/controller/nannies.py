"""Nannies: have those of drained workers park, where the platform would start a worker again that ends.

What they do then is :mod:`dask_tide.parking`'s, in their own processes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from distributed.protocol import pickle

from dask_tide import parking
from dask_tide.errors import DrainRefused, words

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

__all__ = ["Nannies"]

logger = logging.getLogger("distributed.tide.drain")

#: How long a nanny may take to answer. No task keeps it busy: it is a process of its own.
_ANSWER_S = 10.0
#: How long to wait before one that has not answered is asked again.
_ASK_AGAIN_S = 1.0


class Nannies:
    """The nannies of a scheduler's workers, as far as they are parked."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: Workers whose nannies may have been told to park.
        self._parked: set[WorkerState] = set()
        self._unparking: dict[WorkerState, asyncio.Task[None]] = {}
        self._vacating: set[asyncio.Task[None]] = set()
        self._orders = itertools.count()

    async def park(self, ws: WorkerState) -> None:
        """Have the worker's nanny wait for the platform to end it, when the worker has left.

        Raises
        ------
        DrainRefused
            It cannot, and the worker is still there.
        """
        if not self._here(ws):
            return
        if (unparking := self._unparking.pop(ws, None)) is not None:
            unparking.cancel()
        if not ws.nanny:
            raise DrainRefused(f"worker {ws.name} has no nanny, and cannot park without")
        self._parked.add(ws)
        try:
            await self._tell(ws, parking.park)
        except (OSError, RuntimeError) as error:
            # Dead, stopped, without this project or with an older version of it. Were the worker to leave
            # now, the platform would start it again.
            if self._here(ws):
                raise DrainRefused(f"worker {ws.name} cannot park: {words(error)}") from error

    def vacate(self, ws: WorkerState) -> bool:
        """End the process of a worker that has left, if its nanny is parked; whether that is so."""
        if ws not in self._parked:
            return False
        self._parked.discard(ws)
        # Not waited for: it has left the scheduler, and would notice so with its next heartbeat.
        task = asyncio.create_task(self._vacate(ws), name=f"tide-vacate-{ws.address}")
        self._vacating.add(task)
        task.add_done_callback(self._vacating.discard)
        return True

    def unpark(self, workers: Iterable[WorkerState]) -> None:
        """Undo :meth:`park` of those that are still there."""
        for ws in self._parked.intersection(workers):
            self._parked.discard(ws)
            if self._here(ws):
                task = asyncio.create_task(self._unpark(ws), name=f"tide-unpark-{ws.address}")
                self._unparking[ws] = task
                task.add_done_callback(partial(self._unparked, ws))

    async def close(self) -> None:
        """Wait for what is being said; not for long."""
        if told := {*self._unparking.values(), *self._vacating}:
            _, late = await asyncio.wait(told, timeout=_ANSWER_S)
            for task in late:
                task.cancel()

    async def _vacate(self, ws: WorkerState) -> None:
        try:
            await self._tell(ws, parking.vacate, ordered=False)
        except (OSError, RuntimeError) as error:
            logger.info("The nanny of worker %s does not answer: %s", ws.name, error)

    async def _unpark(self, ws: WorkerState) -> None:
        # For as long as it takes: it is at work, and must not look as if it were not.
        while self._here(ws):
            try:
                await self._tell(ws, parking.unpark)
            except OSError as error:
                logger.warning("The nanny of worker %s does not answer: %s", ws.name, error)
                await asyncio.sleep(_ASK_AGAIN_S)
            except RuntimeError:
                return  # it could not be parked either
            else:
                return

    def _unparked(self, ws: WorkerState, task: asyncio.Task[None]) -> None:
        if self._unparking.get(ws) is task:
            del self._unparking[ws]

    async def _tell(
        self, ws: WorkerState, function: Callable[..., Awaitable[None]], *, ordered: bool = True
    ) -> None:
        """Run one of parking's functions in a worker's nanny.

        Raises
        ------
        OSError
            If it does not answer.
        RuntimeError
            If it cannot do it.
        """
        kwargs = {"order": next(self._orders)} if ordered else {}
        request = {"function": pickle.dumps(function), "kwargs": pickle.dumps(kwargs)}
        try:
            async with asyncio.timeout(_ANSWER_S):
                answer = await self._scheduler.rpc(ws.nanny).run(**request)
        except OSError:
            raise
        except Exception as error:
            # Whatever was raised there is raised here: no module of that name, for instance.
            raise RuntimeError(str(error)) from error
        if answer["status"] != "OK":
            raise RuntimeError(answer["exception_text"])

    def _here(self, ws: WorkerState) -> bool:
        return self._scheduler.workers.get(ws.address) is ws
