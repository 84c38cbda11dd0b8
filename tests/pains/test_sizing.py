"""How many workers come: as many as the work can use, from the first to the last limit."""

from __future__ import annotations

import math
import os
import time

import dask
import pytest
from records import WorkersSeen, actions, lines, peak, reasons, running
from waiting import wait_until

from dask_tide.model import Launch


def test_p08_unknown_durations_begin_with_one_unit_and_reach_the_maximum_when_tasks_prove_long(tide, tasks):
    cluster = tide(maximum=4)
    with cluster.get_client() as client:
        futures = client.map(tasks.function(gated=True), range(12))
        wait_until(lambda: running(cluster) == 4, "the maximum", detail=cluster.explain)
        tasks.open()
        client.gather(futures)
    launched = [action.count for action in actions(cluster, Launch)]
    assert launched[0] == 1, cluster.explain()
    assert sum(launched) == 4, cluster.explain()


def test_p08_many_short_tasks_of_unknown_duration_do_not_bring_the_maximum(tide, tasks):
    cluster = tide(maximum=6)
    with cluster.get_client() as client:
        client.gather(client.map(tasks.function(), range(100)))
    # One to measure with, and perhaps one that was on its way by then.
    assert peak(cluster) <= 2, cluster.explain()


def test_p08_short_tasks_with_names_of_their_own_are_taken_to_be_alike(tide, tasks):
    """None of them is ever measured before it is over."""
    cluster = tide(maximum=4)
    with cluster.get_client() as client:
        futures = client.map(lambda _: time.sleep(0.3), range(100), key=[f"file_{i}" for i in range(100)])
        wait_until(lambda: running(cluster) == 4, "the maximum", detail=cluster.explain)
        client.gather(futures)


def test_p08_a_hint_of_two_hours_brings_the_maximum_at_once(tide, tasks):
    cluster = tide(maximum=4)
    with cluster.get_client() as client:
        with dask.annotate(duration="2h"):
            futures = client.map(tasks.function(gated=True), range(12))
        wait_until(lambda: running(cluster) == 4, "the maximum", detail=cluster.explain)
        tasks.open()
        client.gather(futures)
    assert [action.count for action in actions(cluster, Launch)] == [4], cluster.explain()


def test_p08_one_endless_task_brings_one_unit(tide, tasks):
    cluster = tide(maximum=4)
    with cluster.get_client() as client:
        with dask.annotate(duration="2h"):
            future = client.submit(tasks.function(gated=True), 0)
        wait_until(lambda: tasks.starts["0"], "its start", detail=cluster.explain)
        tasks.open()
        future.result()
    assert peak(cluster) == 1, cluster.explain()


def test_p20_five_thousand_tasks_never_exceed_the_maximum(tide):
    cluster = tide(maximum=3)
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(abs, range(5000))
        assert sum(client.gather(futures)) == sum(range(5000))
    assert "AT_MAXIMUM" in reasons(cluster)
    assert max(seen.counts) <= 3
    assert peak(cluster) == 3, cluster.explain()


def test_p20_the_default_maximum_is_finite(tide):
    for arguments in ({"maximum": None}, {"maximum": None, "threads_per_worker": 2}):
        pool = tide(**arguments).tide_status()["pools"]["default"]
        assert 1 <= pool["maximum"] <= os.cpu_count()


def test_p20_a_maximum_over_all_pools(tide, tasks):
    pools = {
        "one": {"maximum": 3, "memory": "1 GiB", "resources": {"one": 1}},
        "two": {"maximum": 3, "memory": "1 GiB", "resources": {"two": 1}},
    }
    cluster = tide(pools=pools, limits={"maximum": 3})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        futures = []
        for x, resource in enumerate(["one", "two"]):
            with dask.annotate(duration="1h", resources={resource: 1}):
                futures += client.map(tasks.function(gated=True), range(10 * x, 10 * x + 3))
        wait_until(lambda: running(cluster) == 3, "the maximum", detail=cluster.explain)
        tasks.open()
        # With three of one pool there, those of the other come when the first have gone.
        assert sorted(client.gather(futures)) == [0, 1, 2, 10, 11, 12]
    assert max(seen.counts) == 3, cluster.explain()
    assert peak(cluster) == 3, cluster.explain()


def test_p20_a_budget_per_hour(tide, tasks):
    pool = {"maximum": 4, "memory": "1 GiB", "price": 0.5}
    cluster = tide(pools={"default": pool}, limits={"budget-per-hour": 3600})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(8))
        wait_until(lambda: running(cluster) == 2, "what the budget allows", detail=cluster.explain)
        wait_until(lambda: "BUDGET" in reasons(cluster), "why there are no more")
        tasks.open()
        client.gather(futures)
    assert max(seen.counts) == 2
    assert peak(cluster) == 2, cluster.explain()


def test_p22_three_tasks_bring_three_workers(tide, tasks):
    cluster = tide(maximum=6)
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="2h"):
            futures = client.map(tasks.function(gated=True), range(3))
        wait_until(lambda: len(tasks.starts) == 3, "three running tasks", detail=cluster.explain)
        tasks.open()
        assert client.gather(futures) == [0, 1, 2]
    assert max(seen.counts) == 3, cluster.explain()
    assert peak(cluster) == 3, cluster.explain()


@pytest.mark.parametrize("hint", ["2h", None])
@pytest.mark.parametrize(("count", "expected"), [(8, 1), (20, 3), (40, 4)])
def test_p23_units_of_eight_threads_are_counted_in_slots_from_zero(tide, tasks, count, expected, hint):
    cluster = tide(maximum=4, threads_per_worker=8)
    assert expected == min(4, math.ceil(count / 8))
    with cluster.get_client() as client:
        with dask.annotate(**({"duration": hint} if hint else {})):
            futures = client.map(tasks.function(gated=True), range(count))
        wait_until(lambda: len(tasks.starts) == min(count, 32), "all slots at work", detail=cluster.explain)
        wait_until(lambda: running(cluster) == expected, "as many units", detail=cluster.explain)
        tasks.open()
        client.gather(futures)
    assert peak(cluster) == expected, cluster.explain()


def test_p25_every_newcomer_gets_work(tide, tasks):
    cluster = tide(maximum=3)
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        client.gather(client.map(tasks.function(0.6), range(24)))
    assert set(seen.names) == set(tasks.ran_on), cluster.explain()


def test_p22_no_work_no_worker(tide):
    cluster = tide()
    with cluster.get_client():
        first_s = wait_until(lambda: lines(cluster), "the first tick")[0].at_s
        wait_until(lambda: cluster.controller.latest.at_s > first_s + 1, "some more ticks")
    assert not actions(cluster, Launch)
    assert reasons(cluster) == {"NO_WORK"}
