"""Wishes: what people ask for at run time: the size of a pool, its limits, a floor for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from dask_tide.errors import ConfigError
from dask_tide.model import LIVE, Pool, Unit

__all__ = ["Wishes"]


@dataclass
class _Wish:
    """What somebody has set for a pool."""

    manual: int | None = None
    #: What the maximum was before somebody asked for more by hand.
    maximum: int | None = None
    floor: int = 0
    floor_until_s: float = 0.0


class Wishes:
    """What people have asked for. A pool without a name is the first one; who waits for workers means any.

    Parameters
    ----------
    pools
        By name, with their limits; other limits are written there.
    wake
        Called when something was asked for.
    maximum
        Of units of all pools together; nobody can ask for more. None: there is no such limit.
    """

    def __init__(self, pools: dict[str, Pool], wake: Callable[[], None], maximum: int | None = None) -> None:
        self._pools = pools
        self._wake = wake
        self._maximum = maximum
        self._wishes = {name: _Wish() for name in pools}

    # -- what people ask for --------------------------------------------------------------------

    def scale(self, n: int, pool: str | None) -> None:
        """Exactly ``n`` units; more than the pool's maximum is meant, and raises that until :meth:`adapt`."""
        _check_count("n", n)
        if self._maximum is not None and n > self._maximum:
            raise ConfigError("n", n, f"at most {self._maximum}, which is tide.limits.maximum")
        name = self._name(pool)
        wish = self._wishes[name]
        if n > self._pools[name].maximum:
            if wish.maximum is None:
                wish.maximum = self._pools[name].maximum
            self._pools[name] = msgspec.structs.replace(self._pools[name], maximum=n)
        wish.manual = n
        self._wake()

    def adapt(self, minimum: int | None, maximum: int | None, pool: str | None) -> None:
        """No size by hand any more, in no pool; and other limits for one, if given."""
        name = self._name(pool)
        old = self._pools[name]
        low = old.minimum if minimum is None else minimum
        before = self._wishes[name].maximum
        high = next(limit for limit in (maximum, before, old.maximum) if limit is not None)
        _check_count("minimum", low)
        _check_count("maximum", high)
        if low > high:
            raise ConfigError("minimum", low, f"at most the maximum, {high}")
        self._pools[name] = msgspec.structs.replace(old, minimum=low, maximum=high)
        self._wishes[name].maximum = None
        for wish in self._wishes.values():
            wish.manual = None
        self._wake()

    def freeze(self, units: Iterable[Unit]) -> None:
        """The size by hand becomes what these units make, where there is none yet."""
        live = [unit.pool for unit in units if unit.phase in LIVE]
        for name, wish in self._wishes.items():
            if wish.manual is None:
                wish.manual = live.count(name)

    def floor(
        self, n_workers: int, seconds: float, pool: str | None, *, now_s: float, live: Mapping[str, int]
    ) -> None:
        """So many workers come, and stay for ``seconds`` from ``now_s``; 0 ends that.

        Without ``pool`` they may be of any: those that are there or on their way (``live``, units by pool);
        what is missing comes from pools without resources first, in the order of the configuration.
        """
        _check_count("n_workers", n_workers)
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise ConfigError("seconds", seconds, "a number, 0 or more")
        names = self.plain_first() if pool is None else [self._name(pool)]
        self._check_reach(n_workers, names)
        shares = self._shares(n_workers, names, live)
        for name in names:
            units = shares.get(name, 0)
            # Somebody else may wait for more.
            if not n_workers or (units and self.floor_of(name, now_s) <= units):
                self.hold(name, units, now_s + seconds)
        self._wake()

    def _check_reach(self, n_workers: int, names: list[str]) -> None:
        """Raise if there can never be so many workers of these pools."""
        units, limit = sum(self._pools[name].maximum for name in names), "the maximum"
        if self._maximum is not None and self._maximum < units:
            units, limit = self._maximum, "tide.limits.maximum"
        most = 0
        for each in sorted((self._pools[name] for name in names), key=lambda each: -each.workers_per_unit):
            taken = min(units, each.maximum)
            units -= taken
            most += taken * each.workers_per_unit
        if n_workers > most:
            raise ConfigError("n_workers", n_workers, f"at most {most}, what {limit} allows")

    def _shares(self, n_workers: int, names: list[str], live: Mapping[str, int]) -> dict[str, int]:
        """Units by pool that make so many workers: those that are there, then others up to each maximum."""
        limits = {
            name: self._pools[name].maximum if wish.manual is None else wish.manual
            for name, wish in self._wishes.items()
        }
        shares: dict[str, int] = {}
        left = n_workers
        for most in ({name: min(live.get(name, 0), limits[name]) for name in names}, limits):
            for name in names:
                per_unit = self._pools[name].workers_per_unit
                more = min(-(-left // per_unit), most[name] - shares.get(name, 0))
                shares[name] = shares.get(name, 0) + more
                left = max(0, left - more * per_unit)
        return shares

    def plain_first(self) -> list[str]:
        """Names of the pools, those without resources first: a GPU is not bought to add two numbers."""
        return sorted(self._pools, key=lambda name: bool(self._pools[name].resources))

    def hold(self, pool: str, units: int, until_s: float) -> None:
        """Set a floor of so many units, whatever it was."""
        wish = self._wishes[pool]
        wish.floor, wish.floor_until_s = units, until_s

    # -- what a decision goes by ----------------------------------------------------------------

    @property
    def manual(self) -> bool:
        """Whether somebody has set the size of a pool by hand."""
        return any(wish.manual is not None for wish in self._wishes.values())

    def manual_of(self, pool: str) -> int | None:
        """The size of ``pool`` that was set by hand; None: none was."""
        return self._wishes[pool].manual

    def floor_of(self, pool: str, now_s: float) -> int:
        """Units that ``pool`` has at the least just now, since somebody waits for them."""
        wish = self._wishes[pool]
        return wish.floor if wish.floor_until_s > now_s else 0

    def _name(self, pool: str | None) -> str:
        if pool is None:
            return next(iter(self._pools))
        if pool not in self._pools:
            raise ConfigError("pool", pool, "one of " + ", ".join(self._pools))
        return pool


def _check_count(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(key, value, "a whole number, 0 or more")
