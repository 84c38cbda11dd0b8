"""A real scheduler with the controller in it, over a platform that the test has in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dask
import gates
import pytest_asyncio
from distributed import Client, Scheduler
from distributed.scheduler import WorkerState
from waiting import until

from dask_tide.controller.attach import attach
from dask_tide.controller.loop import Controller
from dask_tide.model import Phase, Unit
from dask_tide.testing import RecordingProvider

#: Tests that decide when units go keep the policy from doing so.
KEEP: Mapping[str, Any] = {"release": {"keep": "1h", "tail": "1h", "idle-timeout": "1h"}}


@dataclass
class Harbour:
    """A scheduler, its controller, the platform and a client."""

    scheduler: Scheduler
    controller: Controller
    provider: RecordingProvider
    client: Client

    def units(self, *phases: Phase) -> list[Unit]:
        """Units as of the last tick, all or those in ``phases``."""
        units = () if self.controller.snapshot is None else self.controller.snapshot.units
        return [unit for unit in units if not phases or unit.phase in phases]

    async def running(self, n: int) -> list[str]:
        """Wait until exactly ``n`` units run; their names, in the order of their start."""
        await until(
            lambda: len(self.units(Phase.RUNNING)) == n == len(self.scheduler.workers),
            f"{n} units run",
            detail=lambda: f"{self.units()}\n{self.scheduler.workers}",
        )
        return [unit.name for unit in self.units(Phase.RUNNING)]

    async def scaled(self, n: int) -> list[str]:
        """Set the size by hand, and wait until it is so."""
        self.controller.scale(n)
        return await self.running(n)

    def worker(self, unit: str) -> WorkerState:
        """The worker of ``unit``."""
        (ws,) = (ws for ws in self.scheduler.workers.values() if ws.name == unit)
        return ws

    def drain(self, unit: str) -> None:
        """Drain as a tick would."""
        ws = self.worker(unit)
        self.controller.drains.start("default", unit, [(str(ws.name), ws.address)])

    async def tick(self, n: int = 1) -> None:
        """Wait until ``n`` more ticks that began after now have ended."""
        for _ in range(n + 1):
            before = self.controller.latest
            self.controller.wake()
            await until(lambda before=before: self.controller.latest is not before, "a tick")

    def told(self, code: str) -> list[Any]:
        """All that happened or was decided for reason ``code``, oldest first."""
        lines = self.controller.journal.recent
        return [w for line in lines for w in (*line.events, *line.actions) if w.why.code == code]


@pytest_asyncio.fixture
async def harbour(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Harbour]]]:
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
