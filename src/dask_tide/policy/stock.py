"""Stock: each pool's units and their workers, counted once for all that a decision asks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from dask_tide.model import BOOTING, EXISTING, LIVE, Phase, Pool, Snapshot, Unit

#: A worker that has just registered is "init" for a moment.
_TAKING = ("init", "running")
#: By how much results may be larger than Dask takes them to be: it weighs a sample of an object's parts.
_UNDERSTATED = 5


@dataclass
class Stock:
    """What there is of one pool.

    Attributes
    ----------
    units
        Its units.
    existing
        Units that count against the limits.
    live
        Units that give workers, or will; not those whose machine is about to go.
    booting
        Live units without a worker yet, which have a place or may get one.
    booting_s
        How long ago the first of those was asked for.
    registering
        Live units some of whose workers have not registered yet, or just now.
    coming
        Those that are booting and have a machine, or will find room, and are not late.
    unplaced
        Live units for which the platform has no place.
    paused
        Running units none of whose workers takes tasks that may run anywhere: full of results, or busy with
        tasks that may not, they are no capacity.
    working
        Units that take tasks, and have some.
    vacating
        Units on machines that are about to go, which leave and have neither tasks nor results, until the
        platform stops them: it takes them no time, the platform may make up for them by itself, and a node
        autoscaler would buy a machine for two.
    workers
        Registered workers.
    held_bytes
        What those hold, in results or otherwise, beyond what an empty one does; of those that are being
        drained what has not been copied yet.
    worker_bytes
        What one of them may hold, on the average of those that have a limit; 0: none has.
    """

    units: list[Unit]
    existing: int = 0
    live: int = 0
    booting: int = 0
    booting_s: float = 0.0
    registering: int = 0
    coming: int = 0
    unplaced: int = 0
    paused: int = 0
    working: int = 0
    vacating: int = 0
    workers: int = 0
    held_bytes: int = 0
    worker_bytes: int = 0

    def capacity_bytes(self, pool: Pool, fill_ratio: float) -> int:
        """What one more unit may be given of results; 0: that is not known."""
        worker_bytes = self.worker_bytes if self.workers else pool.memory_bytes
        return int(fill_ratio * worker_bytes) * pool.workers_per_unit

    @property
    def coming_later(self) -> int:
        """Live units that will receive results and do not yet."""
        return self.booting + self.registering

    @property
    def taking(self) -> int:
        """Units that take tasks, or will."""
        return self.live - self.paused - self.unplaced

    @property
    def ready(self) -> int:
        """Units that take tasks now."""
        return self.taking - self.booting


def take_stock(snapshot: Snapshot) -> dict[str, Stock]:
    """Stock by pool name; units of no pool are nobody's."""
    stocks = {state.pool.name: Stock([]) for state in snapshot.pools}
    empty_bytes = {state.pool.name: state.baseline_bytes for state in snapshot.pools}
    # One that is slower than a machine's boot has met something.
    late_s = {state.pool.name: state.cold_boot_s or 0.0 for state in snapshot.pools}
    pool_of = {unit.name: unit.pool for unit in snapshot.units if unit.pool in stocks}
    taking: set[str] = set()
    working: set[str] = set()
    at_work: Counter[str] = Counter()
    draining = {unit.name for unit in snapshot.units if unit.phase is Phase.DRAINING}
    empty = {u.name for u in snapshot.units if u.doomed and (u.name in draining or u.lingers)}
    limits: dict[str, list[int]] = defaultdict(list)
    for worker in snapshot.workers:
        pool = pool_of.get(worker.unit)
        if pool is None:
            continue
        stock, base = stocks[pool], empty_bytes[pool]
        stock.workers += 1
        # Of results in memory their own size says too little, and what an idle process has not given back to
        # the system is none. Nor is most of what a task works with.
        process = base and worker.tasks and worker.held_keys
        held_bytes = worker.last_bytes if worker.unit in draining else worker.held_bytes
        beyond = min(worker.used_bytes - base, _UNDERSTATED * held_bytes) if process else 0
        stock.held_bytes += max(held_bytes, beyond)
        if worker.limit_bytes:
            limits[pool].append(worker.limit_bytes)
        if worker.status in _TAKING and worker.taken < worker.threads:
            taking.add(worker.unit)
            if worker.tasks > worker.taken:
                working.add(worker.unit)
        if worker.tasks or worker.held_keys:
            empty.discard(worker.unit)
        if worker.status != "init":
            at_work[worker.unit] += 1
    whole = {state.pool.name: state.pool.workers_per_unit for state in snapshot.pools}
    for unit in snapshot.units:
        if unit.name in pool_of:
            stocks[unit.pool].units.append(unit)
    for name, stock in stocks.items():
        if known := limits[name]:
            stock.worker_bytes = sum(known) // len(known)
        stock.existing = sum(unit.phase in EXISTING for unit in stock.units)
        stock.vacating = sum(unit.name in empty for unit in stock.units)
        live = [unit for unit in stock.units if unit.phase in LIVE and not unit.doomed]
        stock.live = len(live)
        booting = [unit for unit in live if unit.phase in BOOTING and not unit.unplaced]
        stock.booting = len(booting)
        stock.booting_s = max((unit.age_s for unit in booting), default=0.0)
        stock.registering = sum(u.phase is Phase.RUNNING and at_work[u.name] < whole[name] for u in live)
        stock.coming = sum(not unit.waits and unit.age_s <= late_s[name] for unit in booting)
        stock.unplaced = sum(unit.phase in BOOTING and unit.unplaced for unit in live)
        stock.working = sum(unit.phase is Phase.RUNNING and unit.name in working for unit in live)
        stock.paused = sum(unit.phase is Phase.RUNNING and unit.name not in taking for unit in live)
    return stocks
