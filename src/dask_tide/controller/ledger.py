"""Ledger: every unit's phase, from what the platform shows and what the scheduler knows."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median

from dask_tide.model import BOOTING, EXISTING, TRANSITIONS, Phase, Pool, Unit, owner_of
from dask_tide.providers.base import NAMELESS, Observation, ObservedUnit

from .machines import Machines, by_pool

logger = logging.getLogger("distributed.tide.ledger")

#: A unit that ends unasked so soon after its worker registered counts as a failed start: what
#: kills it would kill the next one too.
_YOUNG_S = 5.0
#: Learned from this many of the last starts.
_BOOTS = 8
#: For how long another one may cost as much as the dearest that was seen, and as all did.
_DEAR_S = 600.0
#: Units that were asked for have a name within so long; others were made by somebody else, as a pod's
#: replacement is by its ReplicaSet.
_NAMED_S = 60.0


#: Phases of a unit that is on its way.
_COMING = frozenset({Phase.REQUESTED, Phase.PENDING})
#: Phases of a unit whose end was told when it began.
_ENDED = frozenset({Phase.STOPPING, Phase.FAILED, Phase.EXPIRED})


@dataclass
class _Entry:
    """What is remembered of one unit."""

    pool: str
    #: When it was asked for; of one that nobody has asked for, when it was first seen.
    asked_s: float
    phase: Phase
    #: How long it took is not known, or says nothing: it was running when it was first seen (an earlier
    #: controller's, say), or there was no place for it.
    found: bool = False
    machine: str = ""
    message: str = ""
    #: When it was first seen on a machine.
    placed_s: float | None = None
    #: When it last got a place to run, or lost its workers.
    starting_s: float | None = None
    #: When its first worker registered.
    running_s: float | None = None
    #: Its start counts as one that succeeded, and what it took has been learned.
    counted: bool = False
    learned: bool = False
    #: It was told to stop; and the platform does not show that it does.
    released: bool = False
    lingers: bool = False
    stale: bool = False
    doomed: bool = False
    unplaced: bool = False
    price: float | None = None
    pinned: str = ""
    #: A machine had to come for it, or has to.
    cold: bool = False
    waits: bool = False


@dataclass
class PoolRecord:
    """What was learned of one pool.

    Attributes
    ----------
    boot_s, cold_boot_s
        Median time of the last starts from asking until the first worker can work, where a machine had room
        and where one had to come; None: never measured. As long as all had to wait for a machine, the first
        one is the time from there on.
    machines
        The machines that its units are on.
    room
        For how many more units there are machines; None: not known.
    price
        What its units cost on the average when that was last known of their machines; None: never.
    dearest
        What the dearest of them cost that was seen within the last minutes, or the last time.
    registered
        Units that ever registered a worker.
    started, failed
        Starts that succeeded; units that ended before they had registered a worker, or soon after.
    failure
        The last failure's message.
    dies_young
        Whether the last one that failed had registered a worker: then starts succeed only after a while.
    baseline_bytes
        The smallest process that held no results.
    """

    boot_s: float | None = None
    cold_boot_s: float | None = None
    machines: Machines = field(default_factory=Machines)
    room: int | None = None
    price: float | None = None
    dearest: float | None = None
    registered: int = 0
    started: int = 0
    failed: int = 0
    failure: str = ""
    dies_young: bool = False
    baseline_bytes: int = 0
    _boots: deque[float] = field(default_factory=lambda: deque(maxlen=_BOOTS))
    _cold_boots: deque[float] = field(default_factory=lambda: deque(maxlen=_BOOTS))
    _placed_boots: deque[float] = field(default_factory=lambda: deque(maxlen=_BOOTS))
    _dearest_s: float = 0.0
    _priced_s: float = 0.0

    def learn_boot(self, boot_s: float, *, cold: bool = False) -> None:
        # Not the mean: the very first start also pays for what is warm ever after.
        if cold:
            self._cold_boots.append(boot_s)
            self.cold_boot_s = median(self._cold_boots)
        else:
            self._boots.append(boot_s)
            self.boot_s = median(self._boots)

    def learn_placed(self, placed_s: float) -> None:
        """Learn how much of a start that had to wait for a machine came after that."""
        if not self._boots:
            self._placed_boots.append(placed_s)
            self.boot_s = median(self._placed_boots)

    def learn_prices(self, prices: list[float], now_s: float) -> None:
        """Learn what the units cost at this moment."""
        self.price, self._priced_s, dearest = fmean(prices), now_s, max(prices)
        if self.dearest is None or dearest >= self.dearest or now_s - self._dearest_s > _DEAR_S:
            self.dearest, self._dearest_s = dearest, now_s

    def price_lately(self, now_s: float) -> float | None:
        """What the units cost if that was seen within the last minutes: others will get other machines."""
        return self.price if now_s - self._priced_s <= _DEAR_S else None

    def learn_baseline(self, used_bytes: int) -> None:
        self.baseline_bytes = min(self.baseline_bytes or used_bytes, used_bytes)


@dataclass
class Ledger:
    """All units, matched with workers by name.

    Attributes
    ----------
    start_timeout_s
        How long a unit may run without a worker before it counts as EXPIRED.
    machine_idle_s
        How long the platform keeps a machine that is empty; None: as long as another one takes to come.
    records
        What was learned, by pool.
    spent
        Price × seconds so far.
    """

    start_timeout_s: float
    machine_idle_s: float | None = None
    records: dict[str, PoolRecord] = field(default_factory=lambda: defaultdict(PoolRecord))
    spent: float = 0.0
    _entries: dict[str, _Entry] = field(default_factory=dict)
    #: By pool: when units were asked for, and how many of those were not seen yet.
    _asked: dict[str, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    _last_s: float | None = None
    #: What a unit costs at the most, by pool, where the platform knows prices.
    _prices: Mapping[str, float] = field(default_factory=dict)
    #: By pool: units that were asked for and have no name yet, and since when none of them has got one.
    _requested: dict[str, int] = field(default_factory=dict)
    _owed_s: dict[str, float] = field(default_factory=dict)
    #: Units that are there at the first look are an earlier controller's.
    _looked: bool = False
    #: Units whose workers have registered and cannot work yet.
    _preparing: Collection[str] = ()
    #: What units' own watchers were told of their machines' ends.
    _notices: dict[str, str] = field(default_factory=dict)
    #: Units that the platform takes away unasked, with its words; whoever reads them empties it.
    taken: list[tuple[str, str, str]] = field(default_factory=list)

    def asked(self, pool: str, count: int, now_s: float) -> None:
        """So many more units of ``pool`` are being asked for."""
        if not self._requested.get(pool):
            # Those that never came, since they were refused, will not come for what was asked then.
            self._asked[pool].clear()
        self._asked[pool].append((now_s, count))

    def _asked_s(self, pool: str, now_s: float) -> float | None:
        """When the next unit of ``pool`` that gets a name was asked for; None: nobody has."""
        asked = self._asked[pool]
        while asked and (not asked[0][1] or now_s - asked[0][0] > _NAMED_S):
            asked.popleft()
        return asked[0][0] if asked else None

    def _new(self, unit: ObservedUnit, now_s: float) -> _Entry:
        asked_s = self._asked_s(unit.pool, now_s)
        if asked_s is None:
            found = unit.phase not in _COMING or not self._looked
            return _Entry(unit.pool, now_s, Phase.REQUESTED, found=found)
        self._asked[unit.pool][0] = (asked_s, self._asked[unit.pool][0][1] - 1)
        return _Entry(unit.pool, asked_s, Phase.REQUESTED)

    def stays(self, units: Iterable[str]) -> None:
        """These units were to be given back and were not."""
        for name in units:
            if (entry := self._entries.get(name)) is not None and entry.released:
                entry.released = False
                # What it is will be seen; from STOPPING nothing could be.
                entry.phase = Phase.UNKNOWN

    def released(self, units: Iterable[str]) -> None:
        """These units are being given back."""
        for name in units:
            if (entry := self._entries.get(name)) is not None:
                entry.released = True

    def rename(self, names: Mapping[str, str]) -> None:
        """Units turn out to be called otherwise: new names by those that they had."""
        for old, new in names.items():
            if old in self._entries and new not in self._entries:
                self._entries[new] = self._entries.pop(old)

    def is_going(self, worker: str) -> bool:
        """Whether a worker, by its name, belongs to a unit that is to stop, or stops already."""
        entry = self._entries.get(owner_of(worker, self._entries))
        return entry is not None and (entry.released or entry.phase is Phase.STOPPING)

    def notice(self, unit: str, words: str) -> None:
        """The machine of ``unit`` is about to go, whatever the platform shows."""
        self._notices[unit] = words

    def inherit(self, earlier: Ledger) -> list[str]:
        """Take over an earlier controller's units, and what was spent; returns who was told to stop."""
        self._entries, self.records, self.spent = earlier._entries, earlier.records, earlier.spent
        return [name for name, entry in self._entries.items() if entry.released]

    def update(
        self,
        now_s: float,
        observation: Observation | None,
        registered: set[str],
        leaving: set[str],
        prices: dict[str, Pool],
        preparing: Collection[str] = (),
    ) -> tuple[Unit, ...]:
        """Bring the ledger up to date.

        Parameters
        ----------
        now_s
            The moment.
        observation
            What the platform shows; None: it did not answer, and units stay as they were.
        registered
            Names of units with a registered worker.
        leaving
            Names of units that are being drained, by us or by themselves.
        prices
            The pools.
        preparing
            Names of units whose workers have registered and cannot work yet.
        """
        if observation is not None:
            self._prices = observation.prices
        self._preparing = preparing
        self._pay(now_s, prices)
        # Workers come to the scheduler, whether the platform answers or not.
        for name in registered & self._entries.keys():
            self._has_started(name, self._entries[name], now_s)
        if observation is not None:
            seen = {unit.name: unit for unit in observation.units}
            for name in [name for name in self._entries if name not in seen]:
                self._gone(name, now_s)
            for unit in observation.units:
                entry = self._entries.get(unit.name)
                if entry is None:
                    entry = self._entries[unit.name] = self._new(unit, now_s)
                self._step(unit, entry, now_s, unit.name in registered, unit.name in leaving)
            self._looked = True
            self._owe(now_s, observation.requested)
            self._look_for_room(now_s, prices, observation.machines)
            self._learn_prices(now_s)
        self._notices = {name: words for name, words in self._notices.items() if name in self._entries}
        nameless = (
            Unit(f"{pool}{NAMELESS}{number}", pool, Phase.REQUESTED, age_s)
            for pool, count in self._requested.items()
            for age_s in [max(0.0, now_s - self._owed_s[pool])]
            for number in range(count)
        )
        return *self._named(now_s), *nameless

    def _owe(self, now_s: float, requested: Mapping[str, int]) -> None:
        since_s = {}
        for pool, count in requested.items():
            if not (before := self._requested.get(pool)):
                asked_s = self._asked_s(pool, now_s)
                since_s[pool] = now_s if asked_s is None else asked_s
            else:
                since_s[pool] = self._owed_s[pool] if before <= count else now_s
        self._requested, self._owed_s = dict(requested), since_s

    def _look_for_room(self, now_s: float, pools: Iterable[str], there: Collection[str] | None) -> None:
        placed = by_pool((entry.pool, entry.machine) for entry in self._entries.values())
        waiting = {entry.pool for entry in self._entries.values() if entry.waits}
        # Those on their way will take some of it.
        coming = Counter(self._requested)
        coming.update(e.pool for e in self._entries.values() if e.phase in _COMING and not e.machine)
        for name in pools:
            record = self.records[name]
            record.machines.update(now_s, placed.get(name, ()), there)
            if record.cold_boot_s is None or not record.machines.seen:
                record.room = None  # one boot time is all that is known, or the platform shows no machines
            elif name in waiting:
                record.room = 0
            else:
                idle_s = record.cold_boot_s if self.machine_idle_s is None else self.machine_idle_s
                record.room = max(0, record.machines.room(now_s, idle_s) - coming[name])

    def _learn_prices(self, now_s: float) -> None:
        seen: dict[str, list[float]] = defaultdict(list)
        for entry in self._entries.values():
            if entry.price is not None:
                seen[entry.pool].append(entry.price)
        for pool, prices in seen.items():
            self.records[pool].learn_prices(prices, now_s)

    def _named(self, now_s: float) -> Iterator[Unit]:
        for name, entry in self._entries.items():
            age_s = max(0.0, now_s - entry.asked_s)
            yield Unit(
                name,
                entry.pool,
                entry.phase,
                age_s,
                entry.machine,
                self._notices.get(name, entry.message),
                entry.stale,
                entry.doomed or name in self._notices,
                entry.unplaced,
                entry.waits,
                entry.price,
                entry.pinned,
                entry.lingers,
            )

    def _step(self, unit: ObservedUnit, entry: _Entry, now_s: float, registered: bool, leaving: bool) -> None:
        entry.machine, entry.message, entry.stale = unit.machine, unit.message, unit.stale
        entry.doomed, entry.unplaced, entry.price = unit.doomed, unit.unplaced, unit.price
        entry.waits, entry.pinned = unit.waits, unit.pinned
        entry.lingers = entry.released and unit.phase is not Phase.STOPPING
        if unit.machine and entry.placed_s is None:
            entry.placed_s = now_s
        entry.cold |= unit.waits
        # For how long there was no place at all says nothing about the next one.
        entry.found |= unit.unplaced
        if unit.phase in (Phase.STARTING, Phase.UNKNOWN) and entry.starting_s is None:
            entry.starting_s = now_s
        if registered:
            self._has_started(unit.name, entry, now_s)
        phase = self._phase(unit, entry, now_s, registered, leaving)
        if phase is entry.phase:
            return
        if phase not in TRANSITIONS[entry.phase]:
            logger.warning("Unit %s went from %s to %s, which should not be", unit.name, entry.phase, phase)
        failed = phase in (Phase.FAILED, Phase.EXPIRED)
        if failed and (entry.running_s is None or now_s - entry.running_s < _YOUNG_S):
            record = self.records[entry.pool]
            record.failed += 1
            record.dies_young = entry.running_s is not None
            record.failure = unit.message or f"unit {unit.name} did not start in {self.start_timeout_s:g} s"
            if entry.running_s is not None:
                record.failure = f"after {now_s - entry.running_s:.1f} s at work: {record.failure}"
            logger.warning("Unit %s %s: %s", unit.name, phase.value, record.failure)
        if phase is Phase.STOPPING and not entry.released:
            self.taken.append((entry.pool, unit.name, unit.message or "it did not say why"))
        entry.phase = phase

    def _has_started(self, name: str, entry: _Entry, now_s: float) -> None:
        """A worker of the unit is registered."""
        if entry.released:
            return
        record = self.records[entry.pool]
        if entry.running_s is None:
            record.registered += 1
            entry.running_s = now_s
        if not entry.counted and (not record.dies_young or now_s - entry.running_s >= _YOUNG_S):
            entry.counted = True
            record.started += 1
            record.dies_young = False
        if not entry.learned and name not in self._preparing:
            entry.learned = True
            if not entry.found:
                record.learn_boot(now_s - entry.asked_s, cold=entry.cold)
            if entry.cold and entry.placed_s is not None:
                record.learn_placed(now_s - entry.placed_s)
        entry.starting_s = now_s

    def _phase(
        self, unit: ObservedUnit, entry: _Entry, now_s: float, registered: bool, leaving: bool
    ) -> Phase:
        if entry.released or unit.phase is Phase.STOPPING:
            return Phase.STOPPING
        if unit.phase is Phase.FAILED:
            return Phase.FAILED
        if leaving:
            return Phase.DRAINING
        if registered:
            return Phase.RUNNING
        if entry.starting_s is not None and now_s - entry.starting_s > self.start_timeout_s:
            return Phase.EXPIRED
        return unit.phase

    def _gone(self, name: str, now_s: float) -> None:
        entry = self._entries.pop(name)
        if entry.released or entry.phase in _ENDED:
            return
        if entry.running_s is not None:
            self.taken.append((entry.pool, name, entry.message or "it vanished without a word"))
        placed = entry.machine or entry.phase is Phase.STARTING
        if entry.phase in BOOTING and placed and not entry.waits:
            # It vanished without a word while it had no worker, although it had a place to run.
            record = self.records[entry.pool]
            record.failed += 1
            record.failure = f"unit {name} vanished while it had no worker"

    def _pay(self, now_s: float, prices: dict[str, Pool]) -> None:
        if self._last_s is not None:
            running = sum(
                self._price(e, prices[e.pool])
                for e in self._entries.values()
                # An earlier controller's unit may be of a pool that is no longer configured.
                if e.phase in EXISTING and e.pool in prices
            )
            self.spent += running * max(0.0, now_s - self._last_s)
        self._last_s = now_s

    def _price(self, entry: _Entry, pool: Pool) -> float:
        """What a unit costs for a second; where machines are paid for, one that has none costs nothing."""
        if entry.price is not None:
            return entry.price
        if (dearest := self._prices.get(pool.name)) is None:
            return pool.price
        if not entry.machine:
            return 0.0
        seen = self.records[pool.name].price
        return dearest if seen is None else seen
