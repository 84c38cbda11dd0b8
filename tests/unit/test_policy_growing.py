"""When a pool grows, by how much, and when it does not."""

from __future__ import annotations

import pytest
from builders import (
    DRAINING,
    GB,
    NOTHING,
    PENDING,
    STARTING,
    World,
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

from dask_tide.model import Code, Launch
from dask_tide.policy import decide


def test_no_work_and_no_unit_is_nothing_to_do():
    assert held(decided(snapshot())) == Code.NO_WORK.name


def test_p08_one_unit_first_while_durations_are_unknown():
    assert launched(decided(snapshot(work=[work(ready=1000)]))) == {"cpu": 1}


def test_p08_no_second_one_before_the_first_has_come():
    actions = decided(snapshot(units=units(1, STARTING), work=[work(ready=1000)]))
    assert held(actions) == Code.RAMP.name


def test_p08_no_more_before_there_is_evidence():
    """The first worker has come, and its task may end at once."""
    actions = decided(snapshot(**together(busy(1)), work=[work(ready=99, processing=1)]))
    assert held(actions) == Code.RAMP.name


def test_p08_then_twice_as_many():
    """A tenth of a boot time has passed and none has ended; what that proves pays for no start yet."""
    few = work(ready=12, processing=4, stalled_s=0.1)
    assert launched(decided(snapshot(**together(busy(4)), work=[few]))) == {"cpu": 4}


def test_p08_what_is_assumed_of_tasks_is_no_evidence_that_they_are_long():
    """Eight tasks that may take half a second each are done before anybody could come."""
    world = snapshot(
        pool(boot_s=4.0), **together(busy(2)), work=[work(ready=6, processing=2)], prior_s=0.5, worth=30.0
    )
    assert held(decided(world)) == Code.RAMP.name


def test_p08_tasks_that_prove_long_are_evidence():
    """100 tasks, seen running for 3 s, are 300 s of work at least: enough for many starts of 5 s."""
    world = snapshot(
        pool(boot_s=5.0),
        **together(busy(1)),
        work=[work(ready=99, processing=1, stalled_s=3.0)],
    )
    assert launched(decided(world)) == {"cpu": (300 - 5) // 5 - 1}


def test_p08_with_a_hint_the_full_size_at_once():
    assert launched(decided(snapshot(work=[work(ready=40, duration_s=7200.0)]))) == {"cpu": 40}


@pytest.mark.parametrize("boot_s", [1.0, 60.0])
def test_p08_two_hour_tasks_reach_the_maximum_within_two_boots(boot_s):
    world = World((pool(maximum=40, boot_s=boot_s),))
    world.submit(400, 7200.0)
    while sum(phase.value == "running" for phase in world.phases.values()) < 40:
        world.tick()
        assert world.now_s < 10 * boot_s
    # The first one's boot, a while to see that the tasks are long, the others' boot.
    assert world.now_s <= 2.2 * boot_s + 1.0


def test_p22_no_more_units_than_tasks():
    assert launched(decided(snapshot(work=[work(ready=3, duration_s=60.0)]))) == {"cpu": 3}
    assert launched(decided(snapshot(**together(busy(3)), work=[work(processing=3, duration_s=60.0)]))) == {}


def test_p22_waiting_tasks_are_not_runnable():
    assert launched(decided(snapshot(work=[work(ready=2, waiting=500, duration_s=60.0)]))) == {"cpu": 2}


@pytest.mark.parametrize(("tasks", "wanted"), [(1, 1), (8, 1), (9, 2), (17, 3), (800, 100)])
def test_p23_threads_are_slots_also_from_zero(tasks, wanted):
    world = snapshot(pool(threads=8), work=[work(ready=tasks, duration_s=60.0)])
    assert launched(decided(world)) == {"cpu": wanted}


def test_p34_the_unit_is_the_unit_however_many_workers_it_runs():
    jobs = pool(threads=2, workers_per_unit=4)
    assert launched(decided(snapshot(jobs, work=[work(ready=17, duration_s=60.0)]))) == {"cpu": 3}
    (job,) = units(1)
    four = [worker(job.name, name=f"{job.name}-{i}", threads=2, tasks=2) for i in range(4)]
    world = snapshot(jobs, units=[job], workers=four, work=[work(ready=9, processing=8, duration_s=60.0)])
    assert launched(decided(world)) == {"cpu": 2}


def test_p34_one_of_four_workers_is_enough_to_be_ready():
    (job,) = units(1)
    world = snapshot(
        pool(workers_per_unit=4), units=[job], workers=[worker(job.name, tasks=1)], work=[work(processing=1)]
    )
    assert launched(decided(world)) == {}


def test_p33_a_unit_that_would_come_too_late_is_not_asked_for():
    """10 tasks of 1 s on 5 units are done long before a unit that takes a minute."""
    world = snapshot(
        pool(boot_s=60.0), **together(busy(5)), work=[work(ready=5, processing=5, duration_s=1.0)]
    )
    assert held(decided(world)) == Code.TOO_LATE.name


def test_p33_but_the_first_one_is():
    assert launched(decided(snapshot(pool(boot_s=60.0), work=[work(ready=5, duration_s=1.0)]))) == {"cpu": 1}


def test_p33_each_unit_finds_as_much_work_as_its_start_has_cost():
    """100 s of work are 10 starts of 10 s, of which one is there and needs 10 s until the others come."""
    world = snapshot(
        pool(boot_s=10.0), **together(busy(1)), work=[work(ready=99, processing=1, duration_s=1.0)]
    )
    assert launched(decided(world)) == {"cpu": 9 - 1}


@pytest.mark.parametrize(("worth", "wanted"), [(0.0, 1), (30.0, 7), (3600.0, 73)])
def test_the_dearer_time_is_the_more_units_are_worth_their_start(worth, wanted):
    """90 s of work are one and a half starts of a minute: 7 · 60 + 30 · 90 / 7 is less than with 6 or 8."""
    world = snapshot(pool(maximum=99, boot_s=60.0), work=[work(ready=90, duration_s=1.0)], worth=worth)
    assert launched(decided(world)) == {"cpu": wanted}


def test_however_dear_time_is_nothing_is_asked_for_that_comes_too_late():
    busy_ones = together(busy(5))
    jobs = work(ready=5, processing=5, duration_s=1.0)
    assert (
        held(decided(snapshot(pool(boot_s=60.0), **busy_ones, work=[jobs], worth=3600.0)))
        == Code.TOO_LATE.name
    )


def test_where_starts_are_cheap_it_does_not_matter_how_dear_time_is():
    for worth in (0.0, 3600.0):
        world = snapshot(pool(maximum=99, boot_s=0.1), work=[work(ready=40, duration_s=1.0)], worth=worth)
        assert launched(decided(world)) == {"cpu": 40}


def test_a_task_as_long_as_a_boot_is_worth_one():
    assert launched(decided(snapshot(pool(threads=3), work=[work(ready=17, duration_s=1.0)]))) == {"cpu": 6}


def test_p19_draining_units_are_no_capacity():
    leaving = units(3, DRAINING)
    world = snapshot(
        units=leaving,
        workers=workers_of(leaving, status="closing_gracefully", tasks=1),
        work=[work(ready=3, duration_s=60.0)],
    )
    assert launched(decided(world)) == {"cpu": 3}


def test_p19_a_task_stuck_on_a_draining_unit_still_brings_one_for_the_others():
    """Though nobody knows how long they take."""
    leaving = units(1, DRAINING)
    stuck = work(ready=5, processing=1)
    world = snapshot(units=leaving, workers=workers_of(leaving, tasks=1, status="closing"), work=[stuck])
    assert launched(decided(world)) == {"cpu": 1}


def test_paused_workers_are_no_capacity_and_others_are_asked_for():
    full = busy(2, status="paused", held_bytes=8 * GB, limit_bytes=10 * GB)
    world = snapshot(**together(full), work=[work(ready=3, processing=2, duration_s=60.0)])
    assert launched(decided(world))["cpu"] >= 3


def test_bound_work_makes_no_demand():
    actions = decided(snapshot(work=[work(ready=100, waiting=3, bound=True, duration_s=60.0)]))
    assert held(actions) == Code.NO_WORK.name


def test_what_runs_on_a_paused_worker_needs_no_other():
    world = snapshot(**together(busy(4, status="paused")), work=[work(processing=4, duration_s=60.0)])
    assert launched(decided(world)) == {}
    assert let_go(after_a_while(world)) == set()


def test_what_waits_on_a_paused_worker_does():
    world = snapshot(
        **together(busy(1, status="paused", tasks=3)), work=[work(processing=3, duration_s=60.0)]
    )
    (action,) = decided(world)
    assert launched([action]) == {"cpu": 2}
    assert str(action.why).endswith("so 2 units can be used; of 1 unit there or on the way 1 take no more")


def test_tasks_that_may_run_on_certain_workers_only_take_the_threads_that_they_run_on():
    """As training does that has one long task for each worker."""
    train = work("train", bound=True, processing=4, duration_s=7200.0)
    training = busy(4, bound=1)
    more = work(ready=4, duration_s=60.0)
    assert launched(decided(snapshot(**together(training), work=[train, more]))) == {"cpu": 4}
    assert launched(decided(snapshot(**together(training), work=[train]))) == {}
    assert launched(decided(snapshot(**together(training, idle(4, start=4)), work=[train, more]))) == {}


def test_of_several_threads_one_such_task_takes_one():
    train = work("train", bound=True, processing=1, duration_s=7200.0)
    world = snapshot(
        pool(threads=4), **together(busy(1, bound=1, threads=4)), work=[train, work(ready=3, duration_s=60.0)]
    )
    assert launched(decided(world)) == {}


def test_tasks_whose_workers_are_gone_are_named():
    world = snapshot(work=[work("train", bound=True, ready=3, waiting=2)])
    (told,) = (action for action in decided(world) if not action.pool)
    assert str(told.why).startswith(
        "3 tasks such as train-0 may run only on workers or hosts that are not there"
    )


def test_work_flows_past_a_pool_that_is_set_by_hand():
    cheap, dear = pool("cheap", price=0.3, state={"manual": 1}), pool("dear")
    world = snapshot(cheap, dear, work=[work(ready=4, duration_s=60.0)])
    assert launched(decided(world)) == {"cheap": 1, "dear": 3}


def test_memory_that_an_idle_process_has_kept_is_no_result():
    state = {"baseline_bytes": GB // 8}
    kept = {"used_bytes": 26 * GB // 10, "limit_bytes": 4 * GB}
    world = snapshot(
        pool(state=state),
        **together(busy(1, **kept), idle(9, start=1, **kept)),
        work=[work(processing=1, duration_s=3600.0)],
    )
    assert launched(decided(world)) == {}
    assert len(let_go(after_a_while(world))) == 9


def test_foreign_workers_are_capacity():
    foreign = [worker(name=f"f{i}", threads=4, tasks=4) for i in range(2)]
    world = snapshot(workers=foreign, work=[work(ready=10, duration_s=60.0)])
    assert launched(decided(world)) == {"cpu": 2}


def test_foreign_workers_that_are_done_soon_are_enough():
    world = snapshot(
        pool(boot_s=60.0),
        workers=[worker(threads=8, tasks=8)],
        work=[work(ready=2, processing=8, duration_s=0.1)],
    )
    assert held(decided(world)) == Code.TOO_LATE.name


def test_the_minimum_and_a_floor_need_no_work():
    actions = decided(snapshot(pool(minimum=3)))
    assert launched(actions) == {"cpu": 3}
    assert the(actions, Launch).why.code == Code.MINIMUM.name
    actions = decided(snapshot(pool(minimum=3, state={"floor": 5}), units=units(1, PENDING)))
    assert launched(actions) == {"cpu": 4}
    assert the(actions, Launch).why.code == Code.FLOOR.name


def test_by_hand_the_work_does_not_matter():
    by_hand = pool(minimum=3, state={"manual": 2})
    assert launched(decided(snapshot(by_hand, work=[work(ready=50, duration_s=60.0)]))) == {"cpu": 2}
    world = snapshot(by_hand, **together(busy(2)), work=[work(ready=50, processing=2, duration_s=60.0)])
    assert held(decided(world)) == Code.MANUAL.name


@pytest.mark.parametrize(("left", "more"), [(8, {"cpu": 2}), (4, {"cpu": 1}), (0, {})])
def test_what_a_drain_has_copied_already_takes_no_memory_twice(left, more):
    """Else whoever is drained, as it is idle, would be followed by another one, and so on."""
    stay = busy(2, held_keys=8, held_bytes=6 * GB, limit_bytes=10 * GB)
    leaves = units(1, DRAINING, start=2)
    held = {"held_keys": 8, "held_bytes": 8 * GB, "only_copies": left}
    leaving = workers_of(leaves, status="closing_gracefully", limit_bytes=10 * GB, **held)
    world = snapshot(**together(stay, (leaves, leaving)), work=[work(processing=2, duration_s=60.0)])
    assert launched(decided(world)) == more


def test_p24_results_that_fill_the_memory_ask_for_more():
    full = busy(2, held_bytes=8 * GB, limit_bytes=10 * GB)
    actions = decided(snapshot(**together(full), work=[work(processing=2, waiting=1, duration_s=60.0)]))
    assert launched(actions) == {"cpu": 1}  # 16 GB at 6 GB each
    assert the(actions, Launch).why.code == Code.MEMORY.name


@pytest.mark.parametrize("baseline_gb", [0, 1])
def test_p24_the_need_for_memory_converges(baseline_gb):
    """New units bring processes of their own; that must not look like results."""
    state = {"baseline_bytes": baseline_gb * GB}
    count, rounds = 2, 0
    while True:
        new = units(count)
        holding = [
            worker(u.name, tasks=1, limit_bytes=10 * GB, **content)
            for u, content in zip(
                new,
                [{"held_bytes": 8 * GB, "used_bytes": 9 * GB}] * 2
                + [{"used_bytes": baseline_gb * GB}] * (count - 2),
                strict=True,
            )
        ]
        more = launched(
            decided(snapshot(pool(state=state), units=new, workers=holding, work=[work(processing=count)]))
        )
        if not more:
            break
        count, rounds = count + more["cpu"], rounds + 1
    assert (count, rounds) == (3, 1)


def test_p24_memory_nobody_told_is_no_reason():
    full = busy(2, held_bytes=8 * GB)
    assert launched(decided(snapshot(**together(full), work=[work(processing=2)]))) == {}


def test_the_order_of_work_and_workers_does_not_matter():
    some = idle(3)
    first, second = work("a", ready=5, duration_s=9.0), work("a", ready=5)
    assert decide(snapshot(**together(some), work=[first, second]), NOTHING) == decide(
        snapshot(units=some[0], workers=some[1][::-1], work=[second, first]), NOTHING
    )


def _stages(ready, waiting, **fields):
    """A stage of 1 s tasks that is ready, and what waits for it."""
    return [work("read", ready=ready, duration_s=1.0), work("apply", duration_s=1.0, **waiting, **fields)]


@pytest.mark.parametrize(
    ("waiting", "wanted"),
    [
        ({}, 2),
        ({"waiting": 60, "levels": ((1, 60),)}, 8),  # a stage that is as wide
        ({"waiting": 60, "levels": ((10, 60),)}, 6),  # ten in a row, of six each
        ({"waiting": 60, "levels": ((20, 60),)}, 3),  # for three units, not for more
        ({"waiting": 6, "levels": ((6, 6),)}, 2),  # one after the other
    ],
)
def test_what_waits_is_work_for_as_many_as_the_graph_is_wide_there(waiting, wanted):
    """20 s of work are two starts of 10 s; with 60 s that wait for it, eight."""
    world = snapshot(pool(boot_s=10.0), work=_stages(20, waiting))
    assert launched(decided(world)) == {"cpu": wanted}


def test_what_waits_beside_a_long_chain_may_be_hours_away():
    """Nothing tells when the wide stage comes: units might be idle for longer than new ones take to start."""
    wide = {"waiting": 60 + 11, "levels": ((11, 11), (1, 60))}
    assert launched(decided(snapshot(pool(boot_s=10.0), work=_stages(20, wide)))) == {"cpu": 2}
    shorter = {"waiting": 60 + 9, "levels": ((9, 9), (1, 60))}
    assert launched(decided(snapshot(pool(boot_s=10.0), work=_stages(20, shorter)))) == {"cpu": 8}


def test_rounds_of_wide_and_narrow_are_work_however_many():
    """A hundred times twenty tasks, then one: between two wide stages units are idle for a second."""
    rounds = {"waiting": 2100, "levels": ((100, 100), (100, 2000))}
    assert launched(decided(snapshot(pool(boot_s=10.0), work=_stages(20, rounds)))) == {"cpu": 20}


def test_what_waits_takes_as_much_of_a_unit_as_it_asks_for():
    """Eight plain tasks run on a unit of eight threads at a time, but one that needs its GPU."""
    gpus = pool(threads=8, resources={"GPU": 1}, boot_s=60.0)
    ready = work("train", needs={"GPU": 1}, ready=100, duration_s=1.0)
    plain = work("load", waiting=4000, levels=((1, 4000),), duration_s=1.0)
    assert launched(decided(snapshot(gpus, work=[ready, plain]))) == {"cpu": (100 + 4000 // 8) // 60}


def test_what_waits_is_work_for_all_pools_that_may_run_it():
    small, large = pool("spot", maximum=2, price=0.5, boot_s=10.0), pool("large", maximum=98, boot_s=10.0)
    wide = {"waiting": 2000, "levels": ((1, 2000),)}
    grown = launched(decided(snapshot(small, large, work=_stages(100, wide))))
    assert grown == {"spot": 2, "large": 98}


def test_a_trace_of_work_beside_somebody_elses_workers_starts_none():
    foreign = [worker(name=f"foreign-{i}") for i in range(100)]
    world = snapshot(pool(boot_s=60.0), workers=foreign, work=[work(ready=101, duration_s=0.01)], worth=30.0)
    assert held(decided(world)) == Code.TOO_LATE.name


@pytest.mark.parametrize("taken", [{"bound": 1}, {"bound": 3}], ids=str)
def test_a_foreign_worker_whose_threads_others_have_is_no_capacity(taken):
    gpu = work("train", needs={"GPU": 1}, processing=1, elsewhere=1, duration_s=7200.0)
    world = snapshot(
        pool(),
        pool("gpu", resources={"GPU": 1}),
        workers=[worker(tasks=1, **taken)],
        work=[gpu, work(ready=2, duration_s=60.0)],
    )
    assert launched(decided(world)) == {"cpu": 2}, "and no GPU is bought for what runs elsewhere"


def test_what_tasks_work_with_is_no_result():
    """One key of a kilobyte, and gigabytes that only the task needs."""
    state = {"baseline_bytes": GB // 8}
    large = {"used_bytes": 4 * GB, "limit_bytes": 5 * GB, "held_keys": 1, "held_bytes": 1000}
    world = snapshot(
        pool(state=state), **together(busy(10, **large)), work=[work(processing=10, duration_s=3600.0)]
    )
    assert launched(decided(world)) == {}


# -- what is not alike -------------------------------------------------------------------------------------


@pytest.mark.parametrize("long_s", [60.0, 600.0])
@pytest.mark.parametrize(("worth", "most"), [(0.0, 1), (30.0, 5)])
def test_a_long_task_brings_no_units_for_short_ones(long_s, worth, most):
    """It cannot be divided: 59 units had come for a second's work beside one task of a minute."""
    kinds = [work("long", processing=1, duration_s=long_s), work("tiny", ready=200, duration_s=0.005)]
    world = snapshot(pool(boot_s=1.0), **together(busy(1)), work=kinds, worth=worth)
    assert launched(decided(world)) == {"cpu": most}


def test_as_many_long_tasks_as_units_bring_all_of_them():
    kinds = [work("long", ready=20, duration_s=60.0), work("tiny", ready=200, duration_s=0.005)]
    assert launched(decided(snapshot(pool(boot_s=1.0), **together(busy(1)), work=kinds)))["cpu"] >= 19


def test_what_was_measured_is_not_doubted_for_a_worker_that_only_begins():
    """Its first task imports what it needs."""
    tiny = work(ready=1000, processing=1, duration_s=0.001, stalled_s=0.4)
    world = snapshot(pool(boot_s=5.0), **together(busy(1)), work=[tiny])
    assert held(decided(world)) == Code.TOO_LATE.name
    longer = work(ready=1000, processing=1, duration_s=0.001, stalled_s=0.6)
    assert launched(decided(snapshot(pool(boot_s=5.0), **together(busy(1)), work=[longer])))


def test_threads_with_tasks_that_may_run_nowhere_else_are_not_free():
    """Four plain tasks waited for the one thread that was left."""
    parts = busy(1, tasks=3, threads=4, bound=3)
    plain = work(ready=4, duration_s=100.0)
    world = snapshot(pool(threads=4), **together(parts), work=[plain])
    assert launched(decided(world)) == {"cpu": 1}


def test_threads_that_are_not_free_keep_no_unit_by_themselves():
    """A cancelled task may run on for hours."""
    world = snapshot(pool(threads=4), **together(idle(1, threads=4, bound=1)))
    assert let_go(after_a_while(world)) == {"cpu-u0"}


def test_each_resource_is_taken_for_itself():
    """One unit has room for a task of A and B and seven of B alone."""
    both = work("both", ready=1, duration_s=100.0, needs={"A": 1, "B": 1})
    one = work("one", ready=7, duration_s=100.0, needs={"B": 1})
    world = snapshot(pool(threads=8, resources={"A": 1.0, "B": 8.0}), work=[both, one])
    assert launched(decided(world)) == {"cpu": 1}


@pytest.mark.parametrize(
    ("boot_s", "waits", "long_s", "more"),
    [
        (0.1, work("short", ready=1, duration_s=0.003), 7200.0, 1),
        (60.0, work("short", ready=3, duration_s=0.5), 7200.0, 1),
        (60.0, work("short", processing=3, duration_s=0.5), 7200.0, 1),
        (180.0, work("short", ready=10, duration_s=0.5), 7200.0, 1),
        (60.0, work("short", ready=3, duration_s=0.5), 61.0, 0),
    ],
)
def test_short_tasks_do_not_wait_for_the_end_of_a_long_one(boot_s, waits, long_s, more):
    """Which may wait for one of them."""
    kinds = [work("long", processing=1, duration_s=long_s, stalled_s=0.2), waits]
    decision = decided(snapshot(pool(boot_s=boot_s), **together(busy(1)), work=kinds))
    assert launched(decision) == ({"cpu": more} if more else {})


@pytest.mark.parametrize(
    ("parts", "threads"),
    [([busy(2)], 1), ([busy(1, threads=2)], 2), ([busy(1), (units(1, STARTING, start=1), ())], 1)],
    ids=["another unit", "another thread", "another one comes"],
)
def test_where_a_slot_is_free_sooner_short_tasks_wait(parts, threads):
    kinds = [work("long", processing=1, duration_s=7200.0), work("short", processing=9, duration_s=0.5)]
    world = snapshot(pool(boot_s=60.0, threads=threads), **together(*parts), work=kinds)
    assert held(decided(world)) == Code.TOO_LATE.name


def test_short_tasks_wait_neither_for_those_that_may_run_nowhere_else():
    parts = busy(1, tasks=2, threads=2, bound=1)
    kinds = [work("long", processing=1, duration_s=7200.0), work("short", ready=1, duration_s=0.5)]
    world = snapshot(pool(boot_s=60.0, threads=2), **together(parts), work=kinds)
    assert launched(decided(world)) == {"cpu": 1}


def test_p24_memory_nobody_told_makes_no_other_smaller():
    """The more of such came the less each of them seemed to hold, until they seemed to hold nothing: they
    went, and came again."""
    some = units(9)
    parts = some, (*workers_of(some[:1], held_bytes=7 * GB, limit_bytes=10 * GB), *workers_of(some[1:]))
    kinds = [work(processing=9, duration_s=100.0)]
    decision = decided(snapshot(pool(maximum=12), **together(parts), work=kinds))
    assert (launched(decision), let_go(decision)) == ({}, set())


def test_what_takes_a_little_longer_once_is_not_taken_for_long():
    """A pause of 0.6 s bought a hundred machines that boot for a minute, for 20 s of work."""

    def world(stalled_s):
        short = work(ready=20_000, processing=1, duration_s=0.001, stalled_s=stalled_s)
        return snapshot(pool(boot_s=60.0), **together(busy(1)), work=[short], worth=30.0)

    assert launched(decided(world(0.6))) == launched(decided(world(0.0)))
    assert launched(decided(world(7.0))) == {"cpu": 99}, "all of its like may have changed"
