"""Machines under the units: two boot times, which become empty first, which go, what they cost."""

from __future__ import annotations

import msgspec
import pytest
from builders import (
    DRAINING,
    GB,
    NOTHING,
    PENDING,
    RUNNING,
    STARTING,
    after_a_while,
    busy,
    decided,
    held,
    idle,
    launched,
    let_go,
    pool,
    snapshot,
    the,
    together,
    units,
    work,
    worker,
    workers_of,
)

from dask_tide.model import Code, Drain, Hold, Launch, Phase, Release
from dask_tide.policy import decide


def on(machine, n, *, start=0, tasks=0, of="cpu", **fields):
    """Running units on one machine, each with a worker."""
    there = units(n, start=start, of=of, machine=machine)
    return there, workers_of(there, tasks=tasks, **fields)


# -- two boot times ---------------------------------------------------------------------------------------


def test_p33_a_machine_is_not_asked_for_that_comes_too_late():
    """20 tasks of 10 s: worth a start of 2 s for each, not machines that take 100 s."""
    jobs = work(ready=20, duration_s=10.0)
    state = {"boot_s": 2.0, "cold_boot_s": 100.0}
    assert launched(decided(snapshot(pool(state=state), work=[jobs]))) == {"cpu": 20}, "room is not known"
    assert launched(decided(snapshot(pool(state={**state, "room": 30}), work=[jobs]))) == {"cpu": 20}
    assert launched(decided(snapshot(pool(state={**state, "room": 6}), work=[jobs]))) == {"cpu": 6}
    assert launched(decided(snapshot(pool(state={**state, "room": 0}), work=[jobs]))) == {"cpu": 2}


def test_p33_units_on_their_way_work_until_a_machine_could_come():
    """60 tasks of 2 s, and machines take 60 s: eight units are done in 15 s, however dear time is."""
    jobs = work(ready=60, duration_s=2.0)

    def asked_for(room, coming=()):
        state = {"boot_s": 2.0, "cold_boot_s": 60.0, "room": room}
        return launched(decided(snapshot(pool(state=state), units=coming, work=[jobs], worth=300.0)))

    assert asked_for(8) == {"cpu": 8}
    assert not asked_for(0, units(8, PENDING))
    assert asked_for(0, units(8, PENDING, age_s=61.0)) == {"cpu": 16}, "who is late is not relied upon"
    # Where machines must come for them, too, nobody works until then.
    assert asked_for(0, units(8, PENDING, waits=True)) == {"cpu": 16}
    assert asked_for(0) == {"cpu": 24}


def test_p33_the_boot_time_of_a_machine_is_said():
    jobs = work(ready=19, processing=1, duration_s=2.0)
    some = together(busy(1))
    state = {"boot_s": 2.0, "cold_boot_s": 100.0, "room": 0}
    hold = the(decided(snapshot(pool(state=state), work=[jobs], **some)), Hold)
    assert hold.why.code == Code.TOO_LATE.name
    assert hold.why.numbers["boot_s"] == 100.0


def test_p33_a_unit_that_has_room_is_not_said_to_come_too_late():
    jobs = work(ready=20, duration_s=10.0)
    state = {"boot_s": 2.0, "cold_boot_s": 100.0, "room": 6}
    assert the(decided(snapshot(pool(state=state), work=[jobs])), Launch).why.code == Code.DEMAND.name


def test_work_for_long_is_worth_machines():
    jobs = work(ready=20, duration_s=3600.0)
    state = {"boot_s": 2.0, "cold_boot_s": 100.0, "room": 0}
    assert launched(decided(snapshot(pool(state=state), work=[jobs]))) == {"cpu": 20}


@pytest.mark.parametrize(("cold_boot_s", "kept"), [(None, False), (20.0, False), (60.0, True)])
def test_between_two_stages_units_stay_if_others_would_need_machines(cold_boot_s, kept):
    """Those that wait may run in 40 s."""
    stages = [work(processing=1, duration_s=40.0, waiting=6)]
    state = {"boot_s": 2.0, "cold_boot_s": cold_boot_s}
    world = snapshot(pool(state=state), **together(busy(1), idle(5, start=1)), work=stages)
    actions = after_a_while(world, for_s=30.0)
    assert len(let_go(actions)) == (0 if kept else 5)
    assert not kept or held(actions) == Code.KEPT_FOR_LATER.name


@pytest.mark.parametrize(
    ("machine_idle_s", "kept_for_s"), [(None, 2), (60.0, 40), (100.0, 2), (0.0, 100)], ids=str
)
def test_units_keep_a_machine_only_as_long_as_the_platform_would_not(machine_idle_s, kept_for_s):
    """A machine takes 100 s to come: together worker and machine are kept that long."""
    state = {"boot_s": 2.0, "cold_boot_s": 100.0, "room": 0}
    world = snapshot(pool(state=state), **together(idle(3)), machine_idle_s=machine_idle_s)
    used = decide(msgspec.structs.replace(world, work=(work(processing=3, duration_s=9.0),)), NOTHING)[1]
    before = msgspec.structs.replace(world, now_s=kept_for_s - 0.5)
    assert not let_go(decided(before, used))
    assert len(let_go(decided(msgspec.structs.replace(world, now_s=kept_for_s + 0.5), used))) == 3


# -- whole machines become empty --------------------------------------------------------------------------


def test_the_machine_with_the_fewest_units_goes_first():
    some = together(on("big", 3), on("small", 2, start=3))
    assert let_go(decided(snapshot(pool(state={"manual": 3}), **some))) == {"cpu-u3", "cpu-u4"}


def test_idle_units_beside_busy_ones_do_not_free_a_machine():
    some = together(on("busy", 1, tasks=1), on("busy", 1, start=1), on("idle", 3, start=2))
    world = snapshot(pool(state={"manual": 2}), **some, work=[work(processing=1, duration_s=60.0)])
    assert let_go(decided(world)) == {"cpu-u2", "cpu-u3", "cpu-u4"}


def test_a_machine_of_several_pools_is_busy_if_one_of_them_works_there():
    some = together(on("a", 1, tasks=1, of="gpu"), on("a", 1), on("b", 1, start=1))
    world = snapshot(pool(state={"manual": 1}), pool("gpu", resources={"GPU": 1}), **some)
    assert let_go(decided(world), "cpu") == {"cpu-u1"}


def test_the_machine_with_nothing_to_move_goes_before_a_smaller_one():
    full = on("full", 1, held_keys=5, held_bytes=GB, only_copies=5, limit_bytes=4 * GB)
    some = together(full, on("empty", 2, start=1, limit_bytes=4 * GB))
    assert let_go(decided(snapshot(pool(state={"manual": 1}), **some))) == {"cpu-u1", "cpu-u2"}


def test_the_machine_with_the_fewest_bytes_to_move_goes_first_however_many_results_they_are():
    large = on("large", 1, held_keys=1, held_bytes=GB, only_copies=1, limit_bytes=4 * GB)
    small = on("small", 1, start=1, held_keys=2, held_bytes=2000, only_copies=2, limit_bytes=4 * GB)
    assert let_go(decided(snapshot(pool(state={"manual": 1}), **together(large, small)))) == {"cpu-u1"}


def test_on_one_machine_the_unit_with_the_fewest_bytes_goes_first():
    large = on("one", 1, held_keys=1, held_bytes=GB, only_copies=1, limit_bytes=4 * GB)
    small = on("one", 1, start=1, held_keys=2, held_bytes=2000, only_copies=2, limit_bytes=4 * GB)
    assert let_go(decided(snapshot(pool(state={"manual": 1}), **together(large, small)))) == {"cpu-u1"}


# -- a machine is about to go -----------------------------------------------------------------------------


def test_p11_a_notice_empties_busy_units_at_once_and_the_next_decision_replaces_them():
    stays, goes = busy(2), busy(2, start=2)
    doomed = tuple(
        msgspec.structs.replace(unit, doomed=True, message="spot interruption") for unit in goes[0]
    )
    jobs = work(processing=4, ready=4, duration_s=60.0)
    world = snapshot(units=[*stays[0], *doomed], workers=[*stays[1], *goes[1]], work=[jobs])
    (drain,) = decided(world)
    assert isinstance(drain, Drain)
    assert drain.busy
    assert set(drain.units) == {"cpu-u2", "cpu-u3"}
    assert "spot interruption" in str(drain.why)
    draining = tuple(msgspec.structs.replace(unit, phase=DRAINING) for unit in doomed)
    after = msgspec.structs.replace(world, units=(*stays[0], *draining))
    assert launched(decided(after)) == {"cpu": 6}


@pytest.mark.parametrize("least", [{"minimum": 2}, {"state": {"floor": 2}}], ids=str)
def test_p31_one_that_is_taken_away_empty_is_followed_by_one_and_not_by_two(least):
    """Whoever evicts it has it made up for; asked for as well, it would be made up for twice."""
    there, going = busy(1), units(1, DRAINING, start=1, doomed=True)
    for keys, more in (0, {}), (1, {"cpu": 1}):
        empty = workers_of(going, tasks=0, held_keys=keys, status="closing_gracefully")
        world = snapshot(pool(**least), **together(there, (going, empty)), work=[work(processing=1)])
        assert launched(decided(world)) == more
    assert launched(decided(snapshot(pool(**least), **together(there), work=[work(processing=1)]))) == {
        "cpu": 1
    }


@pytest.mark.parametrize("least", [{"minimum": 2}, {"state": {"floor": 2}}], ids=str)
def test_p31_nobody_follows_it_before_the_platform_stops_it(least):
    """Node autoscalers count it among those that need a place until then, and buy a machine for two."""
    there = busy(1)
    for lingers, more in (True, {}), (False, {"cpu": 1}):
        going = units(1, Phase.STOPPING, start=1, doomed=True, lingers=lingers)
        for ready, wanted in (0, more), (1, {"cpu": 1}):
            jobs = work(processing=1, ready=ready, duration_s=60.0)
            world = snapshot(pool(**least), **together(there, (going, ())), work=[jobs])
            assert launched(decided(world)) == wanted


def test_what_starts_on_a_doomed_machine_is_given_back():
    world = snapshot(units=units(2, STARTING, doomed=True), work=[work(ready=2, duration_s=60.0)])
    assert the(decided(world), Release).units == ("cpu-u0", "cpu-u1")


def test_a_doomed_worker_receives_nothing():
    full = worker("cpu-u0", held_keys=5, held_bytes=GB, only_copies=5, limit_bytes=4 * GB)
    there = (*units(1, machine="a"), *units(1, start=1, machine="b", doomed=True))
    pinned = worker("cpu-u1", limit_bytes=4 * GB, pinned="an actor")
    world = snapshot(units=there, workers=[full, pinned])
    assert not let_go(after_a_while(world)), "the other one is no place for its results"


# -- no place ---------------------------------------------------------------------------------------------


def pools_of_two_markets(**spot_state):
    return (
        pool("spot", price=1.0, spot=True, state=spot_state),
        pool("safe", price=3.0),
    )


def test_spot_first_and_on_demand_where_there_is_none():
    jobs = work(ready=6, duration_s=60.0)
    both = pools_of_two_markets()
    assert launched(decided(snapshot(*both, work=[jobs]))) == {"spot": 6}
    out = pools_of_two_markets(capacity=2, capacity_message="no spot capacity")
    assert launched(decided(snapshot(*out, work=[jobs]))) == {"spot": 2, "safe": 4}


def test_units_without_a_place_leave_their_work_to_other_pools_and_go():
    jobs = work(ready=4, processing=2, duration_s=60.0)
    placed = busy(2, of="spot")
    nowhere = units(4, PENDING, of="spot", start=2, unplaced=True, message="no spot capacity")
    full = pools_of_two_markets(capacity=2, capacity_message="no spot capacity")
    world = snapshot(*full, units=[*placed[0], *nowhere], workers=placed[1], work=[jobs])
    assert launched(decided(world)) == {"safe": 4}
    coming = units(4, STARTING, of="safe")
    later = msgspec.structs.replace(world, units=(*world.units, *coming))
    assert let_go(after_a_while(later)) == {unit.name for unit in nowhere}


def test_p09_units_without_a_place_stay_where_nobody_else_could_and_the_words_are_told():
    jobs = work(ready=4, processing=2, duration_s=60.0)
    placed, nowhere = busy(2), units(4, PENDING, start=2, unplaced=True, message="node group at maximum")
    world = snapshot(
        pool(state={"capacity": 2, "capacity_message": "node group at maximum"}),
        units=[*placed[0], *nowhere],
        workers=placed[1],
        work=[jobs],
    )
    actions = after_a_while(world)
    assert not let_go(actions)
    hold = the(actions, Hold)
    assert hold.why.code == Code.NO_CAPACITY.name
    assert hold.why.numbers["limit"] == 2
    assert "node group at maximum" in str(hold.why)


# -- results do not stay on spot machines -----------------------------------------------------------------


def holder(of):
    there = units(1, of=of)
    return there, (worker(there[0].name, held_keys=2, held_bytes=GB, only_copies=2, limit_bytes=4 * GB),)


def test_the_last_copy_of_a_result_does_not_stay_on_a_spot_machine():
    world = snapshot(*pools_of_two_markets(), **together(holder("spot")))
    used = decide(msgspec.structs.replace(world, work=(work(processing=1),)), NOTHING)[1]
    assert not launched(decided(world, used)), "it may be fetched in a moment"
    actions = after_a_while(world)
    assert held(actions, "spot") == Code.KEPT_FOR_RESULT.name
    launch = the(actions, Launch, "safe")
    assert (launch.count, launch.why.code) == (1, Code.SAFE_COPY.name)


@pytest.mark.parametrize("cannot", [{"state": {"capacity": 0}}, {"state": {"manual": 0}}], ids=str)
def test_of_safe_pools_one_takes_results_that_may_have_units(cannot):
    spot, safe, dearer = pool("spot", spot=True), pool("safe", **cannot), pool("dearer", price=2.0)
    there, gpu = together(holder("spot")), pool("gpu", resources={"GPU": 1})
    assert launched(after_a_while(snapshot(spot, safe, dearer, gpu, **there))) == {"dearer": 1}
    assert not launched(after_a_while(snapshot(spot, safe, gpu, **there)))


def test_whoever_comes_for_results_is_not_replaced_by_a_cheaper_one():
    """There was no room for that one a moment ago."""
    pools = pool("spot", spot=True), pool("safe"), pool("dearer", price=2.0)
    coming = units(1, STARTING, of="dearer"), ()
    actions = after_a_while(snapshot(*pools, **together(holder("spot"), coming)))
    assert not launched(actions)
    assert not let_go(actions)


def test_it_is_moved_once_there_is_somewhere_else_and_stays_there():
    spare = units(1, of="safe")
    there = together(holder("spot"), (spare, (worker("safe-u0", limit_bytes=4 * GB),)))
    assert let_go(after_a_while(snapshot(*pools_of_two_markets(), **there)), "spot") == {"spot-u0"}
    moved = after_a_while(snapshot(*pools_of_two_markets(), **together(holder("safe"))))
    assert held(moved, "safe") == Code.KEPT_FOR_RESULT.name


def at_work(of, **fields):
    """A unit that has room for a result, and a task."""
    there = units(1, of=of, start=1)
    return there, workers_of(there, tasks=1, limit_bytes=4 * GB, **fields)


def test_it_does_not_go_from_a_safe_machine_to_a_spot_one_that_is_at_work():
    """It would have to come back when the work is done, and another safe machine for it."""
    busy_spot, jobs = at_work("spot"), [work(processing=1, duration_s=600.0)]
    alone = snapshot(*pools_of_two_markets(), **together(holder("safe"), busy_spot), work=jobs)
    assert held(after_a_while(alone), "safe") == Code.KEPT_FOR_RESULT.name
    spare = units(1, of="safe", start=2)
    other = spare, workers_of(spare, limit_bytes=4 * GB)
    two = snapshot(*pools_of_two_markets(), **together(holder("safe"), busy_spot, other), work=jobs)
    assert let_go(after_a_while(two)) == {"safe-u2"}
    spot, safe = pools_of_two_markets()
    none = msgspec.structs.replace(safe, manual=0)
    by_hand = snapshot(spot, none, **together(holder("safe"), busy_spot), work=jobs)
    assert let_go(decided(by_hand)) == {"safe-u0"}


def test_a_gpu_does_not_stay_since_only_spot_machines_are_there():
    pools = pool("spot", spot=True), pool("gpu", resources={"GPU": 1})
    there = together(holder("gpu"), at_work("spot"))
    world = snapshot(*pools, **there, work=[work(processing=1, duration_s=600.0)])
    assert let_go(after_a_while(world)) == {"gpu-u0"}


def test_on_safe_machines_it_goes_where_there_is_room():
    working = units(2, of="safe", start=1)
    there = together(holder("safe"), at_work("spot"), (working, workers_of(working, tasks=1, limit_bytes=GB)))
    jobs = [work(processing=3, duration_s=600.0)]
    assert let_go(after_a_while(snapshot(*pools_of_two_markets(), **there, work=jobs))) == {"safe-u0"}


def test_where_all_pools_are_spot_it_stays():
    world = snapshot(pool("spot", spot=True), **together(holder("spot")))
    assert held(after_a_while(world), "spot") == Code.KEPT_FOR_RESULT.name


def full(n, of, start=0):
    """Units with results that leave 0.2 GB where others may be put."""
    there = units(n, of=of, start=start)
    return there, workers_of(there, held_keys=1, held_bytes=4 * GB, only_copies=1, limit_bytes=6 * GB)


def test_as_many_safe_units_come_as_the_results_need():
    world = snapshot(*pools_of_two_markets(), **together(full(4, "spot"), full(1, "safe")))
    launch = the(after_a_while(world), Launch, "safe")
    assert (launch.count, launch.why.code, launch.why.numbers["keys"]) == (4, Code.SAFE_COPY.name, 4)
    coming = units(4, STARTING, of="safe", start=1)
    on_their_way = msgspec.structs.replace(world, units=(*world.units, *coming))
    assert not launched(after_a_while(on_their_way))
    assert not let_go(after_a_while(on_their_way), "safe")
    registered = workers_of(idle(1, of="safe", start=1)[0], limit_bytes=6 * GB)
    one_there = msgspec.structs.replace(
        world,
        units=(*world.units, *units(1, of="safe", start=1), *coming[1:]),
        workers=(*world.workers, *registered),
    )
    actions = after_a_while(one_there)
    assert len(let_go(actions, "spot")) == 1, "what finds room moves"
    assert not launched(actions)
    assert not let_go(actions, "safe"), "and the others still come for the rest"


def test_safe_units_that_could_not_take_a_result_do_not_come():
    """A part of what a unit holds would not let it go; they would stand there for as long as it is wanted."""
    there = units(2, of="spot")
    large, small = 50 * GB, GB
    holders = [
        worker(unit.name, held_keys=1, held_bytes=size, only_copies=1, limit_bytes=60 * GB)
        for unit, size in zip(there, (large, small), strict=True)
    ]
    safe = pool("safe", maximum=10, memory_bytes=4 * GB)
    world = snapshot(pool("spot", spot=True), safe, units=there, workers=holders)
    assert launched(after_a_while(world)) == {"safe": 1}, "for the small one"
    alone = snapshot(pool("spot", spot=True), safe, units=there[:1], workers=holders[:1])
    assert not launched(after_a_while(alone))


def test_what_has_been_copied_already_needs_no_further_safe_unit():
    """A (10 GB) is drained to the first and half copied, B (10 GB) finds room on the second."""
    going, waits = units(1, DRAINING, of="spot"), units(1, of="spot", start=1)
    safe = units(2, of="safe")
    workers = [
        worker(going[0].name, status="closing_gracefully", held_keys=10, held_bytes=10 * GB, only_copies=5),
        worker(waits[0].name, held_keys=1, held_bytes=10 * GB, only_copies=1),
        worker(safe[0].name, held_keys=5, held_bytes=5 * GB, limit_bytes=16 * GB),
        worker(safe[1].name, limit_bytes=16 * GB),
    ]
    there = {"units": (*going, *waits, *safe), "workers": tuple(workers)}
    assert not launched(after_a_while(snapshot(*pools_of_two_markets(), **there)))


def test_of_a_unit_of_several_workers_those_are_waited_for_that_have_not_registered():
    pools = pool("spot", spot=True), pool("safe", workers_per_unit=2, memory_bytes=4 * GB)
    there, coming = units(1, of="spot"), units(1, of="safe")
    holder = worker(there[0].name, held_keys=1, held_bytes=5 * GB, only_copies=1, limit_bytes=8 * GB)
    first = worker(coming[0].name, name="safe-u0-0", limit_bytes=4 * GB)
    world = snapshot(*pools, units=(*there, *coming), workers=(holder, first))
    assert not launched(after_a_while(world))


# -- results do not go with their machine -----------------------------------------------------------------


def alone(of="cpu", *, phase=RUNNING, doomed=True, status="running", tasks=0, only_copies=2):
    """The only unit with these results, which is about to go."""
    there = units(1, phase, of=of, doomed=doomed, message="spot interruption")
    ws = worker(
        there[0].name,
        status=status,
        tasks=tasks,
        held_keys=2,
        held_bytes=GB,
        only_copies=only_copies,
        limit_bytes=4 * GB,
        pinned="refused",
    )
    return there, (ws,)


GOING = {
    "told": {},
    "drained": {"phase": DRAINING, "status": "closing_gracefully"},
    "evicted": {"phase": Phase.STOPPING, "status": "closing_gracefully", "doomed": False},
    "by a signal": {"phase": DRAINING, "status": "closing_gracefully", "doomed": False},
}


@pytest.mark.parametrize("how", GOING)
@pytest.mark.parametrize(
    ("pools", "of", "to"),
    [
        ((pool(),), "cpu", "cpu"),
        ((pool("spot", spot=True),), "spot", "spot"),
        (pools_of_two_markets(), "spot", "safe"),
        ((pool("gpu", resources={"GPU": 1}, price=3.0), pool()), "cpu", "cpu"),
    ],
)
def test_p11_p03_without_any_task_somebody_comes_who_can_take_the_results(pools, of, to, how):
    actions = decided(snapshot(*pools, **together(alone(of, **GOING[how]))))
    launch = the(actions, Launch, to)
    assert launched(actions) == {to: 1}
    assert (launch.why.code, launch.why.numbers["keys"]) == (Code.RESCUE.name, 2)


@pytest.mark.parametrize("how", GOING)
@pytest.mark.parametrize("phase", [Phase.REQUESTED, PENDING, STARTING])
def test_p11_whoever_is_on_the_way_stays_until_the_results_have_moved(how, phase):
    """The work that it was for has ended meanwhile; where there is a safe pool, that would take longer."""
    coming = units(1, phase, of="spot", start=1), ()
    world = snapshot(*pools_of_two_markets(), **together(alone("spot", **GOING[how]), coming))
    actions = after_a_while(world)
    assert not let_go(actions)
    assert not launched(actions)


@pytest.mark.parametrize("status", ["init", "running"])
@pytest.mark.parametrize("how", GOING)
def test_p11_whoever_receives_them_stays_and_is_enough(how, status):
    receiver = units(1, of="spot", start=1)
    there = receiver, (worker(receiver[0].name, status=status, limit_bytes=4 * GB),)
    world = snapshot(*pools_of_two_markets(), **together(alone("spot", **GOING[how]), there))
    actions = after_a_while(world)
    assert not let_go(actions) - {"spot-u0"}
    assert not launched(actions)


def test_p11_where_the_first_choice_has_no_capacity_another_pool_takes_the_results():
    spot, safe = pools_of_two_markets()
    none = msgspec.structs.replace(safe, capacity=0, capacity_message="InsufficientInstanceCapacity")
    world = snapshot(spot, none, **together(alone("spot")))
    assert launched(decided(world)) == {"spot": 1}


def test_p11_as_many_come_as_the_results_of_all_that_go_need():
    there = units(3, of="spot", doomed=True)
    holders = workers_of(
        there, held_keys=1, held_bytes=4 * GB, only_copies=1, limit_bytes=6 * GB, pinned="no"
    )
    pools = pool("spot", spot=True), pool("safe", memory_bytes=6 * GB)
    assert launched(decided(snapshot(*pools, units=there, workers=holders))) == {"safe": 3}


def test_p11_those_on_the_way_stay_until_all_the_results_have_moved():
    """The first that came has no room for all of it."""
    doomed = units(3, of="spot", doomed=True)
    holders = workers_of(
        doomed, held_keys=1, held_bytes=4 * GB, only_copies=1, limit_bytes=6 * GB, pinned="no"
    )
    first, others = units(1, of="safe"), units(2, STARTING, of="safe", start=1)
    receiver = worker(first[0].name, limit_bytes=6 * GB)
    pools = pool("spot", spot=True), pool("safe", memory_bytes=6 * GB)
    world = snapshot(*pools, units=(*doomed, *first, *others), workers=(*holders, receiver))
    actions = after_a_while(world)
    assert not launched(actions)
    assert not let_go(actions, "safe")


@pytest.mark.parametrize("cpu", [{"maximum": 1}, {"spot": True}])
def test_a_gpu_is_not_bought_to_hold_a_result(cpu):
    pools = pool(**cpu), pool("gpu", resources={"GPU": 1})
    assert "gpu" not in launched(decided(snapshot(*pools, **together(alone()))))


def test_what_is_drained_since_the_size_was_set_by_hand_brings_nobody():
    by_hand = pool(state={"manual": 0})
    drained = alone(doomed=False, phase=DRAINING, status="closing_gracefully")
    assert not launched(decided(snapshot(by_hand, pool("other"), **together(drained))))


def test_what_others_have_too_brings_nobody():
    assert not launched(decided(snapshot(**together(alone(only_copies=0)))))


# -- what machines cost -----------------------------------------------------------------------------------


def test_what_is_seen_to_be_cheaper_is_taken_first():
    jobs = work(ready=3, duration_s=60.0)
    worlds = snapshot(pool("a", price=1.0, state={"price": 5.0}), pool("b", price=2.0), work=[jobs])
    assert launched(decided(worlds)) == {"b": 3}


def test_the_budget_counts_what_machines_cost():
    there = units(2, price=2.0)
    jobs = work(ready=10, processing=2, duration_s=600.0)
    world = snapshot(
        pool(state={"price": 2.0}),
        units=there,
        workers=workers_of(there, tasks=1),
        work=[jobs],
        budget_per_hour=10.0 * 3600,
    )
    assert launched(decided(world)) == {"cpu": 3}
    spent = msgspec.structs.replace(world, units=units(5, price=2.0))
    assert held(decided(spent)) == Code.BUDGET.name


def _priced(price, n, *, of="cpu", start=0):
    there = units(n, of=of, start=start, price=price)
    return there, workers_of(there, tasks=1)


def test_p33_a_budget_holds_where_machines_turn_out_to_be_dearer():
    """Three at 2, as seen; two landed on machines for 5: 10 an hour pay for the three and no more."""
    state = {"price": 2.0, "dearest": 5.0}
    more = work(ready=10, processing=5, duration_s=600.0)
    world = snapshot(
        pool(state=state),
        **together(_priced(2.0, 3), _priced(5.0, 2, start=3)),
        work=[more],
        budget_per_hour=10.0 * 3600,
    )
    actions = decided(world)
    drain = the(actions, Drain)
    assert (set(drain.units), drain.busy) == ({"cpu-u3", "cpu-u4"}, True)
    assert drain.why.code == Code.OVER_BUDGET.name
    assert str(drain.why) == "5 units cost more than the budget allows, which is for 3"
    # While those are going, and after it: the next one might be as dear.
    leaving = [msgspec.structs.replace(unit, phase=DRAINING) for unit in world.units[3:]]
    going = msgspec.structs.replace(world, units=(*world.units[:3], *leaving))
    assert held(decided(going)) == Code.BUDGET.name
    gone = msgspec.structs.replace(world, units=world.units[:3], workers=world.workers[:3])
    assert held(decided(gone)) == Code.BUDGET.name


def test_a_budget_takes_idle_units_first_and_none_below_the_minimum_or_that_were_asked_for_by_hand():
    there = together(_priced(4.0, 2), idle(1, start=2))
    world = snapshot(pool(price=4.0), **there, work=[work(processing=2)], budget_per_hour=8.0 * 3600)
    assert let_go(decided(world)) == {"cpu-u2"}
    least = snapshot(
        pool(price=4.0, minimum=3), **there, work=[work(processing=2)], budget_per_hour=8.0 * 3600
    )
    assert not let_go(decided(least))
    manual = pool(price=4.0, state={"manual": 3})
    assert not let_go(decided(snapshot(manual, **there, work=[work(processing=2)], budget_per_hour=1.0)))


def test_of_several_pools_the_dearest_gives_way_to_the_budget():
    world = snapshot(
        pool("cpu"),
        pool("safe", price=3.0),
        **together(_priced(1.0, 4), _priced(3.0, 2, of="safe")),
        work=[work(processing=6, ready=9, duration_s=60.0)],
        budget_per_hour=7.0 * 3600,
    )
    assert let_go(decided(world), of="safe")
    assert not let_go(decided(world), of="cpu")


@pytest.mark.parametrize("stays", [{"minimum": 2}, {"state": {"manual": 2}}], ids=str)
def test_where_the_dearest_may_not_go_others_give_way_to_the_budget(stays):
    world = snapshot(
        pool("cpu"),
        pool("safe", price=3.0, **stays),
        **together(_priced(1.0, 4), _priced(3.0, 2, of="safe")),
        work=[work(processing=6, ready=9, duration_s=60.0)],
        budget_per_hour=7.0 * 3600,
    )
    assert len(let_go(decided(world), of="cpu")) == 3
    assert not let_go(decided(world), of="safe")


def test_the_budget_takes_the_dearest_units_and_leaves_all_that_it_pays_for():
    """Ten at 0.02 and six at 0.2 an hour, the cheap ones first by name; the cheap ones and one are 0.4."""
    there = together(_priced(0.02 / 3600, 10), _priced(0.2 / 3600, 6, start=10))
    state = {"price": 0.0875 / 3600, "dearest": 0.2 / 3600}
    jobs = work(ready=50, processing=16, duration_s=600.0)
    drain = the(decided(snapshot(pool(state=state), **there, work=[jobs], budget_per_hour=0.5)), Drain)
    assert set(drain.units) <= {f"cpu-u{n}" for n in range(10, 16)}
    assert len(drain.units) == 5


def test_units_that_boot_may_be_as_dear_as_the_dearest():
    """Else what one tick may launch, the next one may again, until the machines come."""
    prices = (0.0347 / 3600, 0.0867 / 3600)
    there = together(_priced(prices[0], 19), _priced(prices[1], 1, start=19))
    state = {"price": sum(prices) / 2, "dearest": prices[1]}
    jobs = work(ready=100, processing=20, duration_s=600.0)
    world = snapshot(pool(state=state), **there, work=[jobs], budget_per_hour=1.5)
    first = launched(decided(world))["cpu"]
    assert first == 8
    booting = units(first, PENDING, start=20)
    again = msgspec.structs.replace(world, units=(*world.units, *booting))
    assert held(decided(again)) == Code.BUDGET.name


def test_who_comes_for_units_that_are_about_to_go_is_paid_from_what_those_cost():
    """Two minutes later they cost nothing; until then what only they have must find another place."""
    going = units(10, of="spot", price=0.035 / 3600, doomed=True)
    world = snapshot(
        pool("spot", spot=True, state={"capacity": 10, "capacity_message": "no spot"}),
        pool("safe", state={"price": 0.087 / 3600, "dearest": 0.087 / 3600}),
        units=going,
        workers=workers_of(going, only_copies=1),
        budget_per_hour=0.37,
    )
    assert launched(decided(world))["safe"] >= 1


def _spot_and_safe(spot, safe):
    """As on AWS: the dearest spot machine costs 0.16 an hour, the dearest on demand 0.4."""
    bounds = {"bound": 0.16 / 3600}, {"bound": 0.4 / 3600}
    return [
        pool("safe", maximum=4, state=safe | bounds[1]),
        pool("spot", maximum=40, spot=True, state=spot | bounds[0]),
    ]


def test_a_share_of_a_machine_that_was_seen_is_not_compared_with_a_whole_one():
    """On demand was taken before spot by a scheduler that had not seen a spot machine yet, or for long."""
    seen = {"price": 0.0867 / 3600, "dearest": 0.0867 / 3600}
    jobs = [work(ready=8, duration_s=600.0)]
    for spot in ({}, {"dearest": 0.2 / 3600}):
        assert launched(decided(snapshot(*_spot_and_safe(spot, seen), work=jobs))) == {"spot": 8}
    both = _spot_and_safe({"price": 0.1 / 3600, "dearest": 0.1 / 3600}, seen)
    assert launched(decided(snapshot(*both, work=jobs))) == {"safe": 4, "spot": 4}, "as it has turned out"


def test_of_each_pool_one_unit_is_started_to_learn_what_it_costs():
    """Whatever others are there."""
    pools = _spot_and_safe({"price": 0.03 / 3600, "dearest": 0.03 / 3600, "capacity": 1}, {})
    there = _priced(0.03 / 3600, 1, of="spot")
    jobs = [work(ready=50, processing=1, duration_s=3600.0)]
    world = snapshot(*pools, **together(there), work=jobs, budget_per_hour=0.3)
    assert launched(decided(world)) == {"safe": 1}
    coming = msgspec.structs.replace(world, units=(*world.units, *units(1, PENDING, of="safe")))
    assert not launched(decided(coming))


def test_one_unit_is_started_to_learn_what_it_costs():
    """At the most a whole machine of 4.6 an hour; the budget is 2."""
    unseen = pool(state={"bound": 4.6 / 3600})
    jobs = work(ready=10, duration_s=600.0)
    assert launched(decided(snapshot(unseen, work=[jobs], budget_per_hour=2.0))) == {"cpu": 1}
    first = snapshot(unseen, units=units(1, PENDING), work=[jobs], budget_per_hour=2.0)
    assert held(decided(first)) == Code.BUDGET.name, "and nothing more, nor is it given back"
    seen = pool(state={"price": 0.1 / 3600, "dearest": 0.1 / 3600, "bound": 4.6 / 3600})
    cheap = snapshot(seen, **together(_priced(0.1 / 3600, 1)), work=[jobs], budget_per_hour=2.0)
    assert launched(decided(cheap)) == {"cpu": 9}
    assert held(decided(snapshot(unseen, work=[jobs], budget_per_hour=0.0))) == Code.BUDGET.name


def out_of_stock(n, **fields):
    """Units of a pool for which there is no machine, and that pool."""
    state = {"capacity": 0, "capacity_message": "no spot capacity"}
    nowhere = units(n, PENDING, of="spot", unplaced=True, message="no spot capacity")
    return pool("spot", spot=True, price=0.3, state=state, **fields), nowhere


SHARED = [{"maximum": 4}, {"budget_per_hour": 4 * 0.3 * 3600}]


@pytest.mark.parametrize("shared", SHARED, ids=str)
def test_p20_units_without_a_place_leave_a_shared_limit_to_who_has_one(shared):
    """They would take all of it for as long as there is no machine."""
    spot, nowhere = out_of_stock(4)
    world = snapshot(spot, pool("safe"), units=nowhere, work=[work(ready=20, duration_s=600.0)], **shared)
    actions = decided(world)
    assert let_go(actions) == {unit.name for unit in nowhere}
    assert "no spot capacity" in str(the(actions, Release, "spot").why)
    assert not launched(actions)
    after = msgspec.structs.replace(world, units=())
    assert launched(decided(after)) == {"safe": 4 if "maximum" in shared else 1}


@pytest.mark.parametrize("there_all_the_same", [{"state": {"floor": 2}}, {"minimum": 2}], ids=str)
def test_units_without_a_place_leave_a_shared_limit_to_a_minimum_or_floor(there_all_the_same):
    spot, nowhere = out_of_stock(4)
    world = snapshot(spot, pool("safe", **there_all_the_same), units=nowhere, work=[work(ready=1)], maximum=4)
    assert let_go(decided(world)) == {unit.name for unit in nowhere}


def test_units_without_a_place_stay_where_they_are_in_nobodys_way():
    jobs = work(ready=20, duration_s=600.0)
    spot, nowhere = out_of_stock(4)
    least, _ = out_of_stock(4, minimum=4)
    assert not let_go(decided(snapshot(spot, units=nowhere, work=[jobs], maximum=4)))
    assert not let_go(decided(snapshot(least, pool("safe"), units=nowhere, work=[jobs], maximum=4)))
