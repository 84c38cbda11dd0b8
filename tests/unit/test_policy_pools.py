"""Several pools: who serves which work."""

from __future__ import annotations

import pytest
from builders import (
    DRAINING,
    PENDING,
    RUNNING,
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
)

from dask_tide.model import Code, Hold

CPU = pool("cpu", threads=4)
GPU = pool("gpu", threads=4, resources={"GPU": 2}, price=8.0)


def test_p05_each_pool_gets_exactly_its_units():
    graph = [
        work("load", ready=17, duration_s=60.0),
        work("train", needs={"GPU": 1}, ready=7, duration_s=60.0),
        work("infer", needs={"GPU": 0.5}, ready=2, duration_s=60.0),
        work("save", waiting=50),
    ]
    assert launched(decided(snapshot(CPU, GPU, work=graph))) == {"cpu": 5, "gpu": 4}


def test_p05_tasks_of_several_resources_share_a_unit():
    both = pool("both", threads=4, resources={"GPU": 1, "DISK": 1})
    graph = [
        work("train", needs={"GPU": 1}, ready=2, duration_s=60.0),
        work("write", needs={"DISK": 1}, ready=2, duration_s=60.0),
    ]
    assert launched(decided(snapshot(both, work=graph))) == {"both": 2}


def test_p05_a_resource_called_threads_is_a_resource():
    odd = pool("odd", threads=8, resources={"threads": 8})
    graph = [
        work(ready=8, needs={"threads": 1}, duration_s=60.0),
        work("more", ready=1, needs={"threads": 1}, duration_s=60.0),
    ]
    assert launched(decided(snapshot(odd, work=graph))) == {"odd": 2}


def test_p07_gpu_tasks_bring_gpu_units_only():
    """Stock Dask adds one useless CPU worker and offers both for closing."""
    world = snapshot(
        CPU,
        GPU,
        **together(busy(2, threads=4, tasks=4)),
        work=[
            work(processing=8, duration_s=60.0),
            work("train", needs={"GPU": 1}, ready=30, duration_s=60.0),
        ],
    )
    actions = decided(world)
    assert launched(actions) == {"gpu": 15}
    assert let_go(after_a_while(world)) == set()


def test_p07_plain_work_does_not_buy_a_gpu():
    full = pool("cpu", maximum=2, threads=4)
    world = snapshot(
        full, GPU, **together(busy(2, threads=4, tasks=4)), work=[work(ready=99, duration_s=60.0)]
    )
    assert launched(decided(world)) == {}


def test_plain_work_takes_what_there_is():
    assert launched(decided(snapshot(GPU, work=[work(ready=8, duration_s=60.0)]))) == {"gpu": 2}


def test_p06_victims_come_from_the_shrinking_pool_only():
    world = snapshot(
        CPU,
        GPU,
        **together(idle(3), busy(3, of="gpu")),
        work=[work("train", needs={"GPU": 1}, processing=6, duration_s=60.0)],
    )
    actions = after_a_while(world)
    assert let_go(actions) == {"cpu-u0", "cpu-u1", "cpu-u2"}
    assert let_go(actions, of="gpu") == set()


def test_p07_impossible_work_is_reported_with_what_is_missing():
    actions = decided(snapshot(CPU, GPU, work=[work("fold", needs={"TPU": 1}, ready=2, waiting=3)]))
    reason = str(the(actions, Hold, of="").why)
    for part in ("5 tasks", "fold-0", "TPU=1", "pool cpu offers none", "pool gpu offers GPU=2"):
        assert part in reason
    assert launched(actions) == {}


def test_p07_more_of_a_resource_than_any_worker_has_is_impossible():
    actions = decided(snapshot(GPU, work=[work(needs={"GPU": 3}, ready=1)]))
    assert "GPU=3" in str(the(actions, Hold, of="").why)


def test_p07_a_pool_whose_maximum_is_0_is_named_as_such():
    none = pool("gpu", maximum=0, resources={"GPU": 2})
    reason = str(the(decided(snapshot(none, work=[work(needs={"GPU": 1}, ready=1)])), Hold, of="").why)
    assert "GPU=2 (its maximum is 0)" in reason
    reason = str(the(decided(snapshot(none, work=[work(ready=1)])), Hold, of="").why)
    assert "maximum is 0" in reason


def test_p07_what_a_foreign_worker_runs_is_possible():
    running = work("fold", needs={"TPU": 1}, ready=2, processing=1)
    actions = decided(snapshot(CPU, workers=[worker(tasks=1)], work=[running]))
    assert [a.pool for a in actions] == ["cpu"]


def test_plain_work_that_only_foreign_workers_can_run_is_possible():
    graph = [work("a", ready=5), work("b", ready=5)]
    actions = decided(snapshot(pool(maximum=0), workers=[worker()], work=graph))
    assert [a.pool for a in actions] == ["cpu"]


SPOT, STEADY = pool("spot", maximum=3, price=0.3), pool("steady", maximum=10)


def test_the_cheapest_slot_first_then_the_order_of_the_configuration():
    assert launched(decided(snapshot(STEADY, SPOT, work=[work(ready=2, duration_s=60.0)]))) == {"spot": 2}
    wide = pool("wide", threads=4, price=1.0)
    assert launched(decided(snapshot(STEADY, wide, work=[work(ready=2, duration_s=60.0)]))) == {"wide": 1}
    alike = pool("alike")
    assert launched(decided(snapshot(STEADY, alike, work=[work(ready=2, duration_s=60.0)]))) == {"steady": 2}


@pytest.mark.parametrize(
    ("state", "spot"),
    [({}, 3), ({"capacity": 1, "capacity_message": "stock-out"}, 1), ({"blind": "timed out"}, 0)],
    ids=["maximum", "capacity", "blind"],
)
def test_what_the_first_pool_cannot_take_goes_to_the_next(state, spot):
    first = pool("spot", maximum=3, price=0.3, state=state)
    actions = decided(snapshot(first, STEADY, work=[work(ready=5, duration_s=60.0)]))
    assert launched(actions).get("spot", 0) == spot
    assert launched(actions)["steady"] == 5 - spot


def test_units_that_are_leaving_or_paused_are_no_room_either():
    """They count against the maximum, so the first pool can take no more."""
    leaving = units(2, DRAINING, of="spot")
    paused = units(1, RUNNING, of="spot", start=2)
    world = snapshot(
        SPOT,
        STEADY,
        units=leaving + paused,
        workers=[worker(paused[0].name, status="paused")],
        work=[work(ready=5, duration_s=60.0)],
    )
    assert launched(decided(world)) == {"steady": 5}


def test_units_that_are_there_come_before_cheaper_ones_that_are_not():
    world = snapshot(SPOT, STEADY, **together(idle(2, of="steady")), work=[work(ready=2, duration_s=60.0)])
    assert launched(decided(world)) == {}


def test_units_on_their_way_keep_their_work_when_cheaper_ones_are_asked_for_beside_them():
    """Whether there is a spot machine again is not known yet."""
    coming, tried = units(4, PENDING, of="steady", age_s=40.0), units(3, PENDING, of="spot", age_s=1.0)
    world = snapshot(SPOT, STEADY, units=[*tried, *coming], work=[work(ready=5, duration_s=60.0)])
    assert not let_go(after_a_while(world), of="steady")


def test_units_that_are_there_come_before_cheaper_ones_on_their_way():
    there, coming = idle(2, of="steady"), (units(2, PENDING, of="spot"), ())
    world = snapshot(SPOT, STEADY, **together(there, coming), work=[work(ready=2, duration_s=60.0)])
    assert let_go(after_a_while(world)) == {"spot-u0", "spot-u1"}


def test_a_few_short_tasks_too_many_do_not_start_the_next_pool():
    """The units that are there will have run them long before another could come."""
    slow = pool("steady", boot_s=60.0)
    world = snapshot(
        SPOT, slow, **together(busy(3, of="spot")), work=[work(ready=2, processing=3, duration_s=0.1)]
    )
    actions = decided(world)
    assert launched(actions) == {}
    assert held(actions, "steady") == Code.TOO_LATE.name


@pytest.mark.parametrize("worth", [0.0, 30.0, 3600.0])
def test_what_units_of_one_pool_will_have_done_starts_none_of_another(worth):
    """Beside a long task two units do 100 short ones in 25 s, and another one takes 60 s to come."""
    tasks = [work("long", processing=1, duration_s=600.0), work(processing=2, ready=100, duration_s=0.5)]
    slow = pool("steady", boot_s=60.0)
    world = snapshot(SPOT, slow, **together(busy(3, of="spot")), work=tasks, worth=worth)
    assert launched(decided(world)) == {}
    sooner = pool("steady", boot_s=5.0)
    world = snapshot(SPOT, sooner, **together(busy(3, of="spot")), work=tasks, worth=worth)
    assert launched(decided(world))


def test_many_do():
    slow = pool("steady", boot_s=60.0)
    world = snapshot(
        SPOT, slow, **together(busy(3, of="spot")), work=[work(ready=2000, processing=3, duration_s=1.0)]
    )
    assert launched(decided(world))["steady"] > 1


def test_no_pool_at_all():
    gone = snapshot()
    nothing = type(gone)(0.0, gone.settings, ())
    assert decided(nothing) == ()


@pytest.mark.parametrize(("long", "short"), [("alpha", "zeta"), ("zeta", "alpha")])
def test_names_do_not_tell_which_pool_work_is_for(long, short):
    """What is short finds the idle cheap ones free again soon; what is long had better have them."""
    pools = [pool("spot", maximum=10, boot_s=60.0), pool("safe", maximum=10, price=3.0, boot_s=60.0)]
    tasks = [work(long, ready=10, duration_s=600.0), work(short, ready=10, duration_s=0.1)]
    world = snapshot(*pools, **together(idle(10, of="spot")), work=tasks, worth=30.0)
    assert launched(decided(world)) == {"safe": 1}


def test_one_task_does_not_take_a_large_machine_since_its_slots_are_cheap():
    pools = [pool("small", threads=2), pool("large", threads=32, price=12.0)]

    def launched_for(tasks):
        return launched(decided(snapshot(*pools, work=[work(ready=tasks, duration_s=600.0)])))

    assert launched_for(1) == {"small": 1}
    assert launched_for(20) == {"small": 10}
    assert launched_for(32) == {"large": 1}
    assert launched_for(3200) == {"large": 100}


def test_what_runs_elsewhere_keeps_no_idle_unit_however_cheap():
    """There was no spot machine when the long tasks began; some have come since, for others."""
    pools = [pool("spot"), pool("safe", price=3.0)]
    parts = together(idle(4, of="spot"), busy(4, of="safe"))
    world = snapshot(*pools, **parts, work=[work(processing=4, duration_s=7200.0)])
    assert let_go(after_a_while(world)) == {f"spot-u{i}" for i in range(4)}
