"""Whole stories, in a world where time is a number."""

from __future__ import annotations

import pytest
from builders import World, launched, pool

from dask_tide.model import Code, Hold, Settings


def reasons(world) -> set[str]:
    return {action.why.code for actions in world.history for action in actions if isinstance(action, Hold)}


def square_wave(world, *, periods, tasks, duration_s, gap_s):
    for _ in range(periods):
        world.submit(tasks, duration_s)
        while world.unfinished:
            world.tick()
        world.run(gap_s)


def test_p28_from_zero_and_to_zero():
    world = World((pool(maximum=8),))
    world.submit(100, 1.0)
    world.run(60.0)
    assert world.unfinished == 0
    assert world.sizes[0] == 1
    assert max(world.sizes) == 8
    assert world.sizes[-1] == 0
    assert world.turns == 1


@pytest.mark.parametrize("known", [True, False])
def test_p02_a_square_wave_that_comes_back_before_break_even_moves_nothing(known):
    world = World((pool(maximum=6, boot_s=10.0),), known=known)
    square_wave(world, periods=8, tasks=24, duration_s=2.0, gap_s=6.0)
    assert world.turns == 0
    assert world.starts == max(world.sizes) > 1


@pytest.mark.parametrize("known", [True, False])
def test_p02_a_slow_square_wave_turns_twice_a_period(known):
    world = World((pool(maximum=6, boot_s=1.0),), known=known)
    square_wave(world, periods=5, tasks=24, duration_s=2.0, gap_s=20.0)
    assert world.turns <= 2 * 5 - 1
    assert world.starts <= 6 * 5


@pytest.mark.parametrize("known", [True, False])
def test_p02_a_long_tail_turns_once(known):
    world = World((pool(maximum=10),), known=known)
    for seconds in range(1, 30):
        world.submit(2, float(seconds), group=f"tail-{seconds}")
    while world.unfinished:
        world.tick()
    world.run(30.0)
    assert world.turns == 1
    assert world.sizes[-1] == 0
    assert world.starts == 10


def test_p02_a_straggler_keeps_one_unit():
    world = World((pool(maximum=10),), known=True)
    world.submit(40, 1.0)
    world.submit(1, 120.0, group="straggler")
    world.run(60.0)
    assert world.sizes[-1] == 1
    assert world.unfinished == 1
    assert world.turns == 1


def test_p02_one_task_at_a_time_keeps_one_unit_for_all():
    world = World((pool(boot_s=2.0),), known=True)
    square_wave(world, periods=20, tasks=1, duration_s=0.5, gap_s=1.0)
    assert world.starts == 1


def test_p08_short_tasks_of_unknown_duration_do_not_call_a_crowd():
    """30 tasks of 0.2 s are done by one unit before others, that take 20 s, could come."""
    world = World((pool(boot_s=20.0),))
    world.submit(30, 0.2)
    world.run(60.0)
    assert world.unfinished == 0
    assert max(world.sizes) <= 2


@pytest.mark.parametrize("gap_s", [1.0, 5.0, 9.0])
def test_p13_gaps_shorter_than_break_even_cause_no_churn(gap_s):
    world = World((pool(maximum=4, boot_s=10.0),), known=True)
    square_wave(world, periods=5, tasks=8, duration_s=30.0, gap_s=gap_s)
    assert world.starts == 4


def test_p13_gaps_of_30_s_with_keep_cause_none_either():
    world = World((pool(maximum=4),), Settings(keep_s=35.0), known=True)
    square_wave(world, periods=5, tasks=8, duration_s=2.0, gap_s=30.0)
    assert world.starts == 4
    assert Code.KEPT_BREAK_EVEN.name in reasons(world)
    world.run(10.0)
    assert world.sizes[-1] == 0


def test_p13_nothing_is_kept_for_longer_than_the_idle_timeout():
    world = World((pool(maximum=4, boot_s=100.0),), Settings(idle_timeout_s=5.0), known=True)
    world.submit(4, 200.0)
    while world.unfinished:
        world.tick()
    world.run(6.0)
    assert world.sizes[-1] == 0


def test_p05_a_mixed_graph_gives_each_pool_its_own_and_both_go():
    cpu, gpu = pool("cpu", threads=2, maximum=4), pool("gpu", resources={"GPU": 1}, maximum=4, price=5.0)
    world = World((cpu, gpu), known=True)
    world.submit(8, 20.0)
    world.submit(2, 40.0, group="train", needs={"GPU": 1})
    assert launched(world.tick()) == {"cpu": 4, "gpu": 2}
    world.run(30.0)
    assert sorted(world.phases) == ["gpu-0004", "gpu-0005"]
    world.run(30.0)
    assert not world.phases


def test_p20_never_more_than_the_maximum_at_any_time():
    world = World((pool(maximum=5, threads=2),))
    world.submit(500, 1.0)
    while world.unfinished:
        world.tick()
    assert max(world.sizes) == 5


@pytest.mark.parametrize("boot_s", [0.5, 5.0, 60.0])
def test_p25_no_unit_costs_more_than_it_works(boot_s):
    """Unit-seconds stay within a small factor of the work, boots and the ski rental included."""
    world = World((pool(maximum=20, boot_s=boot_s),), known=True)
    world.submit(400, 5.0)
    world.run(400.0)
    assert world.unfinished == 0
    assert world.unit_seconds <= 400 * 5.0 + 20 * (2 * boot_s + 5.0 + 2.0)
