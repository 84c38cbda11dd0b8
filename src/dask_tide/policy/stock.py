"""Stock: each pool's units and their workers, counted once for all that a decision asks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from operator import attrgetter

from dask_tide.model import BOOTING, EXISTING, LIVE, Phase, Snapshot, Unit, Worker


@dataclass(frozen=True)
class Stock:
    """What there is of one pool.

    Attributes
    ----------
    units
        Its units.
    workers
        Their workers, by the unit's name.
    existing
        Units that count against the limits.
    live
        Units that give workers, or will.
    booting
        Live units without a worker yet.
    paused
        Running units none of whose workers takes tasks: full of results, they are no capacity.
    """

    units: tuple[Unit, ...]
    workers: dict[str, tuple[Worker, ...]]
    existing: int
    live: int
    booting: int
    paused: int

    @property
    def taking(self) -> int:
        """Units that take tasks, or will."""
        return self.live - self.paused

    @property
    def ready(self) -> int:
        """Units that take tasks now."""
        return self.taking - self.booting


def take_stock(snapshot: Snapshot) -> dict[str, Stock]:
    """Stock by pool name; units of no pool are nobody's."""
    units: dict[str, list[Unit]] = {state.pool.name: [] for state in snapshot.pools}
    for unit in snapshot.units:
        if unit.pool in units:
            units[unit.pool].append(unit)
    workers: dict[str, list[Worker]] = defaultdict(list)
    for worker in sorted(snapshot.workers, key=attrgetter("address")):
        workers[worker.unit].append(worker)
    return {pool: _stock(owned, workers) for pool, owned in units.items()}


def _stock(units: list[Unit], workers: dict[str, list[Worker]]) -> Stock:
    phases = Counter(unit.phase for unit in units)
    owned = {unit.name: tuple(workers[unit.name]) for unit in units if unit.name in workers}
    paused = sum(
        # A worker that has just registered is "init" for a moment.
        unit.phase is Phase.RUNNING
        and not any(w.status in ("init", "running") for w in owned.get(unit.name, ()))
        for unit in units
    )
    return Stock(
        units=tuple(units),
        workers=owned,
        existing=sum(phases[phase] for phase in EXISTING),
        live=sum(phases[phase] for phase in LIVE),
        booting=sum(phases[phase] for phase in BOOTING),
        paused=paused,
    )
