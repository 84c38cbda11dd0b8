"""Limits: how many units a pool can have at the most just now, and what stands in the way."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import msgspec

from dask_tide.model import EXISTING, LIVE, Code, PoolMemory, PoolState, Snapshot, Unit, Why, why

#: After so many failed starts in a row a pool is not counted on, and tried with one unit at a time. One may
#: be bad luck, or one bad machine.
_FAILING = 3


@dataclass(frozen=True)
class Ceiling:
    """At most ``units`` units, and why."""

    units: int
    why: Why


class Allowance:
    """What is left of the limits that the pools share; launches draw on it.

    Attributes
    ----------
    over
        By pool, how many units are more than an hour's budget pays for, or than all pools may have, counted
        from the dearest on that may go: it was lowered, or machines have turned out to be dearer.
    dear
        Whether it is the budget.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        settings = snapshot.settings
        self._spent = snapshot.spent
        prices = {state.pool.name: _at_most(state) for state in snapshot.pools}
        existing = [unit for unit in snapshot.units if unit.phase in EXISTING]
        self._units = math.inf if settings.maximum is None else settings.maximum - len(existing)
        self._rate = math.inf
        if settings.budget_per_hour is not None:
            # Who takes the place of a unit whose machine is about to go comes before that has gone.
            self._rate = settings.budget_per_hour / 3600 - sum(
                prices.get(u.pool, 0.0) if u.price is None else u.price for u in existing if not u.doomed
            )
        self._pools = {unit.pool for unit in existing}
        self._reserved: dict[str, tuple[int, float]] = {}
        self.over, self.dear = _over(snapshot)
        self._exhausted = settings.budget_total is not None and snapshot.spent >= settings.budget_total

    def reserve(self, state: PoolState, units: int) -> None:
        """Leave so many units for this pool, whatever others ask for before it; 0: no more."""
        self._reserved[state.pool.name] = units, units * _at_most(state)

    def more(self, state: PoolState) -> tuple[int, bool]:
        """How many more units of a pool, and whether the budget is what limits them."""
        if self._exhausted:
            return 0, True
        affordable, price = math.inf, _at_most(state)
        others = [reserved for name, reserved in self._reserved.items() if name != state.pool.name]
        units = self._units - sum(count for count, _ in others)
        rate = self._rate - sum(rate for _, rate in others)
        if self._rate < math.inf and price > 0:
            affordable = math.floor(rate / price + 1e-9)
            unseen = state.dearest is None and state.bound is not None
            if rate > 0 and unseen and state.pool.name not in self._pools:
                # Else nobody would ever learn what one costs of which only the most is known.
                affordable = max(1, affordable)
        more = max(0, min(units, affordable))
        return (2**31 if more == math.inf else int(more)), affordable < units

    def draw(self, count: int, state: PoolState) -> None:
        self._units -= count
        self._rate -= count * _at_most(state)
        self._pools.add(state.pool.name)

    @property
    def spent(self) -> float:
        return self._spent


def _at_most(state: PoolState) -> float:
    """What one more unit costs for one second at the most, as far as it can be told."""
    return state.unit_price if state.dearest is None else state.dearest


def known_price(unit: Unit, state: PoolState) -> float:
    """What a unit costs for one second: 0 where only its machine tells, and has not yet."""
    if unit.price is not None:
        return unit.price
    return state.pool.price if state.price is None and state.bound is None else 0.0


def _over(snapshot: Snapshot) -> tuple[Counter[str], bool]:
    settings = snapshot.settings
    budget_per_hour = math.inf if settings.budget_per_hour is None else settings.budget_per_hour
    maximum = math.inf if settings.maximum is None else settings.maximum
    over: Counter[str] = Counter()
    if budget_per_hour == maximum == math.inf:
        return over, False
    states = {state.pool.name: state for state in snapshot.pools}
    live = [u for u in snapshot.units if u.phase in LIVE and u.pool in states and not u.doomed]
    dearest_first = sorted(((known_price(unit, states[unit.pool]), unit.pool) for unit in live), reverse=True)
    excess = sum(price for price, _ in dearest_first) * 3600 - budget_per_hour
    more, dear = len(live) - maximum, excess > 1e-9 * budget_per_hour
    may_go = Counter(unit.pool for unit in live if states[unit.pool].manual is None)
    may_go.subtract({name: states[name].pool.minimum for name in may_go})
    for price, pool in dearest_first:
        if more <= 0 and (excess <= 1e-9 * budget_per_hour or not price):
            break
        if over[pool] >= may_go[pool]:
            continue
        over[pool] += 1
        excess -= price * 3600
        more -= 1
    return over, dear


def ceiling(state: PoolState, existing: int, allowance: Allowance, want: int) -> Ceiling:
    """The most units that ``state`` may have, ``existing`` ones included."""
    more, by_budget = allowance.more(state)
    limit = state.pool.maximum
    reason = why(Code.AT_MAXIMUM, want=want, limit=limit)
    if state.blind:
        return Ceiling(existing, why(Code.BLIND, message=state.blind))
    if state.frozen:
        return Ceiling(existing, why(Code.FROZEN, message=state.frozen))
    if state.capacity is not None and state.capacity < limit:
        limit = state.capacity
        reason = why(Code.NO_CAPACITY, limit=limit, message=state.capacity_message)
    if existing + more < limit:
        limit = existing + more
        reason = why(Code.AT_MAXIMUM, want=want, limit=limit)
        if by_budget:
            reason = why(Code.BUDGET, want=want, limit=limit, spent=allowance.spent)
    return Ceiling(limit, reason)


def tries(memory: PoolMemory, booting: int, snapshot: Snapshot) -> float:
    """How many more units may be started, after so many failures: any number where few have failed in a row.

    Else one finds out whether they start again as well as a hundred do.
    """
    if memory.failures < _FAILING:
        return math.inf
    return int(memory.retry_s <= snapshot.now_s and not booting)


def after_failures(state: PoolState, memory: PoolMemory, snapshot: Snapshot) -> PoolMemory:
    """Count starts that failed in a row; the pause doubles with each, and any success ends it."""
    started, failed = state.started > memory.started, state.failed > memory.failed
    failures, retry_s = memory.failures, memory.retry_s
    if started:
        failures, retry_s = 0, 0.0
    elif failed:
        failures += 1
        settings = snapshot.settings
        pause_s = min(settings.backoff_max_s, settings.backoff_s * 2 ** min(failures - 1, 30))
        retry_s = snapshot.now_s + pause_s
    return msgspec.structs.replace(
        memory, started=state.started, failed=state.failed, failures=failures, retry_s=retry_s
    )
