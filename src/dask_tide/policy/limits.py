"""Limits: how many units a pool can have at the most just now, and what stands in the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dask_tide.model import EXISTING, Code, PoolMemory, PoolState, Snapshot, Why, why


@dataclass(frozen=True)
class Ceiling:
    """At most ``units`` units, and why."""

    units: int
    why: Why


class Allowance:
    """What is left of the limits that the pools share; launches draw on it."""

    def __init__(self, snapshot: Snapshot) -> None:
        settings = snapshot.settings
        self._spent = snapshot.spent
        prices = {state.pool.name: state.unit_price for state in snapshot.pools}
        existing = [unit for unit in snapshot.units if unit.phase in EXISTING]
        self._units = math.inf if settings.maximum is None else settings.maximum - len(existing)
        self._rate = math.inf
        if settings.budget_per_hour is not None:
            self._rate = settings.budget_per_hour / 3600 - sum(
                prices.get(u.pool, 0.0) if u.price is None else u.price for u in existing
            )
        self._exhausted = settings.budget_total is not None and snapshot.spent >= settings.budget_total

    def more(self, price: float) -> tuple[int, bool]:
        """How many more units at ``price``, and whether the budget is what limits them."""
        if self._exhausted:
            return 0, True
        affordable = math.inf
        if self._rate < math.inf and price > 0:
            affordable = math.floor(self._rate / price + 1e-9)
        more = max(0, min(self._units, affordable))
        return (2**31 if more == math.inf else int(more)), affordable < self._units

    def draw(self, count: int, price: float) -> None:
        self._units -= count
        self._rate -= count * price

    @property
    def spent(self) -> float:
        return self._spent


def ceiling(state: PoolState, existing: int, allowance: Allowance, want: int) -> Ceiling:
    """The most units that ``state`` may have, ``existing`` ones included."""
    more, by_budget = allowance.more(state.unit_price)
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
    return PoolMemory(
        needed=memory.needed, started=state.started, failed=state.failed, failures=failures, retry_s=retry_s
    )
