"""What tasks have submitted, persisted or scattered, and left futures of, outlives planned exits."""

from __future__ import annotations

import asyncio

import pytest
from distributed import get_client
from waiting import wait_until

MIB = 2**20


def double(x):
    return 2 * x


def first(x, *others):
    return x


def futures():
    """Ask for others, as a task; nobody else has futures of these."""
    client = get_client()
    (scattered,) = client.scatter([{"scattered": 3}])
    return {"submitted": client.submit(double, 21, pure=False), "scattered": scattered}


def waiting_futures(wait):
    wait("busy")
    return futures()


def own(wait=None):
    """A task that lets its own ones go, or fails with them."""
    ours = futures()
    if wait is not None:
        wait("busy")
        raise RuntimeError(ours)
    return get_client().gather(list(ours.values()))


@pytest.fixture
def two(tide, monkeypatch):
    """A cluster with two workers, and their addresses by name; who has less to move will go first."""
    monkeypatch.setattr("dask_tide.controller.loop._BELIEVE_S", 0.0)
    cluster = tide(maximum=2, release={"keep": "100ms", "tail": "100ms"})
    cluster.scale(2)
    wait_until(lambda: len(cluster.scheduler.running) == 2, "two workers", detail=cluster.explain)
    return cluster, {ws.name: ws.address for ws in list(cluster.scheduler.workers.values())}


async def rounds(manager):
    """Dask removes what has been copied in the next of them, and the futures in it with it."""
    for _ in range(20):
        manager.run_once()
        await asyncio.sleep(0.02)


def finished(scheduler, count):
    """Whether there are so many tasks, all of them in memory."""
    return [ts.state for ts in list(scheduler.tasks.values())] == ["memory"] * count


def told(cluster, code):
    return [e for line in cluster.controller.journal.recent for e in line.events if e.why.code == code]


@pytest.mark.parametrize("runs", [None, "the same", "another one"])
def test_what_a_task_has_left_futures_of_is_kept(two, tasks, runs):
    """They were forgotten with their worker, though the result that they are in had been copied."""
    cluster, addresses = two
    (leaver, here), (_, there) = addresses.items()
    with cluster.get_client() as client:
        large = client.scatter(b"x" * MIB, workers=[there])
        if runs == "the same":
            kept, busy = client.submit(waiting_futures, tasks.function(gated=True), workers=[here]), []
        else:
            kept = client.submit(futures, workers=[here])
            wait_until(lambda: finished(cluster.scheduler, 4), "all that it has asked for is there")
            busy = [client.submit(tasks.function(gated=True), "busy", workers=[here])] if runs else []
        if runs:
            busy.append(client.submit(tasks.function(gated=True), "also", workers=[there]))
            wait_until(lambda: tasks.starts.keys() == {"busy", "also"}, "both are busy")
        cluster.scale(1)
        if runs:
            leaving, manager = cluster.scheduler.workers[here], cluster.scheduler.extensions["amm"]
            wait_until(lambda: leaving not in cluster.scheduler.running, "it drains", detail=cluster.explain)
            cluster.sync(rounds, manager)
            tasks.open()
        wait_until(lambda: told(cluster, "DRAIN_REFUSED"), "it is refused", detail=cluster.explain)
        assert "tasks have left the only 2 futures" in str(told(cluster, "DRAIN_REFUSED")[0].why)
        wait_until(lambda: list(cluster.workers) == [leaver], "the other one goes", detail=cluster.explain)
        values = kept.result()
        assert client.submit(first, values["submitted"]).result(timeout=60) == 42
        assert client.submit(first, values["scattered"]).result(timeout=60) == {"scattered": 3}
        assert len(large.result()) == MIB
        del kept, busy, large, values
        cluster.adapt(minimum=0, maximum=2)
        wait_until(lambda: not cluster.workers, "it goes once nobody wants them", detail=cluster.explain)


def test_what_tasks_have_let_go_keeps_nobody(two, tasks):
    cluster, addresses = two
    (_, here), (other, there) = addresses.items()
    with cluster.get_client() as client:
        assert client.submit(own, workers=[here]).result() == [42, {"scattered": 3}]
        failed = client.submit(own, tasks.function(gated=True), workers=[here])
        large = client.scatter(b"x" * MIB, workers=[there])
        tasks.open()
        wait_until(failed.done, "it fails")
        cluster.scale(1)
        wait_until(lambda: list(cluster.workers) == [other], "it goes", detail=cluster.explain)
        assert not told(cluster, "DRAIN_REFUSED")
        assert len(large.result()) == MIB
