"""Which units go, and which stay."""

from __future__ import annotations

import msgspec
import pytest
from builders import (
    DRAINING,
    GB,
    NOTHING,
    PENDING,
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

from dask_tide.model import Code, Drain, Hold, Phase, Release
from dask_tide.policy import decide


def by_hand(n, **fields):
    return pool(state={"manual": n}, **fields)


def test_p01_pending_first():
    five = busy(5)
    pending = units(15, PENDING, start=5)
    world = snapshot(by_hand(10), units=[*pending, *five[0]], workers=five[1])
    actions = decided(world)
    assert let_go(actions) < {unit.name for unit in pending}
    assert len(the(actions, Release).units) == 10


def test_p01_also_when_the_work_shrinks():
    five = busy(5)
    world = snapshot(
        units=[*five[0], *units(15, PENDING, start=5)],
        workers=five[1],
        work=[work(processing=5, duration_s=60.0)],
    )
    actions = after_a_while(world)
    assert let_go(actions) == {f"cpu-u{i}" for i in range(5, 20)}


def test_of_those_that_have_not_started_the_furthest_from_it_go_first():
    world = snapshot(by_hand(2), units=[*units(2, STARTING), *units(2, PENDING, start=2)])
    assert let_go(decided(world)) == {"cpu-u2", "cpu-u3"}


def test_idle_before_busy_and_few_tasks_before_many():
    some = together(busy(1, tasks=5), idle(2, start=1), busy(1, start=3))
    assert let_go(decided(snapshot(by_hand(2), **some))) == {"cpu-u1", "cpu-u2"}
    assert let_go(decided(snapshot(by_hand(1), **some))) == {"cpu-u1", "cpu-u2", "cpu-u3"}


def test_busy_ones_only_by_hand_or_above_the_maximum():
    four = together(busy(4))
    surplus = after_a_while(snapshot(pool(threads=4), **four, work=[work(processing=4, duration_s=60.0)]))
    assert held(surplus) == Code.PINNED.name
    by_limit = the(decided(snapshot(pool(maximum=3), **four, work=[work(processing=4)])), Drain)
    assert len(by_limit.units) == 1
    assert by_limit.busy


def test_a_booting_unit_with_a_busy_worker_is_no_better_than_others():
    """Nothing promises that the platform and the scheduler agree on what has started."""
    half = units(1, STARTING)
    there = idle(1, start=1)
    world = snapshot(
        by_hand(1), units=[*half, *there[0]], workers=[worker("cpu-u0", tasks=2, held_keys=1), *there[1]]
    )
    assert let_go(decided(world)) == {"cpu-u1"}


def test_the_fewest_only_copies_go_first():
    room = {"limit_bytes": 10 * GB, "held_bytes": GB}
    some = together(
        idle(1, held_keys=9, only_copies=0, **room),
        idle(1, start=1, held_keys=2, only_copies=2, **room),
        idle(1, start=2, held_keys=5, **room),  # not looked up
    )
    assert let_go(decided(snapshot(by_hand(2), **some))) == {"cpu-u0"}
    assert let_go(decided(snapshot(by_hand(1), **some))) == {"cpu-u0", "cpu-u1"}


def test_the_machine_that_is_closest_to_being_empty_is_emptied():
    crowd, lonely = units(3, machine="a"), units(1, start=3, machine="b")
    world = snapshot(by_hand(3), units=[*crowd, *lonely], workers=workers_of(crowd + lonely))
    assert let_go(decided(world)) == {"cpu-u3"}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_pinned_units_stay(n):
    some = together(idle(n, pinned="it holds an actor"), idle(1, start=n))
    assert let_go(decided(snapshot(by_hand(0), **some))) == {f"cpu-u{n}"}
    alone = snapshot(by_hand(0), **together(idle(n, pinned="it holds an actor")))
    hold = the(decided(alone), Hold)
    assert "it holds an actor" in str(hold.why)


def test_one_pinned_worker_pins_its_unit():
    (job,) = units(1)
    two = [worker(job.name, name=f"{job.name}-0"), worker(job.name, name=f"{job.name}-1", pinned="P2P")]
    assert let_go(decided(snapshot(by_hand(0, workers_per_unit=2), units=[job], workers=two))) == set()


def test_p34_all_workers_of_a_unit_go_together():
    (job,) = units(1)
    four = [worker(job.name, name=f"{job.name}-{i}") for i in range(4)]
    drain = the(decided(snapshot(by_hand(0, workers_per_unit=4), units=[job], workers=four[::-1])), Drain)
    assert drain.units == (job.name,)
    assert drain.workers == tuple((w.name, w.address) for w in four)


def test_p27_the_last_worker_with_a_result_stays():
    holding = together(idle(1, held_keys=1, held_bytes=8, only_copies=1), idle(2, start=1))
    actions = after_a_while(snapshot(**holding))
    assert let_go(actions) == {"cpu-u1", "cpu-u2"}
    alone = after_a_while(snapshot(**together(idle(1, held_keys=1, held_bytes=8, only_copies=1))))
    assert held(alone) == Code.KEPT_FOR_RESULT.name


def test_p27_even_a_result_of_no_size_and_one_that_was_not_looked_up():
    for fields in ({"only_copies": 1}, {}):
        world = snapshot(by_hand(0), **together(idle(1, held_keys=1, held_bytes=0, **fields)))
        assert let_go(decided(world)) == set()


def test_p27_of_all_that_are_to_go_the_last_one_receives_it_though_it_holds_nothing():
    worker = busy(1, start=1, held_keys=0, held_bytes=0, only_copies=0)
    world = snapshot(by_hand(0), **together(idle(1, held_keys=1, held_bytes=0, only_copies=1), worker))
    assert let_go(decided(world)) == {"cpu-u0"}


def test_p27_a_copy_is_no_reason_to_stay():
    world = snapshot(**together(idle(1, held_keys=1, held_bytes=8, only_copies=0)))
    assert let_go(after_a_while(world)) == {"cpu-u0"}


def test_p27_results_may_move_to_another_pool_and_to_foreign_workers():
    holder = idle(1, held_keys=1, held_bytes=8, only_copies=1)
    world = snapshot(by_hand(0), pool("gpu", minimum=1), **together(holder, idle(1, of="gpu")))
    assert let_go(decided(world)) == {"cpu-u0"}
    world = snapshot(by_hand(0), units=holder[0], workers=[*holder[1], worker()])
    assert let_go(decided(world)) == {"cpu-u0"}


def test_p27_paused_workers_receive_nothing():
    some = together(
        idle(1, held_keys=1, held_bytes=8, only_copies=1),
        busy(1, start=1, status="paused", limit_bytes=GB),
    )
    assert "cpu-u0" not in let_go(decided(snapshot(by_hand(1), **some)))


LEAKED = {"status": "paused", "stuck": "FULL", "limit_bytes": GB}


def test_a_unit_whose_memory_is_full_of_what_is_no_result_goes_at_once():
    """Or else it holds its slot for ever: at the maximum nothing would run any more."""
    world = snapshot(pool(maximum=1), **together(idle(1, **LEAKED)), work=[work(ready=1)])
    actions = decided(world)
    assert let_go(actions) == {"cpu-u0"}
    assert the(actions, Drain).why.code == Code.FULL.name
    waits = snapshot(pool(maximum=1), **together(busy(1, **LEAKED)), work=[work(processing=1)])
    assert let_go(decided(waits)) == {"cpu-u0"}


@pytest.mark.parametrize(
    "kept",
    [
        {"pinned": "an actor"},
        {"held_keys": 1, "held_bytes": 8, "only_copies": 1},  # nobody else could have it
        {"stuck": ""},  # it is full of results
        {"tasks": 1, "bound": 1},  # no other one could run it
    ],
)
def test_one_that_could_not_go_is_named_where_no_other_one_may_come(kept):
    some = units(1)
    workers = workers_of(some, **(LEAKED | kept))
    world = snapshot(pool(maximum=1), units=some, workers=workers, work=[work(ready=1)])
    actions = decided(world)
    assert let_go(actions) == set()
    assert "the maximum is 1, and 1 unit there can take no more: paused" in str(the(actions, Hold).why)


def test_a_unit_whose_threads_run_what_was_cancelled_goes_with_the_tasks_that_wait_for_them():
    blocked = busy(1, stuck="BLOCKED", blocked=1)
    actions = decided(snapshot(pool(maximum=1), **together(blocked), work=[work(processing=1)]))
    assert let_go(actions) == {"cpu-u0"}
    assert the(actions, Drain).why.code == Code.BLOCKED.name


@pytest.mark.parametrize("kept", [{"pinned": "a seceded task"}, {"bound": 1}, {"stuck": ""}])
def test_not_where_it_is_needed_or_has_not_been_so_for_long(kept):
    some = units(1)
    workers = workers_of(some, tasks=1, blocked=1, **({"stuck": "BLOCKED"} | kept))
    world = snapshot(pool(maximum=1), units=some, workers=workers, work=[work(processing=1)])
    assert let_go(decided(world)) == set()


def test_what_fails_at_once_again_and_again_keeps_no_idle_unit():
    failed = units(1, Phase.FAILED, start=5)
    world = snapshot(by_hand(0), **together(idle(2), (failed, ())))
    assert let_go(decided(world)) == {"cpu-u0", "cpu-u1", failed[0].name}


def test_of_several_workers_of_a_unit_one_that_takes_tasks_keeps_it():
    some = units(1)
    two = [worker(some[0].name, name="cpu-u0-0", **LEAKED), worker(some[0].name, name="cpu-u0-1")]
    world = snapshot(pool(maximum=1, workers_per_unit=2), units=some, workers=two, work=[work(ready=1)])
    assert let_go(decided(world)) == set()


FULL = {"held_keys": 60, "held_bytes": 6 * GB, "limit_bytes": 10 * GB}


def test_p15_only_as_many_go_as_the_others_have_room_for():
    world = snapshot(by_hand(1), **together(idle(15, **FULL)))
    gone = let_go(decided(world))
    stay = 15 - len(gone)
    assert 15 * 6 / stay <= 0.7 * 10
    assert 15 * 6 / (stay - 1) > 0.7 * 10
    assert len(gone) == 2


@pytest.mark.parametrize(("largest", "gone"), [(4 * GB, set()), (3 * GB, {"cpu-u0"})])
def test_p15_a_result_that_no_other_one_has_room_for_stays(largest, gone):
    """All others have room for it together, and none alone: it would be killed, with what it has."""
    others = busy(3, start=1, held_keys=20, held_bytes=4 * GB, limit_bytes=10 * GB)
    holds = {"held_keys": 2, "held_bytes": 5 * GB, "only_copies": 2, "largest_bytes": largest}
    holder = idle(1, limit_bytes=10 * GB, **holds)
    world = snapshot(pool(), work=[work(processing=3)], **together(holder, others))
    assert let_go(after_a_while(world)) == gone


def test_p15_what_is_still_being_drained_takes_room_already():
    """Or else the next tick, a quarter of a second later, would let two more go, and the next."""
    leaving = units(2, DRAINING)
    going = workers_of(leaving, status="closing_gracefully", **FULL)
    stay = idle(13, start=2, **FULL)
    world = snapshot(by_hand(1), units=[*leaving, *stay[0]], workers=[*going, *stay[1]])
    actions = decided(world)
    assert let_go(actions) == set()
    assert held(actions) == Code.KEPT_FOR_RESULT.name


def test_p15_an_empty_worker_stays_too_while_its_room_is_needed():
    leaving = units(1, DRAINING)
    going = workers_of(leaving, **FULL)
    stay = idle(1, start=1, limit_bytes=10 * GB)
    world = snapshot(by_hand(0), units=[*leaving, *stay[0]], workers=[*going, *stay[1]])
    assert let_go(decided(world)) == set()


def test_p15_in_stages_nobody_gets_too_full():
    """Each stage's results are shared out evenly; the next one starts from there."""
    count = 15
    for _ in range(10):
        each = 15 * 3 * GB // count
        world = snapshot(by_hand(1), **together(idle(count, **(FULL | {"held_bytes": each}))))
        count -= len(let_go(decided(world)))
        assert 15 * 3 / count <= 0.7 * 10
    assert count == 7


def test_p15_both_pools_share_the_room():
    two = by_hand(0), pool("b", state={"manual": 0})
    world = snapshot(*two, **together(idle(7, **FULL), idle(8, of="b", **FULL)))
    assert len(let_go(decided(world))) == 2


def test_with_no_work_idle_units_stay_for_as_long_as_a_start_takes():
    world = snapshot(pool(boot_s=10.0), **together(idle(2)), now_s=100.0)
    assert let_go(after_a_while(world, for_s=0.0)) == {"cpu-u0", "cpu-u1"}  # nobody ever needed them
    world = snapshot(pool(boot_s=10.0), **together(busy(2)), work=[work(processing=2)], now_s=100.0)
    actions = decided(world)
    assert held(actions) == Code.ENOUGH.name


def test_p06_and_never_below_the_minimum_or_a_floor():
    assert len(let_go(after_a_while(snapshot(pool(minimum=3), **together(idle(5)))))) == 2
    assert len(let_go(after_a_while(snapshot(pool(state={"floor": 4}), **together(idle(5)))))) == 1


def test_waiting_tasks_that_can_run_soon_keep_idle_units():
    """4 tasks of 1 s lead to 8: to let 4 units go that take 10 s to start would be a waste."""
    some = together(busy(4), idle(4, start=4))
    world = snapshot(
        pool(boot_s=10.0), **some, work=[work(processing=4, duration_s=1.0), work("sum", waiting=8)]
    )
    hold = the(after_a_while(world, for_s=9.0), Hold)
    assert hold.why.code == Code.KEPT_FOR_LATER.name
    assert hold.why.numbers["later"] == 8


def test_what_is_always_soon_keeps_idle_units_for_no_longer_than_a_start_takes():
    """What they wait for is somewhere else; that somebody's short tasks end again and again means nothing."""
    train = work("train", needs={"GPU": 1}, processing=1, duration_s=7200.0)
    short = work(processing=1, duration_s=1.0)
    some = together(busy(1), idle(7, start=1), busy(1, of="gpu"))
    world = snapshot(
        pool(boot_s=30.0),
        pool("gpu", resources={"GPU": 1}),
        **some,
        work=[short, train, work("score", waiting=8)],
    )
    memory, going = NOTHING, dict[int, int]()
    for second in range(120):
        actions, memory = decide(msgspec.structs.replace(world, now_s=float(second)), memory)
        going.setdefault(len(let_go(actions)), second)
    assert held(after_a_while(world, for_s=25.0)) == Code.KEPT_FOR_LATER.name
    assert set(going) == {0, 7}
    assert 30 < going[7] <= 2 * 30 + 1


def test_between_wide_stages_that_do_not_use_all_of_them_idle_units_stay():
    """Each stage is wide for 4 s and narrow for 4: nobody waits for a start of 10 s again and again."""
    wide, narrow = work(processing=6, duration_s=1.0), work("join", processing=1, duration_s=1.0)
    memory = NOTHING
    for second in range(200):
        wide_now = second % 8 < 4
        parts = together(busy(6), idle(2, start=6)) if wide_now else together(busy(1), idle(7, start=1))
        tasks = [wide if wide_now else narrow, work("next", waiting=60, levels=((10, 60),))]
        world = snapshot(pool(boot_s=10.0), **parts, work=tasks, now_s=float(second))
        actions, memory = decide(world, memory)
        # At first two more than there was ever a use for are there.
        assert len(let_go(actions)) <= 2, second


def test_a_chain_of_waiting_tasks_keeps_one_unit_only():
    """A loop of a hundred steps waits: one unit at a time can use it, and four are there."""
    chain = work("step", waiting=100, levels=((100, 100),), duration_s=1.0)
    world = snapshot(
        pool(boot_s=10.0),
        **together(busy(1), idle(3, start=1)),
        work=[work(processing=1, duration_s=1.0), chain],
    )
    assert len(let_go(after_a_while(world))) == 3


def test_waiting_tasks_that_cannot_run_soon_do_not():
    some = together(busy(4), idle(4, start=4))
    world = snapshot(
        pool(boot_s=10.0), **some, work=[work(processing=4, duration_s=3600.0), work("sum", waiting=8)]
    )
    assert len(let_go(after_a_while(world))) == 4


@pytest.mark.parametrize("usual_s", [None, 2.0])
def test_what_takes_longer_than_anybody_knew_is_taken_to_be_half_done(usual_s):
    """One task leads to 72. Machines boot 60 s: for so long they are kept for it, and no longer."""

    def world(stalled_s):
        fit = work("fit", processing=1, duration_s=usual_s, stalled_s=stalled_s)
        units_and_workers = together(busy(1), idle(5, start=1))
        waiting = work("apply", waiting=72, levels=((1, 72),))
        return snapshot(
            pool(boot_s=5.0, state={"cold_boot_s": 60.0}),
            **units_and_workers,
            work=[fit, waiting],
            prior_s=2.0,
        )

    for stalled_s in (0.0, 1.0, 20.0, 59.0):
        assert let_go(after_a_while(world(stalled_s), for_s=59.0)) == set()
    assert len(let_go(after_a_while(world(61.0), for_s=59.0))) == 5


def test_waiting_tasks_that_wait_for_another_pool_do_not():
    """How long the other pool will take is not known here: after the break-even time they go."""
    gpu = pool("gpu", resources={"GPU": 1})
    world = snapshot(
        pool(),
        gpu,
        **together(busy(4), idle(4, of="gpu")),
        work=[
            work(processing=4, duration_s=3600.0),
            work("train", needs={"GPU": 1}, waiting=4, duration_s=60.0),
        ],
    )
    assert let_go(after_a_while(world), of="gpu") == {f"gpu-u{i}" for i in range(4)}


def test_one_task_waiting_for_all_keeps_nobody():
    some = together(busy(1), idle(7, start=1))
    world = snapshot(**some, work=[work(processing=1, duration_s=1.0), work("sum", waiting=1)])
    assert len(let_go(after_a_while(world))) == 7


def test_p24_units_that_the_results_need_stay():
    full = together(busy(1, **FULL), idle(2, start=1, **FULL))
    world = snapshot(**full, work=[work(processing=1, duration_s=60.0)])
    assert let_go(after_a_while(world)) == set()


@pytest.mark.parametrize(
    ("phase", "code"), [(Phase.EXPIRED, Code.EXPIRED), (Phase.FAILED, Code.FAILED)], ids=str
)
def test_p17_what_did_not_start_or_has_ended_is_released_first(phase, code):
    ended = units(2, phase, message="exit code 3")
    actions = decided(snapshot(units=ended, work=[work(ready=5, duration_s=60.0)]))
    release = the(actions, Release)
    assert set(release.units) == {"cpu-u0", "cpu-u1"}
    assert release.why.code == code.name
    assert "exit code 3" in str(release.why)
    assert not launched(actions)


def test_a_unit_whose_worker_has_just_left_is_looked_at_again():
    world = snapshot(by_hand(0), units=units(1))
    assert let_go(decided(world)) == set()


def test_one_that_may_have_a_worker_after_all_stays_even_by_hand():
    pinned, free = units(2, PENDING, pinned="worker x may be its"), units(1, PENDING, start=2)
    assert let_go(decided(snapshot(by_hand(0), units=[*pinned, *free]))) == {"cpu-u2"}
    assert held(decided(snapshot(by_hand(0), units=pinned))) == Code.PINNED.name
