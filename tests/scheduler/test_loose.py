"""Tasks that would rather run on certain workers than on others."""

from __future__ import annotations

import asyncio

import gates
import pytest
from distributed.core import Status
from harbour import KEEP
from waiting import until


@pytest.mark.parametrize("workers", [["127.0.0.1:1"], ["no-such-host"]], ids=str)
async def test_tasks_that_may_run_elsewhere_do_so_from_nothing_and_again(harbour, workers):
    """Dask forgets those with ``allow_other_workers=True`` for which nobody was there when they came."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    for turn in ("first", "second"):
        futures = [
            h.client.submit(gates.quick, f"{turn}-{i}", i, workers=workers, allow_other_workers=True)
            for i in range(3)
        ]
        plain = h.client.submit(gates.quick, f"{turn}-plain", 3)
        assert await asyncio.wait_for(h.client.gather([*futures, plain]), 30) == [0, 1, 2, 3]
        del futures, plain
        await h.running(0)
    assert [gates.starts(f"first-{i}") for i in range(3)] == [1, 1, 1]


async def test_also_when_a_worker_was_paused_meanwhile(harbour):
    h = await harbour(**KEEP, pools={"default": {"memory": "4 GiB", "maximum": 1}})
    (unit,) = await h.scaled(1)
    (worker,) = h.provider.workers(unit)
    before = worker.memory_manager.memory_pause_fraction
    worker.memory_manager.memory_pause_fraction = 1e-6
    await until(lambda: h.worker(unit).status is Status.paused, "it is paused")
    future = h.client.submit(gates.quick, "x", 1, workers=["127.0.0.1:1"], allow_other_workers=True)
    await until(lambda: h.scheduler.unrunnable, "it waits")
    await h.tick(2)
    worker.memory_manager.memory_pause_fraction = before
    assert await asyncio.wait_for(future, 30) == 1


async def test_what_needs_resources_runs_where_they_are(harbour):
    """And on no other one."""
    pools = {"cpu": {"memory": "1 GiB"}, "gpu": {"memory": "1 GiB", "resources": {"GPU": 1}}}
    h = await harbour(**KEEP, pools=pools)
    where = {"workers": ["127.0.0.1:1"], "allow_other_workers": True}
    train = h.client.submit(gates.held, "train", 1, resources={"GPU": 1}, **where)
    plain = h.client.submit(gates.quick, "plain", 2, **where)
    await until(lambda: gates.starts("train"), "it runs")
    assert h.scheduler.tasks[train.key].processing_on.resources == {"GPU": 1}
    gates.let()
    assert await asyncio.wait_for(h.client.gather([train, plain]), 30) == [1, 2]


async def test_those_that_may_not_or_need_resources_wait(harbour):
    h = await harbour(**KEEP)
    where = {"workers": ["127.0.0.1:1"]}
    bound = h.client.submit(gates.quick, "bound", **where)
    train = h.client.submit(gates.quick, "train", resources={"GPU": 1}, allow_other_workers=True, **where)
    await until(lambda: len(h.scheduler.unrunnable) == 2, "they wait")
    await h.scaled(1)
    assert await h.client.submit(gates.quick, "plain", 1) == 1
    await h.tick(2)
    assert len(h.scheduler.unrunnable) == 2
    del bound, train
