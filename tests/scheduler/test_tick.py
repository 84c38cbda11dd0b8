"""Ticks: what the controller does when the platform, the work or somebody's wishes change."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from dataclasses import replace

import gates
import msgspec
import pytest
from distributed import Scheduler, Worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from harbour import KEEP
from waiting import until

from dask_tide.controller.attach import attach
from dask_tide.errors import CapacityExhausted, LaunchRejected, QuotaExceeded, Unavailable
from dask_tide.model import TRANSITIONS, Drain, Phase, Release, why
from dask_tide.model.reasons import Code
from dask_tide.providers.base import Limit
from dask_tide.testing import RecordingProvider

_AT_ONCE = {"release": {"keep": "0s", "tail": "0s"}}


@pytest.fixture(autouse=True)
def phases(monkeypatch, caplog):
    """Units take no way through their phases that the table does not know."""
    from dask_tide.controller.ledger import Ledger

    known: dict[str, Phase] = {}
    update = Ledger.update

    def checked(self, *args):
        units = update(self, *args)
        for unit in units:
            before = known.get(unit.name, Phase.REQUESTED)
            assert unit.phase is before or unit.phase in TRANSITIONS[before], (unit, before)
            known[unit.name] = unit.phase
        return units

    monkeypatch.setattr(Ledger, "update", checked)
    yield
    assert "should not be" not in caplog.text


async def test_blind_pool_is_left_alone(harbour):
    h = await harbour(**_AT_ONCE)
    await h.scaled(2)
    h.provider.unavailable = Unavailable("connection refused", retry_after_s=0.05)
    await until(lambda: h.controller.snapshot.pools[0].blind == "connection refused", "it is blind")
    calls = len(h.provider.calls)
    h.controller.scale(4)
    await h.tick(3)
    h.controller.scale(0)
    await h.tick(3)
    assert {call.method for call in h.provider.calls[calls:]} == {"observe"}
    assert len(h.units(Phase.RUNNING)) == len(h.scheduler.workers) == 2
    assert h.told("BLIND")
    assert "connection refused" in await h.client.scheduler.tide_explain()
    h.provider.unavailable = None
    await h.running(0)


async def test_unavailable_platform_is_asked_when_it_wants(harbour):
    h = await harbour()
    await h.tick()
    h.provider.unavailable = Unavailable("slow down", retry_after_s=3600)
    await until(lambda: h.controller.snapshot.pools[0].blind, "it is blind")
    calls = len(h.provider.calls)
    await h.tick(5)
    assert len(h.provider.calls) == calls
    assert h.controller.snapshot.pools[0].blind == "slow down", "the reason stays known"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError("by a library")], ids=type)
async def test_a_failed_tick_is_logged_and_the_next_one_follows(harbour, error, monkeypatch, caplog):
    """Also where a provider's library has cancelled what the tick waits for."""
    h = await harbour()
    await h.tick()
    observe, left = h.provider.observe, 2

    async def broken():
        nonlocal left
        if left:
            left -= 1
            raise error
        return await observe()

    monkeypatch.setattr(h.provider, "observe", broken)
    h.controller.wake()
    await until(lambda: h.controller.errors == 2, "two ticks have failed")
    await h.tick()
    assert f"{type(error).__name__}: {error}" in caplog.text
    assert (await h.client.scheduler.tide_status())["errors"] == 2
    await h.scaled(1)


async def test_a_slow_answer_does_not_make_ticks_rare(harbour, monkeypatch):
    """Only what holds up the event loop counts against the controller's share of it."""
    h = await harbour(**KEEP)
    scale_up = h.provider.scale_up

    async def slow(pool, n):
        await asyncio.sleep(0.5)
        await scale_up(pool, n)

    monkeypatch.setattr(h.provider, "scale_up", slow)
    h.controller.scale(1)
    await h.running(1)
    assert h.controller._pace.pause_s < 0.5


@pytest.mark.parametrize("error", [CapacityExhausted, QuotaExceeded])
async def test_no_capacity_caps_the_pool_for_a_while(harbour, error, monkeypatch):
    monkeypatch.setattr("dask_tide.controller.supply._BELIEVE_S", 0.5)
    h = await harbour(**KEEP)
    await h.scaled(1)
    h.provider.refusal = error("no more of these machines")
    h.controller.scale(3)
    await until(lambda: h.told("NO_CAPACITY"), "it is told")
    began_s, calls = time.monotonic(), len(h.provider.called("scale_up"))
    await h.tick(10)
    took_s = time.monotonic() - began_s
    assert len(h.provider.called("scale_up")) - calls <= 1 + took_s / 0.5
    assert h.controller.snapshot.pools[0].capacity in (1, None)
    h.provider.refusal = None
    await h.running(3)


async def test_observed_limit_holds_as_long_as_it_is_observed(harbour):
    h = await harbour(**KEEP)
    await h.tick()
    h.provider.limits = (Limit("default", 2, "quota of 2"),)
    h.controller.scale(4)
    await h.running(2)
    await h.tick(3)
    assert h.provider.called("scale_up") == [("default", 2)]
    assert "quota of 2" in str(h.told("NO_CAPACITY")[-1].why)
    *_, last = (await h.client.scheduler.tide_explain(lines=0)).splitlines()
    assert "quota of 2" in last
    assert "asked for" not in last
    h.provider.limits = ()
    await h.running(4)


async def test_rejected_launches_back_off(harbour):
    h = await harbour(start={"backoff": "10s", "backoff-maximum": "1m"})
    await h.tick()
    h.provider.refusal = LaunchRejected("no such image")
    h.controller.scale(2)
    await until(lambda: h.told("BACKOFF"), "it waits")
    await h.tick(5)
    assert len(h.provider.called("scale_up")) == 1
    assert "no such image" in str(h.told("BACKOFF")[-1].why)


async def test_failed_starts_are_replaced_with_backoff_and_say_why(harbour):
    def setup(provider):
        provider.failure, provider.failures = "Illegal instruction", 2

    h = await harbour(setup=setup, start={"backoff": "20ms", "backoff-maximum": "40ms"}, **KEEP)
    h.controller.scale(1)
    await h.running(1)
    record = h.controller.ledger.records["default"]
    assert (record.failed, record.started) == (2, 1)
    assert record.failure == "Illegal instruction"
    assert "Illegal instruction" in await h.client.scheduler.tide_explain()


async def test_failed_unit_whose_worker_seems_to_be_there_is_replaced(harbour):
    """A machine that dies closes no connection: the scheduler misses its worker minutes later."""
    h = await harbour(**KEEP)
    (lost,) = await h.scaled(1)
    unit = h.provider._units[lost]
    unit.phase, unit.message = Phase.FAILED, "node lost"
    h.controller.wake()
    await until(lambda: lost not in h.provider.names and h.provider.names, "another one is there")
    await h.running(1)


async def test_hanging_launch_ends(harbour, monkeypatch):
    monkeypatch.setattr("dask_tide.controller.supply._PROVIDER_S", 0.2)
    h = await harbour(**KEEP)
    h.provider.hangs = True
    h.controller.scale(1)
    await until(lambda: h.told("PROVIDER"), "it is told")
    h.provider.hangs = False
    await h.running(1)
    assert h.controller.errors == 0


async def test_release_that_the_platform_did_not_hear_is_repeated(harbour):
    h = await harbour(**_AT_ONCE)
    h.provider.boot = asyncio.Event()
    h.controller.scale(1)
    await until(lambda: h.units(Phase.STARTING), "it starts")
    h.provider.keeps = Unavailable("not now", retry_after_s=0.01)
    h.controller.scale(0)
    await until(lambda: h.provider.called("scale_down"), "it was tried")
    h.provider.keeps = None
    await until(lambda: not h.provider.names, "it is gone")


async def test_victim_that_became_busy_is_spared(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    await h.tick()
    ws, stale = h.worker(unit), h.controller.snapshot
    future = h.client.submit(gates.held, "task")
    await until(lambda: ws.processing, "it is busy")
    workers = ((str(ws.name), ws.address),)
    reason = why(Code.NO_WORK)
    assert not h.controller._begin(Drain("default", (unit,), workers, reason), stale)
    assert h.controller.drains.units == set()
    assert ws.status is Status.running
    await until(lambda: h.told("BECAME_BUSY"), "it is told")
    gates.let()
    await future


async def test_victim_that_left_or_came_back_elsewhere_is_spared(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    await h.tick()
    stale, old = h.controller.snapshot, h.worker(unit)
    await h.provider.restart(unit)
    await until(lambda: old.address not in h.scheduler.workers and h.scheduler.workers, "it came back")
    h.controller._begin(Drain("default", (unit,), ((unit, old.address),), why(Code.NO_WORK)), stale)
    assert h.controller.drains.units == set()
    await until(lambda: h.told("LEFT"), "it is told")
    await until(lambda: h.worker(unit).status is Status.running, "it is at work")
    assert h.controller.drains.units == set()


async def test_booting_unit_whose_worker_registered_is_not_released(harbour):
    h = await harbour(**KEEP)
    h.provider.boot = asyncio.Event()
    h.controller.scale(1)
    await until(lambda: h.units(Phase.STARTING), "it starts")
    stale = h.controller.snapshot
    (unit,) = h.provider.names
    h.provider.boot.set()
    await h.running(1)
    await h.controller._act(Release("default", (unit,), why(Code.NO_WORK)), stale)
    assert h.provider.called("scale_down") == []
    assert h.provider.names == [unit]
    assert [u.phase for u in h.units()] == [Phase.RUNNING]


async def test_floor_ends(harbour):
    h = await harbour(**_AT_ONCE)
    h.controller.floor(2, 60)
    await h.running(2)
    h.controller.floor(2, 0.1)
    await h.running(0)


async def test_manual_size_then_automatic(harbour):
    h = await harbour(**_AT_ONCE)
    await h.scaled(3)
    await h.scaled(1)
    h.controller.adapt(minimum=0, maximum=4)
    await h.running(0)


async def test_manual_size_needs_no_work_and_drains_the_busy_one_last(harbour):
    h = await harbour(**_AT_ONCE)
    names = await h.scaled(3)
    busy = names[1]
    future = h.client.submit(gates.held, "task", 1, workers=[busy])
    await until(lambda: gates.starts("task"), "it is busy")
    h.controller.scale(1)
    assert await h.running(1) == [busy]
    gates.let()
    assert await future == 1


async def test_limits_at_run_time(harbour):
    h = await harbour(**_AT_ONCE)
    h.controller.adapt(minimum=2)
    await h.running(2)
    h.controller.adapt(minimum=3, maximum=3)
    await h.running(3)
    h.controller.adapt(minimum=0, maximum=1)
    await until(lambda: len(h.units(Phase.RUNNING)) <= 1, "no more than the maximum")


async def test_unit_of_a_pool_that_is_no_longer_configured(harbour):
    h = await harbour(setup=lambda provider: provider.adopt("tide-test-old-bcdfg", "old"), **KEEP)
    await h.scaled(1)
    assert h.controller.errors == 0
    assert "tide-test-old-bcdfg" in h.provider.names


async def test_idle_shutdown(tmp_path):
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        overrides = {"idle-shutdown": "300ms", "interval": "50ms", "folder": str(tmp_path)}
        attach(scheduler, overrides, provider=RecordingProvider)
        await until(lambda: scheduler.status is Status.closed, "it closes")


async def test_no_idle_shutdown_while_work_waits(harbour):
    shut = []

    async def shut_down():
        shut.append(True)

    h = await harbour(**KEEP)
    h.controller._shut_down = shut_down
    h.controller.config = replace(h.controller.config, idle_shutdown_s=0.2)
    h.provider.placed.clear()
    future = h.client.submit(gates.held, "task")
    await until(lambda: h.controller.tally.unfinished, "it waits")
    shut.clear()
    began_s = h.controller.now_s()
    await until(lambda: h.controller.now_s() - began_s > 0.6, "some time")
    await h.tick(2)
    h.provider.placed.set()
    await until(lambda: gates.starts("task"), "it runs")
    await until(lambda: h.controller.now_s() - began_s > 1.5, "some time")
    await h.tick(2)
    assert not shut
    gates.let()
    await future
    await until(lambda: shut, "it closes once there is no work")


class Idler:
    """An actor whose methods nobody but its worker and its client sees."""


@pytest.mark.parametrize("use", ["request", "actor", "floor"])
async def test_no_idle_shutdown_while_the_cluster_is_used_without_tasks(harbour, use):
    """It was closed under ``client.run``, an actor's methods, and who had asked for workers."""
    shut = []

    async def shut_down():
        shut.append(True)

    h = await harbour(**KEEP)
    h.controller._shut_down = shut_down
    await h.client.submit(gates.quick, "first")
    asking, actor = None, None
    if use == "request":
        asking = asyncio.ensure_future(h.client.run(gates.asked, "asked"))
        await until(lambda: gates.starts("asked"), "it runs")
    elif use == "actor":
        actor = await h.client.submit(Idler, actor=True)
    else:
        h.controller.floor(1, 3600.0)
    await until(lambda: not h.controller.tally.unfinished, "no task is left")
    h.controller.config = replace(h.controller.config, idle_shutdown_s=0.2)
    began_s = h.controller.now_s()
    await until(lambda: h.controller.now_s() - began_s > 0.6, "some time")
    await h.tick(2)
    assert not shut
    if asking is not None:
        gates.let("asked")
        await asking
    del actor
    h.controller.floor(0, 0.0)
    await until(lambda: shut, "it closes once nobody uses it")


async def test_impossible_work_is_named_once(harbour, caplog):
    caplog.set_level(logging.WARNING, logger="distributed.tide.controller")
    h = await harbour(**KEEP)
    future = h.client.submit(gates.quick, "gpu", key="train-7", resources={"GPU": 1})
    await until(lambda: "train-7" in caplog.text, "it is told")
    await h.tick(5)
    told = [record.getMessage() for record in caplog.records if "train-7" in record.getMessage()]
    assert len(told) == 1
    assert "GPU=1" in told[0]
    await future.cancel()


async def test_who_closes_it_again_waits_for_the_first(harbour, monkeypatch):
    """Else it would seem to have gone, and the next one be refused since it is still there."""
    h = await harbour()
    go_on = asyncio.Event()
    monkeypatch.setattr(h.controller.drains, "close", go_on.wait)
    first, second = (asyncio.create_task(h.controller.close()) for _ in range(2))
    await asyncio.wait({second}, timeout=0.1)
    assert "tide" in h.scheduler.plugins
    assert not second.done()
    go_on.set()
    await second
    assert "tide" not in h.scheduler.plugins
    await first


async def test_close_ends_everything(harbour):
    h = await harbour(**KEEP)
    await h.scaled(2)
    await asyncio.gather(h.controller.close(), h.controller.close())
    await h.controller.close()
    await until(lambda: not h.provider.names, "no unit is left")
    assert "tide" not in h.scheduler.plugins
    assert h.provider.called("close") == [()]


async def test_what_cannot_be_closed_keeps_nothing_else_from_it(harbour, monkeypatch):
    h = await harbour()
    closed = []

    def failing(name, close):
        async def fail():
            await close()
            closed.append(name)
            raise RuntimeError(f"{name} is away")

        return fail

    parts = {"drains": h.controller.drains, "provider": h.provider, "journal": h.controller.journal}
    for name, part in parts.items():
        monkeypatch.setattr(part, "close", failing(name, part.close))
    monkeypatch.setattr(h.controller, "_clean_up", lambda: closed.append("rest"))
    with pytest.raises(RuntimeError, match="is away"):
        await h.controller.close()
    assert closed == [*parts, "rest"]
    assert "tide" not in h.scheduler.plugins
    assert "tide" not in h.scheduler.extensions
    h.controller._closing = None  # the fixture closes it, too


async def test_close_while_a_unit_cannot_be_given_back(harbour, caplog):
    h = await harbour(**KEEP)
    unit, _ = await h.scaled(2)
    h.provider.keeps = Unavailable("not now")
    gc.collect()  # what other tests have left is said now
    caplog.clear()
    h.drain(unit)
    await until(lambda: h.provider.called("scale_down"), "it was tried")
    await h.controller.close()
    tried = len(h.provider.called("scale_down"))
    await asyncio.sleep(0.6)  # longer than the pause between two attempts
    assert len(h.provider.called("scale_down")) == tried
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_worker_that_a_waiting_task_may_not_do_without_stays(harbour):
    """It is idle, and gone it would never come back: its address would be another one."""
    h = await harbour(release={"keep": "100ms", "tail": "50ms"})
    first, second, third = await h.scaled(3)
    address = {unit: h.worker(unit).address for unit in (first, second)}
    held = h.client.submit(gates.held, "held", workers=[address[first]])
    after = h.client.submit(gates.quick, "after", 1, held, workers=[address[second]])
    await until(lambda: gates.starts("held") and after.key in h.scheduler.tasks, "one runs, one is known")
    h.controller.adapt()
    await until(lambda: third not in h.provider.names, "one that nobody needs goes")
    await until(lambda: h.told("PINNED"), "the other one is kept")
    assert "1 unfinished task may run on no other worker" in str(h.told("PINNED")[-1].why)
    gates.let()
    await asyncio.wait_for(after, 30)
    await until(lambda: len(h.provider.names) == 1, "one is enough for the results")


async def test_of_several_workers_that_could_run_it_one_stays(harbour):
    h = await harbour(release={"keep": "100ms", "tail": "50ms"})
    first, *others = await h.scaled(4)
    held = h.client.submit(gates.held, "held", workers=[h.worker(first).address])
    where = [h.worker(unit).address for unit in others]
    after = h.client.submit(gates.quick, "after", 1, held, workers=where)
    await until(lambda: gates.starts("held") and after.key in h.scheduler.tasks, "one runs, one is known")
    h.controller.adapt()
    await until(lambda: len(h.provider.names) == 2, "two go")
    await until(lambda: h.told("PINNED"), "one is kept")
    gates.let()
    await asyncio.wait_for(after, 30)


async def test_a_restart_brings_back_workers_that_no_tick_has_seen_yet(harbour):
    """Dask waits for as many as were registered, be it only just now."""
    h = await harbour(**KEEP)
    await h.scaled(2)
    h.controller.adapt()
    assert h.controller.snapshot is not None
    # As the tick before had it; nothing is awaited from here on.
    before = [msgspec.structs.replace(unit, phase=Phase.STARTING) for unit in h.controller.snapshot.units]
    h.controller.snapshot = msgspec.structs.replace(h.controller.snapshot, units=tuple(before))
    h.controller.tally.restart(h.scheduler)
    assert h.controller.wishes.floor_of("default", h.controller.now_s()) == 2


async def test_files_stay_where_they_are_wherever_the_process_goes(harbour, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    h = await harbour(**KEEP, folder="here", journal={"path": "journal.jsonl"})
    monkeypatch.chdir(tmp_path / "other")
    assert h.controller.config.folder == tmp_path / "here"
    await h.scaled(1)
    await h.controller.close()
    assert (tmp_path / "journal.jsonl").read_text()
    assert not list((tmp_path / "other").iterdir())


async def test_somebodys_own_worker_that_is_busy_with_a_resource_takes_no_plain_task(harbour):
    h = await harbour(**KEEP, dask={"distributed.scheduler.work-stealing-interval": "100ms"})
    async with Worker(h.scheduler.address, nthreads=1, resources={"GPU": 1}, name="mine"):
        held = h.client.submit(gates.held, "train", resources={"GPU": 1})
        await until(lambda: gates.starts("train"), "it runs")
        await h.tick()
        assert not h.units(), "it needs no other worker"
        (seen,) = h.controller.snapshot.workers
        assert (seen.unit, seen.tasks, seen.bound) == ("", 1, 1)
        assert [(one.processing, one.elsewhere) for one in h.controller.snapshot.work] == [(1, 1)]
        plain = h.client.submit(gates.quick, "plain", 1)
        await plain
        assert not held.done()
        await h.tick()  # it may have been done within the one that asked for its unit
        assert len(h.units()) == 1
        gates.let()
        await held


async def test_of_two_copies_the_last_one_stays_without_an_attempt(harbour):
    """Each of two idle workers relied on the other one's copy, and both were refused."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    first, second = await h.scaled(2)
    kept = h.client.submit(gates.quick, "x", 1, workers=[h.worker(first).address])
    await kept
    reader = h.client.submit(gates.quick, "y", 2, kept, workers=[h.worker(second).address])
    await reader
    assert len(h.scheduler.tasks[kept.key].who_has) == 2
    reader.release()
    h.controller.adapt()
    await h.running(1)
    await h.tick(3)
    assert len(h.scheduler.running) == 1
    assert not h.told("DRAIN_REFUSED")
    assert len(h.told("DRAIN_DONE")) == 1
    assert await kept == 1


async def test_a_result_that_no_other_worker_has_room_for_stays_where_it_is(harbour):
    """The others had room for it together: whoever fetched it was killed, or who had it."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    holder, *others = await h.scaled(3)
    for ws in h.scheduler.workers.values():
        ws.memory_limit = 40 * 2**20
    large = await h.client.scatter(b"x" * (20 * 2**20), workers=[h.worker(holder).address])
    pieces, busy = [], []
    for unit in others:
        address = h.worker(unit).address
        pieces += await h.client.scatter(
            [bytes([i]) * 2**20 for i in range(15)], workers=[address], hash=False
        )
        busy.append(h.client.submit(gates.held, unit, workers=[address]))
        await until(lambda unit=unit: gates.starts(unit), "it works")
    h.controller.adapt(minimum=0, maximum=3)
    await until(lambda: h.told("KEPT_FOR_RESULT"), "it is kept")
    await h.tick(3)
    assert sorted(h.provider.names) == sorted([holder, *others])
    assert not h.told("DRAIN_REFUSED")
    del pieces[:8]
    await until(lambda: sorted(h.provider.names) == sorted(others), "it goes when one has", detail=h.units)
    assert await large == b"x" * (20 * 2**20)
    gates.let()
    await h.client.gather(busy)


async def test_a_worker_whose_thread_runs_what_was_cancelled_is_replaced_if_others_wait_there(
    harbour, monkeypatch
):
    """Python cannot stop the thread, and the scheduler takes it to be free."""
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)
    h = await harbour(**KEEP)
    forgotten = h.client.submit(gates.held, "forgotten")
    await until(lambda: gates.starts("forgotten"), "it runs")
    [before] = await h.running(1)
    await forgotten.cancel()
    later = h.client.submit(gates.quick, "later", 1)
    await until(lambda: before not in {unit.name for unit in h.units(Phase.RUNNING)}, "it goes")
    assert h.told("BLOCKED")
    assert await later == 1
    gates.let()


async def test_a_thread_that_runs_what_was_cancelled_is_not_free(harbour, monkeypatch):
    """Where others wait for it; who only runs that may go."""
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)
    h = await harbour(**KEEP, pools={"default": {"memory": "1 GiB", "maximum": 1, "threads": 2}})
    forgotten = h.client.submit(gates.held, "forgotten")
    await until(lambda: gates.starts("forgotten"), "it runs")
    await forgotten.cancel()
    await until(lambda: [w.tasks for w in h.controller.snapshot.workers] == [0], "it was cancelled")
    later = h.client.submit(gates.held, "later")
    await until(lambda: [w.blocked for w in h.controller.snapshot.workers] == [1], "two heartbeats tell")
    gates.let("later")
    await later
    await until(lambda: [w.blocked for w in h.controller.snapshot.workers] == [0], "nobody waits there")
    gates.let()


async def test_an_idle_worker_that_stays_paused_is_replaced_at_the_maximum_too(harbour, monkeypatch):
    """Its memory is full of what a task has leaked; nobody else may come as long as it is there."""
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)
    h = await harbour(**KEEP, pools={"default": {"memory": "4 GiB", "maximum": 1}})
    await h.client.submit(gates.quick, "first")
    [leaky] = await h.running(1)
    [ws] = h.provider.workers(leaky)
    ws.memory_manager.memory_pause_fraction = 1e-6
    await until(lambda: h.worker(leaky).status is Status.paused, "it is paused")
    assert await h.client.submit(gates.quick, "second", 2) == 2
    assert leaky not in h.provider.names
    assert h.told("FULL")
    assert "1 unit there can take no more: paused" in str(h.told("AT_MAXIMUM_BESIDE")[-1].why)


async def test_a_paused_worker_that_says_nothing_may_be_at_work(harbour, monkeypatch):
    """Its task holds the interpreter's lock, so that no heartbeat tells of it; it was begun a second time."""
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)
    h = await harbour(**KEEP, pools={"default": {"memory": "4 GiB", "maximum": 1}})
    await h.client.submit(gates.quick, "first")
    [unit] = await h.running(1)
    [ws] = h.provider.workers(unit)
    ws.periodic_callbacks["heartbeat"].stop()
    busy = h.client.submit(gates.held, "busy", 2)
    await until(lambda: gates.starts("busy"), "it runs")
    ws.memory_manager.memory_pause_fraction = 1e-6
    await until(lambda: h.worker(unit).status is Status.paused, "it is paused")
    since_s = h.controller.now_s()
    await until(lambda: h.controller.now_s() - since_s > 3.0, "some time")
    assert h.provider.names == [unit]
    gates.let("busy")
    assert await busy == 2
    assert gates.starts("busy") == 1


async def test_a_worker_that_its_results_fill_is_not(harbour, monkeypatch):
    monkeypatch.setattr("dask_tide.controller.since._CERTAIN_S", 0.2)
    h = await harbour(**KEEP, pools={"default": {"memory": "4 GiB", "maximum": 1}})
    kept = h.client.submit(gates.quick, "result", object())
    await kept
    [unit] = await h.running(1)
    [ws] = h.provider.workers(unit)
    ws.memory_manager.memory_pause_fraction, ws.memory_manager.memory_spill_fraction = 1e-6, False
    await until(lambda: h.worker(unit).status is Status.paused, "it is paused")
    later = h.client.submit(gates.quick, "later", 2)
    await until(lambda: h.told("AT_MAXIMUM_BESIDE"), "it is told")
    since_s = h.controller.now_s()
    await until(lambda: h.controller.now_s() - since_s > 2.0, "some time")
    assert h.provider.names == [unit]
    kept.release()
    assert await later == 2, "when the result is gone it is replaced"


_prepared = asyncio.Event()


class Prepares(WorkerPlugin):
    """Installs something, say, before its worker can work."""

    async def setup(self, worker):
        await _prepared.wait()


async def test_what_plugins_need_to_be_set_up_is_a_part_of_the_start(harbour):
    """Dask takes the worker for running from the moment at which it registers."""
    _prepared.clear()
    h = await harbour(**KEEP)
    await h.client.register_plugin(Prepares())
    asked_s = h.controller.now_s()
    await h.scaled(1)
    await h.tick(3)
    record = h.controller.ledger.records["default"]
    assert (record.registered, record.boot_s) == (1, None)
    prepared_s = h.controller.now_s()
    _prepared.set()
    await until(lambda: record.boot_s is not None, "the worker is heard of")
    assert record.boot_s >= prepared_s - asked_s > 0


async def test_without_plugins_nobody_prepares(harbour):
    h = await harbour(**KEEP)
    await h.scaled(1)
    record = h.controller.ledger.records["default"]
    assert record.boot_s is not None
