"""The controller: observe, snapshot, decide, revalidate, act, journal; again and again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import msgspec
from distributed.core import Status

from dask_tide.config import TideConfig
from dask_tide.errors import (
    CapacityExhausted,
    ConfigError,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from dask_tide.model import (
    EXISTING,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Memory,
    Phase,
    Pool,
    PoolState,
    Release,
    Snapshot,
    Unit,
    Why,
    owner_of,
    why,
)
from dask_tide.policy import decide
from dask_tide.providers.base import Marking, Observation, Provider

from . import observe
from .drain import Drains
from .explain import describe
from .journal import Event, Journal, Line
from .ledger import Ledger
from .tally import Tally

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

logger = logging.getLogger("distributed.tide.controller")

#: What a worker says of itself when it is about to go, whoever told it to.
_LEAVING = (Status.closing_gracefully, Status.closing, Status.closed)
#: Ticks are at least this far apart, however often something wakes the controller, and take at
#: most this share of the event loop's time.
_SPACING_S = 0.02
_SHARE = 0.05
#: Without units and without work, ticks are this many times rarer.
_QUIET = 8
#: How long a provider may take to answer.
_PROVIDER_S = 60.0
#: For how long a limit that the platform reported is believed, and a refused drain not repeated.
_BELIEVE_S = 30.0
#: The same where a machine is about to go: another worker may be there any moment.
_HURRY_S = 2.0


@dataclass
class _Limits:
    """What somebody has set at run time for a pool."""

    manual: int | None = None
    #: What the maximum was before somebody asked for more by hand.
    maximum: int | None = None
    floor: int = 0
    floor_until_s: float = 0.0


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
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: TideConfig,
        *,
        shut_down: Callable[[], Awaitable[object]] | None = None,
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.scheduler = scheduler
        self.config = config
        self.settings = config.settings
        self.pools: dict[str, Pool] = {name: template.pool for name, template in config.pools.items()}
        self.journal = Journal(config.journal.path, config.journal.max_bytes, config.journal.files)
        self.ledger = Ledger(config.settings.start_timeout_s, config.settings.machine_idle_s)
        self.errors = 0
        self._limits = {name: _Limits() for name in self.pools}
        self._shut_down = shut_down or (lambda: scheduler.close(reason="tide-idle-shutdown"))
        self._clean_up = clean_up
        self._provider: Provider | None = None
        self._memory = Memory()
        self._events: list[Event] = []
        self._capacity: dict[str, tuple[int, str, float]] = {}
        self._rejected: dict[str, int] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        #: What units' own watchers were told of their machines' ends.
        self._notices: dict[str, str] = {}
        self._warned: set[str] = set()
        self._blind = ""
        self._frozen: Mapping[str, str] = {}
        self._blind_until_s = 0.0
        self._active_s = self.now_s()
        #: For how long the last tick held up the event loop; not for how long it waited.
        self._took_s = 0.0
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._shutting_down: asyncio.Future[object] | None = None
        self.tally = Tally(scheduler, wake=self.wake, on_restart=self._restarted, on_close=self.close)
        self.snapshot: Snapshot | None = None
        #: The last tick, written to the journal or not.
        self.latest: Line | None = None

    # -- life ---------------------------------------------------------------------------------

    @staticmethod
    def now_s() -> float:
        """The controller's clock: seconds since 1970, as Dask's own times are."""
        return time.time()

    def start(self, provider: Provider) -> None:
        """Begin to tick."""
        for name, pool in self.pools.items():
            if name not in self.config.boot_times:
                self.pools[name] = msgspec.structs.replace(pool, boot_s=provider.boot_s)
        self._provider = provider
        self.drains = Drains(
            self.scheduler,
            timeout_s=self.config.drain_timeout_s,
            close_workers=provider.closes_workers,
            wake=self.wake,
        )
        self.scheduler.add_plugin(self.tally, name=Tally.name)
        self._loop = asyncio.create_task(self._run(), name="dask-tide")

    async def close(self) -> None:
        """Stop ticking and every unit. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await self.drains.close()
            self.scheduler.plugins.pop(Tally.name, None)
            self.scheduler.extensions.pop("tide", None)
        provider, self._provider = self._provider, None
        if provider is not None:
            for task in self._stopping:
                task.cancel()
            await provider.close()
            await self.journal.close()
            self._clean_up()

    @property
    def provider(self) -> Provider | None:
        """What starts and stops the units; None before :meth:`start` and after :meth:`close`."""
        return self._provider

    def wake(self) -> None:
        """Look at once, not at the next tick."""
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self.tick()
            except Exception:
                # The one broad except of the project: a controller that ends serves nobody.
                self.errors += 1
                failures += 1
                logger.exception("A tick failed, the %d. in a row; the next one follows", failures)
                await asyncio.sleep(min(30.0, 0.1 * 2.0**failures))
            else:
                failures = 0
            await asyncio.sleep(max(_SPACING_S, self._took_s / _SHARE))
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
        observation, blind = await self._observe()
        # From here to the last call of `_begin` nothing awaits: what was decided on still holds.
        began_s = time.perf_counter()
        self._take_drain_ends()
        snapshot = self.take_snapshot(observation, blind)
        before = self._memory
        actions, self._memory = decide(snapshot, before)
        self.snapshot = snapshot
        self._mark(snapshot)
        pending = [action for action in actions if self._begin(action, snapshot)]
        self._warn(actions)
        self._took_s = time.perf_counter() - began_s
        for action in pending:
            await self._act(action, snapshot)
        events, self._events = tuple(self._events), []
        self.latest = Line(snapshot.now_s, snapshot, before, actions, events)
        self.journal.record(self.latest)
        self._maybe_shut_down(snapshot)

    def preview(self) -> Line:
        """How things stand at this moment, and what would be decided now; nothing is done."""
        blind = next((state.blind for state in (self.snapshot.pools if self.snapshot else ())), "")
        snapshot = self.take_snapshot(None, blind)
        actions, _ = decide(snapshot, self._memory)
        return Line(snapshot.now_s, snapshot, self._memory, actions)

    async def _observe(self) -> tuple[Observation | None, str]:
        assert self._provider is not None
        now_s = self.now_s()
        if now_s < self._blind_until_s:
            return None, self._blind
        try:
            async with asyncio.timeout(_PROVIDER_S):
                return await self._provider.observe(), ""
        except TimeoutError:
            return None, f"no answer within {_PROVIDER_S:g} s"
        except ProviderError as error:
            if isinstance(error, Unavailable):
                self._look_away(error)
            return None, str(error) or type(error).__name__

    def _look_away(self, error: Unavailable) -> None:
        """Leave a platform that does not answer alone for as long as it wants."""
        self._blind = str(error) or type(error).__name__
        self._blind_until_s = self.now_s() + error.retry_after_s

    def take_snapshot(self, observation: Observation | None, blind: str) -> Snapshot:
        """All that a decision may know, in one turn of the event loop."""
        now_s = self.now_s()
        pool_of = {unit.name: unit.pool for unit in (self.snapshot.units if self.snapshot else ())}
        if observation is not None:
            pool_of = {unit.name: unit.pool for unit in observation.units}
        owners = observe.owners(self.scheduler, pool_of)
        registered = set(owners)
        staying = {
            unit
            for ws, unit in zip(self.scheduler.workers.values(), owners, strict=True)
            if ws.status not in _LEAVING
        }
        leaving = self.drains.units | (registered - staying)
        units = self._noticed(self.ledger.update(now_s, observation, registered, leaving, self.pools))
        self._take_taken()
        refused = {unit: reason for unit, (reason, until_s) in self._refused.items() if until_s > now_s}
        workers = observe.workers(self.scheduler, owners, refused)
        for worker in workers:
            if worker.unit and not worker.held_keys and worker.used_bytes:
                record = self.ledger.records[pool_of[worker.unit]]
                record.baseline_bytes = min(record.baseline_bytes or worker.used_bytes, worker.used_bytes)
        if observation is not None:
            self._frozen = observation.frozen
        limits = {limit.pool: limit for limit in (observation.limits if observation else ())}
        states = []
        for name, pool in self.pools.items():
            record, set_by = self.ledger.records[name], self._limits[name]
            capacity, message, until_s = self._capacity.get(name, (None, "", 0.0))
            if until_s <= now_s:
                capacity, message = None, ""
            if name in limits and (capacity is None or limits[name].maximum < capacity):
                capacity, message = limits[name].maximum, limits[name].message
            states.append(
                PoolState(
                    pool=pool,
                    blind=blind,
                    frozen=self._frozen.get(name, ""),
                    manual=set_by.manual,
                    floor=set_by.floor if set_by.floor_until_s > now_s else 0,
                    boot_s=record.boot_s,
                    cold_boot_s=record.cold_boot_s,
                    room=record.room,
                    price=_mean_price(units, name),
                    drain_s=record.drain_s,
                    capacity=capacity,
                    capacity_message=message,
                    started=record.started,
                    failed=record.failed + self._rejected.get(name, 0),
                    failure=record.failure,
                    baseline_bytes=record.baseline_bytes,
                )
            )
        return Snapshot(
            now_s=now_s,
            settings=self.settings,
            pools=tuple(states),
            units=units,
            workers=workers,
            work=self.tally.work(now_s),
            spent=self.ledger.spent,
        )

    def _begin(self, action: Action, snapshot: Snapshot) -> bool:
        """Revalidate an action and do what of it needs no waiting; whether something is left to do."""
        if isinstance(action, Drain):
            owner = {worker.address: worker.unit for worker in snapshot.workers}
            for unit in action.units:
                workers = [(name, address) for name, address in action.workers if owner[address] == unit]
                veto = self._veto(workers, action.busy)
                if veto is None:
                    self.drains.start(action.pool, unit, workers)
                else:
                    self._events.append(Event(action.pool, unit, veto))
            return False
        return not isinstance(action, Hold)

    def _veto(self, workers: list[tuple[str, str]], busy: bool) -> Why | None:
        """Why these workers cannot be drained after all."""
        for name, address in workers:
            ws = self.scheduler.workers.get(address)
            if ws is None:
                return why(Code.LEFT)
            if str(ws.name) != name:
                return why(Code.NEW_ADDRESS)
            if ws.processing and not busy:
                return why(Code.BECAME_BUSY, tasks=len(ws.processing))
        return None

    async def _act(self, action: Action, snapshot: Snapshot) -> None:
        assert self._provider is not None
        pool = action.pool
        try:
            async with asyncio.timeout(_PROVIDER_S):
                if isinstance(action, Launch):
                    existing = sum(1 for u in snapshot.units if u.pool == pool and u.phase in EXISTING)
                    self.ledger.asked(pool, self.now_s())
                    await self._provider.scale_up(pool, existing + action.count)
                elif isinstance(action, Release):
                    self._release(action, snapshot)
                logger.info("%s", describe(action))
        except TimeoutError:
            self._failed(pool, f"the provider did not answer within {_PROVIDER_S:g} s")
        except ProviderError as error:
            self._failed(pool, str(error) or type(error).__name__)
            if isinstance(error, CapacityExhausted | QuotaExceeded):
                now = sum(1 for u in snapshot.units if u.pool == pool and u.phase in EXISTING)
                self._capacity[pool] = (now, str(error), self.now_s() + _BELIEVE_S)
            elif isinstance(error, Unavailable):
                self._look_away(error)
            else:
                self._rejected[pool] = self._rejected.get(pool, 0) + 1
                self.ledger.records[pool].failure = str(error)

    def _release(self, action: Release, snapshot: Snapshot) -> None:
        registered = set(observe.owners(self.scheduler, {unit.name for unit in snapshot.units}))
        # The scheduler may not know for minutes that the worker of one that has failed is gone.
        registered -= {unit.name for unit in snapshot.units if unit.phase is Phase.FAILED}
        # One whose worker has registered meanwhile may have been given a task.
        self._give_back(action.pool, [unit for unit in action.units if unit not in registered])

    def _failed(self, pool: str, message: str) -> None:
        self._events.append(Event(pool, "", why(Code.PROVIDER, message=message)))
        logger.warning("Pool %s: %s", pool, message)

    def _mark(self, snapshot: Snapshot) -> None:
        """Tell a provider that wants to know which units are in use."""
        provider: object = self._provider
        if isinstance(provider, Marking):
            protected: dict[str, bool] = {}
            for worker in snapshot.workers:
                if worker.unit:
                    used = bool(worker.tasks or worker.held_keys or worker.pinned)
                    protected[worker.unit] = used or protected.get(worker.unit, False)
            provider.mark(protected)

    def _take_taken(self) -> None:
        taken, self.ledger.taken = self.ledger.taken, []
        self._events += (Event(pool, unit, why(Code.TAKEN, message=words)) for pool, unit, words in taken)

    def _take_drain_ends(self) -> None:
        doomed = {unit.name for unit in (self.snapshot.units if self.snapshot else ()) if unit.doomed}
        for end in self.drains.take_ended():
            self._events.append(Event(end.pool, end.unit, end.why))
            if not end.done:
                believe_s = _HURRY_S if end.unit in doomed else _BELIEVE_S
                self._refused[end.unit] = (str(end.why), self.now_s() + believe_s)
                self._refused = {u: r for u, r in self._refused.items() if r[1] > self.now_s()}
            elif end.unit in observe.owners(self.scheduler, {end.unit}):
                # Restarted by its nanny, or the last of several to start: it may have tasks.
                self._events.append(Event(end.pool, end.unit, why(Code.NEW_ADDRESS)))
            else:
                self.ledger.records[end.pool].learn_drain(end.took_s)
                self._give_back(end.pool, [end.unit])

    def _give_back(self, pool: str, units: list[str]) -> None:
        """Tell the provider to stop these units, until it has heard."""
        if units:
            self.ledger.released(units)
            task = asyncio.create_task(self._stop(pool, units))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop(self, pool: str, units: list[str]) -> None:
        pause_s = 0.5
        while (provider := self._provider) is not None:
            try:
                async with asyncio.timeout(_PROVIDER_S):
                    kept = await provider.scale_down(units) or ()
            except (TimeoutError, ProviderError) as error:
                message = str(error) or type(error).__name__
                self._failed(pool, f"{', '.join(units)} could not be stopped: {message}")
            else:
                self.ledger.stays(kept)
                self._events += (Event(pool, unit, why(Code.STAYED)) for unit in kept)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _BELIEVE_S)

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
        if self.tally.unfinished or any(worker.tasks for worker in snapshot.workers):
            self._active_s = snapshot.now_s
        elif limit_s is not None and snapshot.now_s - self._active_s > limit_s:
            logger.info("No work for %g s: closing", limit_s)
            self._active_s = snapshot.now_s
            self._shutting_down = asyncio.ensure_future(self._shut_down())

    # -- what may be changed while it runs ------------------------------------------------------

    def _pool(self, name: str | None) -> str:
        if name is None:
            return next(iter(self.pools))
        if name not in self.pools:
            raise ConfigError("pool", name, "one of " + ", ".join(self.pools))
        return name

    def scale(self, n: int, pool: str | None = None) -> None:
        """Manual mode: keep exactly ``n`` units of ``pool`` (of the first one by default).

        More than the maximum is meant: the maximum is that until :meth:`adapt` is called.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ConfigError("n", n, "a whole number, 0 or more")
        name = self._pool(pool)
        limits = self._limits[name]
        if n > self.pools[name].maximum:
            limits.maximum = limits.maximum or self.pools[name].maximum
            self.pools[name] = msgspec.structs.replace(self.pools[name], maximum=n)
        limits.manual = n
        self.wake()

    def adapt(self, minimum: int | None = None, maximum: int | None = None, pool: str | None = None) -> None:
        """Automatic mode, with other limits for ``pool`` (for the first one by default) if given."""
        name = self._pool(pool)
        old = self.pools[name]
        low = old.minimum if minimum is None else minimum
        high = maximum if maximum is not None else self._limits[name].maximum or old.maximum
        for key, value in (("minimum", low), ("maximum", high)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(key, value, "a whole number, 0 or more")
        if low > high:
            raise ConfigError("minimum", low, f"at most the maximum, {high}")
        self.pools[name] = msgspec.structs.replace(old, minimum=low, maximum=high)
        self._limits[name].maximum = None
        for limits in self._limits.values():
            limits.manual = None
        self.wake()

    def reshape(self, pool: Pool) -> None:
        """What the workers of a pool are like has turned out; its limits stay."""
        old = self.pools[pool.name]
        self.pools[pool.name] = msgspec.structs.replace(
            pool, minimum=old.minimum, maximum=old.maximum, boot_s=old.boot_s
        )
        self.wake()

    def freeze(self) -> None:
        """Manual mode with the units that are there."""
        for name, limits in self._limits.items():
            if limits.manual is None and self.snapshot is not None:
                live = (Phase.REQUESTED, Phase.PENDING, Phase.STARTING, Phase.RUNNING)
                limits.manual = sum(1 for u in self.snapshot.units if u.pool == name and u.phase in live)
        self.wake()

    @property
    def manual(self) -> bool:
        """Whether somebody has set the size of a pool by hand."""
        return any(limits.manual is not None for limits in self._limits.values())

    def floor(self, n_workers: int, seconds: float, pool: str | None = None) -> None:
        """See to it that ``n_workers`` workers come, and stay for ``seconds`` from now; 0 ends that."""
        if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 0:
            raise ConfigError("n_workers", n_workers, "a whole number, 0 or more")
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise ConfigError("seconds", seconds, "a number, 0 or more")
        name = self._pool(pool)
        per_unit = self.pools[name].workers_per_unit
        units = -(-n_workers // per_unit)
        if units > self.pools[name].maximum:
            most = self.pools[name].maximum * per_unit
            raise ConfigError("n_workers", n_workers, f"at most {most}, what the maximum allows")
        limits = self._limits[name]
        if units and limits.floor_until_s > self.now_s() and limits.floor > units:
            return  # somebody else waits for more
        limits.floor, limits.floor_until_s = units, self.now_s() + seconds
        self.wake()

    def notice(self, worker_name: str, words: str) -> None:
        """The machine of this worker is about to go: its unit is emptied, and another one asked for."""
        units = {unit.name for unit in (self.snapshot.units if self.snapshot else ())}
        if unit := owner_of(worker_name, units):
            self._notices[unit] = words
            self.wake()

    def _noticed(self, units: tuple[Unit, ...]) -> tuple[Unit, ...]:
        if not self._notices:
            return units
        self._notices = {u.name: self._notices[u.name] for u in units if u.name in self._notices}
        replace = msgspec.structs.replace
        return tuple(
            replace(unit, doomed=True, message=self._notices[unit.name])
            if unit.name in self._notices
            else unit
            for unit in units
        )

    def _restarted(self) -> None:
        """``client.restart`` waits for as many workers as there were; those without a nanny are gone."""
        if self.snapshot is None:
            return
        known = {unit.name for unit in self.snapshot.units}
        owned_by = zip(observe.owners(self.scheduler, known), self.scheduler.workers.values(), strict=True)
        # They would not exit before their running tasks have ended.
        leaving = {unit for unit, ws in owned_by if unit and not ws.nanny}
        for name in self.pools:
            units = {u.name for u in self.snapshot.units if u.pool == name and u.phase is Phase.RUNNING}
            if units:
                limits = self._limits[name]
                limits.floor, limits.floor_until_s = len(units), self.now_s() + _BELIEVE_S
            self._give_back(
                name, [u.name for u in self.snapshot.units if u.pool == name and u.name in leaving]
            )


def _mean_price(units: Iterable[Unit], pool: str) -> float | None:
    """What the units of ``pool`` cost whose machines' prices are known."""
    prices = [unit.price for unit in units if unit.pool == pool and unit.price is not None]
    return fmean(prices) if prices else None
