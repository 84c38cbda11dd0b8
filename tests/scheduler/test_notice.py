"""A machine is about to be taken away: what its worker holds and runs is safe, and another one is there."""

from __future__ import annotations

import gates
import pytest
from distributed import secede
from harbour import KEEP
from waiting import until

from dask_tide.model import Code, Phase


class Counter:
    """An actor."""


def seceded(name):
    secede()
    return gates.held(name, name)


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


@pytest.mark.parametrize("minimum", [0, 1])
async def test_the_only_worker_waits_for_the_one_that_replaces_it(harbour, minimum):
    """Whether or not there is any task left, or anybody wants a worker otherwise."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    (doomed,) = await h.scaled(1)
    result = h.client.submit(gates.quick, "only", 7)
    assert await result == 7
    h.controller.adapt(minimum=minimum, maximum=4)
    h.provider.boot = 0.5
    h.provider.doomed[doomed] = "its node is to be disrupted"
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert await result == 7
    assert gates.starts("only") == 1
    (other,) = await h.running(1)
    await h.tick(3)
    assert h.provider.names == [other], "it holds the result, and no further one comes"
    del result
    if not minimum:
        await h.running(0)


async def test_who_was_asked_for_at_a_notice_stays_when_the_task_has_ended_meanwhile(harbour):
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    (doomed,) = await h.scaled(1)
    result = h.client.submit(gates.held, "long", "done")
    await until(lambda: gates.starts("long") == 1, "it runs")
    h.controller.adapt(minimum=0, maximum=4)
    h.provider.boot = 3.0
    h.provider.doomed[doomed] = "its node is to be disrupted"
    await until(lambda: len(h.provider.names) == 2, "another one is on its way", detail=h.units)
    (other,) = set(h.provider.names) - {doomed}
    gates.let("long")
    assert await result == "done"
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert h.provider.names == [other]
    assert await result == "done"
    assert gates.starts("long") == 1


async def test_results_do_not_go_to_another_worker_of_the_machine(harbour):
    h = await harbour(**KEEP)
    first, second, other = await h.scaled(3)
    h.controller.adapt(minimum=0, maximum=3)
    # It stays where it is: a drain of it would be refused.
    actor = await h.client.submit(Counter, actor=True, workers=[h.worker(second).address])
    data = {f"only-copy-{i}": "data" for i in range(12)}
    kept = await h.client.scatter(data, workers=[h.worker(first).address])
    h.provider.doomed |= dict.fromkeys((first, second), "their node is to be disrupted")
    await until(lambda: first not in h.provider.names, "it is gone", detail=h.units)
    assert {ws.name for key in data for ws in h.scheduler.tasks[key].who_has} == {other}
    assert await h.client.gather(kept) == data
    del actor


async def test_tasks_that_have_seceded_do_not_keep_what_a_doomed_worker_holds(harbour):
    h = await harbour(**KEEP)
    doomed, other = await h.scaled(2)
    h.controller.adapt(minimum=0, maximum=4)
    there = {"workers": [h.worker(doomed).address], "allow_other_workers": True}
    kept = await h.client.scatter({"only-copy": "data"}, workers=[h.worker(doomed).address])
    task = h.client.submit(seceded, "long", **there)
    await until(lambda: h.worker(doomed).long_running, "it has seceded")
    h.provider.doomed[doomed] = "its node is to be disrupted"
    await until(
        lambda: {ws.name for ws in h.scheduler.tasks["only-copy"].who_has} - {doomed},
        "its results are elsewhere, while it works",
        detail=h.units,
    )
    gates.let("long")
    assert await task == "long"
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert await h.client.gather(kept) == {"only-copy": "data"}
    assert other in h.provider.names


async def test_what_nobody_has_is_no_notice(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    await h.client.scheduler.tide_notice(worker="somebody", message="goes")
    await h.tick(3)
    assert [u.phase for u in h.units()] == [Phase.RUNNING]
    assert h.provider.names == [unit]


@pytest.mark.parametrize("notice", [by_platform, by_its_own_watcher])
async def test_that_a_task_may_run_there_only_does_not_keep_a_worker_on_a_doomed_machine(harbour, notice):
    """The task is lost with the machine in any case; the results that are there need not be."""
    h = await harbour(**KEEP)
    doomed, other = await h.scaled(2)
    h.controller.adapt(minimum=1, maximum=4)
    address = {unit: h.worker(unit).address for unit in (doomed, other)}
    result = h.client.submit(gates.quick, "result", 1, workers=[address[doomed]])
    await result
    held = h.client.submit(gates.held, "held", workers=[address[other]])
    after = h.client.submit(gates.quick, "after", 2, held, workers=[address[doomed]])
    await until(lambda: gates.starts("held"), "it runs")
    await notice(h, doomed)
    await until(lambda: doomed not in h.provider.names, "it is gone", detail=h.units)
    assert await result == 1
    assert gates.starts("result") == 1, "it was handed over"
    await until(lambda: h.told(Code.DOOMED.name), "it is told")
    gates.let()
    await held
    await until(lambda: h.scheduler.unrunnable, "nobody can run it")
    assert not after.done()
    await until(
        lambda: any(action.why.code == Code.BOUND.name for action in h.controller.preview().actions),
        "it is told",
    )
