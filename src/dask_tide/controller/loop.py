"""The controller: observe, snapshot, decide, revalidate, act, journal; again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dask_tide.config import TideConfig
from dask_tide.errors import ConfigError
from dask_tide.model import (
    EXISTING,
    LIVE,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Memory,
    Pool,
    Release,
    Settings,
    Snapshot,
    Why,
    owner_of,
    why,
)
from dask_tide.policy import decide
from dask_tide.providers.base import Observation, Provider

from . import clock, idle, observe, revalidation
from .blocked import Blocked
from .drain import Drains
from .durations import DurationsFile
from .explain import describe
from .journal import Event, Journal, Line
from .leaks import Leaks, take_back
from .ledger import Ledger, PoolRecord
from .loose import Loose
from .pace import Pace
from .preparing import Preparing
from .requests import Requests
from .supply import Supply
from .tally import Tally
from .turned_away import TurnedAway
from .versions import Versions
from .wishes import Wishes

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

logger = logging.getLogger("distributed.tide.controller")

#: Without units and without work, ticks are this many times rarer.
_QUIET = 8
#: For how long a refused drain is not repeated.
_BELIEVE_S = 30.0
#: The same where a machine is about to go: another worker may be there any moment.
_HURRY_S = 2.0
#: For how long ``client.restart`` is waited for to get as many workers as there were.
_RESTART_S = 30.0


class Controller:
    """Runs a provider's units for a scheduler.

    It lives in the scheduler's event loop and is the only part with a clock. All its errors
    are logged and counted; none ends it.

    Parameters
    ----------
    scheduler
        A running scheduler.
    config
        From :func:`dask_tide.config.read`.
    shut_down
        Awaited when there has been no work for ``config.idle_shutdown_s``; by default the
        scheduler closes.
    clean_up
        Called once everything has ended.
    durations
        The file in which what tasks took is kept for the next scheduler; None: it is forgotten.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: TideConfig,
        *,
        shut_down: Callable[[], Awaitable[object]] | None = None,
        clean_up: Callable[[], None] = lambda: None,
        durations: Path | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.config = config
        self.settings = config.settings
        self.pools: dict[str, Pool] = {name: template.pool for name, template in config.pools.items()}
        self.journal = Journal(config.journal.path, config.journal.max_bytes, config.journal.files)
        self.ledger = Ledger(config.settings.start_timeout_s, config.settings.machine_idle_s)
        for name in config.boot_times:
            # Told to be a machine's boot; a unit that finds room is measured soon enough.
            self.ledger.records[name].cold_boot_s = self.pools[name].boot_s
        self.supply = Supply(self.ledger, clock=self.now_s, tell=self._tell)
        self.wishes = Wishes(self.pools, wake=self.wake, maximum=config.settings.maximum)
        self.requests = Requests(wake=self.wake)
        self.errors = 0
        self._blocked = Blocked()
        self._preparing = Preparing(scheduler)
        self._leaks = Leaks()
        self._loose = Loose(scheduler)
        self._shut_down = shut_down or (lambda: scheduler.close(reason="tide-idle-shutdown"))
        self._clean_up = clean_up
        self._memory = Memory()
        self._events: list[Event] = []
        #: Units that could not be drained: why, and until when it is not tried again.
        self._refused: dict[str, tuple[str, float]] = {}
        self._warned: set[str] = set()
        self._active_s = self.now_s()
        self._pace = Pace()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._shutting_down: asyncio.Future[object] | None = None
        self._versions = Versions(scheduler, tell=self._tell)
        self._turned_away = TurnedAway(scheduler, self.ledger.is_going)
        self.tally = Tally(
            scheduler,
            wake=self.wake,
            on_restart=self._restarted,
            on_close=self.close,
            on_worker=self._look,
        )
        self._durations_file = DurationsFile(durations, self.tally.durations)
        self.snapshot: Snapshot | None = None
        #: The last tick, written to the journal or not.
        self.latest: Line | None = None

    # -- life ---------------------------------------------------------------------------------

    @staticmethod
    def now_s() -> float:
        """The controller's clock: seconds since 1970."""
        return clock.now_s()

    def start(self, provider: Provider) -> None:
        """Begin to tick."""
        for name, pool in self.pools.items():
            if name not in self.config.boot_times:
                self.pools[name] = msgspec.structs.replace(pool, boot_s=provider.boot_s)
        self.supply.provider = provider
        self.drains = Drains(
            self.scheduler,
            fill_ratio=self.config.settings.fill_ratio,
            timeout_s=self.config.drain_timeout_s,
            close_workers=provider.closes_workers,
            wake=self.wake,
            avoided=self._doomed_addresses,
            left_behind=partial(self.tally.bindings.left_behind, self.scheduler),
            blocked=lambda: self._blocked.threads,
        )
        self._durations_file.read()
        self.scheduler.add_plugin(self.tally, name=Tally.name)
        self._turned_away.start()
        for ws in self.scheduler.workers.values():
            self._versions.look(ws)
        self._loop = asyncio.create_task(self._run(), name="dask-tide")

    async def close(self) -> None:
        """Stop ticking and every unit. Idempotent, and whoever calls it waits until that is done."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="tide-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        loop, self._loop = self._loop, None
        async with contextlib.AsyncExitStack() as rest:  # the last one first, and all of it if one fails
            if self.supply.provider is not None:
                rest.callback(self._clean_up)
                for part in (self._durations_file, self.journal, self.supply):
                    rest.push_async_callback(part.close)
            if loop is not None:
                rest.callback(self._detach)
                rest.push_async_callback(self.drains.close)
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)

    def _detach(self) -> None:
        self._turned_away.stop()
        self.scheduler.plugins.pop(Tally.name, None)
        self.scheduler.extensions.pop("tide", None)

    @property
    def provider(self) -> Provider | None:
        """What starts and stops the units; None before :meth:`start` and after :meth:`close`."""
        return self.supply.provider

    def wake(self) -> None:
        """Look at once, not at the next tick."""
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self.tick()
            except (Exception, asyncio.CancelledError):
                # A controller that ends serves nobody.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise  # by `close`, and not by what a provider has awaited
                self.errors += 1
                failures += 1
                logger.exception("A tick failed, the %d. in a row; the next one follows", failures)
                await asyncio.sleep(Pace.after_failures_s(failures))
            else:
                failures = 0
            await asyncio.sleep(self._pace.pause_s)
            try:
                async with asyncio.timeout(self.config.interval_s * (_QUIET if self._quiet() else 1)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _quiet(self) -> bool:
        """Whether there is nothing to watch: new tasks and workers wake the controller anyway."""
        return self.snapshot is not None and not (self.snapshot.units or self.tally.unfinished)

    # -- one tick -----------------------------------------------------------------------------

    async def tick(self) -> None:
        """Observe, decide, act and take it down, once."""
        observation, blind = await self.supply.observe()
        # From here to the last call of `_begin` nothing awaits: what was decided on still holds.
        with self._pace.measured():
            self._take_drain_ends()
            self._loose.look()
            idle.look_again(self.scheduler)
            snapshot = self.take_snapshot(observation, blind)
            before = self._memory
            actions, self._memory = decide(snapshot, before)
            self.snapshot = snapshot
            self.supply.mark(snapshot.workers, snapshot.units)
            pending = [action for action in actions if self._begin(action, snapshot)]
            self._warn(actions)
        # At once: what one pool waits for would be another one's past.
        await asyncio.gather(*(self._act(action, snapshot) for action in pending))
        events, self._events = tuple(self._events), []
        self.latest = Line(snapshot.now_s, snapshot, before, actions, events)
        self.journal.record(self.latest)
        self._durations_file.write(snapshot.now_s)
        self._maybe_shut_down(snapshot)

    def take_snapshot(self, observation: Observation | None, blind: str) -> Snapshot:
        """All that a decision may know, in one turn of the event loop."""
        now_s = self.now_s()
        seen = observation or self.snapshot
        pool_of = {unit.name: unit.pool for unit in (seen.units if seen else ())}
        owners = observe.owners(self.scheduler, pool_of)
        states = [*self.scheduler.workers.values()]
        records = [self._record_of(pool_of.get(unit, "")) for unit in owners]
        self._blocked.look(now_s, states, records)
        self._leaks.look(now_s, states, records)
        self._turned_away.look_again()
        leaving = self.drains.units | observe.leaving(self.scheduler, owners)
        preparing = self._preparing.units(owners)
        units = self.ledger.update(now_s, observation, set(owners), leaving, self.pools, preparing)
        self._take_taken()
        self._versions.tell(pool_of)
        refused = {unit: reason for unit, (reason, until_s) in self._refused.items() if until_s > now_s}
        doomed = {unit.name for unit in units if unit.doomed}
        refused = {u: reason for u, reason in self.drains.standing().items() if u not in doomed} | refused
        by_hand = {name for name in self.pools if self.wishes.manual_of(name) is not None}
        free = (ws for ws, unit in zip(states, owners, strict=True) if pool_of.get(unit) not in by_hand)
        workers = observe.workers(
            self.scheduler,
            owners,
            refused,
            self.tally.bindings,
            doomed,
            self._blocked.threads,
            self.requests.answering(now_s, free) | self.requests.answering(now_s, states, data=True),
            dict.fromkeys(self._leaks.full, Code.FULL.name)
            | dict.fromkeys(self._blocked.stuck, Code.BLOCKED.name),
        )
        for worker in workers:
            if worker.unit and not worker.held_keys and worker.used_bytes:
                self.ledger.records[pool_of[worker.unit]].learn_baseline(worker.used_bytes)
        self.supply.take(observation)
        elsewhere = [ws for ws, unit in zip(self.scheduler.workers.values(), owners, strict=True) if not unit]
        pools = (
            observe.pool_state(
                pool,
                now_s,
                blind=blind,
                wishes=self.wishes,
                supply=self.supply,
                record=self.ledger.records[name],
            )
            for name, pool in self.pools.items()
        )
        return Snapshot(
            now_s=now_s,
            settings=self._settings(),
            pools=tuple(pools),
            units=units,
            workers=workers,
            work=self.tally.work(now_s, elsewhere),
            spent=self.ledger.spent,
        )

    def _record_of(self, pool: str) -> PoolRecord | None:
        return self.ledger.records[pool] if pool in self.pools else None

    def _settings(self) -> Settings:
        """The policy's, with what is assumed of functions that never ran as far as others tell."""
        if not self.config.learn_prior:
            return self.settings
        prior_s = self.tally.durations.typical_s(self.settings.prior_s)
        return msgspec.structs.replace(self.settings, prior_s=prior_s)

    def _begin(self, action: Action, snapshot: Snapshot) -> bool:
        """Revalidate an action and do what of it needs no waiting; whether something is left to do."""
        if isinstance(action, Drain):
            owner = {worker.address: worker.unit for worker in snapshot.workers}
            for unit in action.units:
                workers = [(name, address) for name, address in action.workers if owner[address] == unit]
                veto = revalidation.veto(self.scheduler, workers, busy=action.busy)
                if veto is None:
                    blocked = action.why.code == Code.BLOCKED.name
                    self.drains.start(action.pool, unit, workers, blocked=blocked)
                    if action.why.code == Code.FULL.name:
                        take_back(self.scheduler, [address for _, address in workers])
                else:
                    self._tell(action.pool, unit, veto)
            return False
        return not isinstance(action, Hold)

    async def _act(self, action: Action, snapshot: Snapshot) -> None:
        if isinstance(action, Launch):
            existing = sum(1 for u in snapshot.units if u.pool == action.pool and u.phase in EXISTING)
            if not await self.supply.launch(action.pool, existing, action.count):
                return
        elif isinstance(action, Release):
            self.supply.give_back(action.pool, revalidation.releasable(self.scheduler, action, snapshot))
        logger.info("%s", describe(action))

    def preview(self) -> Line:
        """How things stand at this moment, and what would be decided now; nothing is done."""
        blind = next((state.blind for state in (self.snapshot.pools if self.snapshot else ())), "")
        snapshot = self.take_snapshot(None, blind)
        actions, _ = decide(snapshot, self._memory)
        return Line(snapshot.now_s, snapshot, self._memory, actions)

    def _doomed_addresses(self) -> set[str]:
        """Of workers whose machine is about to go, as of the last tick."""
        if self.snapshot is None:
            return set()
        doomed = {unit.name for unit in self.snapshot.units if unit.doomed}
        return {worker.address for worker in self.snapshot.workers if worker.unit in doomed}

    # -- what has happened ----------------------------------------------------------------------

    def _tell(self, pool: str, unit: str, reason: Why) -> None:
        """Take down what has happened outside of a decision."""
        self._events.append(Event(pool, unit, reason))

    def _take_taken(self) -> None:
        taken, self.ledger.taken = self.ledger.taken, []
        for pool, unit, words in taken:
            self._tell(pool, unit, why(Code.TAKEN, message=words))

    def _take_drain_ends(self) -> None:
        doomed = {unit.name for unit in (self.snapshot.units if self.snapshot else ()) if unit.doomed}
        empty: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for end in self.drains.take_ended():
            self._tell(end.pool, end.unit, end.why)
            if end.why.code == Code.LEFT.name:
                continue  # what became of the unit will be seen
            if not end.done:
                believe_s = _HURRY_S if end.unit in doomed else _BELIEVE_S
                self._refused[end.unit] = (str(end.why), self.now_s() + believe_s)
                self._refused = {u: r for u, r in self._refused.items() if r[1] > self.now_s()}
            elif end.unit in observe.owners(self.scheduler, {end.unit}):
                # Restarted by its nanny, or the last of several to start: it may have tasks.
                self._tell(end.pool, end.unit, why(Code.NEW_ADDRESS))
            else:
                # Neither a machine that is about to go nor a thread that does not end is waited for.
                empty[end.pool, end.unit not in doomed and not end.blocked].append(end.unit)
        for (pool, closing), units in empty.items():
            self.supply.give_back(pool, units, closing=closing)

    def _warn(self, actions: tuple[Action, ...]) -> None:
        """Say once, aloud, what nobody can ever run."""
        impossible = {
            action.why.numbers["example"]: action.why
            for action in actions
            if action.why.code == Code.IMPOSSIBLE.name
        }
        for example, reason in impossible.items():
            if str(example) not in self._warned:
                logger.warning("%s", reason)
        self._warned = set(map(str, impossible))

    def _maybe_shut_down(self, snapshot: Snapshot) -> None:
        limit_s = self.config.idle_shutdown_s
        if self._used(snapshot):
            self._active_s = snapshot.now_s
        elif limit_s is not None and snapshot.now_s - self._active_s > limit_s:
            logger.info("No work for %g s: closing", limit_s)
            self._active_s = snapshot.now_s
            self._shutting_down = asyncio.ensure_future(self._shut_down())

    def _used(self, snapshot: Snapshot) -> bool:
        """Whether somebody uses the cluster. An actor may be at work, though nobody sees its methods run."""
        return bool(
            self.tally.unfinished
            or self.requests.any(snapshot.now_s)
            or any(state.floor for state in snapshot.pools)
            or any(worker.tasks for worker in snapshot.workers)
            or any(ws.actors for ws in self.scheduler.workers.values())
        )

    # -- what may be changed while it runs ------------------------------------------------------

    def scale(self, n: int, pool: str | None = None) -> None:
        """Manual mode: keep exactly ``n`` units of ``pool`` (of the first one by default).

        More than the maximum is meant: the maximum is that until :meth:`adapt` is called.
        """
        self.wishes.scale(n, pool)

    def adapt(self, minimum: int | None = None, maximum: int | None = None, pool: str | None = None) -> None:
        """Automatic mode, with other limits for ``pool`` (for the first one by default) if given."""
        self.wishes.adapt(minimum, maximum, pool)

    def freeze(self) -> None:
        """Manual mode with the units that are there."""
        if self.snapshot is not None:
            self.wishes.freeze(self.snapshot.units)
        self.wake()

    @property
    def manual(self) -> bool:
        """Whether somebody has set the size of a pool by hand."""
        return self.wishes.manual

    def floor(self, n_workers: int, seconds: float, pool: str | None = None) -> None:
        """See to it that ``n_workers`` workers come, and stay for ``seconds`` from now; 0 ends that.

        Without ``pool`` they may be of any: those that are there count, and plain ones come first.
        """
        units = self.snapshot.units if self.snapshot else ()
        live = Counter(unit.pool for unit in units if unit.phase in LIVE and not unit.doomed)
        self.wishes.floor(n_workers, seconds, pool, now_s=self.now_s(), live=live)

    def expect(self, seconds: float) -> None:
        """Nobody who is there goes for ``seconds``, and if nobody is, one comes."""
        if self.provider is not None and not self.scheduler.running:
            with contextlib.suppress(ConfigError):  # no pool may have any: Dask's own error says so
                self.floor(1, seconds)
        self.requests.expect(self.now_s() + seconds)

    def reshape(self, pool: Pool) -> None:
        """What the workers of a pool are like has turned out; its limits stay."""
        old = self.pools[pool.name]
        self.pools[pool.name] = msgspec.structs.replace(
            pool, minimum=old.minimum, maximum=old.maximum, boot_s=old.boot_s
        )
        self.wake()

    def notice(self, worker_name: str, words: str) -> bool:
        """The machine of this worker is about to go: its unit is emptied, and another one asked for.

        Whether there is such a unit: a controller that has just started may not have seen it yet.
        """
        units = {unit.name for unit in (self.snapshot.units if self.snapshot else ())}
        unit = owner_of(worker_name, units)
        if unit:
            self.ledger.notice(unit, words)
            self.wake()
        return bool(unit)

    def _look(self, ws: WorkerState) -> None:
        """A worker has registered."""
        self._versions.look(ws)
        self._turned_away.look(ws)

    def _restarted(self) -> None:
        """``client.restart`` waits for as many workers as there were; those without a nanny are gone."""
        if self.snapshot is None:
            return
        self._hold(_RESTART_S)
        owners = observe.owners(self.scheduler, {unit.name for unit in self.snapshot.units})
        # They would not exit before their running tasks have ended.
        leaving = {
            unit
            for unit, ws in zip(owners, self.scheduler.workers.values(), strict=True)
            if unit and not ws.nanny
        }
        for name in self.pools:
            self.supply.give_back(
                name, [u.name for u in self.snapshot.units if u.pool == name and u.name in leaving]
            )

    def _hold(self, seconds: float) -> None:
        """Let no pool have fewer units than have workers now."""
        if self.snapshot is None:
            return
        # The last tick may not have seen the newest ones register, nor know whose they are.
        pool_of = {unit.name: unit.pool for unit in self.snapshot.units}
        known = {worker.address for worker in self.snapshot.workers}
        owners = observe.owners(self.scheduler, pool_of)
        units = Counter(pool_of[unit] for unit in {*owners} - {""})
        new = sum(
            not unit and address not in known
            for unit, address in zip(owners, self.scheduler.workers, strict=True)
        )
        first = self.wishes.plain_first()[0]
        units[first] += -(-new // self.pools[first].workers_per_unit)
        now_s = self.now_s()
        for name, count in units.items():
            if count > self.wishes.floor_of(name, now_s):
                self.wishes.hold(name, count, now_s + seconds)
