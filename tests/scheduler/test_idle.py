"""Whom Dask takes for idle."""

from __future__ import annotations

import gates
from harbour import KEEP
from waiting import until


async def test_what_waits_on_a_worker_that_was_idle_goes_to_one_that_is(harbour):
    """Its tasks were short of what the others had when it was judged, and nothing has changed since."""
    h = await harbour(**KEEP)
    (first,) = await h.scaled(1)
    futures = h.client.map(gates.held, ["a", "b"], key=["a", "b"])
    await until(lambda: len(h.worker(first).processing) == 2, "both are there")
    await h.scaled(2)
    ws = h.worker(first)
    h.scheduler.idle[ws.address] = ws

    def both_run():
        h.scheduler.extensions["stealing"].balance()  # in tests it rests for an hour
        return gates.starts("a") == gates.starts("b") == 1

    await until(both_run, "both run")
    assert len(ws.processing) == 1
    gates.let()
    await h.client.gather(futures)
