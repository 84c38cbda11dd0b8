"""The tally: what is counted while tasks change equals what a full count gives."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any

import dask
import gates
import pytest
from distributed import secede
from harbour import KEEP
from waiting import until

_UNFINISHED = ("waiting", "queued", "no-worker", "processing")


def fail(*dependencies):
    raise RuntimeError("on purpose")


def away(name):
    secede()
    return gates.held(name)


def recount(scheduler):
    """Every unfinished task, looked at one by one: (group, needs, bound, hint) by state."""
    counted: Counter[Any] = Counter()
    seceded = {ts for ws in scheduler.workers.values() for ts in ws.long_running}
    for ts in scheduler.tasks.values():
        if ts.state in _UNFINISHED and ts not in seceded:
            needs = tuple(sorted((name, float(n)) for name, n in (ts.resource_restrictions or {}).items()))
            bound = bool(ts.worker_restrictions or ts.host_restrictions) and not ts.loose_restrictions
            state = "ready" if ts.state in ("queued", "no-worker") else ts.state
            counted[ts.group.name, needs, bound, state] += 1
    return counted


def tallied(controller):
    counted: Counter[Any] = Counter()
    for work in controller.tally.work(controller.now_s()):
        for state in ("waiting", "ready", "processing"):
            counted[work.group, work.needs, work.bound, state] += getattr(work, state)
    return +counted


def check(h):
    assert tallied(h.controller) == recount(h.scheduler)
    unfinished = [ts for ts in h.scheduler.tasks.values() if ts.state in _UNFINISHED]
    assert h.controller.tally.unfinished == len(unfinished)
    waiting = Counter(ts.group.name for ts in unfinished if ts.waiting_on)
    levels: Counter[str] = Counter()
    for work in h.controller.tally.work(0.0):
        levels[work.group] += sum(tasks for _, tasks in work.levels)
    assert +levels == waiting
    bound = [ts for ts in unfinished if ts.worker_restrictions and not ts.loose_restrictions]
    given = Counter(ts.processing_on.address for ts in bound if ts.processing_on is not None)
    wanted: Counter[Any] = Counter((frozenset(ts.worker_restrictions), frozenset()) for ts in bound)
    bindings = h.controller.tally.bindings
    assert (bindings._given, bindings._wanted) == (given, wanted)
    assert bindings._where.keys() == {ts.key for ts in bound}


async def watched(h):
    """Check again and again while the scheduler works."""
    while True:
        check(h)
        await asyncio.sleep(0)


async def anything(h, chance, address):
    futures: list[Any] = []
    for i in range(60):
        options = {
            "resources": chance.choice([None, None, {"GPU": 1}, {"TPU": 1}]),
            "workers": chance.choice([None, None, None, address]),
            "allow_other_workers": False,
            "retries": chance.choice([0, 2]),
        }
        function = chance.choice([gates.quick, gates.quick, gates.held, fail])
        earlier = chance.sample(futures, min(len(futures), chance.randrange(3)))
        arguments = earlier if function is fail else [f"t{i}", i, *earlier]
        with dask.annotate(**chance.choice([{}, {"duration": "2s"}, {"priority": 3}])):
            futures.append(h.client.submit(function, *arguments, key=f"{function.__name__}-{i}", **options))
        action = chance.randrange(6)
        if action == 0:
            await asyncio.sleep(0.02)
        elif action == 1:
            gates.let(*(f"t{n}" for n in range(i)))
        elif action == 2:
            await futures.pop(chance.randrange(len(futures))).cancel()
        elif action == 3:
            futures.pop(chance.randrange(len(futures)))
        elif action == 4:
            failed = [ts.key for ts in h.scheduler.tasks.values() if ts.state == "erred"]
            h.scheduler.stimulus_retry(failed[:1])
    await asyncio.sleep(0.1)
    gates.let()
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", range(4))
async def test_equals_a_recount_after_anything(harbour, seed, caplog):
    """Plain, restricted and bound tasks, chains, failures, retries, cancelling, forgetting."""
    caplog.set_level(logging.INFO, logger="distributed.scheduler")
    chance = random.Random(seed)
    pools = {"default": {"memory": "1 GiB", "maximum": 4, "threads": 2, "resources": {"GPU": 1}}}
    h = await harbour(**KEEP, pools=pools)
    units = await h.scaled(2)
    watch = asyncio.create_task(watched(h))
    await anything(h, chance, h.worker(units[0]).address)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    check(h)
    gates.let()
    await until(lambda: not h.scheduler.tasks, "all tasks are forgotten", detail=lambda: h.scheduler.tasks)
    check(h)
    assert h.controller.tally.work(0.0) == ()
    assert h.controller.tally._depth == {}
    assert "Plugin failed" not in caplog.text


async def test_how_wide_a_graph_is(harbour):
    """A tree and a loop written with `delayed` are one group each, which depends on itself."""
    h = await harbour(**KEEP)
    await h.scaled(1)

    @dask.delayed(pure=False)
    def add(*_):
        return 1

    @dask.delayed(pure=False)
    def step(_):
        return 1

    gate = dask.delayed(gates.held)
    level = [gate("held", dask_key_name=("leaf", i)) for i in range(16)]
    while len(level) > 1:
        level = [
            add(*level[i : i + 2], dask_key_name=("add", len(level), i)) for i in range(0, len(level), 2)
        ]
    loop = gate("held", dask_key_name=("start", 0))
    for i in range(100):
        loop = step(loop, dask_key_name=("step", i))
    futures = h.client.compute([level[0], loop])
    await until(lambda: h.controller.tally.unfinished == 16 + 15 + 1 + 100, "all are counted")
    levels = {work.group: work.levels for work in h.controller.tally.work(0.0)}
    assert levels["add"] == ((1, 1), (1, 2), (1, 4), (1, 8))
    assert levels["step"] == ((100, 100),)
    gates.let()
    await h.client.gather(futures)
    check(h)


async def test_worker_lost(harbour):
    h = await harbour(**KEEP, dask={"distributed.scheduler.allowed-failures": 3})
    lost, _ = await h.scaled(2)
    futures = h.client.map(gates.held, [f"t{i}" for i in range(8)])
    await until(lambda: h.worker(lost).processing, "tasks run there")
    await h.provider.kill(lost)
    await until(lambda: lost not in {ws.name for ws in h.scheduler.workers.values()}, "it has gone")
    check(h)
    gates.let()
    await h.client.gather(futures)
    check(h)


async def test_restart_clears_it(harbour):
    h = await harbour(**KEEP)
    await h.scaled(1)
    futures = h.client.map(gates.held, [f"t{i}" for i in range(8)])
    await until(lambda: h.controller.tally.unfinished == len(futures), "all are counted")
    gates.let()
    await h.client.restart(timeout=30)
    assert h.controller.tally.unfinished == 0
    check(h)


async def test_seceded_tasks_take_no_slot(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    future = h.client.submit(away, "away")
    await until(lambda: h.worker(unit).long_running, "it has seceded")
    assert [work.processing for work in h.controller.tally.work(0.0)] == [0]
    assert h.controller.tally.unfinished == 1
    gates.let()
    await future


async def test_hint_of_the_duration(harbour, caplog):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    with dask.annotate(duration="2 hours"):
        known = h.client.submit(gates.held, "known", key="known-1")
    with dask.annotate(duration="soon"):
        bad = h.client.submit(gates.held, "bad", key="bad-1")
    await until(lambda: len(h.worker(unit).processing) == 2, "both are there")
    durations = {work.group: work.duration_s for work in h.controller.tally.work(0.0)}
    assert durations == {"known": 7200.0, "bad": None}
    assert caplog.text.count("duration='soon'") == 1
    gates.let()
    await h.client.gather([known, bad])


@pytest.mark.parametrize("odd", ["", "soon", "1e999s", {"p50": 3}, [1], "inf"], ids=str)
async def test_a_task_with_an_odd_hint_is_counted_and_runs(harbour, odd, caplog):
    h = await harbour(**KEEP)
    with dask.annotate(duration=odd):
        future = h.client.submit(gates.quick, "odd", key="odd-1")
    await asyncio.wait_for(future, 30)
    assert caplog.text.count("of task odd-1 is ignored") == 1


async def test_tasks_with_names_of_their_own_are_one_kind_of_work(harbour):
    """A TaskGroup each, which is never measured before it is over."""
    h = await harbour(**KEEP)
    names = [f"file_{i}" for i in range(100)]
    futures = h.client.map(gates.held, names, key=names)
    await until(lambda: h.controller.tally.unfinished == 100, "all are counted")
    (work,) = h.controller.tally.work(h.controller.now_s())
    assert (work.runnable, work.duration_s) == (100, None)
    await h.scaled(1)
    await until(lambda: gates.starts("file_0"), "the first one runs")
    gates.let("file_0")
    await futures[0]
    (work,) = h.controller.tally.work(h.controller.now_s())
    assert work.runnable == 99
    assert work.duration_s is not None, "they are taken to be alike"
    for future in futures:
        future.release()
    await until(lambda: not h.scheduler.tasks, "all are forgotten")
    again = h.client.submit(gates.held, "file_0", key="file_0")
    other = h.client.submit(gates.held, "other", key="other")
    await until(lambda: h.controller.tally.unfinished == 2, "both are counted")
    known = {work.example: work.duration_s for work in h.controller.tally.work(h.controller.now_s())}
    assert known.keys() == {"file_0", "other"}, "it is known by its own name now"
    gates.let()
    await h.client.gather([again, other])


async def test_a_thousand_groups_are_few_kinds_of_work(harbour):
    h = await harbour(**KEEP)
    names = [f"{name}{i}-0" for i in range(500) for name in "ab"]
    futures = h.client.map(gates.held, names, key=names)
    with dask.annotate(resources={"GPU": 1}):
        futures += h.client.map(gates.held, names, key=[f"gpu{name}" for name in names])
    await until(lambda: h.controller.tally.unfinished == 2000, "all are counted")
    kinds = h.controller.tally.work(h.controller.now_s())
    assert len(kinds) <= 4  # those that run may be kinds of their own
    runnable: Counter[Any] = Counter()
    for work in kinds:
        runnable[work.needs] += work.runnable
    assert runnable == {(): 1000, (("GPU", 1.0),): 1000}
    for future in futures:
        future.release()


async def test_among_many_kinds_of_work_a_slow_one_makes_no_other_slow(harbour):
    h = await harbour(**KEEP)
    names = [f"a{i}-0" for i in range(300)]
    with dask.annotate(duration="100ms"):
        futures = h.client.map(gates.held, names, key=names)
    with dask.annotate(duration="1 hour"):
        futures.append(h.client.submit(gates.held, "slow", key="slow-0"))
    await until(lambda: h.controller.tally.unfinished == 301, "all are counted")
    kinds = h.controller.tally.work(h.controller.now_s())
    assert {round(work.duration_s, 3): work.runnable for work in kinds} == {0.1: 300, 3600.0: 1}
    for future in futures:
        future.release()


async def test_measured_durations_stay_when_the_tasks_are_gone(harbour):
    h = await harbour(**KEEP)
    await h.scaled(1)
    await h.client.submit(gates.quick, "first", key="quick-1")
    await until(lambda: not h.scheduler.tasks, "forgotten")
    future = h.client.submit(gates.held, "second", key="quick-2")
    await until(lambda: gates.starts("second"), "it runs")
    (work,) = h.controller.tally.work(0.0)
    assert work.duration_s is not None
    gates.let()
    await future


@pytest.mark.parametrize("keeps", [True, False])
async def test_what_tasks_took_is_known_after_a_restart_if_there_is_a_folder(harbour, keeps):
    """Twenty tasks of an hour: the first scheduler has to find that out, the next one knows."""
    folder = {} if keeps else {"folder": None}
    h = await harbour(**folder, setup=lambda provider: setattr(provider, "boot_s", 60.0))
    h.controller.tally.durations.add("held", 3600.0)
    await h.controller.close()
    h = await harbour(**folder, setup=lambda provider: setattr(provider, "boot_s", 60.0))
    futures = h.client.map(gates.held, [f"t{i}" for i in range(20)])
    await until(lambda: h.provider.names, "units are asked for", detail=h.controller.preview)
    assert len(h.provider.names) == (8 if keeps else 1)
    del futures


async def test_what_waits_behind_others_on_its_worker_has_proven_nothing(harbour):
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    here = {"workers": [h.worker(unit).address], "allow_other_workers": True}
    long = h.client.submit(gates.held, "long", **here)
    await until(lambda: gates.starts("long"), "it runs")
    behind = h.client.submit(gates.quick, "behind", **here)
    ws = h.worker(unit)
    await until(lambda: len(ws.processing) == 2 and ws.executing, "both are there, and a heartbeat tells")
    at_s = h.controller.now_s() + 11.0
    proven = {one.group: one.stalled_s for one in h.controller.tally.work(at_s, [])}
    assert proven["quick"] == 0.0
    assert proven["held"] >= 10.0
    gates.let()
    await h.client.gather([long, behind])


async def test_the_first_moments_of_a_function_that_never_ran_are_no_evidence(harbour):
    """It is sent, and imports what it needs; of one that ran before each moment counts."""
    h = await harbour(**KEEP)
    await h.scaled(1)
    tally, gate = h.controller.tally, h.client.submit(gates.held, "first")
    await until(lambda: gates.starts("first"), "it runs")
    begun_s = tally._class_of[gate.key].progress_s

    def proven_s(for_s: float) -> float:
        [work] = tally.work(begun_s + for_s)
        return work.stalled_s

    assert proven_s(0.1) == 0.0
    assert proven_s(3.1) == pytest.approx(3.0)
    tally.durations.add("held", 0.01)
    assert proven_s(3.1) == pytest.approx(3.1)
    gates.let()
    await gate
