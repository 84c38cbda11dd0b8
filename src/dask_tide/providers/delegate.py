"""Delegate: units that somebody else's cluster class starts and stops.

The controller sits in the scheduler; the cluster class is somewhere else, in a notebook for
example, and can be told nothing. So it asks: it reports its units and is given its orders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dask_tide.errors import LaunchRejected, Unavailable
from dask_tide.model import Phase

from .base import NAMELESS, Observation, ObservedUnit, ProviderContext

#: A report older than this says nothing about now.
_STALE_S = 10.0


@dataclass(frozen=True)
class Orders:
    """What the cluster class is to do.

    Attributes
    ----------
    units
        How many units to have; None: as many as it has.
    release
        Which ones to stop.
    pinned
        Which ones are not given back, and why.
    """

    units: int | None
    release: tuple[str, ...]
    pinned: Mapping[str, str] = field(default_factory=dict)


class DelegateProvider:
    """Answers from the last report; keeps orders until the next one. Knows one pool.

    Parameters
    ----------
    pool
        Its name.
    pinned
        Which of these units may not be given back while they have no worker, and why.
    clock
        Seconds since some moment.
    """

    boot_s = 5.0
    closes_workers = True

    def __init__(
        self,
        pool: str,
        pinned: Callable[[Collection[str]], Mapping[str, str]] = lambda _: {},
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._pinned_of = pinned
        self._clock = clock
        self._units: dict[str, str] = {}
        self._reported_s: float | None = None
        #: How many units there are to be once those that are to go have gone; None: as many as there are.
        self._wanted: int | None = None
        self._release: dict[str, None] = {}
        #: Why the last order for more came to nothing: as told, and as the last look has found it.
        self._refused, self._refusal = "", ""
        self._stuck = ""
        #: Names that have gone since somebody looked: the cluster class may give them to others at once.
        self._gone: set[str] = set()
        self._wake: Callable[[], None] = lambda: None

    def __call__(self, context: ProviderContext) -> DelegateProvider:
        """It is its own factory: the cluster class's side must know it too."""
        self._wake = context.wake
        return self

    def exchange(
        self,
        units: dict[str, str],
        renamed: Mapping[str, str] | None = None,
        *,
        refused: str = "",
        stuck: str = "",
    ) -> Orders:
        """Take a report, give orders.

        Parameters
        ----------
        units
            The units that the cluster class has or has asked for, by name; the value says why
            one has failed and is empty otherwise.
        renamed
            Names by those that the same units may have had before.
        refused
            Why it could not do what it was asked for since the last report; empty: it could.
        stuck
            Why it could not stop what it was to stop, the last time; empty: it could.
        """
        if refused:
            self._refused, self._wanted = refused, None
            self._wake()
        self._stuck = stuck
        if units != self._units or self._reported_s is None:
            self._wake()
        self._gone |= self._units.keys() - units.keys()
        self._units = dict(units)
        self._reported_s = self._clock()
        release = (renamed.get(name, name) for name in self._release) if renamed else self._release
        self._release = {name: None for name in release if name in units}
        pinned = self._pinned()
        for name in pinned:
            self._release.pop(name, None)
        if not self._missing():
            self._wanted = None
        more = self._wanted is not None and self._wanted > len(units)
        return Orders(self._wanted if more else None, tuple(self._release), pinned)

    def _missing(self) -> int:
        """How many units were asked for that the cluster class does not have yet."""
        there = sum(not failure and name not in self._release for name, failure in self._units.items())
        return max(0, (self._wanted or 0) - there)

    def _pinned(self) -> Mapping[str, str]:
        return self._pinned_of([name for name, failure in self._units.items() if not failure])

    async def observe(self) -> Observation:
        if self._reported_s is None or self._clock() - self._reported_s > _STALE_S:
            raise Unavailable("the cluster object has not reported its workers for a while", 0.5)
        gone, self._gone = self._gone, set()
        self._refusal, self._refused = self._refused, ""
        pinned = self._pinned()
        return Observation(
            tuple(
                ObservedUnit(
                    name,
                    self._pool,
                    self._phase(name),
                    message=self._message(name),
                    pinned=pinned.get(name, ""),
                )
                for name in self._units
                if name not in gone
            ),
            requested={self._pool: missing} if (missing := self._missing()) else {},
        )

    def _phase(self, name: str) -> Phase:
        if name in self._release:
            return Phase.STOPPING
        # Whether it waits in a queue or starts is not known here: it must not expire.
        return Phase.FAILED if self._units[name] else Phase.PENDING

    def _message(self, name: str) -> str:
        return (self._stuck if name in self._release else "") or self._units[name]

    async def scale_up(self, pool: str, n: int) -> None:
        # What became of the last order is known only now.
        refusal, self._refusal = self._refusal, ""
        if refusal:
            raise LaunchRejected(refusal)
        # Those that are to go count in `n`, and have gone by the time that this is done.
        self._wanted = n - len(self._release)

    async def scale_down(self, units: Sequence[str]) -> None:
        more = [unit for unit in units if unit not in self._release]
        if self._wanted is not None:
            # A failed one was no part of it.
            self._wanted -= sum(NAMELESS in unit or self._units.get(unit) == "" for unit in more)
        self._release |= dict.fromkeys(unit for unit in more if NAMELESS not in unit)

    async def close(self) -> None:
        """The units belong to the cluster class: they stay."""
