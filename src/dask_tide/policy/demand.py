"""Demand: which pool's units the work at hand can use, and how many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from dask_tide.model import LIVE, Pool, Resources, Snapshot, Work

from . import prices
from .stock import Stock

#: For so much longer than measured a task may take before its like are taken to have changed: the first one
#: on a worker imports what it needs, and machines are busy. Or for this part of a unit's boot time.
_DOUBT_S = 0.5
_DOUBT_RATIO = 0.1
#: The dimension in which every task takes room. No resource has this name.
_THREADS = ""


class _Levels(NamedTuple):
    """Levels of waiting tasks that are about as wide.

    Attributes
    ----------
    units
        How many units one of them can use.
    levels
        How many there are.
    work_s
        Unit-seconds of all of them.
    span_s
        How long they take, one after the other, where there is a slot for each task.
    """

    units: int
    levels: int
    work_s: float
    span_s: float


class _Kind(NamedTuple):
    """Tasks that can run now: how long one takes, and how many units all of them keep busy."""

    task_s: float
    units: float


@dataclass
class Demand:
    """What the work asks of one pool. Filled while work is assigned, read-only afterwards.

    Attributes
    ----------
    prior_s
        What a task is taken to last whose like was never measured; 0: nothing is assumed.
    doubt_s
        For how much longer than measured a task may take.
    runnable
        Tasks that could run now.
    slots
        How many of them one unit runs at a time, where all are of one kind.
    usable
        Units that those keep busy: an upper bound for any launch.
    work_s
        Their work, slot-seconds; of tasks never measured what they have proven so far, or the prior.
    seen_s
        The same without the prior.
    unmeasured
        Whether some of them have no duration yet.
    stranded
        Whether some of them find a slot on no unit that is there or on its way, ours or not: at
        least one unit must come, even if it pays for nothing else.
    unserved
        Whether some of those would rather have one of this pool than of any other.
    unfinished
        All tasks of this pool that have not finished, waiting ones too.
    later
        Units that tasks which wait for others could use once they may run, where most of them may.
    """

    pool: Pool
    prior_s: float = 0.0
    doubt_s: float = _DOUBT_S
    runnable: int = 0
    slots: int = 0
    work_s: float = 0.0
    seen_s: float = 0.0
    unmeasured: bool = False
    stranded: bool = False
    unserved: bool = False
    unfinished: int = 0
    later: int = 0
    _longest_s: float = 0.0
    #: Of those that run: how long they still take, and how many units they keep busy.
    _running: list[_Kind] = field(default_factory=list)
    _kinds: list[_Kind] = field(default_factory=list)
    _levels: list[_Levels] = field(default_factory=list)
    #: Of work that others do, too: unit-seconds, and how many units do that elsewhere.
    _helped: list[tuple[float, float]] = field(default_factory=list)
    _used: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _known_shares: dict[Resources, dict[str, float]] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        if not self.runnable:
            return 0  # what takes threads beside others keeps no unit by itself
        return self._units_used()

    def later_in_s(self, slots: int) -> float | None:
        """When the waiting tasks may run, with ``slots``; None: what they wait for does not run in this pool.

        What has taken longer than its like, or is the first of its kind, is taken to be half done.
        """
        if not self.runnable:
            return None
        return max(self._longest_s, self.work_s / max(slots, 1))

    def free_in_s(self, units: int) -> float:
        """When the first slot of so many units is free, as far as tasks that run keep all of them busy."""
        busy = 0.0
        for left_s, more in sorted(self._running, reverse=True):
            busy += more
            if busy > units - 1 / max(self.slots, 1) + 1e-9:
                return left_s
        return 0.0

    def done_elsewhere(self, in_s: float) -> float:
        """Unit-seconds of this work that units of other pools will have done by then."""
        return sum(min(work_s, units * in_s) for work_s, units in self._helped)

    def steps(self, patience_s: float) -> list[tuple[int, float]]:
        """How much work units can share: ``(units, unit-seconds)``, for each number at which it changes.

        What waits counts where its level is as wide. But what only one unit can do leaves the others idle:
        if that takes longer than ``patience_s`` for each wide level, nothing that waits counts.
        """
        wide = [level for level in self._levels if level.units > 1]
        idle_s = sum(level.span_s for level in self._levels if level.units <= 1)
        if idle_s > patience_s * max(1, sum(level.levels for level in wide)):
            wide = []
        work_s = self.work_s * self.usable / max(1, self.runnable)
        steps = {self.usable: work_s}
        for level in sorted(wide, key=attrgetter("units"), reverse=True):
            work_s += level.work_s
            steps[min(level.units, self.usable)] = work_s
        return sorted(steps.items())

    def tails(self) -> list[tuple[int, float]]:
        """What is left for others once the longest tasks have units to themselves: ``(units, unit-seconds)``.

        At first with no units for them, then for each kind that is longer than some other. One long task
        keeps a single unit busy, and not those that would come for the short ones beside it.
        """
        scale = min(1.0, self.usable / max(1e-9, sum(kind.units for kind in self._kinds)))
        left_s, longer = self.work_s * self.usable / max(1, self.runnable), 0.0
        tails = [(0, left_s)]
        for kind in sorted(self._kinds, reverse=True)[:-1]:
            longer += kind.units * scale
            left_s = max(0.0, left_s - kind.units * kind.task_s * scale)
            tails.append((math.ceil(longer - 1e-9), left_s))
        return tails

    def _shares(self, work: Work) -> dict[str, float]:
        """What one task of ``work`` takes of a unit, by dimension."""
        shares = self._known_shares.get(work.needs)
        if shares is None:
            shares = {need[0]: 1.0 / self.pool.slots_per_unit((need,)) for need in work.needs}
            shares[_THREADS] = 1.0 / self.pool.threads_per_unit
            self._known_shares[work.needs] = shares
        return shares

    def room(self, work: Work, units: float) -> int:
        """How many more tasks of ``work`` fit into ``units`` units."""
        free = min((units - self._used[name]) / share for name, share in self._shares(work).items())
        return max(0, math.floor(free + 1e-9))

    def more_units(self, work: Work, tasks: int) -> int:
        """How many more units are in use with so many more tasks of ``work``."""
        used = max(self._used[name] + tasks * share for name, share in self._shares(work).items())
        return max(0, math.ceil(used - 1e-9) - self._units_used())

    def _units_used(self) -> int:
        # The tolerance keeps 3 × (1/3) one unit.
        return math.ceil(max(self._used.values(), default=0.0) - 1e-9)

    def occupy(self, threads: int) -> None:
        """So many threads of what there is are taken."""
        if threads:
            share = threads / self.pool.threads_per_unit
            self._used[_THREADS] += share
            # Nobody knows for how long.
            self._running.append(_Kind(math.inf, share))

    def take(self, work: Work, tasks: int, *, stranded: bool = False) -> None:
        """Put ``tasks`` runnable tasks of ``work`` here."""
        if not tasks:
            return
        self.stranded |= stranded
        for name, share in self._shares(work).items():
            self._used[name] += tasks * share
        self.slots = max(self.slots, self.pool.slots_per_unit(work.needs))
        self.runnable += tasks
        self.unfinished += tasks
        self.work_s += tasks * self._known_s(work)
        self._kinds.append(_Kind(self._known_s(work), tasks * max(self._shares(work).values())))
        self.seen_s += tasks * max(work.duration_s or 0.0, work.stalled_s)
        if work.duration_s is None:
            self.unmeasured = True
        if work.processing:
            usual_s = self.prior_s if work.duration_s is None else work.duration_s
            left_s = usual_s - work.stalled_s if work.stalled_s < usual_s else work.stalled_s
            self._longest_s = max(self._longest_s, left_s)
            self._running.append(_Kind(left_s, tasks * max(self._shares(work).values())))

    def help(self, work: Work, tasks: int, others: float) -> None:
        """So many tasks of ``work`` that are here wait while others run ``others`` at a time elsewhere."""
        share = max(self._shares(work).values())
        self._helped.append((tasks * share * self._known_s(work), others * share))

    def take_waiting(self, work: Work, tasks: int) -> None:
        """Put so many of the waiting tasks of ``work`` here."""
        if not tasks:
            return
        self.unfinished += tasks
        part, share, task_s = tasks / work.waiting, max(self._shares(work).values()), self._known_s(work)
        for levels, waiting in work.levels or ((1, work.waiting),):
            work_units = part * waiting * share
            units = math.ceil(work_units / levels - 1e-9)
            self._levels.append(_Levels(units, levels, work_units * task_s, levels * task_s))
            self.later = max(self.later, units)

    def _known_s(self, work: Work) -> float:
        # While nothing finishes, a task takes at least as long as those have been running.
        if work.duration_s is None:
            return max(self.prior_s, work.stalled_s)
        return work.stalled_s if work.stalled_s > work.duration_s + self.doubt_s else work.duration_s


@dataclass(frozen=True)
class Impossible:
    """Work that no pool and no connected worker can ever run."""

    work: Work
    missing: str


def assign(
    snapshot: Snapshot, stocks: Mapping[str, Stock], reach: Mapping[str, int]
) -> tuple[dict[str, Demand], tuple[Impossible, ...]]:
    """Share the work out among the pools.

    What runs is put where units have tasks. Then come units that are there, in the order of preference: the
    cheapest slot, then the order of the configuration; then those on their way, as they were asked for: one
    that was asked for since may find no machine. Then those that could be launched, where what is left costs
    least. Work that asks for more is placed first, and of that what takes longest.

    Parameters
    ----------
    snapshot
        The world.
    stocks
        What there is of each pool.
    reach
        Per pool, how many could if it were launched to its limit just now: units that are
        paused or leaving count against the limit and take nothing.

    Returns
    -------
    Demand by pool name, and the work that nobody can ever run.
    """
    demands = {
        state.pool.name: Demand(
            state.pool, snapshot.settings.prior_s, max(_DOUBT_S, _DOUBT_RATIO * state.unit_boot_s)
        )
        for state in snapshot.pools
    }
    working = {name: stock.working for name, stock in stocks.items()}
    ready = {name: stock.ready for name, stock in stocks.items()}
    taking = {name: stock.taking for name, stock in stocks.items()}
    # Threads of ours that are not free for what may run anywhere; a worker without any is not counted on.
    pool_of = {unit.name: unit.pool for unit in snapshot.units if unit.phase in LIVE and not unit.doomed}
    for worker in snapshot.workers:
        demand = demands.get(pool_of.get(worker.unit, ""))
        if demand is not None and worker.status == "running" and worker.taken < worker.threads:
            demand.occupy(worker.taken)
    # Workers that somebody else started take plain tasks as well as ours do, with the threads they have free.
    foreign = sum(
        max(0, w.threads - w.taken) for w in snapshot.workers if not w.unit and w.status == "running"
    )
    # What runs on workers of ours that take no more tasks needs no other one.
    held = sum(
        max(0, min(w.tasks - w.taken, w.threads)) for w in snapshot.workers if w.unit and w.status == "paused"
    )
    eligible = {needs: _eligible(snapshot, needs) for needs in {work.needs for work in snapshot.work}}
    asked_first = {
        needs: sorted(pools, key=lambda name: -stocks[name].booting_s) for needs, pools in eligible.items()
    }
    impossible = []
    # A total order: that of the snapshot says nothing.
    for work in sorted(snapshot.work, key=_placed_first):
        if work.bound:
            continue
        pools = eligible[work.needs]
        if not pools:
            if not work.processing and not (foreign and not work.needs):
                impossible.append(Impossible(work, _missing(snapshot, work)))
            continue
        here = min(held, work.processing - work.elsewhere)
        held -= here
        demands[pools[0]].unfinished += here
        before = {name: demands[name].runnable for name in pools}
        left = work.runnable - here - work.elsewhere
        if not work.needs:
            elsewhere = min(left, foreign)
            foreign -= elsewhere
            left -= elsewhere
        running = min(left, work.processing - here)
        left += _place(demands, work, running, pools, working) - running
        left = _place(demands, work, left, pools, ready)
        at_work = {name: demands[name].runnable - before[name] for name in pools}
        wait = left
        left = _place(demands, work, left, asked_first[work.needs], taking)
        stranded = left == work.runnable - here
        if left:
            cheapest = _cheapest_first(snapshot, demands, work, left, pools, reach)
            demands[cheapest[0]].unserved |= stranded
            left = _place(demands, work, left, cheapest, reach, stranded=stranded)
            stranded = left == work.runnable - here
        # What is more than all pools can hold, and what waits, is for each in proportion to its size: so
        # each knows for how long there will be work.
        slots = [reach[name] * demands[name].pool.slots_per_unit(work.needs) for name in pools]
        for name, more, waiting in zip(
            pools, _shared(left, slots), _shared(work.waiting, slots), strict=True
        ):
            demands[name].take(work, more, stranded=stranded)
            demands[name].take_waiting(work, waiting)
            mine = demands[name].runnable - before[name] - at_work[name]
            others = work.runnable - here - wait - at_work[name]
            if mine and others:
                demands[name].help(work, mine, others * mine / wait)
    return demands, tuple(impossible)


def _placed_first(work: Work) -> tuple[int, float, str]:
    """The order in which work is placed: a total one, as that of the snapshot says nothing."""
    return -len(work.needs), -max(work.duration_s or 0.0, work.stalled_s), repr(work)


def _place(
    demands: Mapping[str, Demand],
    work: Work,
    tasks: int,
    pools: Iterable[str],
    limits: Mapping[str, int],
    *,
    stranded: bool = False,
) -> int:
    """Put as many tasks into so many units of these pools as fit; how many are left."""
    for name in pools:
        if not tasks:
            break
        taken = min(tasks, demands[name].room(work, limits[name]))
        demands[name].take(work, taken, stranded=stranded)
        tasks -= taken
    return tasks


def _cheapest_first(
    snapshot: Snapshot,
    demands: Mapping[str, Demand],
    work: Work,
    tasks: int,
    pools: list[str],
    reach: Mapping[str, int],
) -> list[str]:
    """These pools by what so many tasks would cost there: a large unit is not cheap for one of them."""
    if len(pools) == 1:
        return pools
    compared = prices.compared(state for state in snapshot.pools if state.pool.name in pools)

    def price(name: str) -> float:
        demand = demands[name]
        fitting = min(tasks, demand.room(work, reach[name]))
        return compared[name] * demand.more_units(work, fitting) / fitting if fitting else math.inf

    return sorted(pools, key=price)


def _shared(tasks: int, slots: list[int]) -> list[int]:
    """Tasks in proportion to slots; what is left over goes to the first."""
    shares = [tasks * size // max(1, sum(slots)) for size in slots]
    shares[0] += tasks - sum(shares)
    return shares


def _eligible(snapshot: Snapshot, needs: Resources) -> list[str]:
    """Names of the pools that may serve tasks that need ``needs``, the preferred one first.

    A pool with resources serves tasks that ask for one of them; other tasks only where no
    plain pool is configured: a GPU is not bought to add two numbers.
    """
    wanted = {name for name, _ in needs}
    able = [state for state in snapshot.pools if state.pool.slots_per_unit(needs) and state.pool.maximum > 0]
    fitting = [state for state in able if {name for name, _ in state.pool.resources} <= wanted]
    serving = [state for state in able if {name for name, _ in state.pool.resources} & wanted]
    chosen = (serving if wanted else fitting) or able
    compared = prices.compared(chosen)
    slots = {state.pool.name: state.pool.slots_per_unit(needs) for state in chosen}
    return sorted(slots, key=lambda name: compared[name] / slots[name])


def _missing(snapshot: Snapshot, work: Work) -> str:
    if not work.needs:
        return "every pool's maximum is 0"
    asked = ", ".join(f"{name}={amount:g}" for name, amount in work.needs)
    offers = "; ".join(
        f"pool {state.pool.name} offers "
        + (", ".join(f"{name}={amount:g}" for name, amount in state.pool.resources) or "none")
        + ("" if state.pool.maximum > 0 else " (its maximum is 0)")
        for state in snapshot.pools
    )
    return f"a task asks for {asked}, a worker of {offers}"
