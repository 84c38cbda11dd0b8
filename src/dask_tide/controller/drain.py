"""Drain: empty a worker without losing a result or running a task twice.

Four steps, each of which is needed (``retire_workers`` alone restarts running tasks or leaves
waiting ones where they are):

1. no new tasks: the worker becomes ``closing_gracefully``, its results are copied away, to workers
   that have room for them (:mod:`.copies`);
2. tasks it was given and has not started are moved to other workers, as work stealing does;
3. its running tasks are waited for;
4. what those returned is copied away, and the worker leaves. Where the platform would start it
   again, its nanny has been told before to park (:mod:`dask_tide.parking`).

A drain belongs to a worker's name *and* address: ``client.restart`` keeps the one and changes
the other. It ends done, refused or timed out; in the latter two cases the worker is put back to
work explicitly, on the scheduler's side and on its own (a refused ``retire_workers`` would
restore the status ``closing_gracefully`` and strand it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from distributed.active_memory_manager import RetireWorker
from distributed.core import Status
from distributed.stealing import WorkStealing

from dask_tide.errors import DrainRefused
from dask_tide.model import Code, Why, why

from .clock import now_s
from .copies import Copies, NotFetched
from .futures import FuturesLeft
from .futures import check as check_futures
from .nannies import Nannies

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, TaskState, WorkerState

T = TypeVar("T")

logger = logging.getLogger("distributed.tide.drain")

#: How often a drain looks whether the worker's tasks are done, asks again for those that wait, and copies
#: what the worker has got meanwhile.
_LOOK_S = 0.05
_ASK_AGAIN_S = 1.0
_COPY_AGAIN_S = 2.0
#: A task that nobody else may run and that no heartbeat has reported as running for so long waits: it would
#: do so until the drain times out, as a worker that is being drained starts nothing. Longer than the time
#: between two heartbeats, which is 6 s for 1,000 workers.
_STUCK_S = 10.0


@dataclass(frozen=True)
class DrainEnd:
    """How the drain of a unit ended; if it was ``blocked``, its process has threads that do not end."""

    unit: str
    pool: str
    done: bool
    why: Why
    blocked: bool = False


class Drains:
    """The drains under way.

    Parameters
    ----------
    scheduler
        Whose workers.
    fill_ratio
        Results go to workers that are not fuller than this share of their memory limit then, if they can.
    timeout_s
        How long a drain may take.
    close_workers
        Whether a drained worker is told to close; else it parks, since a platform would restart it.
    wake
        Called when a drain has ended.
    avoided
        See :class:`.copies.Copies`. Those go whatever it costs.
    left_behind
        How many tasks could never run if a worker went, beside those that it has been given.
    blocked
        Addresses of workers with threads that run what was cancelled.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        fill_ratio: float,
        timeout_s: float,
        close_workers: bool,
        wake: Callable[[], None],
        avoided: Callable[[], Container[str]] = tuple,
        left_behind: Callable[[WorkerState], int] = lambda _: 0,
        blocked: Callable[[], Container[str]] = tuple,
    ) -> None:
        self._scheduler = scheduler
        self._avoided = avoided
        self._left_behind = left_behind
        self._has_blocked = blocked
        self._copies = Copies(scheduler, fill_ratio, avoided)
        self.timeout_s = timeout_s
        self._close_workers = close_workers
        self._wake = wake
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: list[DrainEnd] = []
        #: By unit, the refusals that :meth:`standing` is about.
        self._standing: dict[str, tuple[NotFetched | FuturesLeft, str]] = {}
        self._nannies = Nannies(scheduler)
        #: Workers whose threads do not end, and those that were paused before.
        self._blocked: set[WorkerState] = set()
        self._paused: set[WorkerState] = set()

    @property
    def units(self) -> set[str]:
        """Names of the units that are being drained."""
        return set(self._tasks)

    def start(
        self, pool: str, unit: str, workers: Sequence[tuple[str, str]], *, blocked: bool = False
    ) -> None:
        """Start to drain ``unit``; its workers get no new tasks from this moment on.

        Parameters
        ----------
        pool, unit
            Names.
        workers
            Its workers' names and addresses.
        blocked
            Whether their threads run what was cancelled: tasks that wait there and that nobody else can take
            are taken back, for whoever comes next.
        """
        stimulus_id = f"tide-drain-{unit}-{now_s()}"
        states = []
        for _, address in workers:
            ws = self._scheduler.workers[address]
            if ws.status is Status.paused:
                self._paused.add(ws)
            set_status(self._scheduler, ws, Status.closing_gracefully, stimulus_id)
            states.append(ws)
        if blocked:
            self._blocked.update(states)
        task = asyncio.create_task(self._drain(pool, unit, states), name=stimulus_id)
        self._tasks[unit] = task
        task.add_done_callback(lambda task: self._forget(pool, unit, states, task))

    def take_ended(self) -> list[DrainEnd]:
        """The drains that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def standing(self) -> dict[str, str]:
        """Units whose drain would be refused again, and why: they still have all that keeps them.

        If something of it has gone, that may have been what was at fault.
        """
        self._standing = {
            unit: (error, reason)
            for unit, (error, reason) in self._standing.items()
            if self._here(error.ws) and error.lasts()
        }
        return {unit: reason for unit, (_, reason) in self._standing.items()}

    async def close(self) -> None:
        """Stop all drains where they are; the workers go back to work."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._nannies.close()

    def _forget(self, pool: str, unit: str, workers: Sequence[WorkerState], task: asyncio.Task[None]) -> None:
        del self._tasks[unit]
        # Not in `_drain`: one that is cancelled before it has begun runs none of its code.
        if task.cancelled():
            self._back_to_work(workers)
        elif (error := task.exception()) is not None:
            logger.error("The drain of unit %s failed", unit, exc_info=error)
            self._back_to_work(workers)
            self._end(unit, pool, False, why(Code.DRAIN_REFUSED, message=repr(error)))
        self._blocked.difference_update(workers)
        self._paused.difference_update(workers)
        self._wake()

    async def _drain(self, pool: str, unit: str, workers: Sequence[WorkerState]) -> None:
        started_s = now_s()
        try:
            async with asyncio.timeout(self.timeout_s):
                await _all_or_none(map(self._empty, workers))
                # All of them, before the first one leaves: it could not come back.
                if not self._close_workers:
                    await _all(map(self._nannies.park, workers))
                if len(workers) > 1:
                    await _all(map(self._make_sure, workers))
                left = await _all(map(self._leave, workers))
        except TimeoutError:
            tasks, keys = sum(len(ws.processing) for ws in workers), sum(len(ws.has_what) for ws in workers)
            reason = why(Code.DRAIN_TIMED_OUT, limit_s=self.timeout_s, tasks=tasks, keys=keys)
            self._back_to_work(workers)
            self._end(unit, pool, False, reason)
        except DrainRefused as error:
            self._back_to_work(workers)
            reason = why(Code.DRAIN_REFUSED, message=str(error))
            self._end(unit, pool, False, reason)
            if isinstance(error, NotFetched | FuturesLeft):
                self._standing[unit] = error, str(reason)
            if isinstance(error, NotFetched):
                self._bring_back(error)
        else:
            # Of one that has ended by itself its nanny may have started the next already.
            reason = why(Code.DRAIN_DONE, took_s=now_s() - started_s) if all(left) else why(Code.LEFT)
            blocked = not self._blocked.isdisjoint(workers)
            self._end(unit, pool, all(left), reason, blocked=blocked)

    def _end(self, unit: str, pool: str, done: bool, reason: Why, *, blocked: bool = False) -> None:
        self._ended.append(DrainEnd(unit, pool, done, reason, blocked))
        (logger.info if done else logger.warning)("Unit %s: %s", unit, reason)

    async def _empty(self, ws: WorkerState) -> None:
        """Steps 1 to 3; returns when nothing runs on the worker any more."""
        copied, began_s, tasks = asyncio.ensure_future(self._copy(ws)), now_s(), len(ws.processing)
        asked_s: dict[TaskState, float] = {}
        stuck_s: dict[TaskState, float] = {}
        try:
            # Tasks that wait here are needed elsewhere now, not once all results are copied.
            while self._here(ws):
                if ws.address in shuffling(self._scheduler):
                    # A shuffle that has begun meanwhile: its outputs are bound to this worker, and wait
                    # for it as long as it drains.
                    raise DrainRefused(f"a P2P shuffle relies on worker {ws.name}")
                self._check_bound(ws)
                if ws in self._blocked and ws.processing and ws.address not in self._has_blocked():
                    raise DrainRefused(f"worker {ws.name} has free threads again")
                if copied.done():
                    all_copied = (
                        await copied
                    )  # refused: its tasks need not end first for it to be back at work
                    if all_copied and not tasks and not ws.processing:
                        return
                    if len(ws.processing) < tasks or now_s() - began_s > _COPY_AGAIN_S:
                        # What has ended since, and what another one had that leaves now.
                        copied, began_s = asyncio.ensure_future(self._copy(ws)), now_s()
                        tasks = len(ws.processing)
                self._hand_over(ws, asked_s, stuck_s)
                await (asyncio.sleep(_LOOK_S) if copied.done() else asyncio.wait({copied}, timeout=_LOOK_S))
        finally:
            copied.cancel()

    def _check_bound(self, ws: WorkerState) -> None:
        """Refuse where tasks have come meanwhile that may run nowhere else, and would wait for ever."""
        if not self._here(ws) or ws.address in self._avoided():
            return
        if tasks := self._left_behind(ws):
            raise DrainRefused(
                f"{tasks} unfinished task{'' if tasks == 1 else 's'} may run on worker {ws.name} only"
            )

    async def _check_futures(self, ws: WorkerState) -> None:
        """Refuse where tasks have futures; not if they do not end, or it goes whatever it costs."""
        if self._here(ws) and ws not in self._blocked and ws.address not in self._avoided():
            await check_futures(self._scheduler, ws)

    async def _make_sure(self, ws: WorkerState) -> None:
        """Nothing keeps it any more."""
        if not await self._copy(ws):
            raise DrainRefused(f"worker {ws.name} has tasks again, which have futures")
        self._check_bound(ws)

    async def _leave(self, ws: WorkerState) -> bool:
        """Step 4; whether it has left by that, or ended before and will not be started again."""
        await self._make_sure(ws)
        retired = await self._retire(ws)
        return self._nannies.vacate(ws) or retired

    async def _copy(self, ws: WorkerState) -> bool:
        """Copy away what it holds; False: not as long as its tasks have futures, or it does not say.

        They may have left them in a result. What is copied is removed here, and what was in it, too.
        """
        results = set(ws.has_what)  # not what comes after the check
        try:
            await self._check_futures(ws)
        except DrainRefused:
            if ws.processing:
                return False
            raise
        if self._here(ws) and not await self._copies.away(ws, results) and self._here(ws):
            raise self._not_moved(ws)
        return True

    async def _retire(self, ws: WorkerState) -> bool:
        """Strike it off; whether it was still there."""
        if not self._here(ws):
            return False
        retired = await self._scheduler.retire_workers(
            workers=[ws.address],
            close_workers=self._close_workers,
            stimulus_id=f"tide-drain-{now_s()}",
        )
        if ws.address not in retired and self._here(ws):
            raise self._not_moved(ws)
        return ws.address in retired

    @staticmethod
    def _not_moved(ws: WorkerState) -> DrainRefused:
        return DrainRefused(
            f"{len(ws.has_what)} results of worker {ws.name} could not be moved to another one"
        )

    def _here(self, ws: WorkerState) -> bool:
        """Whether it is still the same worker: a restarted one has a new address and state."""
        return self._scheduler.workers.get(ws.address) is ws

    def _hand_over(
        self, victim: WorkerState, asked_s: dict[TaskState, float], stuck_s: dict[TaskState, float]
    ) -> None:
        """Ask the worker to give up the tasks it has not started; it refuses for those it runs.

        Which it runs is known as of its last heartbeat.
        """
        scheduler = self._scheduler
        stealing = scheduler.extensions.get("stealing")
        if stealing is None:
            # Without distributed.scheduler.work-stealing; not started, so it moves what we tell it to only.
            stealing = scheduler.extensions["stealing"] = WorkStealing(scheduler)
        at_s = now_s()
        for ts in list(victim.processing):
            if ts in victim.executing or ts in victim.long_running:
                continue
            if at_s - asked_s.get(ts, 0.0) < _ASK_AGAIN_S:
                continue
            able = scheduler.valid_workers(ts)
            thieves = scheduler.running if able is None else able & scheduler.running
            if not thieves and ts.loose_restrictions and not ts.resource_restrictions:
                thieves = scheduler.running  # it would rather have run here
            if thieves:
                thief = min(thieves, key=lambda ws: (_load(ws, stealing), ws.address))
                asked_s[ts] = at_s
                stealing.move_task_request(ts, victim, thief)
            elif at_s - stuck_s.setdefault(ts, at_s) > _STUCK_S:
                if victim in self._blocked and not (ts.worker_restrictions or ts.host_restrictions):
                    scheduler.transitions({ts.key: "released"}, f"tide-take-back-{at_s}")
                    continue
                raise DrainRefused(f"task {ts.key} waits on worker {victim.name} and can run nowhere else")

    def _back_to_work(self, workers: Sequence[WorkerState]) -> None:
        amm = self._scheduler.extensions.get("amm")
        for ws in workers:
            if not self._here(ws):
                continue
            if amm is not None:
                # A cancelled retire_workers leaves its policy behind, which would go on moving keys.
                amm.policies -= {
                    policy
                    for policy in amm.policies
                    if isinstance(policy, RetireWorker) and policy.address == ws.address
                }
            # One that was full would start tasks until it looks at its memory again.
            before = Status.paused if ws in self._paused else Status.running
            set_status(self._scheduler, ws, before, f"tide-undrain-{now_s()}")
        self._nannies.unpark(workers)

    def _bring_back(self, error: NotFetched) -> None:
        """Have tasks that wait elsewhere, and would for ever, for what nobody can fetch run where that is.

        They went there while its worker was leaving; Dask leaves them where they are:
        https://github.com/dask/distributed/issues/6705
        """
        stimulus_id = f"tide-bring-back-{now_s()}"
        for ts in {ts for result in error.results for ts in result.waiters or ()}:
            if ts.state == "processing" and ts.processing_on is not error.ws:
                self._scheduler.transitions({ts.key: "released"}, stimulus_id=stimulus_id)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all of them, then raise what the first one raised, a refusal last."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, DrainRefused)):
        raise error
    return cast("list[T]", results)


async def _all_or_none(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them; when one raises, cancel the others and raise that."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def shuffling(scheduler: Scheduler) -> set[str]:
    """Addresses of workers that a running P2P shuffle relies on: one that leaves restarts it.

    Those that have taken part, and those that are to hold its outputs and may not have yet.
    """
    plugin = scheduler.plugins.get("shuffle")
    addresses: set[str] = set()
    for shuffle in getattr(plugin, "active_shuffles", {}).values():
        if not getattr(shuffle, "archived", False):
            addresses |= shuffle.participating_workers
            addresses.update(shuffle.run_spec.worker_for.values())
    return addresses


def _load(ws: WorkerState, stealing: WorkStealing) -> float:
    """Tasks per thread, those on their way to the worker included."""
    return (len(ws.processing) + stealing.in_flight_tasks.get(ws, 0)) / ws.nthreads


def set_status(scheduler: Scheduler, ws: WorkerState, status: Status, stimulus_id: str) -> None:
    """Set a worker's status on the scheduler's side and on its own."""
    scheduler.handle_worker_status_change(status, ws, stimulus_id)
    # To one whose connection has just broken nothing is sent; the scheduler removes it.
    message = {"op": "worker-status-change", "status": status.name, "stimulus_id": stimulus_id}
    scheduler.worker_send(ws.address, message)
