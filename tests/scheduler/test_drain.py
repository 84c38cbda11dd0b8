"""Drains: nothing is lost, nothing runs twice, and a worker that stays is at work again."""

from __future__ import annotations

import asyncio
import gc
import importlib
import socket
from typing import Any

import gates
import pytest
from distributed import get_worker
from distributed.active_memory_manager import RetireWorker
from distributed.core import Status, rpc
from distributed.worker_state_machine import GatherDepFailureEvent
from harbour import KEEP
from waiting import until

from dask_tide.controller.copies import Copies
from dask_tide.model import Phase

MIB = 2**20


def where():
    return get_worker().name


async def full(h, unit, count, **options):
    """One running task on ``unit`` and ``count - 1`` that wait there, as the scheduler placed them."""
    options = {"allow_other_workers": True, "workers": [h.worker(unit).address]} | options
    futures = [
        h.client.submit(gates.held, f"{unit}-{i}", i, key=f"held-{unit}-{i}", **options) for i in range(count)
    ]
    await until(lambda: len(h.worker(unit).processing) == count, f"{count} tasks on {unit}")
    await until(lambda: any(gates.starts(f"{unit}-{i}") for i in range(count)), f"a task runs on {unit}")
    return futures


async def steady(h, n):
    """``n`` units, and none more or fewer whatever happens but for what the test does."""
    names = await h.scaled(n)
    h.controller.adapt(minimum=0, maximum=n)
    return names


def at_work(h, unit):
    """Whether both sides say that the worker takes tasks."""
    (worker,) = h.provider.workers(unit)
    ws = h.worker(unit)
    return ws.status is Status.running and ws in h.scheduler.running and worker.status is Status.running


def retiring(h):
    return [p for p in h.scheduler.extensions["amm"].policies if isinstance(p, RetireWorker)]


def doom(h, monkeypatch, unit):
    """Its machine is about to go, as far as a drain is concerned."""
    address = h.worker(unit).address
    for part in (h.controller.drains, h.controller.drains._copies):
        monkeypatch.setattr(part, "_avoided", lambda: {address})


async def works(h, unit):
    """A worker that is back at work takes a task."""
    await until(lambda: at_work(h, unit), f"{unit} is back at work")
    assert await h.client.submit(where, workers=[h.worker(unit).address], pure=False) == unit


async def test_four_steps(harbour):
    h = await harbour(**KEEP)
    victim, other = await steady(h, 2)
    kept = await h.client.scatter({"only-copy": "data"}, workers=[h.worker(victim).address])
    futures = await full(h, victim, 4)
    running = [i for i in range(4) if gates.starts(f"{victim}-{i}")]

    h.drain(victim)
    assert h.worker(victim) not in h.scheduler.running
    # What waits goes elsewhere and runs there while the first one still runs here.
    waiting = [i for i in range(4) if i not in running]
    await until(
        lambda: [ts.key for ts in h.worker(victim).processing] == [f"held-{victim}-{running[0]}"], "moved"
    )
    gates.let(*(f"{victim}-{i}" for i in waiting))
    await asyncio.gather(*(futures[i] for i in waiting))
    assert h.worker(victim).processing
    gates.let()
    assert await h.client.gather(futures) == [0, 1, 2, 3]
    await until(lambda: victim not in h.provider.names, "the unit is given back")

    assert [gates.starts(f"{victim}-{i}") for i in range(4)] == [1, 1, 1, 1]
    assert all(h.scheduler.tasks[f.key].suspicious == 0 for f in futures)
    assert await h.client.gather(kept) == {"only-copy": "data"}
    await until(lambda: [event.unit for event in h.told("DRAIN_DONE")] == [victim], "it is told")
    assert other in h.provider.names
    await until(lambda: not retiring(h), "the AMM forgets it")


async def test_results_go_where_there_is_room(harbour):
    """As of their heartbeats the two that stay are alike; one may hold far less than the other."""
    h = await harbour(**KEEP)
    victim, small, large = await steady(h, 3)
    h.worker(small).memory_limit = 10 * MIB
    data = {f"only-copy-{i}": b"x" * MIB for i in range(30)}
    kept = await h.client.scatter(data, workers=[h.worker(victim).address])

    h.drain(victim)
    await until(lambda: victim not in h.provider.names, "the unit is given back")
    # Of 10 MiB it is to hold seven tenths.
    assert h.worker(small).nbytes <= 7 * MIB
    assert len(h.worker(large).has_what) >= 23
    assert await h.client.gather(kept) == data


async def test_what_nobody_has_room_for_goes_where_the_least_is_missing(harbour):
    h = await harbour(**KEEP)
    victim, small, large = await steady(h, 3)
    h.worker(small).memory_limit = 4 * MIB
    h.worker(large).memory_limit = 40 * MIB
    data = {f"only-copy-{i}": b"x" * MIB for i in range(36)}
    kept = await h.client.scatter(data, workers=[h.worker(victim).address])

    h.drain(victim)
    await until(lambda: victim not in h.provider.names, "the unit is given back")
    assert 0 < h.worker(small).nbytes <= 5 * MIB
    assert await h.client.gather(kept) == data


async def test_two_that_hold_the_only_copies_go_at_once(harbour):
    """Each could be emptied without copying anything, were it not for the other."""
    h = await harbour(**KEEP)
    first, second, other = await steady(h, 3)
    pair = [h.worker(first).address, h.worker(second).address]
    kept = await h.client.scatter({"twice": "data"}, workers=pair, broadcast=True)
    assert {ws.name for ws in h.scheduler.tasks["twice"].who_has} == {first, second}

    h.drain(first)
    h.drain(second)
    await until(lambda: h.provider.names == [other], "both are given back")
    assert await h.client.gather(kept) == {"twice": "data"}


@pytest.mark.parametrize("manager", [True, False], ids=["dask's manager", "our own"])
async def test_of_many_that_go_at_once_each_result_is_asked_of_one_receiver(harbour, monkeypatch, manager):
    """However long the copying takes; else others are sent the same ones, and filled."""
    h = await harbour(**KEEP)
    *victims, one, two = await steady(h, 6)
    if not manager:
        h.scheduler.extensions["amm"].stop()
    for name in (one, two):
        h.worker(name).memory_limit = 32 * MIB
    kept: dict[str, Any] = {}
    asked: dict[str, set[str]] = {}
    may = asyncio.Event()
    for n, victim in enumerate(victims):
        # 30 MiB of the 44 that two may hold, in pieces of all sizes.
        data = {f"{n}-{i}": b"x" * ((i + 1) * MIB // 3) for i in range(6)}
        kept |= await h.client.scatter(data, workers=[h.worker(victim).address])
        (worker,) = h.provider.workers(victim)
        serve = worker.handlers["get_data"]

        async def slow(comm, serve=serve, **request):
            await may.wait()
            return await serve(comm, **request)

        monkeypatch.setitem(worker.handlers, "get_data", slow)
    request = h.scheduler.request_acquire_replicas
    rounds = 0

    def noted(address, keys, *, stimulus_id):
        nonlocal rounds
        rounds += 1
        for key in keys:
            asked.setdefault(key, set()).add(address)
        request(address, keys, stimulus_id=stimulus_id)

    monkeypatch.setattr(h.scheduler, "request_acquire_replicas", noted)
    for victim in victims:
        h.drain(victim)
    await until(lambda: rounds >= 6, "the manager has looked again and again")
    may.set()
    await until(lambda: set(h.provider.names) == {one, two}, "all are given back", detail=h.units)
    assert {key: len(receivers) for key, receivers in asked.items()} == dict.fromkeys(kept, 1)
    assert max(h.worker(name).nbytes for name in (one, two)) <= 0.7 * 32 * MIB
    assert {key: len(value) for key, value in (await h.client.gather(kept)).items()} == {
        f"{n}-{i}": (i + 1) * MIB // 3 for n in range(4) for i in range(6)
    }


async def test_who_has_not_fetched_a_result_in_time_is_not_asked_for_it_again(harbour, monkeypatch):
    """Its process is stopped, say: its memory stays the smallest, and Dask would choose it each time."""
    h = await harbour(**KEEP)
    victim, hung, other = await steady(h, 3)
    asked = []
    ask = h.scheduler.request_acquire_replicas

    def request(address, keys, **more):
        asked.append(address)
        if address != h.worker(hung).address:
            ask(address, keys, **more)

    monkeypatch.setattr(h.scheduler, "request_acquire_replicas", request)
    monkeypatch.setattr("dask_tide.controller.copies._LATE_S", 0.5)
    amm = h.scheduler.extensions["amm"]
    original = amm._find_recipient
    smallest = h.worker(hung)
    monkeypatch.setattr(
        amm,
        "_find_recipient",
        lambda ts, candidates, pending: (
            smallest if candidates is None or smallest in candidates else original(ts, candidates, pending)
        ),
    )
    kept = await h.client.scatter({"only-copy": "data"}, workers=[h.worker(victim).address])
    h.drain(victim)
    await until(lambda: victim not in h.provider.names, "it has gone", detail=lambda: asked)
    assert asked[0] == smallest.address
    assert {ws.name for ws in h.scheduler.tasks["only-copy"].who_has} == {other}
    assert await h.client.gather(kept) == {"only-copy": "data"}


class Handle:
    """A connection, a lock, a model: what cannot be sent anywhere."""

    def __reduce__(self):
        raise TypeError("a handle is bound to its process")


async def holding(h, unit, key="handle"):
    """A handle on ``unit``."""
    future = h.client.submit(Handle, key=key, workers=[h.worker(unit).address], allow_other_workers=True)
    await until(lambda: future.status == "finished", "it is there")
    assert {ws.name for ws in h.scheduler.tasks[key].who_has} == {unit}
    return future


async def test_refused_for_what_cannot_be_pickled_and_not_tried_again_while_it_is_there(harbour, monkeypatch):
    """It was `draining` for ten minutes, at work for half a minute, and so on for ever."""
    monkeypatch.setattr("dask_tide.controller.loop._BELIEVE_S", 0.0)
    h = await harbour(release={"keep": "1s", "tail": "0s"})
    units = await h.scaled(2)
    handles = [await holding(h, unit, f"handle-{unit}") for unit in units]
    h.controller.adapt(minimum=0, maximum=2)
    await until(lambda: len(h.told("DRAIN_REFUSED")) == 2, "both are refused", detail=h.units)
    for unit in units:
        (reason,) = (str(event.why) for event in h.told("DRAIN_REFUSED") if event.unit == unit)
        assert reason.endswith(
            f"nobody can fetch result handle-{unit} of worker {unit}:"
            " cannot be pickled (Could not serialize object of type Handle)"
        )
    await h.tick(5)
    assert len(h.told("DRAIN_REFUSED")) == 2
    assert set(h.controller.drains.standing()) == set(units)
    assert all(f"handle-{unit}" in h.controller.drains.standing()[unit] for unit in units)
    assert h.scheduler.stream_handlers["task-erred"] == h.scheduler.handle_task_erred

    handles.pop().release()
    handles.pop().release()
    await until(lambda: h.provider.names == [], "they go once nobody needs them", detail=h.units)


async def test_a_task_that_went_elsewhere_for_what_cannot_be_pickled_comes_back(harbour):
    """Where it waited it could never get it, also when the holder was at work again."""
    h = await harbour(**KEEP)
    victim, _ = await steady(h, 2)
    handle = await holding(h, victim)
    h.drain(victim)
    user = h.client.submit(lambda _: get_worker().name, handle)
    assert await asyncio.wait_for(user, 30) == victim
    await until(lambda: h.told("DRAIN_REFUSED"), "it is told")
    await works(h, victim)


async def test_what_one_cannot_unpickle_goes_to_another_one(harbour, monkeypatch):
    """A receiver may lack a module that the next one has."""
    h = await harbour(**KEEP)
    victim, lacking, able = await steady(h, 3)
    kept = await h.client.scatter({"only-copy": "data"}, workers=[h.worker(victim).address])
    failing = lack(h, monkeypatch, lacking)
    prefer(h, monkeypatch, lacking)
    h.drain(victim)
    await until(lambda: victim not in h.provider.names, "it has gone", detail=h.units)
    assert failing
    assert {ws.name for ws in h.scheduler.tasks["only-copy"].who_has} == {able}
    assert await h.client.gather(kept) == {"only-copy": "data"}


async def test_refused_where_all_others_have_failed_to_fetch_a_result(harbour, monkeypatch):
    h = await harbour(**KEEP)
    victim, *others = await steady(h, 3)
    kept = await h.client.scatter({"only-copy": "data"}, workers=[h.worker(victim).address])
    failing = [lack(h, monkeypatch, other) for other in others]
    h.drain(victim)
    await until(lambda: h.told("DRAIN_REFUSED"), "it is refused", detail=h.units)
    assert all(failing)
    assert "nobody can fetch result only-copy" in str(h.told("DRAIN_REFUSED")[0].why)
    assert "no module named cupy" in str(h.told("DRAIN_REFUSED")[0].why)
    await works(h, victim)
    assert await h.client.gather(kept) == {"only-copy": "data"}


async def test_what_is_about_to_go_is_not_refused_for_what_cannot_be_pickled(harbour, monkeypatch):
    """Back at work it would be given tasks that die with it."""
    h = await harbour(**KEEP)
    victim, _ = await steady(h, 2)
    handle = await holding(h, victim)
    doom(h, monkeypatch, victim)
    h.drain(victim)
    copies = h.controller.drains._copies
    await until(lambda: h.scheduler.tasks[handle.key] in copies._errors, "it could not be fetched")
    await h.tick(5)
    assert h.told("DRAIN_REFUSED") == []
    assert h.controller.drains.units == {victim}


def lack(h, monkeypatch, unit):
    """The worker of ``unit`` lacks a module that results need; returns what it failed to fetch."""
    (worker,) = h.provider.workers(unit)
    failed: list[str] = []

    async def gather_dep(address, to_gather, total_nbytes, *, stimulus_id):
        failed.extend(to_gather)
        return GatherDepFailureEvent.from_exception(
            ImportError("no module named cupy"),
            worker=address,
            total_nbytes=total_nbytes,
            stimulus_id=stimulus_id,
        )

    monkeypatch.setattr(worker, "gather_dep", gather_dep)
    return failed


def prefer(h, monkeypatch, unit):
    """Dask's memory manager chooses this one where it may."""
    amm = h.scheduler.extensions["amm"]
    original, smallest = amm._find_recipient, h.worker(unit)
    monkeypatch.setattr(
        amm,
        "_find_recipient",
        lambda ts, candidates, pending: (
            smallest if candidates is None or smallest in candidates else original(ts, candidates, pending)
        ),
    )


async def test_who_fetches_one_after_the_other_is_not_late(harbour, monkeypatch):
    """What waits for its turn is asked of nobody else: there would be two copies."""
    h = await harbour(**KEEP)
    victim, receiver, _ = await steady(h, 3)
    kept = await h.client.scatter({"a": 1, "b": 2}, workers=[h.worker(victim).address])
    copies = Copies(h.scheduler, 0.7)
    first, second = (h.scheduler.tasks[key] for key in kept)
    ws = h.worker(receiver)
    room = copies.room(object())
    monkeypatch.setattr("dask_tide.controller.copies.now_s", lambda: 100.0)
    for ts in (first, second):
        copies.ask(ts, ws, room)
    first.who_has.add(ws)  # it has arrived
    monkeypatch.setattr("dask_tide.controller.copies.now_s", lambda: 119.0)
    copies.room(object())
    monkeypatch.setattr("dask_tide.controller.copies.now_s", lambda: 121.0)
    assert copies.candidates(second, copies.room(object())) == {ws}
    monkeypatch.setattr("dask_tide.controller.copies.now_s", lambda: 141.0)
    assert ws not in copies.candidates(second, copies.room(object())), "it has fetched nothing since"
    first.who_has.discard(ws)


async def test_what_ends_meanwhile_is_copied_before_all_has_ended(harbour):
    h = await harbour(**KEEP, pools={"default": {"memory": "1 GiB", "maximum": 8, "threads": 2}})
    victim, other = await steady(h, 2)
    there = {"workers": [h.worker(victim).address], "allow_other_workers": True}
    long, short = (h.client.submit(gates.held, name, name, key=name, **there) for name in ("long", "short"))
    await until(lambda: gates.starts("long") and gates.starts("short"), "both run")
    h.drain(victim)
    await h.tick(2)
    gates.let("short")
    await until(
        lambda: {ws.name for ws in h.scheduler.tasks["short"].who_has or ()} == {other},
        "its result is elsewhere",
        detail=lambda: h.scheduler.tasks["short"],
    )
    assert h.worker(victim).processing
    gates.let()
    assert await h.client.gather([long, short]) == ["long", "short"]
    assert (gates.starts("long"), gates.starts("short")) == (1, 1)


async def test_the_other_copy_is_not_dropped_where_the_first_is_about_to_go(harbour):
    """The first one, which still runs a task that needs it, found it safe on the second one."""
    h = await harbour(**KEEP)
    first, second, other = await steady(h, 3)
    pair = [h.worker(first).address, h.worker(second).address]
    kept = await h.client.scatter({"twice": "data"}, workers=pair, broadcast=True)
    long = h.client.submit(gates.held, "long", kept["twice"], workers=pair[:1], allow_other_workers=True)
    await until(lambda: gates.starts("long") == 1, "it runs")
    holders = h.scheduler.tasks["twice"].who_has
    h.drain(first)
    await h.tick(2)
    assert {ws.name for ws in holders} == {first, second}
    h.drain(second)
    await until(lambda: second not in h.provider.names, "the second is given back")
    assert other in {ws.name for ws in h.scheduler.tasks["twice"].who_has}
    gates.let()
    assert await long == "data"
    await until(lambda: h.provider.names == [other], "the first one, too")
    assert await h.client.gather(kept) == {"twice": "data"}


async def test_of_two_workers_of_a_unit_neither_waits_for_the_other_when_it_is_refused(harbour):
    h = await harbour(**KEEP, pools={"default": {"memory": "1 GiB", "maximum": 2, "workers-per-unit": 2}})
    h.controller.scale(1)
    await until(lambda: len(h.scheduler.running) == 2, "both are there")
    holder, busy = h.scheduler.workers.values()
    kept = await h.client.scatter({"only-copy": "data"}, workers=[holder.address])
    task = h.client.submit(gates.held, "long", 1, workers=[busy.address], allow_other_workers=True)
    await until(lambda: gates.starts("long") == 1, "it runs")
    (unit,) = h.provider.names
    h.controller.drains.start("default", unit, [(str(ws.name), ws.address) for ws in (holder, busy)])
    # Nobody is left who could take the result.
    await until(lambda: h.told("DRAIN_REFUSED"), "it is refused, although a task runs")
    await until(lambda: {holder, busy} <= h.scheduler.running, "both are back at work")
    gates.let()
    assert await task == 1
    assert await h.client.gather(kept) == {"only-copy": "data"}


async def test_waiting_tasks_are_spread_over_the_others(harbour):
    h = await harbour(**KEEP)
    victim, *others = await steady(h, 4)
    futures = await full(h, victim, 4)
    await until(lambda: h.worker(victim).executing, "a heartbeat tells which of them runs")
    h.drain(victim)
    await until(
        lambda: all(len(h.worker(o).processing) == 1 for o in others),
        "one task for each",
        detail=lambda: {str(ws.name): list(ws.processing) for ws in h.scheduler.workers.values()},
    )
    assert all(h.scheduler.tasks[f.key].suspicious == 0 for f in futures)


async def test_refused_without_a_receiver(harbour):
    h = await harbour(**KEEP)
    (unit,) = await steady(h, 1)
    (kept,) = await h.client.scatter(["data"])
    h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused")
    await works(h, unit)
    (event,) = h.told("DRAIN_REFUSED")
    assert "1 results" in str(event.why)
    assert await kept == "data"
    assert h.provider.called("scale_down") == []
    assert not retiring(h)


async def test_a_full_worker_whose_drain_is_refused_starts_nothing(harbour):
    """It would be at work for as long as it takes to look at its memory again, each time."""
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    kept = await h.client.submit(gates.quick, "kept", 1), h.client.submit(gates.quick, "kept", 1)
    (worker,) = h.provider.workers(unit)
    worker.memory_manager.memory_pause_fraction = 1e-6
    ws = h.worker(unit)
    await until(lambda: ws.status is Status.paused, "it is paused")
    h.controller.adapt(minimum=0, maximum=1)
    waits = [h.client.submit(gates.quick, f"waits-{i}", i) for i in range(3)]
    seen = set()

    def noted() -> bool:
        seen.add(worker.status)
        return bool(h.told("DRAIN_REFUSED")) and ws.status is Status.paused

    worker.periodic_callbacks["memory_monitor"].stop()
    h.drain(unit)
    await until(noted, "the drain is refused")
    await h.tick(3)
    assert Status.running not in seen
    assert not any(gates.starts(f"waits-{i}") for i in range(3))
    worker.memory_manager.memory_pause_fraction = False
    worker.status = Status.running
    assert await h.client.gather(waits) == [0, 1, 2]
    del kept


async def test_refused_at_once_though_a_task_runs(harbour):
    """Nothing is gained by keeping a worker from new tasks until its last one has ended."""
    h = await harbour(**KEEP)
    (unit,) = await steady(h, 1)
    (kept,) = await h.client.scatter(["data"])
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused")
    await until(lambda: at_work(h, unit), "at work again")
    gates.let()
    assert await future == 0
    assert await kept == "data"


async def test_timed_out(harbour):
    h = await harbour(**KEEP, drain={"timeout": "300ms"})
    unit, _ = await steady(h, 2)
    kept = await h.client.scatter({"x": 1, "y": 2}, workers=[h.worker(unit).address])
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    await until(lambda: h.told("DRAIN_TIMED_OUT"), "the drain times out")
    (event,) = h.told("DRAIN_TIMED_OUT")
    assert event.why.numbers["tasks"] == 1
    await until(lambda: at_work(h, unit), "at work again")
    await until(lambda: unit in {u.name for u in h.units(Phase.RUNNING)}, "the unit counts again")
    gates.let()
    assert await future == 0
    await works(h, unit)
    assert gates.starts(f"{unit}-0") == 1
    assert await h.client.gather(kept) == {"x": 1, "y": 2}
    assert not retiring(h)


async def test_timed_out_while_results_are_copied(harbour):
    """A receiver that does not fetch: the policy that moves keys away must not outlive the drain."""
    h = await harbour(**KEEP, drain={"timeout": "300ms"})
    unit, _ = await steady(h, 2)
    kept = await h.client.scatter({"x": 1}, workers=[h.worker(unit).address])
    (worker,) = h.provider.workers(unit)
    serve, answer = worker.handlers["get_data"], asyncio.Event()

    async def stuck(comm, **kwargs):
        await answer.wait()
        return await serve(comm, **kwargs)

    worker.handlers["get_data"] = stuck
    try:
        h.drain(unit)
        await until(lambda: retiring(h), "the drain has begun")
        await until(lambda: h.told("DRAIN_TIMED_OUT"), "the drain times out")
        (event,) = h.told("DRAIN_TIMED_OUT")
        assert event.why.numbers["keys"] == 1
        assert not retiring(h)
    finally:
        answer.set()
    await works(h, unit)
    assert await h.client.gather(kept) == {"x": 1}


async def test_cancelled_by_close(harbour):
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    await until(lambda: retiring(h) or h.worker(unit).status is not Status.running, "the drain has begun")
    await h.controller.drains.close()
    await works_after_close(h, unit, future)


async def works_after_close(h, unit, future):
    await until(lambda: at_work(h, unit), "at work again")
    assert not retiring(h)
    gates.let()
    assert await future == 0
    await works(h, unit)


async def test_controller_closes_during_a_drain(harbour):
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    await h.controller.close()
    await until(lambda: future.status == "error", "its worker was stopped under it")
    assert h.provider.names == []
    assert not retiring(h)


@pytest.mark.parametrize(
    ("look_s", "boot_s"), [(5.0, 0.0), (0.05, 1.0)], ids=["between two looks", "after the drain"]
)
async def test_restarted_worker_is_left_alone(harbour, monkeypatch, look_s, boot_s):
    """A nanny's worker keeps its name and changes its address: what was drained has gone."""
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    (future,) = await full(h, unit, 1)
    old = h.worker(unit)
    monkeypatch.setattr("dask_tide.controller.drain._LOOK_S", look_s)
    h.provider.boot = boot_s
    h.drain(unit)
    await until(lambda: old.status is Status.closing_gracefully, "the drain has begun")
    await h.provider.restart(unit)
    await until(lambda: any(ws.name == unit and ws is not old for ws in h.scheduler.workers.values()), "back")
    await until(lambda: not h.controller.drains.units, "the drain has ended")
    await h.tick(2)
    await works(h, unit)
    assert ((unit,),) not in h.provider.called("scale_down")
    assert future.status == "error"  # its worker died under it
    assert old.address not in h.scheduler.workers


async def test_client_restart_during_a_drain(harbour):
    h = await harbour(**KEEP)
    unit, _ = await h.scaled(2)
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    gates.let()
    await h.client.restart(timeout=30)
    assert future.status == "cancelled"
    await until(lambda: not h.controller.drains.units, "the drain has ended")
    await h.running(2)
    assert await h.client.submit(where, pure=False) in h.provider.names
    assert h.controller.errors == 0


async def test_second_worker_of_a_draining_unit_registers(harbour):
    """It was not part of the drain and has tasks: its unit must not be stopped under it."""
    h = await harbour(**KEEP, pools={"default": {"memory": "1 GiB", "maximum": 4, "workers-per-unit": 2}})
    h.controller.scale(2)
    await until(lambda: len(h.scheduler.workers) == 4 and len(h.units(Phase.RUNNING)) == 2, "4 workers")
    unit = h.units(Phase.RUNNING)[0].name
    first, second = h.provider.workers(unit)
    await second.close(nanny=False)
    await until(lambda: second.address not in h.scheduler.workers, "one of the two has left")
    ws = h.scheduler.workers[first.address]
    future = h.client.submit(gates.held, "first", workers=[ws.address], allow_other_workers=False)
    await until(lambda: gates.starts("first"), "the first one runs a task")
    h.controller.drains.start("default", unit, [(str(ws.name), ws.address)])
    late = await type(second)(h.scheduler.address, name=second.name, nthreads=1)
    try:
        task = h.client.submit(gates.held, "late", 7, workers=[late.address])
        await until(lambda: gates.starts("late"), "the late one runs a task")
        gates.let("first")
        await future
        await until(lambda: unit not in h.controller.drains.units, "the drain has ended")
        await h.tick(2)
        assert ((unit,),) not in h.provider.called("scale_down")
        gates.let("late")
        assert await task == 7
    finally:
        await late.close(nanny=False)


async def test_worker_dies_during_a_drain(harbour):
    h = await harbour(**KEEP, dask={"distributed.scheduler.allowed-failures": 3})
    unit, _ = await h.scaled(2)
    (future,) = await full(h, unit, 1)
    h.drain(unit)
    await until(lambda: h.worker(unit).status is Status.closing_gracefully, "the drain has begun")
    await h.provider.kill(unit)
    await until(lambda: not h.controller.drains.units, "the drain has ended")
    gates.let()
    assert await future == 0
    await h.running(2)
    assert unit not in h.provider.names
    assert h.controller.errors == 0


async def test_broken_connection_at_the_start_of_a_drain(harbour):
    """The scheduler does not know yet that the worker has gone: no error, no drain without an end."""
    h = await harbour(**KEEP)
    unit, other = await steady(h, 2)
    ws = h.worker(unit)
    h.scheduler.stream_comms[ws.address].comm.abort()
    h.drain(unit)
    await until(lambda: not h.controller.drains.units, "the drain has ended")
    await h.tick(2)
    assert h.controller.errors == 0
    assert other in {str(ws.name) for ws in h.scheduler.workers.values()}


@pytest.mark.parametrize("ending", ["refused", "done"])
async def test_no_task_exception_is_left_unread(harbour, ending, caplog):
    h = await harbour(**KEEP)
    units = await steady(h, 1 if ending == "refused" else 2)
    await h.client.scatter({"x": 1}, workers=[h.worker(units[0]).address])
    gc.collect()  # what other tests have left is said now
    caplog.clear()
    h.drain(units[0])
    await until(lambda: h.told("DRAIN_" + ending.upper()), f"the drain is {ending}")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_waiting_tasks_go_only_where_their_resources_are(harbour):
    pools = {
        "gpu": {"memory": "1 GiB", "maximum": 4, "resources": {"GPU": 1}},
        "cpu": {"memory": "1 GiB", "maximum": 4},
    }
    h = await harbour(**KEEP, pools=pools)
    for name, n in (("gpu", 1), ("cpu", 2)):
        h.controller.scale(n, name)
    await h.running(3)
    (victim,) = (u.name for u in h.units() if u.pool == "gpu")
    futures = await full(h, victim, 3, resources={"GPU": 1}, workers=None, allow_other_workers=False)
    h.controller.scale(2, "gpu")
    await h.running(4)
    (other,) = (u.name for u in h.units() if u.pool == "gpu" and u.name != victim)
    h.controller.drains.start("gpu", victim, [(victim, h.worker(victim).address)])
    await until(lambda: len(h.worker(victim).processing) == 1, "the waiting ones have moved")
    assert len(h.worker(other).processing) == 2
    gates.let()
    assert await h.client.gather(futures) == [0, 1, 2]
    assert [gates.starts(f"{victim}-{i}") for i in range(3)] == [1, 1, 1]


async def test_a_task_that_runs_and_is_bound_to_the_worker_is_waited_for(harbour, monkeypatch):
    monkeypatch.setattr("dask_tide.controller.drain._STUCK_S", 2.0)
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    (future,) = await full(h, unit, 1, allow_other_workers=False)
    await until(lambda: h.worker(unit).executing, "a heartbeat tells that it runs")
    h.drain(unit)
    began_s = h.controller.now_s()
    await until(lambda: h.controller.now_s() - began_s > 3.0, "longer than a task may be stuck")
    gates.let()
    assert await future == 0
    await until(lambda: unit not in h.provider.names, "the unit is given back")
    assert gates.starts(f"{unit}-0") == 1


async def test_refused_when_a_task_waits_that_can_run_nowhere_else(harbour, monkeypatch):
    """A draining worker starts nothing: the task would wait until the drain times out."""
    monkeypatch.setattr("dask_tide.controller.drain._STUCK_S", 2.0)
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    futures = await full(h, unit, 2, allow_other_workers=False)
    h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused")
    assert "can run nowhere else" in str(h.told("DRAIN_REFUSED")[0].why)
    gates.let()
    assert await h.client.gather(futures) == [0, 1]
    assert [gates.starts(f"{unit}-{i}") for i in range(2)] == [1, 1]
    await works(h, unit)


@pytest.mark.parametrize("when", ["while a task runs", "at the last moment"])
async def test_refused_for_a_task_that_is_bound_to_the_worker_meanwhile(harbour, monkeypatch, when):
    """It may run nowhere else: it would wait for ever for a worker that has gone."""
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    drains, bound = h.controller.drains, []

    async def bind():
        bound.append(h.client.submit(where, key="bound", workers=[h.worker(unit).address]))
        await until(lambda: "bound" in h.scheduler.tasks, "the scheduler has it")

    if when == "while a task runs":
        await full(h, unit, 1)
        h.drain(unit)
        await bind()
    else:
        leave = drains._leave

        async def leave_late(ws):
            await bind()
            return await leave(ws)

        monkeypatch.setattr(drains, "_leave", leave_late)
        h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused", detail=h.units)
    assert f"1 unfinished task may run on worker {unit} only" in str(h.told("DRAIN_REFUSED")[0].why)
    gates.let()
    assert await bound[0] == unit
    await works(h, unit)


async def test_what_is_about_to_go_waits_for_no_task_that_is_bound_to_it(harbour, monkeypatch):
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    await full(h, unit, 1)
    doom(h, monkeypatch, unit)
    h.drain(unit)
    bound = h.client.submit(where, key="bound", workers=[h.worker(unit).address])
    await until(lambda: "bound" in h.scheduler.tasks, "the scheduler has it")
    gates.let()
    await until(lambda: unit not in h.provider.names, "the unit is given back")
    assert h.told("DRAIN_REFUSED") == []
    assert bound.status == "pending"


async def test_a_task_that_another_worker_may_run_too_keeps_nobody(harbour):
    h = await harbour(**KEEP)
    unit, other = await steady(h, 2)
    await full(h, unit, 1)
    both = [h.worker(name).address for name in (unit, other)]
    h.drain(unit)
    bound = h.client.submit(where, workers=both)
    assert await bound == other
    gates.let()
    await until(lambda: unit not in h.provider.names, "the unit is given back")


@pytest.mark.parametrize("doomed", [False, True], ids=["ordinary", "about to go"])
async def test_a_provider_that_wants_to_know_is_told_whose_workers_close_by_themselves(
    harbour, monkeypatch, doomed
):
    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    told: list[str] = []
    monkeypatch.setattr(h.provider, "let_close", told.extend, raising=False)
    if doomed:
        h.controller.notice(unit, "its machine goes")
    else:
        h.drain(unit)
    # Its process may end before the controller hears of the drain's end.
    await until(lambda: unit not in h.provider.names and h.told("DRAIN_DONE"), "the unit is given back")
    assert told == ([] if doomed else [unit])


async def test_a_released_unit_was_not_given_back_in_vain(harbour):
    """The platform does not take it back at first: it is told again."""
    from dask_tide.errors import Unavailable

    h = await harbour(**KEEP)
    unit, _ = await steady(h, 2)
    h.provider.keeps = Unavailable("not now")
    h.drain(unit)
    await until(lambda: h.provider.called("scale_down"), "it was tried")
    h.provider.keeps = None
    await until(lambda: unit not in h.provider.names, "the unit is given back")


async def test_works_without_work_stealing(harbour):
    h = await harbour(**KEEP, dask={"distributed.scheduler.work-stealing": False})
    unit, other = await steady(h, 2)
    futures = await full(h, unit, 3)
    h.drain(unit)
    await until(lambda: len(h.worker(other).processing) == 2, "the waiting ones have moved")
    gates.let()
    assert await h.client.gather(futures) == [0, 1, 2]
    assert [gates.starts(f"{unit}-{i}") for i in range(3)] == [1, 1, 1]


def restarts(provider):
    """The platform starts again what ends, so workers must park."""
    provider.closes_workers = False


async def test_refused_where_it_would_have_to_park_and_has_no_nanny(harbour):
    h = await harbour(**KEEP, setup=restarts)
    unit, _ = await steady(h, 2)
    kept = await h.client.scatter({"x": 1}, workers=[h.worker(unit).address])
    h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused")
    assert "has no nanny" in str(h.told("DRAIN_REFUSED")[0].why)
    await works(h, unit)
    assert await h.client.gather(kept) == {"x": 1}
    assert h.provider.called("scale_down") == []


async def test_refused_when_its_nanny_is_dead(monkeypatch, harbour):  # in this order: as impatient at its end
    """Were it to leave, nobody would keep its process from ending."""
    monkeypatch.setattr("dask_tide.controller.nannies._ANSWER_S", 0.5)
    h = await harbour(**KEEP, setup=restarts)
    unit, _ = await steady(h, 2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        h.worker(unit).nanny = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    h.drain(unit)
    await until(lambda: h.told("DRAIN_REFUSED"), "the drain is refused")
    assert "cannot park" in str(h.told("DRAIN_REFUSED")[0].why)
    await works(h, unit)
    assert h.controller.errors == 0


async def test_worker_dies_while_it_is_to_be_parked(harbour, monkeypatch):
    """Its nanny does not answer since it has gone, too: nothing is left to drain."""
    h = await harbour(**KEEP, setup=restarts)
    unit, _ = await steady(h, 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        h.worker(unit).nanny = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        asked = asyncio.Event()
        nannies = h.controller.drains._nannies
        tell = nannies._tell

        async def telling(*args, **kwargs):
            asked.set()
            await tell(*args, **kwargs)

        monkeypatch.setattr(nannies, "_tell", telling)
        monkeypatch.setattr("dask_tide.controller.nannies._ANSWER_S", 1.0)
        h.drain(unit)
        await until(asked.is_set, "its nanny is asked")
        await h.provider.kill(unit)
        await until(lambda: not h.controller.drains.units, "the drain has ended")
    assert h.told("DRAIN_REFUSED") == []
    assert h.controller.errors == 0


class Lacking:
    """What a worker cannot read that has not got this project."""

    def __reduce__(self):
        return importlib.import_module, ("dask_tide_that_is_not_installed",)


async def test_who_lacks_this_project_is_drained_all_the_same(harbour, monkeypatch):
    """It cannot say whether tasks have left futures there, and never will."""
    monkeypatch.setattr("dask_tide.controller.futures._CLIENT", "Client-")
    monkeypatch.setattr("dask_tide.leaving.futures", Lacking())
    h = await harbour(**KEEP)
    victim, _ = await steady(h, 2)
    (kept,) = await h.client.scatter([1], workers=[h.worker(victim).address])
    h.drain(victim)
    await until(lambda: h.told("DRAIN_DONE") or h.told("DRAIN_REFUSED"), "it ends")
    assert not h.told("DRAIN_REFUSED")
    assert await kept == 1


@pytest.mark.parametrize("fault", ["fails", "does not answer"])
async def test_nothing_is_copied_off_who_does_not_say(harbour, monkeypatch, fault):
    """Futures that tasks have left may be in there, and would be removed with it."""
    asked = []

    def unreachable(address, **arguments):
        asked.append(address)
        raise TimeoutError("timed out")

    async def fails(dask_worker):
        raise RuntimeError("dictionary changed size during iteration")

    def failing(address, **arguments):
        asked.append(address)
        return rpc(address, **arguments)

    monkeypatch.setattr("dask_tide.controller.futures._CLIENT", "Client-")
    monkeypatch.setattr("dask_tide.controller.futures.rpc", failing if fault == "fails" else unreachable)
    monkeypatch.setattr("dask_tide.leaving.futures", fails)
    monkeypatch.setattr("dask_tide.controller.drain._COPY_AGAIN_S", 0.2)
    h = await harbour(**KEEP)
    victim, _ = await steady(h, 2)
    ws = h.worker(victim)
    (kept,) = await h.client.scatter([1], workers=[ws.address])
    (running,) = await full(h, victim, 1)
    h.drain(victim)
    await until(lambda: len(asked) > 3, "it has been asked again")
    assert h.scheduler.tasks[kept.key].who_has == {ws}
    assert not h.told("DRAIN_REFUSED"), "as long as a task runs"
    gates.let()
    await until(lambda: h.told("DRAIN_REFUSED"), "it is refused")
    assert "does not say whether tasks have left futures there: " in str(h.told("DRAIN_REFUSED")[0].why)
    assert h.scheduler.tasks[kept.key].who_has == {ws}
    assert await running == 0
    await works(h, victim)
