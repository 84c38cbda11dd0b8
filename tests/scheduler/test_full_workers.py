"""Workers whose memory is full of what their tasks have leaked."""

from __future__ import annotations

import gates
import pytest
from distributed.core import Status
from harbour import KEEP
from waiting import until

_ONE = {"default": {"memory": "4 GiB", "maximum": 1}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)


def fill(worker):
    """Its memory is full from now on, and it pauses."""
    worker.memory_manager.memory_pause_fraction = 1e-6


async def test_tasks_that_wait_on_a_full_worker_run_on_the_next_one(harbour):
    """At the maximum nobody else is there who could fetch them before it is gone."""
    h = await harbour(**KEEP, pools=_ONE)
    leaks = h.client.submit(gates.held, "leaks")
    await until(lambda: gates.starts("leaks"), "it runs")
    [leaky] = await h.running(1)
    others = [h.client.submit(gates.quick, f"other-{i}", i) for i in range(3)]
    await until(lambda: len(h.worker(leaky).processing) > 1, "one of them waits there")
    fill(*h.provider.workers(leaky))
    await until(lambda: h.worker(leaky).status is Status.paused, "it is paused")
    await h.tick(5)
    assert h.provider.names == [leaky], "it is busy"
    leaks.release()
    gates.let("leaks")
    assert await h.client.gather(others) == [0, 1, 2]
    assert leaky not in h.provider.names
    assert h.told("FULL")
    assert [gates.starts(f"other-{i}") for i in range(3)] == [1, 1, 1]
    assert {ts.suspicious for ts in h.scheduler.tasks.values()} == {0}
