"""One decision: ``(Snapshot, Memory) -> (actions, Memory)``, pure and total."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from dask_tide.model import (
    BOOTING,
    EXISTING,
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
    Unit,
    Why,
    why,
)

from . import limits, sizing, victims
from .demand import Demand, assign
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
    units = _by_pool(snapshot)
    ceilings = {}
    for state in snapshot.pools:
        existing = _count(units[state.pool.name], EXISTING)
        ceilings[state.pool.name] = limits.ceiling(state, existing, allowance, 0).units
    demands, impossible = assign(snapshot, ceilings)
    room = victims.Room(snapshot, snapshot.settings)
    for state in snapshot.pools:
        name = state.pool.name
        decision = _PoolDecision(
            snapshot, state, units[name], demands[name], memory.pools.get(name, PoolMemory()), allowance, room
        )
        actions += decision.actions()
        remembered[name] = decision.memory
    for work, missing in ((entry.work, entry.missing) for entry in impossible):
        tasks = work.runnable + work.waiting
        actions.append(Hold("", why(Code.IMPOSSIBLE, tasks=tasks, example=work.example, missing=missing)))
    return tuple(actions), Memory(remembered)


class _PoolDecision:
    """The decision about one pool. Lives for the length of one call."""

    def __init__(
        self,
        snapshot: Snapshot,
        state: PoolState,
        units: Sequence[Unit],
        demand: Demand,
        memory: PoolMemory,
        allowance: limits.Allowance,
        room: victims.Room,
    ) -> None:
        self.snapshot = snapshot
        self.settings = snapshot.settings
        self.state = state
        self.pool = state.pool
        self.units = units
        self.demand = demand
        self.memory = limits.after_failures(state, memory, snapshot)
        self.allowance = allowance
        self.room = room
        self.existing = _count(units, EXISTING)
        self.live = _count(units, LIVE)
        self.booting = _count(units, BOOTING)
        taking = {w.unit for w in snapshot.workers if w.status == "running"}
        #: Running units whose workers take no tasks: full of results, they are no capacity.
        self.paused = sum(1 for u in units if u.phase is Phase.RUNNING and u.name not in taking)
        self.ready = self.live - self.booting - self.paused
        self.boot_s = self.pool.boot_s if state.boot_s is None else state.boot_s
        self.held_bytes, self.for_results = self._results() if demand.unfinished else (0, 0)

    def actions(self) -> list[Action]:
        if self.state.blind:
            return [self._hold(why(Code.BLIND, message=self.state.blind))]
        expired = self._expired()
        if expired:
            return expired
        target, reason = self._target()
        if target > self.live:
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
        size = sizing.worthwhile(demand, ready=self.ready, booting=self.booting, boot_s=self.boot_s)
        more = size.why or why(
            Code.DEMAND,
            runnable=demand.runnable,
            slots=self.pool.threads_per_unit,
            have=have,
            want=demand.usable,
        )
        # A paused unit takes no tasks; another one must.
        wishes.append((size.units + self.paused if demand.runnable else 0, more))
        room = why(Code.MEMORY, used_bytes=self.held_bytes, have=have, want=self.for_results)
        wishes.append((self.for_results, room))
        target, reason = max(wishes, key=lambda wish: wish[0])
        if target <= have:
            # Not launching needs a reason only where the work could use more.
            return target, size.why if demand.usable + self.paused > have else None
        return target, reason

    def _results(self) -> tuple[int, int]:
        """Bytes of results in this pool, and the units they need."""
        names = {unit.name for unit in self.units}
        base = self.state.baseline_bytes
        used = limit = count = 0
        for worker in self.snapshot.workers:
            if worker.unit in names:
                used += max(worker.held_bytes, worker.used_bytes - base if base else 0)
                limit += worker.limit_bytes
                count += 1
        if not count or not limit:
            return used, 0
        capacity = (limit // count - base) * self.pool.workers_per_unit
        return used, sizing.for_results(
            held_bytes=used, capacity_bytes=capacity, ratio=self.settings.memory_ratio
        )

    def _launch(self, target: int, reason: Why | None) -> Action:
        ceiling = limits.ceiling(self.state, self.existing, self.allowance, target)
        count = min(target - self.live, ceiling.units - self.existing)
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
        self.allowance.draw(count, self.pool.price)
        self._remember(max(target, self._needed()))
        assert reason is not None
        return Launch(self.pool.name, count, reason)

    # -- fewer --------------------------------------------------------------------------

    def _needed(self) -> int:
        """Units that there is a use for now, or soon enough."""
        if self.state.manual is not None:
            return self.state.manual
        demand = self.demand
        needed = demand.usable + (self.paused if demand.unfinished else 0)
        in_s = demand.later_in_s(self.ready * self.pool.threads_per_unit)
        if demand.later > needed and in_s is not None and in_s <= self._keep_s():
            needed = demand.later
        return max(needed, self.for_results, self.pool.minimum, self.state.floor)

    def _keep_s(self) -> float:
        """How long an idle unit is worth keeping when nothing is known of its next use.

        Ski rental: as long as it would cost to start it again (Karlin et al. 1988: never more
        than twice the cost of the best decision in hindsight).
        """
        keep_s = self.settings.keep_s
        if keep_s is None:
            keep_s = max(_WARM_S, self.boot_s + self.state.drain_s)
        return min(keep_s, self.settings.idle_timeout_s)

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
            return []
        if manual:
            reason = why(Code.MANUAL, want=wanted, have=self.live)
        elif above:
            reason = why(Code.ABOVE_MAXIMUM, want=wanted, have=self.live)
        else:
            reason = why(Code.SURPLUS, surplus=surplus, have=self.live, want=wanted, window_s=window_s)
        return self._let_go(surplus, reason, busy=manual or above)

    def _let_go(self, surplus: int, reason: Why, *, busy: bool) -> list[Action]:
        releases: list[str] = []
        drains: list[victims.Candidate] = []
        kept: Why | None = None
        for candidate in victims.candidates(self.snapshot, self.pool.name):
            if len(releases) + len(drains) == surplus:
                break
            if candidate.booting:
                releases.append(candidate.unit.name)
            elif not candidate.workers:
                continue  # running, and its worker has just left: the next tick sees what became of it
            elif not busy and not candidate.idle:
                break
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
        if kept and not actions:
            actions.append(self._hold(kept))
        return actions

    def _expired(self) -> list[Action]:
        """Give back what never started, and what has ended, so that the platform forgets it."""
        ended = [u for u in self.units if u.phase in (Phase.EXPIRED, Phase.FAILED)]
        if not ended:
            return []
        limit_s = self.settings.start_timeout_s
        message = ended[0].message or "no message"
        return [
            Release(
                self.pool.name,
                tuple(u.name for u in ended),
                why(Code.EXPIRED, limit_s=limit_s, message=message),
            )
        ]

    # -- neither ------------------------------------------------------------------------

    def _hold(self, reason: Why | None) -> Hold:
        self._remember(self._needed())
        return Hold(self.pool.name, reason or self._idle_reason())

    def _idle_reason(self) -> Why:
        draining = _count(self.units, {Phase.DRAINING})
        if draining:
            return why(Code.DRAINING, count=draining)
        if not self.live and not self.demand.runnable:
            return why(Code.NO_WORK)
        needed = self._needed()
        surplus = self.live - needed
        if surplus > 0:
            demand = self.demand
            if demand.later > demand.usable:
                return why(Code.KEPT_FOR_LATER, surplus=surplus, later=demand.later)
            last_s = max((when for when, units in self.memory.needed if units > needed), default=-math.inf)
            if last_s > -math.inf:
                return why(
                    Code.KEPT_BREAK_EVEN,
                    surplus=surplus,
                    keep_s=self._window_s(),
                    idle_s=self.snapshot.now_s - last_s,
                )
        return why(Code.ENOUGH, have=self.live)


def _by_pool(snapshot: Snapshot) -> dict[str, list[Unit]]:
    units: dict[str, list[Unit]] = {state.pool.name: [] for state in snapshot.pools}
    for unit in snapshot.units:
        units.setdefault(unit.pool, []).append(unit)
    return units


def _count(units: Sequence[Unit], phases: frozenset[Phase] | set[Phase]) -> int:
    return sum(1 for unit in units if unit.phase in phases)
