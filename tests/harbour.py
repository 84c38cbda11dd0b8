"""A scheduler with the controller in it, and what a test asks of the two."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client, Scheduler
from distributed.scheduler import WorkerState
from waiting import until

from dask_tide.controller.journal import Line
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
            lambda: (
                len(self.units(Phase.RUNNING))
                == n
                == len(self.scheduler.workers)
                == len(self.scheduler.running)
            ),
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
            self.controller.wake()
            await until(functools.partial(self._ticked, self.controller.latest), "a tick")

    def _ticked(self, before: Line | None) -> bool:
        return self.controller.latest is not before

    def told(self, code: str) -> list[Any]:
        """All that happened or was decided for reason ``code``, oldest first."""
        lines = self.controller.journal.recent
        return [w for line in lines for w in (*line.events, *line.actions) if w.why.code == code]
