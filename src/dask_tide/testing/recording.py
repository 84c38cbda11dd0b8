"""The recording provider: units are workers in the scheduler's own process and event loop.

Scheduler, workers and the protocol between them are the real ones; only the platform is not. It is
the reference implementation of :class:`~dask_tide.providers.base.Provider`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker

from dask_tide.errors import LaunchRejected, ProviderError
from dask_tide.model import Phase
from dask_tide.providers.base import Limit, Observation, ObservedUnit, ProviderContext, unit_name

__all__ = ["Call", "RecordingProvider"]

#: How long a worker may wait for each of the things that it closes.
_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Call:
    """A call of one of the provider's methods."""

    method: str
    arguments: tuple[Any, ...] = ()


@dataclass
class _Unit:
    """A unit, and what runs it."""

    pool: str
    phase: Phase
    message: str = ""
    workers: list[Worker] = field(default_factory=list)
    life: asyncio.Task[None] | None = None


class RecordingProvider:
    """Runs units in this event loop and writes down what it is asked.

    It is used as a factory, ``attach(scheduler, provider=RecordingProvider)``. The attributes are
    switches: set them at any time, they hold for what comes after.

    Parameters
    ----------
    context
        What it works for.

    Attributes
    ----------
    calls
        All calls so far, :meth:`observe` included.
    boot
        How long a unit takes to start: seconds, or an event that is waited for.
    placed
        While it is not set, units stay PENDING.
    failure
        Units fail to start, with this message; empty: they do not.
    failures
        How many more of them do; None: all.
    limits
        Part of every observation.
    doomed
        Units whose machine is about to go, and what the platform says of it.
    unavailable
        Raised by every method but ``close``.
    refusal
        Raised by ``scale_up``.
    keeps
        Raised by ``scale_down``.
    hangs
        Whether ``scale_up`` never returns.
    """

    boot_s = 0.1
    closes_workers = True

    def __init__(self, context: ProviderContext) -> None:
        self.context = context
        self.calls: list[Call] = []
        self.boot: float | asyncio.Event = 0.0
        self.placed = asyncio.Event()
        self.placed.set()
        self.failure = ""
        self.failures: int | None = None
        self.limits: tuple[Limit, ...] = ()
        self.doomed: dict[str, str] = {}
        self.unavailable: ProviderError | None = None
        self.refusal: ProviderError | None = None
        self.keeps: ProviderError | None = None
        self.hangs = False
        self._units: dict[str, _Unit] = {}
        self._closed = False

    # -- the protocol -------------------------------------------------------------------------

    async def observe(self) -> Observation:
        self.calls.append(Call("observe"))
        self._answer()
        return Observation(
            tuple(
                ObservedUnit(
                    name,
                    unit.pool,
                    unit.phase,
                    "here",
                    self.doomed.get(name, unit.message),
                    doomed=name in self.doomed,
                )
                for name, unit in self._units.items()
            ),
            self.limits,
        )

    async def scale_up(self, pool: str, n: int) -> None:
        self.calls.append(Call("scale_up", (pool, n)))
        self._answer()
        if self.refusal is not None:
            raise self.refusal
        if self.hangs:
            await asyncio.Event().wait()
        if self._closed or pool not in self.context.templates:
            raise LaunchRejected(f"there is no pool {pool!r}, or the provider is closed")
        existing = sum(u.pool == pool and u.phase is not Phase.FAILED for u in self._units.values())
        for _ in range(n - existing):
            name = unit_name(self.context.cluster, pool)
            unit = self._units[name] = _Unit(pool, Phase.PENDING)
            unit.life = asyncio.create_task(self._live(name, unit))
        self.context.wake()

    async def scale_down(self, units: Sequence[str]) -> None:
        self.calls.append(Call("scale_down", (tuple(units),)))
        self._answer()
        if self.keeps is not None:
            raise self.keeps
        for name in units:
            self._stop(name)

    async def close(self) -> None:
        self.calls.append(Call("close"))
        self._closed = True
        for name in self.names:
            self._stop(name)
        await asyncio.gather(*(unit.life for unit in self._units.values() if unit.life is not None))

    # -- for tests ----------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """All units, in the order in which they were asked for."""
        return list(self._units)

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """Arguments of all calls of ``method``."""
        return [call.arguments for call in self.calls if call.method == method]

    def workers(self, unit: str) -> list[Worker]:
        """The workers that a unit runs now."""
        return list(self._units[unit].workers)

    def adopt(self, unit: str, pool: str) -> None:
        """Show a unit that an earlier controller has left behind; it runs no worker."""
        self._units[unit] = _Unit(pool, Phase.STARTING)

    async def kill(self, unit: str) -> None:
        """End a unit as ``kill -9`` does: the scheduler sees a broken connection, nothing else."""
        killed = self._units.pop(unit)
        _cancel(killed.life)
        for worker in killed.workers:
            if (stream := worker.batched_stream) is not None and stream.comm is not None:
                stream.comm.abort()
        await _close(killed.workers)
        self.context.wake()

    async def restart(self, unit: str) -> None:
        """End a unit's workers and start others under their names, as nannies do."""
        restarted = self._units[unit]
        _cancel(restarted.life)
        await _close(restarted.workers)
        restarted.life = asyncio.create_task(self._live(unit, restarted))

    # -- inside -------------------------------------------------------------------------------

    def _answer(self) -> None:
        if self.unavailable is not None:
            raise self.unavailable

    async def _live(self, name: str, unit: _Unit) -> None:
        """A unit's life, from when it was asked for until its workers have ended by themselves."""
        await self.placed.wait()
        unit.phase = Phase.STARTING
        self.context.wake()
        if isinstance(self.boot, asyncio.Event):
            await self.boot.wait()
        else:
            await asyncio.sleep(self.boot)
        if self.failure and self.failures != 0:
            if self.failures is not None:
                self.failures -= 1
            self._fail(unit, self.failure)
            return
        try:
            await self._start(name, unit)
        except (OSError, RuntimeError) as error:
            self._fail(unit, f"{type(error).__name__}: {error}")
            return
        await asyncio.gather(*(worker.finished() for worker in unit.workers))
        del self._units[name]
        self.context.wake()

    def _fail(self, unit: _Unit, message: str) -> None:
        unit.phase, unit.message = Phase.FAILED, message
        self.context.wake()

    async def _start(self, name: str, unit: _Unit) -> None:
        pool = self.context.templates[unit.pool].pool
        count = pool.workers_per_unit
        unit.workers = [
            _Worker(
                self.context.scheduler_address,
                name=name if count == 1 else f"{name}-{i}",
                nthreads=pool.threads,
                memory_limit=pool.memory_bytes,
                resources=dict(pool.resources),
                security=self.context.security,
                local_directory=str(self.context.safe_folder),
            )
            for i in range(count)
        ]
        await asyncio.gather(*unit.workers)

    def _stop(self, name: str) -> None:
        unit = self._units.get(name)
        if unit is None or unit.phase is Phase.STOPPING:
            return
        unit.phase = Phase.STOPPING
        _cancel(unit.life)
        unit.life = asyncio.create_task(self._end(name, unit))

    async def _end(self, name: str, unit: _Unit) -> None:
        await _close(unit.workers)
        self._units.pop(name, None)
        self.context.wake()


def _cancel(life: asyncio.Task[None] | None) -> None:
    if life is not None:
        life.cancel()


async def _close(workers: Sequence[Worker]) -> None:
    await asyncio.gather(*(worker.close() for worker in workers))


class _Worker(Worker):
    """Ends as a process does: what its threads are doing is not waited for."""

    async def close(  # type: ignore[override]  # as in distributed
        self,
        timeout: float = _PATIENCE_S,  # noqa: ASYNC109 its name in distributed
        executor_wait: bool = False,
        nanny: bool = False,
        reason: str = "worker-close",
    ) -> str | None:
        return await super().close(min(timeout, _PATIENCE_S), executor_wait=False, nanny=False, reason=reason)
