"""Victims: which units go first."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from dask_tide.model import BOOTING, LIVE, Phase, Snapshot, Unit, Worker

from .stock import Stock

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Candidate:
    """A unit that may go, with its registered workers."""

    unit: Unit
    workers: tuple[Worker, ...]

    @property
    def booting(self) -> bool:
        return self.unit.phase in BOOTING and not self.workers

    @property
    def idle(self) -> bool:
        return all(worker.idle for worker in self.workers)

    @property
    def tasks(self) -> int:
        return sum(worker.tasks for worker in self.workers)

    @property
    def only_copies(self) -> int:
        """Results that must be copied before it goes; all it holds where that was not looked up."""
        return sum(worker.last_keys for worker in self.workers)

    @property
    def bytes_to_move(self) -> int:
        return sum(_to_move(worker) for worker in self.workers)

    @property
    def largest_bytes(self) -> int:
        """The largest one of these results: one worker has to take it."""
        return max((worker.largest_bytes for worker in self.workers), default=0)

    @property
    def pinned(self) -> str:
        pins = (self.unit.pinned,) if self.booting else (w.pinned for w in self.workers)
        return next(filter(None, pins), "")


def candidates(snapshot: Snapshot, stock: Stock, *, busy: bool) -> list[Candidate]:
    """Live units of one pool, in the order in which they should go.

    Not yet started; idle, of an older template first, machine by machine, so that whole ones become empty:
    first those where nobody works, with nothing to move, with the fewest units; then, if asked for,
    ``busy`` ones, with the fewest tasks first.
    """
    found = _with_workers(snapshot, (u for u in stock.units if u.phase in LIVE and not u.doomed))
    if not busy:
        found = [candidate for candidate in found if candidate.idle]
    machines = _Machines(snapshot, found)
    return sorted(
        found,
        key=lambda c: (
            not c.booting,
            not c.unit.unplaced if c.booting else True,
            _PROGRESS[c.unit.phase] if c.booting else 0,
            not c.idle,
            not c.unit.stale,
            c.tasks,
            machines.order(c.unit.machine),
            c.bytes_to_move,
            c.only_copies,
            c.unit.name,
        ),
    )


def doomed(snapshot: Snapshot, stock: Stock) -> list[Candidate]:
    """Live units of one pool whose machine is about to go, by name."""
    units = (unit for unit in stock.units if unit.phase in LIVE and unit.doomed)
    return _with_workers(snapshot, sorted(units, key=attrgetter("name")))


def _with_workers(snapshot: Snapshot, units: Iterable[Unit]) -> list[Candidate]:
    by_name = {unit.name: unit for unit in units}
    workers: dict[str, list[Worker]] = {name: [] for name in by_name}
    for worker in sorted(snapshot.workers, key=attrgetter("address")):
        if worker.unit in workers:
            workers[worker.unit].append(worker)
    return [Candidate(unit, tuple(workers[name])) for name, unit in by_name.items()]


class _Machines:
    """Which machines become empty soonest, with the least to move. Pools may share machines."""

    def __init__(self, snapshot: Snapshot, found: Iterable[Candidate]) -> None:
        machine_of = {unit.name: unit.machine for unit in snapshot.units}
        self._units = Counter(unit.machine for unit in snapshot.units if unit.phase is Phase.RUNNING)
        self._at_work = {machine_of.get(w.unit, "") for w in snapshot.workers if w.tasks or w.pinned}
        self._to_move: dict[str, int] = defaultdict(int)
        for candidate in found:
            # A result without a size must be copied, too.
            self._to_move[candidate.unit.machine] += candidate.bytes_to_move + candidate.only_copies

    def order(self, machine: str) -> tuple[bool, bool, int, int, str]:
        to_move = self._to_move[machine]
        return machine in self._at_work, to_move > 0, self._units[machine], to_move, machine


# Of units that have not started, the one that is furthest from starting goes first.
_PROGRESS = {Phase.REQUESTED: 0, Phase.PENDING: 1, Phase.STARTING: 2}
#: Phases of units whose workers hand over what they hold: drained by us, or taken away by the platform.
_GOING = (Phase.DRAINING, Phase.STOPPING)
#: Bytes: more than anybody has, for a worker whose memory limit is not known.
_ENDLESS = 1 << 62


class Results(NamedTuple):
    """Results that nobody else has: how many, and their bytes."""

    keys: int = 0
    held_bytes: int = 0


class Stranded(NamedTuple):
    """Results of units that are going, for which there is no room.

    Attributes
    ----------
    results
        All that nobody has who stays; if somebody stays, what they have no room for.
    pools
        Names of those units' pools.
    alone
        Whether nobody is there who could receive any.
    """

    results: Results = Results()
    pools: frozenset[str] = frozenset()
    alone: bool = False


class Room:
    """Whether the workers that stay have room for the results of those that go.

    It is counted when it is first asked: most decisions let nobody go.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._counted = False
        self.fill_ratio = snapshot.settings.fill_ratio

    def _count(self) -> None:
        if self._counted:
            return
        self._counted, snapshot = True, self._snapshot
        # What a doomed machine holds must go, too.
        phases = {u.name: Phase.DRAINING if u.doomed else u.phase for u in snapshot.units}
        pool_of = {unit.name: unit.pool for unit in snapshot.units}
        by_hand = {state.pool.name for state in snapshot.pools if state.manual is not None}
        surely = {unit.name for unit in snapshot.units if unit.doomed or unit.phase is Phase.STOPPING}
        spot = {state.pool.name for state in snapshot.pools if state.pool.spot}
        #: Pools in which results are to stay: those on demand, but for GPUs and the like.
        self._homes = {s.pool.name for s in snapshot.pools if not s.pool.spot and not s.pool.resources}
        self._room: dict[str, int] = {}
        #: Addresses of those that are not on spot machines.
        self._safe: set[str] = set()
        #: What is on its way to the others: at first, what the units that are going hold.
        self._moving, self._keys = 0, 0
        #: Pools of those units.
        self._left: set[str] = set()
        for worker in snapshot.workers:
            phase, pool = phases.get(worker.unit, Phase.RUNNING), pool_of.get(worker.unit, "")
            if phase in _GOING:
                keys = worker.last_keys
                # Some may have been copied already.
                self._moving += worker.last_bytes
                self._keys += keys
                # A drain that somebody asked for by hand is refused rather.
                if keys and (pool not in by_hand or worker.unit in surely):
                    self._left.add(pool)
            elif phase is Phase.RUNNING and worker.status == "running":
                free = int(self.fill_ratio * worker.limit_bytes) - worker.held_bytes
                self._room[worker.address] = max(0, free) if worker.limit_bytes else _ENDLESS
                if pool not in spot:
                    self._safe.add(worker.address)
        self._free = sum(self._room.values())
        self._safe_free = sum(self._room[address] for address in self._safe)

    def stranded(self) -> Stranded:
        """What units hold that are going, and nobody who stays. To be asked before anybody is admitted."""
        if not any(unit.doomed or unit.phase in _GOING for unit in self._snapshot.units):
            return Stranded()
        self._count()
        pools = frozenset(self._left)
        if not self._room:
            return Stranded(Results(self._keys, self._moving), pools, alone=True) if pools else Stranded()
        left_bytes = self._moving - self._free
        return Stranded(Results(self._keys, left_bytes), pools) if pools and left_bytes > 0 else Stranded()

    def safe_bytes(self) -> int:
        """What workers that are not on spot machines could receive beside what is on its way."""
        self._count()
        return max(0, self._safe_free - self._moving)

    def admit(self, candidate: Candidate, *, anywhere: bool = True) -> bool:
        """Let ``candidate`` go if what it and the earlier ones hold fits into the others.

        If not ``anywhere``, what is not on a spot machine does not go to one, but to free a GPU.
        """
        self._count()
        own = {w.address: self._room[w.address] for w in candidate.workers if w.address in self._room}
        safe = own.keys() & self._safe
        free = self._free - sum(own.values())
        safe_free = self._safe_free - sum(own[address] for address in safe)
        moving = self._moving + candidate.bytes_to_move
        keys = self._keys + candidate.only_copies
        anywhere |= candidate.unit.pool not in self._homes or not candidate.only_copies
        others = len(self._room) - len(own) if anywhere else len(self._safe) - len(safe)
        # However small they are: somebody has to receive them.
        if keys and not others:
            return False
        if moving and moving > (free if anywhere else safe_free):
            return False
        if candidate.largest_bytes > max((self._room[w] for w in self._room.keys() - own.keys()), default=0):
            return False
        for address in own:
            del self._room[address]
        self._safe -= safe
        self._free, self._safe_free, self._moving, self._keys = free, safe_free, moving, keys
        return True


def _to_move(worker: Worker) -> int:
    """Results that must be copied before ``worker`` goes; all it holds where that was not looked up."""
    return 0 if worker.only_copies == 0 else worker.held_bytes
