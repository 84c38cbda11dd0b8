"""Copies: what workers that are being drained hold goes to workers that have room for it.

Dask's own choice is the smallest process as of its last heartbeat, whatever its limit and whatever it
was sent since: a small worker beside large ones would be filled until its nanny kills it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.active_memory_manager import ActiveMemoryManagerExtension, RetireWorker

from dask_tide.errors import DrainRefused

from .clock import now_s

if TYPE_CHECKING:
    from distributed.active_memory_manager import SuggestionGenerator
    from distributed.scheduler import Scheduler, TaskState, WorkerState

__all__ = ["Copies", "NotFetched"]

#: How often the active memory manager looks again at what has not arrived; that of Dask's ``retire_workers``.
_AGAIN_S = 2.0
#: Who was asked for results and has fetched none for so long will not: somebody else is asked.
_LATE_S = 20.0
#: Bounds of the time between two looks whether all is copied.
_LOOK_S, _LOOK_MAX_S = 0.01, 0.5
#: How Dask says that a result cannot be pickled (`protocol/serialize.py`): nobody else can fetch it either.
_NOT_PICKLED = "Could not serialize object"
#: Characters of an error that are told.
_LONGEST = 200
#: Bytes: more than anybody has, for a worker whose memory limit is not known.
_ENDLESS = 1 << 62


class NotFetched(DrainRefused):
    """Nobody can fetch some results of a worker, as one that cannot be pickled.

    Attributes
    ----------
    ws
        The worker.
    results
        Which: also those that were asked for together with one that is at fault.
    """

    def __init__(self, ws: WorkerState, results: frozenset[TaskState], error: str) -> None:
        keys = sorted(str(ts.key) for ts in results)
        which = f"result {keys[0]}" if len(keys) == 1 else f"{len(keys)} results ({keys[0]}, …)"
        super().__init__(f"nobody can fetch {which} of worker {ws.name}: {error}")
        self.ws = ws
        self.results = results

    def lasts(self) -> bool:
        """Whether it still has all of them, and nobody else any."""
        return all(ts.who_has == {self.ws} for ts in self.results)


@dataclass(frozen=True)
class _Asked:
    """Who was asked to fetch a result, and when."""

    receiver: WorkerState
    since_s: float


class Copies:
    """The results that are being copied away, of all workers that are being drained.

    Parameters
    ----------
    scheduler
        Whose workers.
    fill_ratio
        Receivers are to hold no more than this share of their memory limit, as long as others can.
    avoided
        Addresses of workers that receive nothing as long as there are others: they will go, too.
    """

    def __init__(
        self, scheduler: Scheduler, fill_ratio: float, avoided: Callable[[], Container[str]] = tuple
    ) -> None:
        self.scheduler = scheduler
        self._fill_ratio = fill_ratio
        self._avoided = avoided
        self._asked: dict[TaskState, _Asked] = {}
        #: When something that was asked for last arrived.
        self._arrived_s: dict[WorkerState, float] = {}
        #: Who was asked for a result and has fetched nothing for so long.
        self._late: set[tuple[TaskState, WorkerState]] = set()
        #: What could not be fetched: with which error at last.
        self._errors: dict[TaskState, str] = {}
        #: The scheduler's own handler of what :meth:`_listen` hears.
        self._stock: Any = None
        #: Where Dask's active memory manager does not run.
        self._own: ActiveMemoryManagerExtension | None = None
        self._policies = 0
        self._round: asyncio.Future[None] | None = None
        self._counted: tuple[object, dict[WorkerState, int]] = None, {}

    async def away(self, ws: WorkerState, results: Container[TaskState]) -> bool:
        """Copy what ``ws`` holds of these to workers that are at work; it must not be running any more.

        Returns
        -------
        False: there is nobody to receive it, or it has an actor, which cannot be moved.

        Raises
        ------
        NotFetched
            A result cannot be pickled, or whoever could take it has failed to fetch it.
        """
        manager = self._manager()
        policy = _CopyAway(ws, results, self)
        manager.add_policy(policy)
        if not self._policies:
            self._listen()
        self._policies += 1
        for ts in self._errors.keys() & ws.has_what:
            del self._errors[ts]  # of an earlier try: what was at fault may have gone
        try:
            # Its result is the others' as well: those that begin at once are looked at together.
            await asyncio.shield(self._run_soon(manager))
            while not policy.done():
                self._check(ws)
                # Results that arrive tell the scheduler only.
                await asyncio.sleep(max(_LOOK_S, min(_LOOK_MAX_S, len(ws.has_what) / 400)))
        finally:
            manager.policies.discard(policy)
            self._policies -= 1
            if not self._policies:
                self._asked.clear()
                self._arrived_s.clear()
                self._late.clear()
                self._errors.clear()
                self._unlisten()
                self._counted = None, {}
                if self._own is not None:
                    self._own.stop()
                    self._own = None
        return not policy.no_recipients

    def _manager(self) -> ActiveMemoryManagerExtension:
        manager: Any = self.scheduler.extensions.get("amm")
        if manager is not None and manager.running:
            return manager  # type: ignore[no-any-return]
        if self._own is None:
            self._own = ActiveMemoryManagerExtension(
                self.scheduler, policies=set(), register=False, start=True, interval=_AGAIN_S
            )
        return self._own

    def _run_soon(self, manager: ActiveMemoryManagerExtension) -> asyncio.Future[None]:
        if self._round is None:
            loop = asyncio.get_running_loop()
            self._round = loop.create_future()
            loop.call_soon(self._run, manager, self._round)
        return self._round

    def _run(self, manager: ActiveMemoryManagerExtension, round_: asyncio.Future[None]) -> None:
        self._round = None
        try:
            manager.run_once()
        finally:
            round_.set_result(None)

    # -- what nobody can fetch ----------------------------------------------------------------------

    def _listen(self) -> None:
        """Hear of results that a worker has failed to fetch, and why.

        It reports the result itself as a task that has erred; as that is in memory, the scheduler ignores it.
        """
        self._stock = stock = self.scheduler.stream_handlers["task-erred"]

        def erred(key: Any, worker: str, **message: Any) -> None:
            self._fail(key, worker, str(message.get("exception_text")))
            stock(key=key, worker=worker, **message)

        self.scheduler.stream_handlers["task-erred"] = erred

    def _unlisten(self) -> None:
        self.scheduler.stream_handlers["task-erred"] = self._stock

    def _fail(self, key: Any, address: str, error: str) -> None:
        ts, ws = self.scheduler.tasks.get(key), self.scheduler.workers.get(address)
        if ts is None or ws is None or ts.state != "memory" or self.stays(ts):
            return
        self._errors[ts] = _in_short(error)
        self._late.add((ts, ws))
        if (asked := self._asked.get(ts)) is not None and asked.receiver is ws:
            del self._asked[ts]
            self._run_soon(self._manager())  # somebody else may be able to

    def _check(self, ws: WorkerState) -> None:
        """Refuse where nobody can fetch what somebody has failed to; not where it goes whatever it costs."""
        if not self._errors or ws.address in self._avoided():
            return
        receivers = self._receivers()
        lost = {
            ts
            for ts in self._errors.keys() & ws.has_what
            if not self.stays(ts)
            and (_NOT_PICKLED in self._errors[ts] or all((ts, other) in self._late for other in receivers))
        }
        if lost:
            raise NotFetched(ws, frozenset(lost), next(self._errors[ts] for ts in lost))

    # -- who receives what ------------------------------------------------------------------------

    def room(self, pending: object) -> dict[WorkerState, int]:
        """Bytes that each worker may receive, beside what it holds and what is on its way to it.

        It is counted once in each round of the memory manager, whose suggestions are ``pending``:
        :meth:`ask` takes down what follows.
        """
        if self._counted[0] is not pending:
            self._counted = pending, self._count()
        return self._counted[1]

    def _receivers(self) -> Collection[WorkerState]:
        running = self.scheduler.running
        avoided = self._avoided()
        return [ws for ws in running if ws.address not in avoided] or running

    def _count(self) -> dict[WorkerState, int]:
        room = {
            ws: (int(self._fill_ratio * ws.memory_limit) if ws.memory_limit else _ENDLESS) - ws.nbytes
            for ws in self._receivers()
        }
        oldest_s = now_s() - _LATE_S
        for ts, asked in list(self._asked.items()):
            ws = asked.receiver
            if ws in (ts.who_has or ()):
                self._arrived_s[ws] = now_s()
                del self._asked[ts]
            elif ws not in room or ts.state != "memory":
                del self._asked[ts]
        for ts, asked in list(self._asked.items()):
            ws = asked.receiver
            if max(asked.since_s, self._arrived_s.get(ws, 0.0)) < oldest_s:
                del self._asked[ts]
                self._late.add((ts, ws))
            else:
                room[ws] -= ts.nbytes
        return room

    def candidates(self, ts: TaskState, room: dict[WorkerState, int]) -> set[WorkerState]:
        """Those that have room for a result; if none has, the one that lacks least."""
        if (asked := self._asked.get(ts)) is not None:
            return {asked.receiver}  # a second request to the same one makes no second copy
        able = room.keys() - (ts.who_has or set())
        able = {ws for ws in able if (ts, ws) not in self._late} or able
        return {ws for ws in able if room[ws] >= ts.nbytes} or set(sorted(able, key=room.__getitem__)[-1:])

    def ask(self, ts: TaskState, receiver: WorkerState, room: dict[WorkerState, int]) -> None:
        """Take down that it was asked to fetch a result."""
        if ts not in self._asked:
            self._asked[ts] = _Asked(receiver, now_s())
            room[receiver] -= ts.nbytes

    def stays(self, ts: TaskState) -> bool:
        """Whether somebody has it who stays."""
        return not self.scheduler.running.isdisjoint(ts.who_has or ())


def _in_short(error: str) -> str:
    """The first line of an exception's ``repr``, which may end with the traceback of another one."""
    cause = error.find(_NOT_PICKLED)
    line = error[max(0, cause) :].partition("\\n")[0]
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
    return line if cause < 0 else f"cannot be pickled ({line})"


class _CopyAway(RetireWorker):
    """Dask's policy, of some results, with other receivers; a copy on one that leaves counts for nothing."""

    __slots__ = ("copies", "results", "ws")

    def __init__(self, ws: WorkerState, results: Container[TaskState], copies: Copies) -> None:
        super().__init__(ws.address)
        self.ws = ws
        self.results = results
        self.copies = copies

    def run(self) -> SuggestionGenerator:
        copies = self.copies
        room = copies.room(self.manager.pending)
        suggestions = super().run()
        answer: WorkerState | None = None
        while True:
            try:
                suggestion = suggestions.send(answer)
            except StopIteration:
                return
            ts = suggestion.ts
            if ts not in self.results:
                answer = self.ws  # as if done
                continue
            if suggestion.op == "drop" and not copies.stays(ts):
                answer = None
                continue
            if suggestion.op == "replicate":
                suggestion = suggestion._replace(candidates=copies.candidates(ts, room))
            answer = yield suggestion
            if answer is not None and suggestion.op == "replicate":
                copies.ask(ts, answer, room)

    def done(self) -> bool:
        """Whether all of them are where they stay."""
        ws = self.copies.scheduler.workers.get(self.address)
        if ws is None or self not in self.manager.policies:
            return True
        return all(self.copies.stays(ts) for ts in ws.has_what if ts in self.results and not ts.actor)
