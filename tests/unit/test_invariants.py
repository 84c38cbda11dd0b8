"""What holds in every world, whatever happened before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dask_tide.model import (
    EXISTING,
    LIVE,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Memory,
    Phase,
    Pool,
    PoolMemory,
    PoolState,
    Release,
    Settings,
    Snapshot,
    Unit,
    Work,
    Worker,
)
from dask_tide.policy import decide

# Making a counterexample small may take minutes.
pytestmark = pytest.mark.timeout(600)

RESOURCES = ((), (), (("GPU", 1.0),), (("GPU", 2.0), ("MEMORY", 10.0)), (("threads", 3.0),))
NEEDS = (
    (),
    (),
    (("GPU", 1.0),),
    (("GPU", 0.5),),
    (("GPU", 1.0), ("MEMORY", 3.0)),
    (("threads", 1.0),),
    (("TPU", 1.0),),
)
#: Keys, bytes and only-copies of a worker.
HELD = ((0, 0, 0), (0, 0, None), (1, 0, 1), (2, 50, 2), (2, 50, None), (2, 60, 0), (1, 90, 1))
#: Longer than every window and pause below together, in ticks of a second.
SETTLED, WATCHED = 60, 10


def maybe(strategy):
    return st.none() | strategy


@st.composite
def pool_states(draw, name: str) -> PoolState:
    maximum = draw(st.sampled_from([12, 12, 12, 5, 2, 0]))
    limit_bytes = draw(st.sampled_from([0, 100]))
    return PoolState(
        Pool(
            name,
            threads=draw(st.sampled_from([1, 2, 8])),
            memory_bytes=limit_bytes,
            resources=draw(st.sampled_from(RESOURCES)),
            workers_per_unit=draw(st.sampled_from([1, 1, 3])),
            minimum=min(maximum, draw(st.sampled_from([0, 0, 0, 3]))),
            maximum=maximum,
            price=draw(st.sampled_from([0.0, 0.3, 1.0, 7.0])),
            boot_s=draw(st.sampled_from([0.0, 1.0, 10.0])),
            spot=draw(st.sampled_from([False, False, True])),
        ),
        blind=draw(st.sampled_from(["", "", "", "", "", "timed out"])),
        manual=draw(st.sampled_from([None, None, None, 0, 2, 14])),
        floor=draw(st.sampled_from([0, 0, 0, 2, 14])),
        boot_s=draw(maybe(st.sampled_from([0.0, 0.1, 5.0]))),
        cold_boot_s=draw(maybe(st.sampled_from([1.0, 60.0]))),
        room=draw(maybe(st.integers(0, 5))),
        price=draw(maybe(st.sampled_from([0.5, 2.0]))),
        dearest=draw(maybe(st.sampled_from([0.5, 2.0, 3.0]))),
        bound=draw(maybe(st.sampled_from([2.0, 5.0]))),
        capacity=draw(maybe(st.integers(0, 12))),
        capacity_message="no {room}",
        started=draw(st.integers(0, 2)),
        failed=draw(st.integers(0, 2)),
        failure="exit {code} 1",
        baseline_bytes=draw(st.sampled_from([0, 10, 200])),
    )


@st.composite
def worlds(draw, states: tuple[PoolState, ...], now_s: float) -> Snapshot:
    names = [state.pool.name for state in states]
    contents = st.tuples(
        st.sampled_from(["running"] * 5 + ["paused", "closing_gracefully"]),
        st.sampled_from([0, 0, 0, 1, 3]),  # tasks
        st.sampled_from(HELD),
        st.sampled_from([0, 100, 100]),  # memory limit
        st.sampled_from(["", "", "", "", "an {actor}"]),
    )
    homes = st.tuples(
        st.sampled_from([*names * 3, "nobody's"]),
        st.sampled_from([*Phase, *[Phase.RUNNING] * 12]),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from([1, 1, 1, 1, 0, 2]),  # workers, where it should have any
        st.sampled_from([0, 0, 0, 0, 0, 1]),  # and where not
        st.sampled_from([False] * 15 + [True]),  # its machine is about to go
        st.sampled_from([False, False, False, True]),  # no machine for it
    )
    some_units, owners = [], [""] * draw(st.sampled_from([0, 0, 0, 1, 2]))
    for i, (of, phase, machine, usual, odd, doomed, full) in enumerate(draw(st.lists(homes, max_size=12))):
        unplaced = full and phase is Phase.PENDING
        unit = Unit(f"u{i}", of, phase, machine=machine, message="{}", doomed=doomed, unplaced=unplaced)
        some_units.append(unit)
        owners += [unit.name] * (usual if phase in (Phase.RUNNING, Phase.DRAINING) else odd)
    some_workers = []
    for i, owner in enumerate(owners):
        status, tasks, (keys, size, only_copies), limit, pinned = draw(contents)
        some_workers.append(
            Worker(
                address=f"tcp://{i}",
                name=f"{owner}-{i}",
                unit=owner,
                threads=2,
                status=status,
                tasks=tasks,
                held_keys=keys,
                held_bytes=size,
                only_copies=only_copies,
                used_bytes=20,
                limit_bytes=limit,
                pinned=pinned,
                blocked=(blocked := draw(st.sampled_from([0, 0, 0, 1, 2]))),
                stuck=draw(st.sampled_from(["", "FULL"]))
                if status == "paused"
                else draw(st.sampled_from(["", "BLOCKED"]))
                if blocked == 2
                else "",
            )
        )
    counts = st.sampled_from([0, 0, 0, 1, 3, 17, 400])
    some_work = draw(
        st.lists(
            st.builds(
                Work,
                st.sampled_from("abc"),
                st.just("a-{0}"),
                st.sampled_from(NEEDS),
                st.sampled_from([False, False, False, True]),
                counts,
                counts,
                counts,
                maybe(st.sampled_from([0.0, 0.01, 3.0, 7200.0])),
                st.sampled_from([0.0, 0.0, 2.0, 100.0]),
                st.sampled_from([(), ((17, 17),), ((1, 1), (2, 400)), ((3, 6), (1, 17), (1, 400))]),
            ),
            max_size=6,
        )
    )
    return Snapshot(
        now_s,
        Settings(
            keep_s=draw(maybe(st.sampled_from([0.0, 1.0, 10.0]))),
            idle_timeout_s=draw(st.sampled_from([0.0, 5.0, 10.0])),
            machine_idle_s=draw(maybe(st.sampled_from([0.0, 55.0]))),
            tail_s=draw(st.sampled_from([0.0, 3.0])),
            maximum=draw(maybe(st.integers(0, 20))),
            budget_per_hour=draw(maybe(st.sampled_from([0.0, 3600.0, 20000.0]))),
            budget_total=draw(maybe(st.just(50.0))),
            backoff_max_s=5.0,
        ),
        states,
        tuple(some_units),
        tuple(some_workers),
        tuple(some_work),
        draw(st.sampled_from([0.0, 49.0, 50.0, 51.0])),
    )


@st.composite
def memories(draw, now_s: float) -> PoolMemory:
    """As the policy leaves them: needs decrease, and the newest is a moment old at least."""
    ages = sorted(draw(st.lists(st.sampled_from([0.0, 0.5, 2.0, 7.0, 30.0]), max_size=3)), reverse=True)
    needs = sorted(draw(st.sets(st.integers(0, 14), min_size=len(ages), max_size=len(ages))), reverse=True)
    return PoolMemory(
        needed=tuple((now_s - age_s, units) for age_s, units in zip(ages, needs, strict=True)),
        started=draw(st.integers(0, 2)),
        failed=draw(st.integers(0, 2)),
        failures=draw(st.sampled_from([0, 0, 1, 50])),
        retry_s=now_s + draw(st.sampled_from([-100.0, -1.0, 3.0])),
    )


@st.composite
def situations(draw) -> tuple[Snapshot, Memory]:
    """A world, and what is remembered of earlier ones, in which there may have been other pools."""
    names = ["one", "two", "three"][: draw(st.sampled_from([1, 2, 2, 3]))]
    world = draw(worlds(tuple(draw(pool_states(name)) for name in names), 200.0))
    remembered = ["gone", *names][: draw(st.integers(0, 4))]
    return world, Memory({name: draw(memories(200.0)) for name in remembered})


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def invariant(*more: Any, examples: int = 200) -> Callable[[Any], Any]:
    """A test of many situations."""

    def decorate(test):
        return settings(max_examples=examples, deadline=None, suppress_health_check=QUIET)(
            given(situations(), *more)(test)
        )

    return decorate


def of_pool(actions, name, *kinds) -> list[Any]:
    return [a for a in actions if a.pool == name and isinstance(a, kinds)]


def let_go(actions) -> list[str]:
    return [unit for a in actions if isinstance(a, Drain | Release) for unit in a.units]


def is_doomed(world) -> set[str]:
    return {unit.name for unit in world.units if unit.doomed}


def replaced(actions) -> set[str]:
    """Units that go since they take no task any more: others come for them."""
    stuck = {Code.FULL.name, Code.BLOCKED.name}
    return {unit for a in actions if isinstance(a, Drain) and a.why.code in stuck for unit in a.units}


def count(world, name, phases) -> int:
    return sum(unit.pool == name and unit.phase in phases for unit in world.units)


# -- limits -----------------------------------------------------------------------------------


@invariant()
def test_p20_no_launch_exceeds_a_limit(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    launches = {a.pool: a.count for a in actions if isinstance(a, Launch)}
    event(f"launches: {bool(launches)}")
    states = {state.pool.name: state for state in world.pools}
    for name, launched in launches.items():
        assert launched > 0
        total = count(world, name, EXISTING) + launched
        assert total <= states[name].pool.maximum
        assert states[name].capacity is None or total <= states[name].capacity
    if not launches:
        return
    limits = world.settings
    existing = [unit for unit in world.units if unit.pool in states and unit.phase in EXISTING]
    if limits.maximum is not None:
        assert len(existing) + sum(launches.values()) <= limits.maximum
    dearest = {
        name: state.unit_price if state.dearest is None else state.dearest for name, state in states.items()
    }
    if limits.budget_per_hour is not None and any(dearest[name] for name in launches):
        # Those of which only the most is known that one can cost start with one unit.
        there = {unit.pool for unit in existing}
        firsts = {
            name
            for name, n in launches.items()
            if n == 1 and name not in there and states[name].dearest is None and states[name].bound
        }
        rate = sum(dearest[u.pool] if u.price is None else u.price for u in existing if not u.doomed)
        rate += sum(dearest[name] * n for name, n in launches.items() if name not in firsts)
        event(f"a first unit to learn what one costs: {bool(firsts)}")
        assert limits.budget_per_hour > 0
        assert rate <= limits.budget_per_hour / 3600 + 1e-6
    assert limits.budget_total is None or world.spent < limits.budget_total


@invariant()
def test_p16_nothing_shrinks_below_its_minimum(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    gone = set(let_go(actions))
    for state in world.pools:
        mine = [u for u in world.units if u.pool == state.pool.name and u.phase in LIVE]
        live = [u.name for u in mine if not u.doomed and u.name not in replaced(actions)]
        least = state.pool.minimum
        if state.manual is not None:
            least = min(state.manual, state.pool.maximum)
        assert len(set(live) - gone) >= min(least, len(live))


@invariant()
def test_p22_no_more_units_than_somebody_wants(situation):
    """Tasks that could run, results, a minimum, a floor or a number set by hand: each unit has one."""
    world, memory = situation
    tasks = sum(work.runnable for work in world.work if not work.bound)
    paused = sum(unit.phase is Phase.RUNNING for unit in world.units)
    held = sum(max(w.held_bytes, w.used_bytes) for w in world.workers)
    for action in decide(world, memory)[0]:
        if isinstance(action, Launch):
            state = next(s for s in world.pools if s.pool.name == action.pool)
            wanted = max(tasks + paused, state.pool.minimum, state.floor, state.manual or 0, held)
            assert action.count <= wanted


# -- victims ----------------------------------------------------------------------------------


def over_budget(world) -> bool:
    """Whether what is there costs more than may be spent."""
    budget = world.settings.budget_per_hour
    states = {state.pool.name: state for state in world.pools}
    live = [unit for unit in world.units if unit.phase in LIVE and unit.pool in states]
    prices = (states[u.pool].pool.price if u.price is None else u.price for u in live)
    return budget is not None and sum(prices) * 3600 > budget


@invariant()
def test_p01_busy_units_go_only_by_hand_or_above_the_maximum_and_after_idle_ones(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    gone = set(let_go(actions))
    owned = {u.name: [w for w in world.workers if w.unit == u.name] for u in world.units}
    leaving = gone | is_doomed(world) | {u.name for u in world.units if u.phase is Phase.DRAINING}
    moving = sum(w.held_bytes for w in world.workers if w.unit in leaving and w.only_copies != 0)
    receivers = [w for w in world.workers if receives(world, w) and w.unit not in gone]
    for state in world.pools:
        name = state.pool.name
        mine = [u for u in world.units if u.pool == name and u.phase in LIVE and not u.doomed]
        # What waits on those that are replaced will be taken back.
        if not any(w.tasks for u in mine if u.name in gone - replaced(actions) for w in owned[u.name]):
            continue
        event("busy victims")
        assert state.manual is not None or len(mine) > state.pool.maximum or over_budget(world)
        assert all(a.busy for a in of_pool(actions, name, Drain))
        for unit in mine:
            workers = owned[unit.name]
            if unit.name in gone or any(w.tasks or w.pinned for w in workers):
                continue
            if unit.phase is Phase.RUNNING and not workers:
                continue  # nobody knows what became of its worker
            # It is idle, and there is no room for what it holds or while its own room is needed.
            free = sum(room(world, w) for w in receivers if w.unit != unit.name)
            more = sum(w.held_bytes for w in workers if w.only_copies != 0)
            alone = all(w.unit == unit.name for w in receivers)
            assert moving + more > free or alone


def receives(world, worker) -> bool:
    phases = {unit.name: unit.phase for unit in world.units}
    if worker.unit in is_doomed(world):
        return False
    return worker.status == "running" and phases.get(worker.unit, Phase.RUNNING) is Phase.RUNNING


def room(world, worker) -> float:
    if not worker.limit_bytes:
        return math.inf
    return max(0.0, world.settings.fill_ratio * worker.limit_bytes - worker.held_bytes)


@invariant()
def test_p27_p15_what_goes_finds_room(situation):
    world, memory = situation
    gone = {u for a in decide(world, memory)[0] if isinstance(a, Drain) for u in a.units}
    leaving = gone | is_doomed(world) | {u.name for u in world.units if u.phase is Phase.DRAINING}
    gone -= is_doomed(world)  # they had no choice
    receivers = [w for w in world.workers if receives(world, w) and w.unit not in gone]
    moving = [w for w in world.workers if w.unit in leaving and w.only_copies != 0]
    moves = sum(w.held_bytes for w in moving)
    going = [w for w in moving if w.unit in gone]
    assert receivers or not any(w.only_copies or w.held_keys for w in going)
    if sum(w.held_bytes for w in going):
        event("results move")
        assert moves <= sum(room(world, w) for w in receivers)


@invariant()
def test_p26_pinned_units_stay(situation):
    world, memory = situation
    pinned = {w.unit for w in world.workers if w.pinned and w.unit}
    drained = {u for a in decide(world, memory)[0] if isinstance(a, Drain) for u in a.units}
    event(f"drains beside pinned units: {bool(drained and pinned)}")
    assert not drained & pinned


# -- actions ----------------------------------------------------------------------------------


@invariant()
def test_never_a_launch_and_a_release_in_one_pool(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    for state in world.pools:
        kinds = {type(a) for a in of_pool(actions, state.pool.name, Launch, Drain, Release, Hold)}
        assert kinds in ({Launch}, {Hold}, {Drain}, {Release}, {Drain, Release})


@invariant()
def test_actions_name_units_of_their_pool_once(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    units = {unit.name: unit for unit in world.units}
    gone = let_go(actions)
    assert len(gone) == len(set(gone))
    pools = {state.pool.name for state in world.pools}
    for action in actions:
        assert action.pool in pools or (action.pool == "" and isinstance(action, Hold))
        if isinstance(action, Launch | Hold):
            continue
        assert action.units
        assert {units[name].pool for name in action.units} == {action.pool}
        phases = {units[name].phase for name in action.units}
        owned = {(w.name, w.address) for w in world.workers if w.unit in action.units}
        if isinstance(action, Drain):
            assert phases <= LIVE
            assert set(action.workers) == owned
        else:
            ended = {Phase.FAILED, Phase.EXPIRED}
            assert phases <= ended or (phases <= LIVE - {Phase.RUNNING} and not owned)


@invariant()
def test_p01_what_has_not_started_goes_before_what_runs(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    registered = {w.unit for w in world.workers}
    for state in world.pools:
        drains = of_pool(actions, state.pool.name, Drain)
        if any(
            action.why.code not in (Code.DOOMED.name, Code.FULL.name, Code.BLOCKED.name) for action in drains
        ):
            starting = {
                u.name
                for u in world.units
                if u.pool == state.pool.name
                and u.phase in LIVE - {Phase.RUNNING}
                and u.name not in registered
            }
            assert starting <= set(let_go(actions))


@invariant(examples=100)
def test_a_blind_pool_is_left_alone(situation):
    world, memory = situation
    actions, _ = decide(world, memory)
    for state in world.pools:
        if state.blind:
            (hold,) = of_pool(actions, state.pool.name, Launch, Drain, Release, Hold)
            assert isinstance(hold, Hold)


@invariant(examples=100)
def test_p10_every_action_says_why(situation):
    world, memory = situation
    for action in decide(world, memory)[0]:
        assert str(action.why)


# -- purity -----------------------------------------------------------------------------------


@invariant(st.randoms(use_true_random=False))
def test_order_means_nothing(situation, random):
    world, memory = situation
    shuffled = {}
    for name in ("units", "workers", "work"):
        values = list(getattr(world, name))
        random.shuffle(values)
        shuffled[name] = tuple(values)
    first = decide(world, memory)
    assert decide(world, memory) == first
    assert decide(msgspec.structs.replace(world, **shuffled), memory) == first


@invariant()
def test_p10_a_journal_replays_byte_for_byte(situation):
    world, memory = situation
    actions, after = decide(world, memory)
    again = decide(
        msgspec.json.decode(msgspec.json.encode(world), type=Snapshot),
        msgspec.json.decode(msgspec.json.encode(memory), type=Memory),
    )
    assert msgspec.json.encode(again) == msgspec.json.encode((actions, after))
    assert msgspec.json.decode(msgspec.json.encode(actions), type=tuple[Action, ...]) == actions


# -- rest -------------------------------------------------------------------------------------


def come_true(world: Snapshot, actions: tuple[Action, ...], tick: int) -> Snapshot:
    """The world a second later: units are there at once, drained results are elsewhere."""
    units, workers = list(world.units), list(world.workers)
    for action in actions:
        if isinstance(action, Launch):
            pool = next(s.pool for s in world.pools if s.pool.name == action.pool)
            for i in range(action.count):
                new = f"{pool.name}-{tick}-{i}"
                units.append(Unit(new, pool.name, Phase.RUNNING))
                workers += [
                    Worker(f"tcp://{new}-{j}", f"{new}-{j}", new, pool.threads, limit_bytes=pool.memory_bytes)
                    for j in range(pool.workers_per_unit)
                ]
        elif isinstance(action, Drain | Release):
            units = [u for u in units if u.name not in action.units]
            moved = sum(w.held_bytes for w in workers if w.unit in action.units and w.only_copies != 0)
            workers = [w for w in workers if w.unit not in action.units]
            heirs = [i for i, w in enumerate(workers) if receives(world, w)]
            if moved and heirs:
                heir = max(heirs, key=lambda i: room(world, workers[i]))
                held = workers[heir].held_bytes + moved
                workers[heir] = msgspec.structs.replace(
                    workers[heir], held_bytes=held, held_keys=9, only_copies=9
                )
    return msgspec.structs.replace(world, now_s=world.now_s + 1.0, units=tuple(units), workers=tuple(workers))


@invariant(examples=100)
def test_p02_when_the_world_stands_still_so_do_we(situation):
    world, memory = situation
    for tick in range(SETTLED + WATCHED):
        actions, memory = decide(world, memory)
        if tick >= SETTLED:
            assert {type(action) for action in actions} <= {Hold}
        world = come_true(world, actions, tick)
