"""Workers that register when their unit has been given back already."""

from __future__ import annotations

import asyncio

import gates
from distributed.core import Status
from harbour import KEEP
from waiting import until

from dask_tide.errors import Unavailable
from dask_tide.model import Phase


async def given_back_while_it_starts(h):
    """One that registers only then: it was told to stop, and goes later."""
    h.provider.boot = boot = asyncio.Event()
    h.controller.scale(1)
    await until(lambda: h.units(Phase.STARTING), "it starts")
    [unit] = h.provider.names
    h.provider.keeps = Unavailable("the platform is away")
    h.controller.scale(0)
    await until(lambda: h.provider.called("scale_down"), "it is given back")
    boot.set()
    await until(lambda: h.scheduler.workers, "it registers all the same")
    h.provider.boot = 0.0
    return unit


async def test_a_worker_of_a_unit_that_was_given_back_gets_no_task(harbour):
    """What it returned would have to find somebody else before it is gone."""
    h = await harbour(**KEEP)
    future = h.client.submit(gates.quick, "task", 1)
    unit = await given_back_while_it_starts(h)
    [worker] = h.provider.workers(unit)
    await until(lambda: worker.status is Status.closing_gracefully, "it knows")
    assert not h.worker(unit).processing
    h.controller.scale(1)
    await until(lambda: len(h.scheduler.running) == 1, "another one comes")
    assert await future == 1
    assert not h.worker(unit).has_what
    h.provider.keeps = None
    await until(lambda: unit not in h.provider.names, "it goes")


async def test_one_that_stays_after_all_works(harbour, monkeypatch):
    h = await harbour(**KEEP, pools={"default": {"maximum": 1}})
    unit = await given_back_while_it_starts(h)
    [worker] = h.provider.workers(unit)
    await until(lambda: worker.status is Status.closing_gracefully, "it is turned away")

    async def stay(units):
        return units

    h.controller.scale(1)
    monkeypatch.setattr(h.provider, "scale_down", stay)
    await until(lambda: worker.status is Status.running, "it is put to work")
    assert await h.running(1) == [unit]
    assert await h.client.submit(gates.quick, "task", 1) == 1
