"""Workers with another Dask than the scheduler's: it is told, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from distributed import Worker
from distributed.versions import get_versions
from harbour import KEEP
from waiting import until

from dask_tide.model import Phase

OURS = get_versions()
POOL = {"memory": "1 GiB", "maximum": 8}


@pytest.fixture
def begin_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the workers that begin from now on say that they have this version."""

    def begin_with(version: str) -> None:
        said = OURS | {"packages": OURS["packages"] | {"distributed": version}}
        monkeypatch.setattr("distributed.worker.get_versions", lambda: said)

    return begin_with


async def test_another_version_is_told_once_for_each_pool(harbour, begin_with, caplog):
    caplog.set_level(logging.WARNING, logger="distributed.tide.controller")
    h = await harbour(**KEEP, pools={"default": POOL, "other": POOL})
    ours = set(await h.scaled(1))
    await h.tick(2)
    assert not h.told("VERSIONS"), "that one has ours"

    begin_with("2021.1.0")
    old = set(await h.scaled(4)) - ours
    await h.scaled(1)
    h.controller.scale(2, "other")
    await h.running(3)
    begin_with("2021.2.0")
    await h.scaled(3)
    await until(lambda: len(h.told("VERSIONS")) >= 3, "it is told")
    await h.tick(3)
    told = h.told("VERSIONS")
    assert [(event.pool, event.why.numbers["version"]) for event in told] == [
        ("default", "2021.1.0"),
        ("other", "2021.1.0"),
        ("default", "2021.2.0"),
    ]
    first = told[0]
    assert first.unit in old
    scheduler = OURS["packages"]["distributed"]
    words = f"worker {first.unit} has distributed 2021.1.0 and the scheduler {scheduler}, so it may fail"
    assert words in str(first.why)
    assert words in await h.client.scheduler.tide_explain(lines=200)
    logged = [message for message in caplog.messages if "distributed 2021" in message]
    assert logged == [f"Pool {event.pool}: {event.why}" for event in told]


async def test_a_worker_that_ends_before_anybody_looks_is_told_of(harbour, begin_with, monkeypatch):
    """As one that is too old does at its first task; its nanny starts the next one."""
    h = await harbour(**KEEP)
    observe, looks = h.provider.observe, asyncio.Event()
    h.provider.boot = asyncio.Event()
    h.controller.scale(1)
    await until(lambda: h.units(Phase.STARTING), "it starts")

    async def later():
        await looks.wait()
        return await observe()

    monkeypatch.setattr(h.provider, "observe", later)
    begin_with("2021.1.0")
    h.provider.boot.set()
    await until(lambda: h.scheduler.workers, "it has registered")
    (address,) = h.scheduler.workers
    begin_with(OURS["packages"]["distributed"])
    (unit,) = h.provider.names
    await h.provider.restart(unit)
    await until(lambda: h.scheduler.workers and address not in h.scheduler.workers, "the next one is there")
    assert not h.told("VERSIONS")
    looks.set()
    await until(lambda: [event.unit for event in h.told("VERSIONS")] == [unit], "it is told")


async def test_a_worker_whose_unit_is_shown_later_is_told_of_then(harbour, begin_with):
    h = await harbour(**KEEP)
    begin_with("2021.1.0")
    async with Worker(h.scheduler.address, name="tide-test-default-bcdfg", nthreads=1):
        await h.tick(3)
        assert not h.told("VERSIONS"), "it may be anybody's"
        h.provider.adopt("tide-test-default-bcdfg", "default")
        await until(lambda: h.told("VERSIONS"), "it is told")
