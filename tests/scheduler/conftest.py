"""A real scheduler with the controller in it, over a platform that the test has in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import dask
import gates
import pytest_asyncio
from distributed import Client, Scheduler
from harbour import Harbour

from dask_tide.controller.attach import attach
from dask_tide.testing import RecordingProvider


@pytest_asyncio.fixture(name="harbour")
async def _harbour(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Harbour]]]:
    """A factory of :class:`Harbour`; keywords are the configuration's keys below ``tide``."""
    async with AsyncExitStack() as stack:
        stack.callback(gates.forget)

        async def make(**overrides: Any) -> Harbour:
            dask_config = overrides.pop("dask", {})
            setup = overrides.pop("setup", None)
            overrides = {
                "name": "tide-test",
                "folder": str(tmp_path),
                "interval": "100ms",
                "pools": {"default": {"memory": "1 GiB", "maximum": 8}},
            } | overrides

            def provider(context: Any) -> RecordingProvider:
                made = RecordingProvider(context)
                if setup is not None:
                    setup(made)
                return made

            # Tests say themselves which worker has which task.
            still = {"distributed.scheduler.work-stealing-interval": "1h"}
            with dask.config.set({"distributed.scheduler.allowed-failures": 0} | still | dask_config):
                scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False)
                stack.push_async_callback(scheduler.close)
                controller = attach(scheduler, overrides, provider=provider)
                stack.push_async_callback(controller.close)
                client = await Client(scheduler.address, asynchronous=True)
                stack.push_async_callback(client.close)
            # Before anything is closed: a worker's threads end only when their tasks do.
            stack.callback(gates.let)
            return Harbour(scheduler, controller, cast("RecordingProvider", controller.provider), client)

        yield make
