"""The provider of workers that are processes of this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dask_tide.errors import ConfigError, LaunchRejected
from dask_tide.model import Phase
from dask_tide.ownership import make, make_own
from dask_tide.providers.base import Observation, ObservedUnit, ProviderContext, unit_name

from .command import forkserver_environment, keys_in_memory, terminate_bytes, worker_arguments, write_keys
from .launcher import Launcher, describe_exit, last_lines, search_path
from .messages import Exited, Start, Stop, WorkerProcess
from .options import Options

__all__ = ["LocalProvider"]

logger = logging.getLogger(__name__)

#: How long the processes of a released unit may take to end when they are asked to.
STOP_GRACE_S = 5.0
#: How long they may take where the worker was drained and closes by itself, with what its plugins do then:
#: as Dask's own `Worker.close`.
CLOSE_GRACE_S = 30.0
#: How long a failed unit is shown.
SHOW_FAILED_S = 60.0
#: Logs of so many workers that have ended are kept: somebody may look for what their tasks have printed.
KEPT_LOGS = 100
#: When a process ends so soon after it was started, one that replaced it would, too: the others of its unit
#: go on without it.
YOUNG_S = 10.0


@dataclass
class _Unit:
    """A row of the provider's table."""

    name: str
    pool: str
    launcher: Launcher
    workers: Sequence[str]
    running: set[str]
    started_s: float
    phase: Phase = Phase.STARTING
    failures: list[str] = field(default_factory=list)
    failed_at_s: float = 0.0
    #: A part of it has ended, after it had been at work.
    maimed: bool = False
    #: Its worker was drained, and closes by itself.
    closes: bool = False


class LocalProvider:
    """Starts and stops ``dask worker`` processes on this machine.

    The processes have no nanny. They are forked from a process that has imported Dask already,
    which takes a tenth of a second, and they end with the process that made the provider, however it
    ends. Their output, and what their tasks print, is in ``<folder>/logs/<worker>.log`` (``tide.folder`` says
    where; of workers that have ended the last ones' stay) and in what they answer to ``get_logs``. What is
    importable here is there, and Dask's configuration is the one that was in force when the provider was
    made.

    A unit whose process exits with code 0 has done what it was told to, by us or by the scheduler, and is
    gone. One with a process that exits otherwise, unasked, fails when its last process has ended;
    until then it is doomed, if that process had been at work.

    Parameters
    ----------
    context
        What it works for. Its options: see :class:`~dask_tide.providers.local.options.Options`.
    clock
        Seconds that increase steadily.

    Raises
    ------
    ConfigError
        If an option is wrong, or this system cannot fork processes (Windows).
    Unavailable
        If no process can be started.
    """

    boot_s = 0.5
    closes_workers = True

    def __init__(self, context: ProviderContext, clock: Callable[[], float] = time.monotonic) -> None:
        if not hasattr(os, "fork"):
            raise ConfigError("tide.provider", "local", "another provider: this system cannot fork processes")
        self._context = context
        self._clock = clock
        self._common = Options().updated("tide.options", context.options)
        self._options = {
            name: self._common.updated(f"tide.pools.{name}.options", template.options)
            for name, template in context.templates.items()
        }
        self._machine = socket.gethostname()
        self._logs = context.folder / "logs"
        self._make_folders()
        self._environment = forkserver_environment(context, self._common.environment)
        # Now, as all of Dask's configuration: what is set by the time of a start may be something else.
        pools = [template.pool for template in context.templates.values()]
        self._arguments = {
            pool.name: worker_arguments(context, pool, self._options[pool.name].worker_options)
            for pool in pools
        }
        self._terminate_bytes = {pool.name: terminate_bytes(pool) for pool in pools}
        self._units: dict[str, _Unit] = {}
        #: Logs of workers that have ended.
        self._ended: deque[Path] = deque()
        self._listeners: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        # Now, so that it has imported everything by the time when the first unit is asked for.
        self._launcher = self._launch()
        self._heard: Launcher | None = None

    async def observe(self) -> Observation:
        self._forget_failed()
        return Observation(
            tuple(
                ObservedUnit(
                    unit.name,
                    unit.pool,
                    unit.phase,
                    self._machine,
                    "\n".join(unit.failures),
                    doomed=unit.maimed and unit.phase is Phase.STARTING,
                )
                for unit in self._units.values()
            )
        )

    async def scale_up(self, pool: str, n: int) -> None:
        if self._closing is not None:
            raise LaunchRejected("the provider is closed")
        if pool not in self._context.templates:
            raise LaunchRejected(f"there is no pool {pool!r}")
        existing = sum(unit.pool == pool and unit.phase is not Phase.FAILED for unit in self._units.values())
        if n <= existing:
            return
        try:
            # Again: somebody who cleans up /tmp may have removed them.
            self._make_folders()
            write_keys(self._context)
        except OSError as error:
            where = error.filename or self._context.folder
            raise LaunchRejected(f"{where} cannot be written to: {error}") from error
        launcher = self._listening_launcher()
        for _ in range(n - existing):
            self._start(pool, launcher)
        self._context.wake()

    async def scale_down(self, units: Sequence[str]) -> None:
        for name in units:
            unit = self._units.get(name)
            if unit is None or unit.phase is Phase.STOPPING:
                continue
            if unit.phase is Phase.FAILED:
                self._forget(unit)
            else:
                unit.phase = Phase.STOPPING
                stop = Stop(name, CLOSE_GRACE_S, ask=False) if unit.closes else Stop(name, STOP_GRACE_S)
                unit.launcher.send(stop)
            self._context.wake()

    def let_close(self, units: Collection[str]) -> None:
        for name in units:
            # Of several workers one may not have started yet, and would go on.
            if (unit := self._units.get(name)) is not None and len(unit.workers) == 1:
                unit.closes = True

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        # Whoever waits may be cancelled; the processes are ended all the same.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for unit in self._units.values():
            unit.phase = Phase.STOPPING
        await self._launcher.end()
        await asyncio.gather(*self._listeners)
        self._units.clear()
        for file in keys_in_memory(self._context):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s stays, though nobody needs it any more: %s", file, error)

    def _make_folders(self) -> None:
        # What workers read back from their disk is unpickled.
        make_own(self._context.safe_folder)
        for folder in (self._context.folder, self._logs):
            make(folder)

    def _launch(self) -> Launcher:
        return Launcher(self._environment, self._logs / f"{self._context.cluster}-forkserver.log")

    def _listening_launcher(self) -> Launcher:
        """A forkserver that runs and whose reports are heard."""
        if self._launcher.ended:
            if self._heard is not self._launcher:
                self._launcher.disconnect()
            self._launcher = self._launch()
        if self._heard is not self._launcher:
            self._heard = self._launcher
            listener = asyncio.create_task(self._listen(self._launcher))
            self._listeners.add(listener)
            listener.add_done_callback(self._listeners.discard)
        return self._launcher

    def _start(self, pool_name: str, launcher: Launcher) -> None:
        options = self._options[pool_name]
        name = unit_name(self._context.cluster, pool_name)
        count = self._context.templates[pool_name].pool.workers_per_unit
        names = [name] if count == 1 else [f"{name}-{i}" for i in range(count)]
        workers = [
            WorkerProcess(
                worker,
                [*self._arguments[pool_name], "--name", worker, *options.worker_options],
                dict(options.environment),
                str(self._log(worker)),
                self._terminate_bytes[pool_name],
            )
            for worker in names
        ]
        launcher.send(Start(name, workers, search_path()))
        self._units[name] = _Unit(name, pool_name, launcher, names, set(names), self._clock())

    async def _listen(self, launcher: Launcher) -> None:
        async for event in launcher.events():
            self._take(event)
        lost = [unit for unit in self._units.values() if unit.launcher is launcher and unit.running]
        if lost and self._closing is None:
            logger.error("All %d local units are lost: %s", len(lost), launcher.obituary())
        for unit in lost:
            unit.running.clear()
            self._finish(unit, launcher.obituary())

    def _take(self, event: Exited) -> None:
        unit = self._units[event.unit]
        unit.running.discard(event.worker)
        failure = ""
        if event.code != 0:
            failure = f"worker {event.worker} ended: {event.reason or describe_exit(event.code)}"
            if event.code > 0 and not event.reason:  # of what has killed it its log knows nothing
                failure = f"{failure}\n{last_lines(self._log(event.worker))}".rstrip()
            if event.reason and unit.phase is Phase.STOPPING and self._closing is None:
                logger.warning("%s", failure)
        self._finish(unit, failure)

    def _finish(self, unit: _Unit, failure: str) -> None:
        """Note that a process of a unit has ended, and the unit with it if it was the last one."""
        if failure and unit.phase is not Phase.STOPPING:
            unit.failures.append(failure)
            unit.maimed |= self._clock() - unit.started_s > YOUNG_S
        if unit.running:
            self._context.wake()
            return
        if unit.failures and unit.phase is not Phase.STOPPING:
            unit.phase = Phase.FAILED
            unit.failed_at_s = self._clock()
        else:
            self._forget(unit)
        self._context.wake()

    def _forget_failed(self) -> None:
        oldest_s = self._clock() - SHOW_FAILED_S
        for unit in [*self._units.values()]:
            if unit.phase is Phase.FAILED and unit.failed_at_s < oldest_s:
                self._forget(unit)

    def _forget(self, unit: _Unit) -> None:
        del self._units[unit.name]
        self._ended.extend(map(self._log, unit.workers))
        while len(self._ended) > KEPT_LOGS:
            self._ended.popleft().unlink(missing_ok=True)

    def _log(self, worker: str) -> Path:
        return self._logs / f"{worker}.log"
