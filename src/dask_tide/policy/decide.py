"""One decision: ``(Snapshot, Memory) -> (actions, Memory)``, pure and total."""

from __future__ import annotations

import math
from operator import attrgetter

import msgspec

from dask_tide.model import (
    BOOTING,
    LIVE,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Memory,
    Phase,
    PoolMemory,
    PoolState,
    Release,
    Snapshot,
    Why,
    Worker,
    why,
)

from . import limits, sizing, victims
from .demand import Demand, assign
from .stock import Stock, take_stock
from .window import after, longest_need

#: What a fresh process costs at the least beside its boot: what its first tasks import and cache.
_WARM_S = 0.5


def decide(snapshot: Snapshot, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
    """Decide what to do about every pool.

    Parameters
    ----------
    snapshot
        All that may be known.
    memory
        What the previous decision returned; ``Memory()`` at first.

    Returns
    -------
    The actions, at least one for each pool (a :class:`Hold` says why nothing is done), and
    what to remember. In one pool there is never a launch beside a release.
    """
    actions: list[Action] = []
    remembered: dict[str, PoolMemory] = {}
    allowance = limits.Allowance(snapshot)
    stocks = take_stock(snapshot)
    taking = {name: stock.taking for name, stock in stocks.items()}
    reach = {}
    for state in snapshot.pools:
        stock = stocks[state.pool.name]
        more = limits.ceiling(state, stock.existing, allowance, 0).units - stock.existing
        reach[state.pool.name] = stock.taking + max(0, more)
    demands, impossible = assign(snapshot, taking, reach)
    room = victims.Room(snapshot)
    haven, at_risk = _haven(snapshot), 0
    # Spot first: what they hold may need another place.
    for state in sorted(snapshot.pools, key=lambda state: not state.pool.spot):
        name = state.pool.name
        decision = _PoolDecision(
            snapshot,
            state,
            stocks[name],
            demands[name],
            memory.pools.get(name, PoolMemory()),
            allowance,
            room,
            at_risk if name == haven else 0,
        )
        decided = decision.actions()
        actions += decided
        remembered[name] = decision.memory
        if state.pool.spot:
            kept = (action.why for action in decided if action.why.code == Code.KEPT_FOR_RESULT.name)
            at_risk += sum(int(why.numbers["keys"]) for why in kept)
    for work, missing in ((entry.work, entry.missing) for entry in impossible):
        tasks = work.runnable + work.waiting
        actions.append(Hold("", why(Code.IMPOSSIBLE, tasks=tasks, example=work.example, missing=missing)))
    return tuple(actions), Memory(remembered)


def _haven(snapshot: Snapshot) -> str:
    """Name of the pool for results that shall not stay on spot machines; empty: there is none."""
    safe = [state for state in snapshot.pools if not state.pool.spot and state.pool.maximum]
    return min(safe, key=attrgetter("unit_price")).pool.name if safe else ""


class _PoolDecision:
    """The decision about one pool. Lives for the length of one call."""

    def __init__(
        self,
        snapshot: Snapshot,
        state: PoolState,
        stock: Stock,
        demand: Demand,
        memory: PoolMemory,
        allowance: limits.Allowance,
        room: victims.Room,
        at_risk: int,
    ) -> None:
        self.snapshot = snapshot
        self.settings = snapshot.settings
        self.state = state
        self.pool = state.pool
        self.stock = stock
        self.live = stock.live
        self.demand = demand
        self.memory = limits.after_failures(state, memory, snapshot)
        self.allowance = allowance
        self.room = room
        #: Results that only spot machines hold, and that this pool is to take.
        self.at_risk = at_risk
        self.boot_s = self.pool.boot_s if state.boot_s is None else state.boot_s
        self.held_bytes, self.for_results = self._results() if demand.unfinished else (0, 0)

    def actions(self) -> list[Action]:
        if self.state.blind:
            return [self._hold(why(Code.BLIND, message=self.state.blind))]
        if self.state.frozen:
            return [self._hold(why(Code.FROZEN, message=self.state.frozen))]
        gone = self._ended() + self._evacuate()
        if gone:
            return gone
        target, reason = self._target()
        if reason and target > self.live and self.live <= self.pool.maximum:
            return [self._launch(target, reason)]
        shrink = self._shrink()
        return shrink or [self._hold(reason or self._idle_reason())]

    # -- more ---------------------------------------------------------------------------

    def _target(self) -> tuple[int, Why | None]:
        """How many live units to have, at the least, and why."""
        demand, have = self.demand, self.live
        if self.state.manual is not None:
            return self.state.manual, why(Code.MANUAL, want=self.state.manual, have=have)
        wishes: list[tuple[int, Why | None]] = [
            (self.pool.minimum, why(Code.MINIMUM, want=self.pool.minimum, have=have)),
            (self.state.floor, why(Code.FLOOR, want=self.state.floor, have=have)),
        ]
        size = sizing.worthwhile(
            demand,
            ready=self.stock.ready,
            booting=self.stock.booting,
            boot_s=self.boot_s,
            cold_boot_s=self.state.cold_boot_s,
            room=self.state.room,
        )
        more = size.why or why(
            Code.DEMAND,
            runnable=demand.runnable,
            slots=demand.slots,
            have=have,
            want=demand.usable,
        )
        # A paused unit takes no tasks; another one must.
        wishes.append((size.units + self.stock.paused if demand.runnable else 0, more))
        room = why(Code.MEMORY, used_bytes=self.held_bytes, have=have, want=self.for_results)
        wishes.append((self.for_results, room))
        wishes.append((min(self.at_risk, 1), why(Code.SAFE_COPY, keys=self.at_risk)))
        target, reason = max(wishes, key=lambda wish: wish[0])
        if target <= have:
            # Not launching needs a reason only where the work could use more.
            return target, size.why if demand.usable + self.stock.paused > have else None
        return target, reason

    def _results(self) -> tuple[int, int]:
        """Bytes of results in this pool, and the units they need."""
        stock = self.stock
        if not stock.limit_bytes:
            return stock.held_bytes, 0
        of_worker = stock.limit_bytes // stock.workers - self.state.baseline_bytes
        units = sizing.for_results(
            held_bytes=stock.held_bytes,
            capacity_bytes=of_worker * self.pool.workers_per_unit,
            ratio=self.settings.memory_ratio,
        )
        return stock.held_bytes, units

    def _launch(self, target: int, reason: Why) -> Action:
        ceiling = limits.ceiling(self.state, self.stock.existing, self.allowance, target)
        count = min(target - self.live, ceiling.units - self.stock.existing)
        if count <= 0:
            return self._hold(ceiling.why)
        if self.memory.retry_s > self.snapshot.now_s:
            return self._hold(
                why(
                    Code.BACKOFF,
                    failures=self.memory.failures,
                    wait_s=self.memory.retry_s - self.snapshot.now_s,
                    message=self.state.failure,
                )
            )
        self.allowance.draw(count, self.state.unit_price)
        self._remember(max(target, self._needed()))
        return Launch(self.pool.name, count, reason)

    # -- fewer --------------------------------------------------------------------------

    def _needed(self) -> int:
        """Units that there is a use for now, or soon enough."""
        if self.state.manual is not None:
            return self.state.manual
        later = self.demand.later if self._soon() else 0
        return max(self._needed_now(), later)

    def _needed_now(self) -> int:
        demand = self.demand
        usable = demand.usable + (self.stock.paused if demand.unfinished else 0)
        return max(usable, self.for_results, self.pool.minimum, self.state.floor, min(self.at_risk, 1))

    def _soon(self) -> bool:
        """Whether the tasks that wait may run before an idle unit has cost as much as a new one."""
        in_s = self.demand.later_in_s(self.stock.ready * self.pool.threads_per_unit)
        return in_s is not None and in_s <= self._keep_s()

    def _keep_s(self) -> float:
        """How long an idle unit is worth keeping when nothing is known of its next use.

        Ski rental: as long as it would cost to start it again (Karlin et al. 1988: never more
        than twice the cost of the best decision in hindsight).
        """
        keep_s = self.settings.keep_s
        if keep_s is None:
            keep_s = max(_WARM_S, self.boot_s + self.state.drain_s, self._machine_s())
        return min(keep_s, self.settings.idle_timeout_s)

    def _machine_s(self) -> float:
        """For how long units must keep a machine that the platform would take away too early."""
        if self.settings.machine_idle_s is None or self.state.cold_boot_s is None:
            return 0.0
        return self.state.cold_boot_s - self.settings.machine_idle_s

    def _window_s(self) -> float:
        """For how long units must have been too many before any is released."""
        demand = self.demand
        if demand.unfinished and demand.later <= demand.usable:
            # The graph is known and cannot use them any more.
            return min(self.settings.tail_s, self._keep_s())
        return self._keep_s()

    def _remember(self, needed: int) -> None:
        horizon_s = max(self._keep_s(), self.settings.tail_s)
        self.memory = msgspec.structs.replace(
            self.memory, needed=after(self.memory.needed, self.snapshot.now_s, needed, horizon_s)
        )

    def _shrink(self) -> list[Action]:
        now_s = self.snapshot.now_s
        needed = self._needed()
        self._remember(needed)
        window_s = self._window_s()
        manual = self.state.manual is not None
        above = self.live > self.pool.maximum
        if manual:
            wanted = min(needed, self.pool.maximum)
        elif above:
            wanted = self.pool.maximum
        else:
            wanted = longest_need(self.memory.needed, now_s - window_s)
        surplus = self.live - wanted
        if surplus <= 0:
            return self._renew()
        if manual:
            reason = why(Code.MANUAL, want=wanted, have=self.live)
        elif above:
            reason = why(Code.ABOVE_MAXIMUM, want=wanted, have=self.live)
        else:
            reason = why(Code.SURPLUS, surplus=surplus, have=self.live, want=wanted, window_s=window_s)
        return self._let_go(surplus, reason, busy=manual or above)

    def _renew(self) -> list[Action]:
        """Let idle units of an older template go while no task wants one; new ones follow where wanted."""
        if self.demand.runnable or not any(unit.stale for unit in self.stock.units):
            return []
        stale = [c for c in victims.candidates(self.snapshot, self.stock, busy=False) if c.unit.stale]
        ready = [c for c in stale if c.workers and not c.pinned and self.room.admit(c)]
        if not ready:
            return []
        units = tuple(candidate.unit.name for candidate in ready)
        workers = tuple((w.name, w.address) for candidate in ready for w in candidate.workers)
        return [Drain(self.pool.name, units, workers, why(Code.STALE, message=ready[0].unit.message))]

    def _let_go(self, surplus: int, reason: Why, *, busy: bool) -> list[Action]:
        releases: list[str] = []
        drains: list[victims.Candidate] = []
        kept: Why | None = None
        for candidate in victims.candidates(self.snapshot, self.stock, busy=busy):
            if len(releases) + len(drains) == surplus:
                break
            if candidate.booting:
                releases.append(candidate.unit.name)
            elif not candidate.workers:
                continue  # running, and its worker has just left: the next tick sees what became of it
            elif candidate.pinned:
                kept = kept or why(Code.PINNED, surplus=surplus, message=candidate.pinned)
            elif self.room.admit(candidate):
                drains.append(candidate)
            else:
                kept = kept or why(Code.KEPT_FOR_RESULT, keys=candidate.only_copies)
        actions: list[Action] = []
        if releases:
            actions.append(Release(self.pool.name, tuple(releases), reason))
        if drains:
            workers = tuple((w.name, w.address) for c in drains for w in c.workers)
            units = tuple(c.unit.name for c in drains)
            actions.append(Drain(self.pool.name, units, workers, reason, busy))
        if not actions:
            message = "their workers have tasks or have just left"
            actions.append(self._hold(kept or why(Code.PINNED, surplus=surplus, message=message)))
        return actions

    def _evacuate(self) -> list[Action]:
        """Empty the units whose machine is about to go, busy or not, while there is time."""
        doomed = sorted((u for u in self.stock.units if u.doomed and u.phase in LIVE), key=attrgetter("name"))
        if not doomed:
            return []
        workers: dict[str, list[Worker]] = {unit.name: [] for unit in doomed}
        for worker in sorted(self.snapshot.workers, key=attrgetter("address")):
            if worker.unit in workers:
                workers[worker.unit].append(worker)
        actions: list[Action] = []
        reason = why(Code.DOOMED, message=doomed[0].message)
        empty = tuple(unit.name for unit in doomed if unit.phase in BOOTING and not workers[unit.name])
        if empty:
            actions.append(Release(self.pool.name, empty, reason))
        full = [name for name, its in workers.items() if its and not any(worker.pinned for worker in its)]
        if full:
            pairs = tuple((w.name, w.address) for name in full for w in workers[name])
            actions.append(Drain(self.pool.name, tuple(full), pairs, reason, busy=True))
        return actions

    def _ended(self) -> list[Action]:
        """Give back what did not start in time, and what has ended, so that the platform forgets it."""
        limit_s = self.settings.start_timeout_s
        actions: list[Action] = []
        for phase, code in ((Phase.EXPIRED, Code.EXPIRED), (Phase.FAILED, Code.FAILED)):
            ended = sorted((u for u in self.stock.units if u.phase is phase), key=lambda unit: unit.name)
            if ended:
                message = ended[0].message or "no message"
                reason = why(code, limit_s=limit_s, message=message)
                actions.append(Release(self.pool.name, tuple(unit.name for unit in ended), reason))
        return actions

    # -- neither ------------------------------------------------------------------------

    def _hold(self, reason: Why | None) -> Hold:
        self._remember(self._needed())
        return Hold(self.pool.name, reason or self._idle_reason())

    def _wanted_by(self) -> Why:
        """For whom the units are there."""
        if self.live > self.demand.usable + self.stock.paused:
            if self.state.floor >= self.live:
                return why(Code.KEPT_FLOOR, have=self.live, floor=self.state.floor)
            if self.pool.minimum >= self.live:
                return why(Code.KEPT_MINIMUM, have=self.live, minimum=self.pool.minimum)
        if self.stock.unplaced:
            words = min(unit.message for unit in self.stock.units if unit.unplaced)
            return why(Code.NO_CAPACITY, limit=self.live - self.stock.unplaced, message=words)
        return why(Code.ENOUGH, have=self.live)

    def _idle_reason(self) -> Why:
        draining = sum(unit.phase is Phase.DRAINING for unit in self.stock.units)
        if draining:
            return why(Code.DRAINING, count=draining)
        if not self.live and not self.demand.runnable:
            return why(Code.NO_WORK)
        needed = self._needed_now()
        surplus = self.live - needed
        if surplus > 0:
            if self._needed() > needed:
                return why(Code.KEPT_FOR_LATER, surplus=surplus, later=self.demand.later)
            last_s = max((when for when, units in self.memory.needed if units > needed), default=-math.inf)
            if last_s > -math.inf:
                idle_s, window_s = self.snapshot.now_s - last_s, self._window_s()
                if window_s < self._keep_s():
                    return why(Code.KEPT_TAIL, surplus=surplus, window_s=window_s, idle_s=idle_s)
                return why(Code.KEPT_BREAK_EVEN, surplus=surplus, keep_s=window_s, idle_s=idle_s)
        return self._wanted_by()
