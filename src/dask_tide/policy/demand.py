"""Demand: which pool's units the work at hand can use, and how many."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from dask_tide.model import LIVE, Pool, Snapshot, Work

#: The dimension in which every task takes room.
_THREADS = "threads"


@dataclass
class Demand:
    """What the work asks of one pool. Filled while work is assigned, read-only afterwards.

    Attributes
    ----------
    runnable
        Tasks that could run now.
    usable
        Units that those keep busy: an upper bound for any launch.
    work_s
        Their work, slot-seconds; of tasks never measured only what they have proven so far.
    unmeasured
        Whether some of them have no duration yet.
    unfinished
        All tasks of this pool that have not finished, waiting ones too.
    later
        Units that tasks which wait for others could use once they may run.
    later_in_s
        When that will be, as far as the durations tell; None: unknown.
    """

    pool: Pool
    runnable: int = 0
    work_s: float = 0.0
    unmeasured: bool = False
    unfinished: int = 0
    later: int = 0
    _longest_s: float = 0.0
    _used: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def usable(self) -> int:
        # The tolerance keeps 3 × (1/3) one unit.
        return math.ceil(max(self._used.values(), default=0.0) - 1e-9)

    def later_in_s(self, slots: int) -> float | None:
        if self.unmeasured:
            return None
        return max(self._longest_s, self.work_s / max(slots, 1))

    def _shares(self, work: Work) -> dict[str, float]:
        """What one task of ``work`` takes of a unit, by dimension."""
        shares = {_THREADS: 1.0 / self.pool.threads_per_unit}
        bundle = 1.0 / self.pool.slots_per_unit(work.needs)
        for name, _ in work.needs:
            shares[name] = bundle
        return shares

    def room(self, work: Work, units: float) -> int:
        """How many more tasks of ``work`` fit into ``units`` units."""
        free = min((units - self._used[name]) / share for name, share in self._shares(work).items())
        return max(0, math.floor(free + 1e-9))

    def take(self, work: Work, tasks: int) -> None:
        """Put ``tasks`` runnable tasks of ``work`` here."""
        if not tasks:
            return
        for name, share in self._shares(work).items():
            self._used[name] += tasks * share
        self.runnable += tasks
        self.unfinished += tasks
        # While nothing finishes, a task takes at least as long as those have been running.
        known_s = max(work.duration_s or 0.0, work.stalled_s)
        self.work_s += tasks * known_s
        if work.duration_s is None:
            self.unmeasured = True
        elif work.processing:
            self._longest_s = max(self._longest_s, work.duration_s - work.stalled_s)

    def take_waiting(self, work: Work) -> None:
        self.unfinished += work.waiting
        share = max(self._shares(work).values())
        self.later = max(self.later, math.ceil(work.waiting * share - 1e-9))


@dataclass(frozen=True)
class Impossible:
    """Work that no pool and no connected worker can ever run."""

    work: Work
    missing: str


def assign(snapshot: Snapshot, ceilings: dict[str, int]) -> tuple[dict[str, Demand], tuple[Impossible, ...]]:
    """Share the work out among the pools.

    First to units that are there, then to those that could be launched, each time in the order
    of preference: the cheapest slot, then the order of the configuration. Work that asks for
    more is placed first.

    Parameters
    ----------
    snapshot
        The world.
    ceilings
        Per pool, how many units it can have at the most just now.

    Returns
    -------
    Demand by pool name, and the work that nobody can ever run.
    """
    demands = {state.pool.name: Demand(state.pool) for state in snapshot.pools}
    live: dict[str, int] = defaultdict(int)
    for unit in snapshot.units:
        if unit.phase in LIVE:
            live[unit.pool] += 1
    # Workers that somebody else started take plain tasks as well as ours do.
    foreign = sum(w.threads for w in snapshot.workers if not w.unit and w.status == "running")
    impossible = []
    for work in sorted(snapshot.work, key=lambda w: (-len(w.needs), w.group, w.needs, w.bound)):
        if work.bound:
            continue
        pools = _eligible(snapshot, work)
        if not pools:
            if not (foreign and not work.needs):
                impossible.append(Impossible(work, _missing(snapshot, work)))
            continue
        left = work.runnable
        if not work.needs:
            elsewhere = min(left, foreign)
            foreign -= elsewhere
            left -= elsewhere
        for limits in (live, ceilings):
            for name in pools:
                taken = min(left, demands[name].room(work, limits[name]))
                demands[name].take(work, taken)
                left -= taken
        # More than all pools can hold: it waits for the first.
        demands[pools[0]].take(work, left)
        if work.waiting:
            demands[pools[0]].take_waiting(work)
    return demands, tuple(impossible)


def _eligible(snapshot: Snapshot, work: Work) -> list[str]:
    """Names of the pools that may serve ``work``, the preferred one first.

    A pool with resources serves tasks that ask for one of them; other tasks only where no
    plain pool is configured: a GPU is not bought to add two numbers.
    """
    wanted = {name for name, _ in work.needs}
    able = [
        (state.pool.price / slots, index, state.pool)
        for index, state in enumerate(snapshot.pools)
        if (slots := state.pool.slots_per_unit(work.needs)) and state.pool.maximum > 0
    ]
    fitting = [entry for entry in able if {name for name, _ in entry[2].resources} <= wanted]
    serving = [entry for entry in able if {name for name, _ in entry[2].resources} & wanted]
    chosen = (serving if wanted else fitting) or able
    return [pool.name for _, _, pool in sorted(chosen, key=lambda entry: entry[:2])]


def _missing(snapshot: Snapshot, work: Work) -> str:
    if not work.needs:
        return "every pool's maximum is 0"
    asked = ", ".join(f"{name}={amount:g}" for name, amount in work.needs)
    offers = "; ".join(
        f"pool {state.pool.name} offers "
        + (", ".join(f"{name}={amount:g}" for name, amount in state.pool.resources) or "none")
        for state in snapshot.pools
    )
    return f"a task asks for {asked}, a worker of {offers}"
