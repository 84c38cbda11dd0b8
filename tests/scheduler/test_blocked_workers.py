"""Workers whose threads run what was cancelled."""

from __future__ import annotations

import asyncio

import gates
import pytest
from distributed.core import Status
from harbour import KEEP
from waiting import until

_ONE = {"default": {"memory": "1 GiB", "maximum": 1}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)


async def blocked(h, **options):
    """A worker whose only thread runs what was cancelled; its unit."""
    forgotten = h.client.submit(gates.held, "forgotten", **options)
    await until(lambda: gates.starts("forgotten"), "it runs")
    await forgotten.cancel()
    (ws,) = [ws for ws in h.scheduler.workers.values() if not options or ws.address in options["workers"]]
    await until(lambda: not ws.processing, "it was cancelled")
    return ws.name


async def test_at_the_maximum_too_what_waits_there_runs_on_the_next_one(harbour, monkeypatch):
    monkeypatch.setattr("dask_tide.controller.drain._STUCK_S", 2.0)
    h = await harbour(**KEEP, pools=_ONE)
    unit = await blocked(h)
    later = [h.client.submit(gates.quick, f"later-{i}", i) for i in range(3)]
    assert await asyncio.wait_for(h.client.gather(later), 60) == [0, 1, 2]
    assert [gates.starts(f"later-{i}") for i in range(3)] == [1, 1, 1]
    assert unit not in h.provider.names
    assert h.told("BLOCKED")
    assert not h.told("DRAIN_REFUSED")


async def test_it_stays_while_tasks_may_run_only_there(harbour):
    h = await harbour(**KEEP)
    there, other = (h.worker(unit) for unit in await h.scaled(2))
    h.controller.adapt(minimum=0, maximum=2)
    unit = await blocked(h, workers=[there.address])
    first = h.client.submit(gates.held, "first", 1, workers=[other.address])
    bound = h.client.submit(gates.quick, "bound", 2, first, workers=[there.address])
    waits = h.client.submit(gates.quick, "waits", 3, workers=[there.address], allow_other_workers=True)
    await until(lambda: any(w.stuck for w in h.controller.snapshot.workers), "it is seen")
    await h.tick(5)
    assert unit in h.provider.names
    gates.let()
    assert await asyncio.wait_for(h.client.gather([first, bound, waits]), 60) == [1, 2, 3]


async def test_once_the_thread_has_ended_it_goes_on(harbour):
    """A drain under way is refused: the platform may have no room for another one."""
    h = await harbour(**KEEP, pools=_ONE)
    unit = await blocked(h)
    later = [h.client.submit(gates.quick, f"later-{i}", i) for i in range(3)]
    (worker,) = h.provider.workers(unit)
    await until(lambda: worker.status is Status.closing_gracefully, "it is being replaced")
    gates.let("forgotten")
    assert await asyncio.wait_for(h.client.gather(later), 60) == [0, 1, 2]
    assert h.provider.names == [unit]
    await until(lambda: h.told("DRAIN_REFUSED"), "a tick takes it down")
    assert "has free threads again" in str(h.told("DRAIN_REFUSED")[0].why)
    assert h.worker(unit).status is Status.running
