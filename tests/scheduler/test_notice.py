"""A machine is about to be taken away: what its worker holds and runs is safe, and another one is there."""

from __future__ import annotations

import gates
import pytest
from harbour import KEEP
from waiting import until

from dask_tide.model import Code, Phase


async def by_platform(h, unit):
    h.provider.doomed[unit] = "its node is to be disrupted"


async def by_its_own_watcher(h, unit):
    await h.client.scheduler.tide_notice(worker=unit, message="its node is to be disrupted")


@pytest.mark.parametrize("notice", [by_platform, by_its_own_watcher])
async def test_p11_a_notice_under_a_busy_worker_that_holds_results(harbour, notice):
    h = await harbour(**KEEP)
    doomed, other = await h.scaled(2)
    h.controller.adapt(minimum=2, maximum=4)
    there = {"workers": [h.worker(doomed).address], "allow_other_workers": True}
    results = []
    for x in range(3):  # one by one: no further unit is wanted
        results.append(h.client.submit(gates.quick, f"q{x}", x, key=f"result-{x}", **there))
        await results[-1]
    task = h.client.submit(gates.held, "long", "done", **there)
    await until(lambda: gates.starts("long") == 1, "it runs")
    asked = len(h.provider.called("scale_up"))
    h.provider.boot = 0.5

    await notice(h, doomed)
    await until(
        lambda: len(h.provider.called("scale_up")) > asked,
        "a replacement is asked for",
        detail=h.units,
    )
    assert h.worker(doomed).processing, "before the work there has ended"
    kept = [ts for ts in h.scheduler.tasks.values() if ts.who_has]
    await until(
        lambda: all({ws.name for ws in ts.who_has} - {doomed} for ts in kept),
        "its results are elsewhere, while it works",
    )
    gates.let("long")
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert await h.client.gather([*results, task]) == [0, 1, 2, "done"]
    assert [gates.starts(name) for name in ("q0", "q1", "q2", "long")] == [1, 1, 1, 1]
    await until(lambda: len(h.units(Phase.RUNNING)) == 2, "as many as before")
    assert "to be disrupted" in str(h.told(Code.DOOMED.name)[0].why)
    assert other in h.provider.names


async def test_the_only_worker_waits_for_the_one_that_replaces_it(harbour):
    h = await harbour(**KEEP)
    (doomed,) = await h.scaled(1)
    h.controller.adapt(minimum=1, maximum=4)
    result = h.client.submit(gates.quick, "only", 7)
    assert await result == 7
    h.provider.boot = 0.5
    h.provider.doomed[doomed] = "its node is to be disrupted"
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert await result == 7
    assert gates.starts("only") == 1


async def test_what_nobody_has_is_no_notice(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    await h.client.scheduler.tide_notice(worker="somebody", message="goes")
    await h.tick(3)
    assert [u.phase for u in h.units()] == [Phase.RUNNING]
    assert h.provider.names == [unit]
