"""What clients ask the scheduler."""

from __future__ import annotations

import asyncio

import gates
import pytest
from distributed import Client
from harbour import KEEP
from waiting import until

from dask_tide.controller.handlers import raise_for, register
from dask_tide.errors import ConfigError

_POOLS = {"one": {"memory": "1 GiB", "maximum": 4}, "two": {"memory": "1 GiB", "maximum": 2}}


async def test_status(harbour):
    h = await harbour(**KEEP, pools=_POOLS)
    (name,) = await h.scaled(1)
    future = h.client.submit(gates.held, "task")
    await until(lambda: gates.starts("task"), "it runs")
    await h.tick()
    status = await h.client.scheduler.tide_status()
    assert status["mode"] == "manual"
    assert status["pools"]["one"]["units"] == {"running": 1}
    assert status["pools"]["two"] == {
        "minimum": 0,
        "maximum": 2,
        "boot_s": None,
        "cold_boot_s": None,
        "units": {},
    }
    (unit,) = status["units"]
    assert (unit["name"], unit["pool"], unit["phase"]) == (name, "one", "running")
    assert status["unfinished_tasks"] == 1
    assert status["starts"] == 1
    assert status["errors"] == 0
    assert [d["count"] for d in status["decisions"] if d["action"] == "launch"] == [1]
    gates.let()
    await future


async def test_explain(harbour):
    h = await harbour(**KEEP)
    await h.scaled(2)
    text = await h.client.scheduler.tide_explain()
    assert "asked for 2 more units, because the pool was set to 2 units by hand" in text
    assert "2 running" in text
    short = await h.client.scheduler.tide_explain(lines=0)
    assert "asked for" not in short


async def test_scale_adapt_floor(harbour):
    h = await harbour(release={"keep": "0s", "tail": "0s"}, pools=_POOLS)
    scheduler = h.client.scheduler
    raise_for(await scheduler.tide_scale(n=2, pool="two"))
    await h.running(2)
    assert {unit.pool for unit in h.units()} == {"two"}
    raise_for(await scheduler.tide_adapt(pool="two", maximum=1))
    assert h.controller.pools["two"].maximum == 1
    raise_for(await scheduler.tide_adapt(minimum=1, pool="two"))
    await h.running(1)
    raise_for(await scheduler.tide_floor(n=3, seconds=60, pool="one"))
    await h.running(4)
    assert not h.controller.manual


@pytest.mark.parametrize(
    ("operation", "arguments", "key"),
    [
        ("scale", {"n": -1}, "n"),
        ("scale", {"n": 1.5}, "n"),
        ("scale", {"n": True}, "n"),
        ("scale", {"n": 1, "pool": "three"}, "pool"),
        ("adapt", {"minimum": 5}, "minimum"),
        ("adapt", {"minimum": -1}, "minimum"),
        ("adapt", {"maximum": "many"}, "maximum"),
        ("adapt", {"pool": "three"}, "pool"),
        ("floor", {"n": 9}, "n_workers"),
        ("floor", {"n": "two"}, "n_workers"),
        ("floor", {"n": -1}, "n_workers"),
        ("floor", {"n": 1, "seconds": "long"}, "seconds"),
        ("floor", {"n": 1, "seconds": -1}, "seconds"),
        ("floor", {"n": 1, "pool": "three"}, "pool"),
    ],
)
async def test_wrong_arguments(harbour, operation, arguments, key):
    h = await harbour(**KEEP, pools=_POOLS)
    before = dict(h.controller.pools)
    reply = await getattr(h.client.scheduler, f"tide_{operation}")(**arguments)
    with pytest.raises(ConfigError) as error:
        raise_for(reply)
    assert error.value.key == key
    assert error.value.value in arguments.values()
    assert h.controller.pools == before
    await h.tick()
    assert h.provider.called("scale_up") == []


async def test_floor_counts_workers_not_units(harbour):
    pools = {"default": {"memory": "1 GiB", "maximum": 2, "workers-per-unit": 2}}
    h = await harbour(**KEEP, pools=pools)
    with pytest.raises(ConfigError, match="at most 4"):
        h.controller.floor(5, 60)
    h.controller.floor(3, 60)
    await until(lambda: len(h.scheduler.workers) == 4, "two units of two workers")


async def test_a_controller_that_is_replaced_is_forgotten(harbour):
    """Each object that `cluster.adapt` makes brings one of its own."""
    h = await harbour(**KEEP)
    for _ in range(3):
        register(h.controller)
    assert not hasattr(h.scheduler.handlers["scatter"].stock, "stock")


async def test_no_idle_worker_goes_while_a_client_asks_it_for_something(harbour):
    """``client.run``, plugins and ``scatter`` are no tasks, and failed when their worker went."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    await h.client.submit(gates.quick, "first")
    h.controller.floor(1, 3600.0)
    await h.running(1)
    asking = asyncio.ensure_future(h.client.run(gates.asked, "asked"))
    await until(lambda: gates.starts("asked"), "it runs")
    h.controller.floor(0, 0.0)
    await h.tick(3)
    assert "a client's request has to do with it" in await h.client.scheduler.tide_explain()
    assert len(h.scheduler.running) == 1
    gates.let("asked")
    assert list((await asking).values()) == ["asked"]
    await h.running(0)


async def test_data_sent_to_workers_directly_brings_one(harbour):
    """The client connects to them itself, so the scheduler sees neither task nor request."""
    h = await harbour()
    future = await h.client.scatter("data", direct=True)
    assert await future == "data"


async def test_another_controller_wraps_dasks_own_handlers_again(harbour):
    h = await harbour()
    handlers = h.scheduler.handlers
    before = {name: handlers[name].stock for name in ("scatter", "broadcast", "ncores_running")}
    register(h.controller)
    assert {name: handlers[name].stock for name in before} == before


async def test_who_is_not_asked_may_go(harbour):
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    await h.client.submit(gates.quick, "first")
    h.controller.floor(2, 3600.0)
    asked, _ = await h.running(2)
    asking = asyncio.ensure_future(h.client.run(gates.asked, "asked", workers=[h.worker(asked).address]))
    await until(lambda: gates.starts("asked"), "it runs")
    h.controller.floor(0, 0.0)
    assert await h.running(1) == [asked]
    gates.let("asked")
    await asking
    await h.running(0)


async def test_a_request_ends_when_whoever_asked_has_gone(harbour):
    """Dask goes on waiting for the answer."""
    h = await harbour(release={"keep": "0s", "tail": "0s"})
    async with Client(h.scheduler.address, asynchronous=True) as other:
        h.controller.floor(1, 3600.0)
        await h.running(1)
        asking = asyncio.ensure_future(other.run(gates.asked, "asked"))
        await until(lambda: gates.starts("asked"), "it runs")
        asking.cancel()
        await asyncio.wait([asking])
    h.controller.floor(0, 0.0)
    await h.running(0)
    gates.let()


async def test_by_hand_nobody_waits_for_a_request(harbour):
    h = await harbour(**KEEP)
    await h.scaled(1)
    asking = asyncio.ensure_future(h.client.run(gates.asked, "asked", on_error="return"))
    await until(lambda: gates.starts("asked"), "it runs")
    await h.scaled(0)
    gates.let("asked")
    await asyncio.wait([asking])


@pytest.mark.parametrize("direct", [False, True])
async def test_by_hand_too_who_is_being_sent_data_stays(harbour, monkeypatch, direct):
    """Else they were lost on their way, and ``scatter`` failed."""
    h = await harbour(**KEEP)
    (unit,) = await h.scaled(1)
    (worker,) = h.provider.workers(unit)
    take, sent, may = worker.handlers["update_data"], asyncio.Event(), asyncio.Event()

    async def slow(**data):
        sent.set()
        await may.wait()
        return take(**data)

    monkeypatch.setitem(worker.handlers, "update_data", slow)
    scattering = asyncio.ensure_future(h.client.scatter("data", direct=direct))
    await sent.wait()
    h.controller.scale(0)
    await h.tick(3)
    assert "a client's request has to do with it" in await h.client.scheduler.tide_explain()
    may.set()
    assert await (await scattering) == "data"


async def test_data_sent_directly_shorten_nobodys_wait(harbour):
    h = await harbour(**KEEP)
    h.controller.floor(2, 3600.0)
    await h.running(2)
    await h.client.scatter("data", direct=True)
    assert h.controller.wishes.floor_of("default", h.controller.now_s() + 1800.0) == 2


_A_GPU_FIRST = {
    "gpu": {"memory": "1 GiB", "maximum": 1, "resources": {"GPU": 1}},
    "none": {"memory": "1 GiB", "maximum": 0},
    "cpu": {"memory": "1 GiB", "maximum": 4},
}


async def test_scatter_from_nothing_brings_no_gpu(harbour):
    h = await harbour(**KEEP, pools=_A_GPU_FIRST)
    future = await h.client.scatter("data")
    assert await future == "data"
    await h.running(1)
    assert [unit.pool for unit in h.units()] == ["cpu"]


async def test_who_waits_for_workers_gets_them_of_any_pool(harbour):
    h = await harbour(**KEEP, pools=_A_GPU_FIRST)
    scheduler = h.client.scheduler
    raise_for(await scheduler.tide_floor(n=3))
    await h.running(3)
    raise_for(await scheduler.tide_floor(n=1))
    await h.tick(3)
    assert {unit.pool for unit in h.units()} == {"cpu"}
    raise_for(await scheduler.tide_floor(n=5))
    await h.running(5)
    with pytest.raises(ConfigError, match="at most 5"):
        raise_for(await scheduler.tide_floor(n=6))


async def test_a_controller_that_has_gone_answers_nothing(harbour):
    h = await harbour()
    handlers = h.scheduler.handlers
    assert handlers["scatter"] != h.scheduler.scatter
    await h.controller.close()
    assert not [name for name in handlers if name.startswith("tide_")]
    assert handlers["scatter"] == h.scheduler.scatter
    assert handlers["ncores_running"] == h.scheduler.get_ncores_running


async def test_one_that_has_gone_takes_nothing_from_the_next(harbour):
    h = await harbour()
    take_away = register(h.controller)
    later = register(h.controller)
    take_away()
    assert (await h.client.scheduler.tide_status())["cluster"] == "tide-test"
    later()
    assert not [name for name in h.scheduler.handlers if name.startswith("tide_")]
