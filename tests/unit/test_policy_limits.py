"""Maxima, budgets, capacity, failures; and that all of them can change at any time."""

from __future__ import annotations

import msgspec
import pytest
from builders import (
    DRAINING,
    NOTHING,
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
)

from dask_tide.model import Code, Drain, Hold, Memory, Phase, PoolMemory
from dask_tide.policy import decide

MUCH = work(ready=1000, duration_s=600.0)


def test_a_maximum_of_all_pools_that_was_lowered_is_kept_to():
    """As a pool's own is: the dearest pool first, idle ones first, and none below the minimum."""
    pools = pool("cpu", minimum=2), pool("safe", minimum=1, price=3.0)
    there = together(busy(4), idle(1, start=4), busy(2, of="safe"))
    world = snapshot(*pools, **there, work=[work(processing=6)], maximum=4)
    actions = decided(world)
    assert len(let_go(actions, of="safe")) == 1
    gone = let_go(actions, of="cpu")
    assert len(gone) == 2
    assert "cpu-u4" in gone
    assert the(actions, Drain, "cpu").why.code == "ABOVE_SHARED"
    enough = decided(snapshot(*pools, **there, work=[work(processing=6)], maximum=7))
    assert the(enough, Drain, "cpu").why.code == "SURPLUS"


def test_p20_never_above_the_maximum():
    assert launched(decided(snapshot(pool(maximum=7), work=[MUCH]))) == {"cpu": 7}
    world = snapshot(pool(maximum=7), **together(busy(7)), work=[MUCH])
    assert held(decided(world)) == Code.AT_MAXIMUM.name


def test_p20_what_is_leaving_still_counts():
    world = snapshot(
        pool(maximum=7), units=[*units(2, DRAINING), *units(1, Phase.STOPPING, start=2)], work=[MUCH]
    )
    assert launched(decided(world)) == {"cpu": 4}


def test_p20_the_maximum_of_all_pools_together():
    graph = [MUCH, work("train", needs={"GPU": 1}, ready=50, duration_s=600.0)]
    world = snapshot(pool(), pool("gpu", resources={"GPU": 1}), work=graph, maximum=60)
    assert sum(launched(decided(world)).values()) == 60


def test_p20_the_budget_per_hour():
    world = snapshot(pool(price=0.5), **together(busy(2)), work=[MUCH], budget_per_hour=3.0 * 3600)
    assert launched(decided(world)) == {"cpu": 4}
    world = snapshot(pool(price=0.5), **together(busy(6)), work=[MUCH], budget_per_hour=3.0 * 3600)
    assert held(decided(world)) == Code.BUDGET.name


def test_p20_the_budget_per_hour_over_pools_of_different_prices():
    graph = [work(ready=2, duration_s=600.0), work("train", needs={"GPU": 1}, ready=9, duration_s=600.0)]
    world = snapshot(
        pool(), pool("gpu", resources={"GPU": 1}, price=4.0), work=graph, budget_per_hour=11.0 * 3600
    )
    assert launched(decided(world)) == {"cpu": 2, "gpu": 2}


def test_a_pool_without_a_price_needs_no_budget():
    assert launched(decided(snapshot(pool(price=0.0), work=[MUCH], budget_per_hour=0.0))) == {"cpu": 100}


def test_p20_the_budget_of_the_clusters_life():
    actions = decided(snapshot(pool(minimum=1), work=[MUCH], budget_total=50.0, spent=50.0))
    assert held(actions) == Code.BUDGET.name
    assert "50.0 spent" in str(the(actions, Hold).why)
    assert launched(decided(snapshot(work=[MUCH], budget_total=50.0, spent=49.9))) == {"cpu": 100}


def test_p39_no_more_than_the_platform_has_room_for():
    state = {"capacity": 10, "capacity_message": "exceeded quota: pods=10"}
    assert launched(decided(snapshot(pool(state=state), work=[MUCH]))) == {"cpu": 10}
    hold = the(decided(snapshot(pool(state=state), **together(busy(10)), work=[MUCH])), Hold)
    assert hold.why.code == Code.NO_CAPACITY.name
    assert "exceeded quota: pods=10" in str(hold.why)


def test_p14_what_a_platform_has_no_room_for_is_not_taken_away():
    world = snapshot(pool(state={"capacity": 3}), **together(busy(10)), work=[MUCH])
    assert let_go(decided(world)) == set()


def test_a_blind_pool_is_left_alone():
    blind = {"blind": "connection refused"}
    assert held(decided(snapshot(pool(minimum=3, state=blind), work=[MUCH]))) == Code.BLIND.name
    assert held(after_a_while(snapshot(pool(state=blind), **together(idle(5))))) == Code.BLIND.name
    ended = snapshot(pool(maximum=1, state=blind | {"manual": 0}), units=units(3, Phase.FAILED))
    assert held(decided(ended)) == Code.BLIND.name


def attempt(memory, now_s, **counters):
    return decide(snapshot(pool(state=counters), work=[MUCH], now_s=now_s, backoff_max_s=8.0), memory)


def test_p17_pauses_double_with_each_failure_up_to_their_maximum():
    now_s, memory, pauses = 100.0, NOTHING, []
    for failed in range(1, 8):
        actions, memory = attempt(memory, now_s, failed=failed, failure="exit code 1")
        hold = the(actions, Hold)
        assert hold.why.code == Code.BACKOFF.name
        assert "exit code 1" in str(hold.why)
        pauses.append(hold.why.numbers["wait_s"])
        now_s += pauses[-1]
        actions, memory = attempt(memory, now_s, failed=failed)
        assert launched(actions)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_p17_a_success_ends_the_pause():
    _, memory = attempt(NOTHING, 0.0, failed=1)
    actions, memory = attempt(memory, 0.1, failed=1, started=1)
    assert launched(actions)
    actions, _ = attempt(memory, 0.2, failed=2, started=1)
    assert the(actions, Hold).why.numbers["wait_s"] == pytest.approx(0.5)


def test_p17_many_failures_at_once_are_one():
    _, memory = attempt(NOTHING, 0.0, failed=50)
    assert memory.pools["cpu"].failures == 1


def test_p17_a_pause_of_one_pool_is_none_of_another():
    memory = Memory({"cpu": PoolMemory(failures=3, retry_s=1e9)})
    world = snapshot(pool(minimum=1), pool("b", minimum=1))
    assert launched(decided(world, memory)) == {"b": 1}


def test_p17_what_cannot_start_leaves_its_work_to_another_pool():
    """Its image cannot be pulled, say; it is tried again all the same."""
    cheap, dear, few = pool("cheap", price=0.5), pool("dear"), work(ready=5, duration_s=600.0)
    memory, now_s = NOTHING, 0.0
    told = []
    for failed in range(1, 6):
        failing = msgspec.structs.replace(cheap, failed=failed, failure="no such image")
        actions, memory = decide(snapshot(failing, dear, work=[few], now_s=now_s), memory)
        actions, memory = decide(snapshot(failing, dear, work=[few], now_s=now_s + 0.1), memory)
        told.append(set(launched(actions)))
        now_s = memory.pools["cheap"].retry_s
        actions, memory = decide(snapshot(failing, dear, work=[few], now_s=now_s), memory)
        assert "cheap" in launched(actions)
    assert told == [set(), set(), {"dear"}, {"dear"}, {"dear"}]


def test_p20_a_pool_in_which_nothing_starts_is_tried_with_one_unit_at_a_time():
    """A hundred that do not start cost as much as a hundred that do; the work goes elsewhere meanwhile."""
    again = PoolMemory(failed=9, failures=3, retry_s=10.0)
    failing = pool(state={"failed": 9, "failure": "no such image"})
    assert held(decided(snapshot(failing, work=[MUCH], now_s=9.0), Memory({"cpu": again}))) == "BACKOFF"
    actions, memory = decide(snapshot(failing, work=[MUCH], now_s=11.0), Memory({"cpu": again}))
    assert launched(actions) == {"cpu": 1}
    one = snapshot(failing, pool("dear", price=3.0), units=units(1, STARTING), work=[MUCH], now_s=12.0)
    actions, memory = decide(one, memory)
    assert launched(actions) == {"dear": 100}
    assert "one is tried now" in str(the(actions, Hold).why)
    started = pool(state={"failed": 9, "started": 1})
    works = snapshot(started, **together(busy(1)), work=[MUCH], now_s=20.0)
    assert launched(decided(works, memory)) == {"cpu": 99}


# -- limits that pools share ------------------------------------------------------------------


@pytest.mark.parametrize("names", [("dear", "cheap"), ("cheap", "dear")])
def test_the_order_of_the_pools_is_not_who_gets_what_they_share(names):
    pools = [pool(name, price=3.0 if name == "dear" else 1.0) for name in names]
    assert launched(decided(snapshot(*pools, work=[MUCH], maximum=20))) == {"cheap": 20}
    for_an_hour = snapshot(*pools, work=[MUCH], budget_per_hour=20 * 3600.0)
    assert launched(decided(for_an_hour)) == {"cheap": 20}


@pytest.mark.parametrize("shared", [{"maximum": 20}, {"budget_per_hour": 20 * 3600.0}])
def test_p05_a_limit_that_pools_share_leaves_one_for_work_that_nobody_else_can_do(shared):
    train = work("train", needs={"GPU": 1}, ready=4, duration_s=60.0)
    pools = pool(), pool("gpu", resources={"GPU": 1})
    assert launched(decided(snapshot(*pools, work=[MUCH, train], **shared))) == {"cpu": 19, "gpu": 1}
    # It has one: the others are whoever's comes first.
    world = snapshot(*pools, **together(busy(1, of="gpu")), work=[MUCH, train], **shared)
    assert launched(decided(world)) == {"cpu": 19}


def test_a_limit_that_pools_share_leaves_each_its_minimum():
    pools = pool(), pool("b", minimum=3, price=2.0), pool("c", price=2.0, state={"floor": 2})
    assert launched(decided(snapshot(*pools, work=[MUCH], maximum=20))) == {"cpu": 15, "b": 3, "c": 2}


# -- changes while it runs --------------------------------------------------------------------


def changed(world, **settings):
    """The same world with other settings."""
    return msgspec.structs.replace(world, settings=msgspec.structs.replace(world.settings, **settings))


def test_p14_a_lower_maximum_counts_at_once_though_there_is_work_for_more():
    ten = together(busy(10))
    before, memory = decide(snapshot(pool(maximum=10), **ten, work=[MUCH]), NOTHING)
    assert not let_go(before)
    assert len(let_go(decided(snapshot(pool(maximum=4), **ten, work=[MUCH]), memory))) == 6
    assert launched(decided(snapshot(pool(maximum=12), **ten, work=[MUCH]), memory)) == {"cpu": 2}
    assert len(let_go(decided(snapshot(pool(maximum=0), **ten, work=[MUCH]), memory))) == 10


def test_p14_also_by_hand():
    world = snapshot(pool(maximum=4, state={"manual": 20}), **together(busy(10)))
    assert len(let_go(decided(world))) == 6


def test_p14_a_higher_minimum_counts_at_once():
    _, memory = decide(snapshot(), NOTHING)
    assert launched(decided(snapshot(pool(minimum=5)), memory)) == {"cpu": 5}


def test_p14_by_hand_and_back():
    _, memory = decide(snapshot(pool(state={"manual": 5}), **together(idle(5))), NOTHING)
    assert let_go(decided(snapshot(pool(state={"manual": 2}), **together(idle(5))), memory))
    _, memory = decide(snapshot(**together(idle(5)), now_s=0.5), memory)
    assert len(let_go(decided(snapshot(**together(idle(5)), now_s=60.0), memory))) == 5


@pytest.mark.parametrize(
    ("setting", "less", "more"),
    [("maximum", 6, 60), ("budget_per_hour", 6.0 * 3600, 60.0 * 3600), ("budget_total", 9.0, 99.0)],
)
def test_p14_limits_of_the_cluster(setting, less, more):
    world = snapshot(work=[MUCH], spent=10.0)
    _, memory = decide(changed(world, **{setting: less}), NOTHING)
    small = launched(decided(changed(world, **{setting: less}), memory)).get("cpu", 0)
    large = launched(decided(changed(world, **{setting: more}), memory))["cpu"]
    assert small < large


@pytest.mark.parametrize("setting", ["keep_s", "idle_timeout_s", "tail_s"])
def test_p14_times_of_the_release(setting):
    graph = [work(processing=1, duration_s=1.0)] if setting == "tail_s" else []
    world = snapshot(pool(boot_s=20.0), **together(busy(1), idle(4, start=1)), work=graph, keep_s=10.0)
    before = msgspec.structs.replace(world, work=(work(processing=5, duration_s=1.0),))
    _, memory = decide(before, NOTHING)
    later = msgspec.structs.replace(world, now_s=5.0)
    assert not let_go(decided(changed(later, **{setting: 6.0}), memory))
    assert let_go(decided(changed(later, **{setting: 4.0}), memory))


def test_p14_memory_ratios():
    full = {"held_bytes": 5, "held_keys": 1, "limit_bytes": 10}
    world = snapshot(**together(busy(4, **full)), work=[work(processing=4)])
    assert not launched(decided(changed(world, memory_ratio=0.6)))
    assert launched(decided(changed(world, memory_ratio=0.4))) == {"cpu": 1}
    world = snapshot(pool(state={"manual": 0}), **together(idle(4, **full)))
    assert not let_go(decided(changed(world, fill_ratio=0.6)))
    assert len(let_go(decided(changed(world, fill_ratio=1.0)))) == 2


def test_p14_pauses_after_failures():
    world = snapshot(pool(state={"failed": 1}), work=[MUCH])
    hold = the(decided(changed(world, backoff_s=3.0)), Hold)
    assert hold.why.numbers["wait_s"] == 3.0
    hold = the(decided(changed(world, backoff_s=3.0, backoff_max_s=2.0)), Hold)
    assert hold.why.numbers["wait_s"] == 2.0
