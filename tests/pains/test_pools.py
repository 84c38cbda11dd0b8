"""Several pools: each gets exactly what its own tasks can use, and only it gives back."""

from __future__ import annotations

import dask
import pytest
from dask import delayed
from records import WorkersSeen, actions, peak, reasons, running, units, workers
from waiting import wait_until

from dask_tide.model import Drain, Launch, Release


def two_pools(cpu: int = 3, gpu: int = 2, **of_cpu):
    """A plain pool and one with a GPU each."""
    return {
        "cpu": {"memory": "1 GiB", "maximum": cpu, **of_cpu},
        "gpu": {"memory": "1 GiB", "maximum": gpu, "resources": {"GPU": 1}},
    }


def victims(cluster, pool=None):
    """Units that were drained or released, by decision."""
    return [
        unit
        for action in actions(cluster, Drain) + actions(cluster, Release)
        if pool in (None, action.pool)
        for unit in action.units
    ]


def test_p05_a_mixed_graph_gets_the_exact_count_of_each_pool(tide, tasks):
    # Dask gives plain tasks to any worker, also to one with a GPU should that come first: so these say
    # what they want.
    cluster = tide(pools=two_pools(cpu=4, gpu=3, resources={"CPU": 1}))
    with cluster.get_client() as client:
        with dask.annotate(duration="1h", resources={"CPU": 1}):
            futures = client.map(tasks.function(gated=True), [1, 2])
        with dask.annotate(duration="1h", resources={"GPU": 1}):
            futures += client.map(tasks.function(gated=True), [3])
        wait_until(lambda: len(tasks.starts) == 3, "all three at work", detail=cluster.explain)
        wait_until(
            lambda: (running(cluster, "cpu"), running(cluster, "gpu")) == (2, 1),
            "a unit for each",
            detail=cluster.explain,
        )
        tasks.open()
        assert client.gather(futures) == [1, 2, 3]
    assert (peak(cluster, "cpu"), peak(cluster, "gpu")) == (2, 1), cluster.explain()
    on_gpu = [name for name in tasks.ran_on if "-gpu-" in name]
    assert [tasks.ran_on[name] for name in on_gpu] == [1]


def test_p05_a_graph_through_both_pools(tide, tasks):
    cluster = tide(pools=two_pools())
    with cluster.get_client() as client:
        load, train = delayed(tasks.function()), delayed(tasks.function())
        loaded = [load(x, dask_key_name=("load", x)) for x in range(2)]
        with dask.annotate(resources={"GPU": 1}):
            trained = [train(10 + x, part, dask_key_name=("train", x)) for x, part in enumerate(loaded)]
        joined = delayed(sum)(trained)
        assert client.compute(joined, optimize_graph=False).result() == 10 + 11
    assert max(tasks.starts.values()) == 1
    assert sum(count for name, count in tasks.ran_on.items() if "-gpu-" in name) == 2, tasks.ran_on


@pytest.mark.parametrize("by_hand", [True, False])
def test_p06_victims_only_from_the_shrinking_pool(tide, tasks, by_hand):
    cluster = tide(pools=two_pools(cpu=2, gpu=2), release={"keep": "0s", "tail": "0s"})
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            busy = client.map(tasks.function(gated=True), [1, 2])
        wait_until(lambda: len(tasks.starts) == 2, "the plain ones at work", detail=cluster.explain)
        with dask.annotate(duration="1h", resources={"GPU": 1}):
            gpu = client.map(tasks.function(gated=True, gate="gpu"), [3, 4])
        wait_until(lambda: len(tasks.starts) == 4, "all four at work", detail=cluster.explain)
        names = {
            pool: {u.name for u in cluster.workers.values() if u.pool == pool} for pool in ("cpu", "gpu")
        }
        if by_hand:
            cluster.scale(2, pool="gpu")
        tasks.open("gpu")
        client.gather(gpu)
        del gpu
        if by_hand:
            cluster.scale(0, pool="gpu")
        wait_until(lambda: not units(cluster, "gpu"), "the other pool's end", detail=cluster.explain)
        assert set(victims(cluster)) == names["gpu"], cluster.explain()
        assert running(cluster, "cpu") == 2
        tasks.open()
        assert client.gather(busy) == [1, 2]
    assert max(tasks.starts.values()) == 1


def test_p07_thirty_gpu_tasks_bring_gpu_units_only(tide, tasks):
    cluster = tide(pools=two_pools(cpu=4, gpu=2, minimum=2))
    seen = WorkersSeen(cluster)
    wait_until(lambda: running(cluster, "cpu") == 2, "the minimum", detail=cluster.explain)
    with cluster.get_client() as client:
        with dask.annotate(duration="10m", resources={"GPU": 1}):
            futures = client.map(tasks.function(gated=True), range(30))
        wait_until(lambda: running(cluster, "gpu") == 2, "the pool's maximum", detail=cluster.explain)
        tasks.open()
        client.gather(futures)
        assert all("-gpu-" in name for name in tasks.ran_on)
        assert [action.count for action in actions(cluster, Launch) if action.pool == "cpu"] == [2]
        assert not victims(cluster, "cpu"), cluster.explain()
    assert sum("-cpu-" in name for name in seen.names) == 2


def test_p07_gpus_are_no_place_for_plain_tasks(tide, tasks):
    cluster = tide(pools=two_pools(cpu=1, gpu=2))
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(4))
        wait_until(lambda: "AT_MAXIMUM" in reasons(cluster), "why not more", detail=cluster.explain)
        tasks.open()
        client.gather(futures)
    assert peak(cluster, "gpu") == 0, cluster.explain()


def test_p07_what_nobody_can_run_is_said_at_once_and_once(tide, warned):
    cluster = tide(pools=two_pools())
    with cluster.get_client() as client:
        with dask.annotate(resources={"TPU": 2}):
            future = client.submit(abs, -1, key="needs-a-tpu")
        wait_until(lambda: "needs-a-tpu" in cluster.explain(), "explanation", detail=cluster.explain)
        first_s = cluster.controller.latest.at_s
        wait_until(lambda: cluster.controller.latest.at_s > first_s + 1, "some more ticks")
        (warning,) = warned
        for text in (cluster.explain(), client.sync(client.scheduler.tide_explain), warning):
            assert "needs-a-tpu can never run here" in text
            assert "a task asks for TPU=2" in text
            assert "pool gpu offers GPU=1" in text
        assert not workers(cluster)
        future.cancel()
        wait_until(
            lambda: "needs-a-tpu" not in cluster.controller.latest.actions[-1].why.numbers.values(), "its end"
        )
    assert not actions(cluster, Launch), cluster.explain()


def test_p07_a_task_that_asks_for_too_much_of_a_resource_does_not_hold_up_the_others(tide, warned):
    cluster = tide(pools=two_pools(gpu=1))
    with cluster.get_client() as client:
        with dask.annotate(resources={"GPU": 2}):
            never = client.submit(abs, -1, key="two-gpus")
        with dask.annotate(resources={"GPU": 1}):
            assert client.submit(abs, -2).result() == 2
        assert client.submit(abs, -3).result() == 3
        assert not never.done()
    assert [message for message in warned if "two-gpus" in message and "GPU=2" in message], warned
