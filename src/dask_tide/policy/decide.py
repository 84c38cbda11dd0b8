"""One decision: ``(Snapshot, Memory) -> (actions, Memory)``, pure and total."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Container
from operator import attrgetter

import msgspec

from dask_tide.model import (
    BOOTING,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Memory,
    Phase,
    PoolMemory,
    PoolState,
    Release,
    Snapshot,
    Why,
    why,
)

from . import limits, prices, victims
from .demand import Demand, assign
from .need import NONE, Homeless, Need
from .stock import Stock, take_stock
from .window import after, longest_need


def decide(snapshot: Snapshot, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
    """Decide what to do about every pool.

    Parameters
    ----------
    snapshot
        All that may be known.
    memory
        What the previous decision returned; ``Memory()`` at first.

    Returns
    -------
    The actions, at least one for each pool (a :class:`Hold` says why nothing is done), and
    what to remember. In one pool there is never a launch beside a release.
    """
    actions: list[Action] = []
    remembered: dict[str, PoolMemory] = {}
    allowance = limits.Allowance(snapshot)
    stocks = take_stock(snapshot)
    surely = _reach(snapshot, memory, stocks, allowance)
    spare = {name for state in snapshot.pools for name in _spare(state, stocks[state.pool.name])}
    reach = surely
    if spare:
        rest = tuple(unit for unit in snapshot.units if unit.name not in spare)
        without = limits.Allowance(msgspec.structs.replace(snapshot, units=rest))
        hoped = _reach(snapshot, memory, stocks, without)
        reach = {name: surely[name] if stocks[name].unplaced else hoped[name] for name in hoped}
    demands, impossible = assign(snapshot, stocks, reach)
    if not any(_cramped(state, stocks, demands, surely, reach) for state in snapshot.pools):
        spare = set()
    room = victims.Room(snapshot)
    haven, kept = _haven(snapshot, stocks, reach), list[victims.Candidate]()
    stranded = room.stranded()
    refuge = _refuge(snapshot, stocks, reach, haven, stranded.pools) if stranded.results.keys else ""
    for state in snapshot.pools:
        name = state.pool.name
        allowance.reserve(
            state, min(_least(state, stocks[name], demands[name]), reach[name] - stocks[name].taking)
        )
    compared = prices.compared(snapshot.pools)
    for state in sorted(snapshot.pools, key=lambda each: _decided_first(each, compared)):
        name = state.pool.name
        allowance.reserve(state, 0)
        before = memory.pools.get(name, PoolMemory())
        need = Need(
            state,
            snapshot.settings,
            stocks[name],
            demands[name],
            Homeless(
                at_risk=_at_risk(kept, room, stocks[name], state, reach[name]) if name == haven else NONE,
                stranded=stranded.results if name == refuge and stranded.alone else NONE,
                to_move=stranded.results if name == refuge else NONE,
            ),
            now_s=snapshot.now_s,
            used=before.used,
        )
        decision = _PoolDecision(snapshot, need, before, allowance, room, spare)
        actions += decision.actions()
        remembered[name] = decision.memory
        if state.pool.spot:
            kept += decision.kept
    for work, missing in ((entry.work, entry.missing) for entry in impossible):
        tasks = work.runnable + work.waiting
        actions.append(Hold("", why(Code.IMPOSSIBLE, tasks=tasks, example=work.example, missing=missing)))
    if lost := [work for work in snapshot.work if work.bound and work.ready]:
        tasks, example = sum(work.ready for work in lost), min(work.example for work in lost)
        actions.append(Hold("", why(Code.BOUND, tasks=tasks, example=example)))
    return tuple(actions), Memory(remembered)


def _reach(
    snapshot: Snapshot, memory: Memory, stocks: dict[str, Stock], allowance: limits.Allowance
) -> dict[str, int]:
    """Per pool, how many units could take tasks if it were launched to its limit just now."""
    reach = {}
    for state in snapshot.pools:
        stock = stocks[state.pool.name]
        limit = limits.ceiling(state, stock.existing, allowance, 0).units
        if state.manual is not None:
            limit = min(limit, state.manual)
        # Beside what is tried there others may do the work.
        tries = limits.tries(memory.pools.get(state.pool.name, PoolMemory()), stock.booting, snapshot)
        more = min(tries, max(0, limit - stock.existing))
        reach[state.pool.name] = stock.taking + int(more)
    return reach


def _spare(state: PoolState, stock: Stock) -> list[str]:
    """Units without a place, but for those that are to be there all the same."""
    stay = max(state.pool.minimum, state.floor) if state.manual is None else state.manual
    booting = (unit for unit in stock.units if unit.phase in BOOTING and not unit.doomed)
    return sorted(unit.name for unit in booting if unit.unplaced)[: max(0, stock.live - stay)]


def _cramped(
    state: PoolState,
    stocks: dict[str, Stock],
    demands: dict[str, Demand],
    surely: dict[str, int],
    reach: dict[str, int],
) -> bool:
    """Whether a pool has a use for units that it may have only once others give way."""
    name = state.pool.name
    stock, demand = stocks[name], demands[name]
    wanted = max(demand.usable, stock.taking + _least(state, stock, demand))
    return surely[name] < min(reach[name], wanted)


def _least(state: PoolState, stock: Stock, demand: Demand) -> int:
    """How many more units a pool is to have before others have all that they can use."""
    if state.manual is not None:
        return max(0, state.manual - stock.existing)
    first = demand.unserved and not stock.taking
    return max(int(first), state.pool.minimum - stock.existing, state.floor - stock.existing)


def _decided_first(state: PoolState, compared: dict[str, float]) -> tuple[bool, float]:
    """Spot first: what they hold may need another place. Then the cheapest, whatever the order."""
    return not state.pool.spot, compared[state.pool.name] / state.pool.threads_per_unit


def _haven(snapshot: Snapshot, stocks: dict[str, Stock], reach: dict[str, int]) -> str:
    """Name of the pool for results that shall not stay on spot machines; empty: there is none.

    Whoever is on the way already stays the one.
    """
    safe = [state for state in snapshot.pools if not state.pool.spot and state.pool.maximum]
    compared = prices.compared(safe)

    def order(state: PoolState) -> tuple[bool, bool, bool, float]:
        stock, name = stocks[state.pool.name], state.pool.name
        coming = bool(stock.coming_later)
        may = coming or reach[name] > stock.taking
        return bool(state.pool.resources), not may, not coming, compared[name]

    return min(safe, key=order).pool.name if safe else ""


def _refuge(
    snapshot: Snapshot, stocks: dict[str, Stock], reach: dict[str, int], haven: str, left: Collection[str]
) -> str:
    """Name of the pool for results of units that are about to go: whose next worker will come soonest.

    A GPU is not bought to hold a number.
    """

    def order(state: PoolState) -> tuple[bool, bool, bool, bool, bool]:
        name, stock = state.pool.name, stocks[state.pool.name]
        dear = bool(state.pool.resources) or not state.pool.maximum
        return not stock.coming_later, dear, reach[name] <= stock.taking, name != haven, name not in left

    return min(snapshot.pools, key=order).pool.name


def _at_risk(
    kept: list[victims.Candidate], room: victims.Room, stock: Stock, state: PoolState, reach: int
) -> victims.Results:
    """Of what these units hold, that for which there is no room on machines that stay, and may be."""
    if not kept:
        return NONE
    capacity_bytes = stock.capacity_bytes(state.pool, room.fill_ratio)
    more = stock.coming_later + max(0, reach - stock.taking)
    free_bytes = room.safe_bytes()
    most_bytes = free_bytes + more * capacity_bytes if capacity_bytes else math.inf
    keys = held_bytes = 0
    for candidate in sorted(kept, key=attrgetter("bytes_to_move")):
        if held_bytes + candidate.bytes_to_move > most_bytes:
            break  # a part of what it holds would not let it go
        keys += candidate.only_copies
        held_bytes += candidate.bytes_to_move
    return victims.Results(keys, max(0, held_bytes - free_bytes)) if keys else NONE


def _together(ended: list[Action], more: list[Action]) -> list[Action]:
    """What is given back since it has ended, and what is done beside that."""
    return ended + [action for action in more if not isinstance(action, Hold)] if ended else more


class _PoolDecision:
    """The decision about one pool. Lives for the length of one call.

    Attributes
    ----------
    kept
        Units that would have gone if there were room for their results.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        need: Need,
        memory: PoolMemory,
        allowance: limits.Allowance,
        room: victims.Room,
        spare: Container[str],
    ) -> None:
        self.snapshot = snapshot
        self.need = need
        self.state = need.state
        self.pool = need.pool
        self.demand = need.demand
        self.stock = need.stock
        self.live = need.stock.live
        self.memory = limits.after_failures(self.state, memory, snapshot)
        self.memory = msgspec.structs.replace(self.memory, used=need.used)
        self.allowance = allowance
        self.room = room
        self.spare = spare
        self.kept: list[victims.Candidate] = []

    def actions(self) -> list[Action]:
        if self.state.blind:
            return [self._hold(why(Code.BLIND, message=self.state.blind))]
        if self.state.frozen:
            return [self._hold(why(Code.FROZEN, message=self.state.frozen))]
        ended = self._ended() + self._never_started()
        if gone := self._evacuate() + self._replace() + self._give_way():
            return ended + gone
        over = min(self.allowance.over[self.pool.name], self.live - self.pool.minimum)
        if over > 0 and self.state.manual is None:
            self._remember(self.need.units())
            dear = self.allowance.dear
            code = Code.OVER_BUDGET if dear else Code.ABOVE_SHARED
            too_many = why(code, want=self.live - over, have=self.live)
            return _together(ended, self._let_go(over, too_many, busy=True, dearest=dear))
        target, reason = self.need.target()
        if reason and target > self.live and self.live <= self.pool.maximum:
            if ended:
                self._remember(self.need.units())
            return ended or [self._launch(target, reason)]
        # Where what starts fails at once something has always ended.
        shrink = _together(ended, self._shrink())
        return shrink or [self._hold(reason or self._idle_reason())]

    # -- more ---------------------------------------------------------------------------

    def _launch(self, target: int, reason: Why) -> Action:
        ceiling = limits.ceiling(self.state, self.stock.existing, self.allowance, target)
        count = min(target - self.live, ceiling.units - self.stock.existing)
        if count <= 0:
            if self.stock.paused and ceiling.why.code == Code.AT_MAXIMUM.name:
                full = self.stock.paused
                return self._hold(why(Code.AT_MAXIMUM_BESIDE, full=full, **ceiling.why.numbers))
            return self._hold(ceiling.why)
        if self.memory.retry_s > self.snapshot.now_s:
            return self._hold(
                why(
                    Code.BACKOFF,
                    failures=self.memory.failures,
                    wait_s=self.memory.retry_s - self.snapshot.now_s,
                    message=self.state.failure,
                )
            )
        tries = limits.tries(self.memory, self.stock.booting, self.snapshot)
        if not tries:
            failures, message = self.memory.failures, self.state.failure
            return self._hold(why(Code.TRIED, failures=failures, message=message))
        count = int(min(count, tries))
        self.allowance.draw(count, self.state)
        self._remember(max(target, self.need.units()))
        return Launch(self.pool.name, count, reason)

    # -- fewer --------------------------------------------------------------------------

    def _remember(self, needed: int) -> None:
        horizon_s = max(self.need.keep_s(), self.snapshot.settings.tail_s)
        self.memory = msgspec.structs.replace(
            self.memory, needed=after(self.memory.needed, self.snapshot.now_s, needed, horizon_s)
        )

    def _shrink(self) -> list[Action]:
        now_s = self.snapshot.now_s
        needed = self.need.units()
        self._remember(needed)
        window_s = self.need.window_s()
        manual = self.state.manual is not None
        above = self.live > self.pool.maximum
        if manual:
            wanted = min(needed, self.pool.maximum)
        elif above:
            wanted = self.pool.maximum
        else:
            wanted = longest_need(self.memory.needed, now_s - window_s)
        surplus = self.live - wanted
        if surplus <= 0:
            return self._renew()
        if manual:
            reason = why(Code.MANUAL, want=wanted, have=self.live)
        elif above:
            reason = why(Code.ABOVE_MAXIMUM, want=wanted, have=self.live)
        else:
            reason = why(Code.SURPLUS, surplus=surplus, have=self.live, want=wanted, window_s=window_s)
        return self._let_go(surplus, reason, busy=manual or above)

    def _renew(self) -> list[Action]:
        """Let idle units of an older template go while no task wants one; new ones follow where wanted.

        Those that are to be there all the same go one after the other, each when the one before is replaced.
        """
        if self.demand.runnable or not any(unit.stale for unit in self.stock.units):
            return []
        stay = max(self.pool.minimum, self.state.floor, self.state.manual or 0)
        whole = self.live >= stay and not self.stock.booting
        count = max(self.live - stay, int(whole))
        stale = [c for c in victims.candidates(self.snapshot, self.stock, busy=False) if c.unit.stale]
        able = (c for c in stale if c.workers and not c.pinned and self.room.admit(c))
        ready = list(itertools.islice(able, count))
        if not ready:
            return []
        return [self._drain(ready, why(Code.STALE, message=ready[0].unit.message))]

    def _let_go(self, surplus: int, reason: Why, *, busy: bool, dearest: bool = False) -> list[Action]:
        releases: list[str] = []
        drains: list[victims.Candidate] = []
        kept: Why | None = None
        candidates = victims.candidates(self.snapshot, self.stock, busy=busy)
        if dearest:
            candidates = sorted(candidates, key=lambda each: -limits.known_price(each.unit, self.state))
        for candidate in candidates:
            if len(releases) + len(drains) == surplus:
                break
            if candidate.pinned:
                kept = kept or why(Code.PINNED, surplus=surplus, message=candidate.pinned)
            elif candidate.booting:
                releases.append(candidate.unit.name)
            elif not candidate.workers:
                continue  # running, and its worker has just left: the next tick sees what became of it
            elif self.room.admit(candidate, anywhere=busy):
                drains.append(candidate)
            else:
                self.kept.append(candidate)
                kept = kept or why(Code.KEPT_FOR_RESULT, keys=candidate.only_copies)
        actions: list[Action] = []
        if releases:
            actions.append(Release(self.pool.name, tuple(releases), reason))
        if drains:
            actions.append(self._drain(drains, reason, busy=busy))
        if not actions:
            message = "their workers have tasks or have just left"
            actions.append(self._hold(kept or why(Code.PINNED, surplus=surplus, message=message)))
        return actions

    def _evacuate(self) -> list[Action]:
        """Empty the units whose machine is about to go, busy or not, while there is time."""
        doomed = victims.doomed(self.snapshot, self.stock)
        if not doomed:
            return []
        actions: list[Action] = []
        reason = why(Code.DOOMED, message=doomed[0].unit.message)
        if empty := tuple(candidate.unit.name for candidate in doomed if candidate.booting):
            actions.append(Release(self.pool.name, empty, reason))
        if full := [candidate for candidate in doomed if candidate.workers and not candidate.pinned]:
            actions.append(self._drain(full, reason, busy=True))
        return actions

    def _give_way(self) -> list[Action]:
        """Give back those without a place that keep others from a limit that the pools share."""
        going = [unit for unit in self.stock.units if unit.name in self.spare]
        if not going:
            return []
        names = tuple(sorted(unit.name for unit in going))
        message = min(unit.message for unit in going)
        reason = why(Code.NO_CAPACITY, limit=self.live - self.stock.unplaced, message=message)
        return [Release(self.pool.name, names, reason)]

    def _replace(self) -> list[Action]:
        """Let units go that take no task any more; others follow where they are wanted."""
        if not any(worker.stuck for worker in self.snapshot.workers):
            return []
        # Tasks that were given to them wait there, and will be taken back; not those that may run only there.
        stuck = [
            candidate
            for candidate in victims.candidates(self.snapshot, self.stock, busy=True)
            if candidate.workers and all(w.stuck and not w.bound for w in candidate.workers)
        ]
        able: dict[str, list[victims.Candidate]] = defaultdict(list)
        for candidate in stuck:
            if not candidate.pinned and self.room.admit(candidate):
                able[candidate.workers[0].stuck].append(candidate)
        return [self._drain(going, why(Code[code]), busy=True) for code, going in able.items()]

    def _ended(self) -> list[Action]:
        """Give back what did not start in time, and what has ended, so that the platform forgets it."""
        limit_s = self.snapshot.settings.start_timeout_s
        actions: list[Action] = []
        for phase, code in ((Phase.EXPIRED, Code.EXPIRED), (Phase.FAILED, Code.FAILED)):
            ended = sorted((u for u in self.stock.units if u.phase is phase), key=lambda unit: unit.name)
            if ended:
                message = ended[0].message or "no message"
                reason = why(code, limit_s=limit_s, message=message)
                actions.append(Release(self.pool.name, tuple(unit.name for unit in ended), reason))
        return actions

    def _never_started(self) -> list[Action]:
        """Give back units of an older template that wait in vain: it may have been mended since."""
        limit_s = self.snapshot.settings.start_timeout_s
        waiting = (u for u in self.stock.units if u.stale and u.phase is Phase.PENDING and not u.doomed)
        names = sorted(u.name for u in waiting if u.unplaced or u.age_s > limit_s)
        names = [name for name in names if name not in self.spare]
        if not names:
            return []
        message = next(unit.message for unit in self.stock.units if unit.name == names[0])
        return [Release(self.pool.name, tuple(names), why(Code.STALE_WAITING, message=message))]

    def _drain(self, going: list[victims.Candidate], reason: Why, *, busy: bool = False) -> Drain:
        units = tuple(candidate.unit.name for candidate in going)
        workers = tuple((w.name, w.address) for candidate in going for w in candidate.workers)
        return Drain(self.pool.name, units, workers, reason, busy)

    # -- neither ------------------------------------------------------------------------

    def _hold(self, reason: Why | None) -> Hold:
        self._remember(self.need.units())
        return Hold(self.pool.name, reason or self._idle_reason())

    def _wanted_by(self) -> Why:
        """For whom the units are there."""
        if self.live > self.demand.usable + self.stock.paused:
            if self.state.floor >= self.live:
                return why(Code.KEPT_FLOOR, have=self.live, floor=self.state.floor)
            if self.pool.minimum >= self.live:
                return why(Code.KEPT_MINIMUM, have=self.live, minimum=self.pool.minimum)
        if self.stock.unplaced:
            words = min(unit.message for unit in self.stock.units if unit.unplaced)
            return why(Code.NO_CAPACITY, limit=self.live - self.stock.unplaced, message=words)
        return why(Code.ENOUGH, have=self.live)

    def _idle_reason(self) -> Why:
        draining = sum(unit.phase is Phase.DRAINING for unit in self.stock.units)
        if draining:
            return why(Code.DRAINING, count=draining)
        if not self.live and not self.demand.runnable:
            return why(Code.NO_WORK)
        needed = self.need.units_now()
        surplus = self.live - needed
        if surplus > 0:
            if self.need.units() > needed:
                return why(Code.KEPT_FOR_LATER, surplus=surplus, later=self.demand.later)
            last_s = max((when for when, units in self.memory.needed if units > needed), default=-math.inf)
            if last_s > -math.inf:
                idle_s, window_s = self.snapshot.now_s - last_s, self.need.window_s()
                if window_s < self.need.keep_s():
                    return why(Code.KEPT_TAIL, surplus=surplus, window_s=window_s, idle_s=idle_s)
                return why(Code.KEPT_BREAK_EVEN, surplus=surplus, keep_s=window_s, idle_s=idle_s)
        return self._wanted_by()
