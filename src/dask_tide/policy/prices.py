"""Prices: what units of several pools cost, to be compared."""

from __future__ import annotations

from collections.abc import Iterable

from dask_tide.model import PoolState

__all__ = ["compared"]


def compared(states: Iterable[PoolState]) -> dict[str, float]:
    """What one unit costs for one second, by pool, in such a way that cheap pools can be told from dear ones.

    A unit's share of a machine, as seen, and a whole machine, which is all that is known before, cannot be
    compared. So where one of these pools has not been seen lately, whole machines are: spot machines for
    one, machines on demand for the other.
    """
    states = tuple(states)
    seen = all(s.price is not None for s in states if s.bound is not None and s.pool.maximum)
    return {s.pool.name: s.unit_price if seen or s.bound is None else s.bound for s in states}
