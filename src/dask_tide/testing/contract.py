"""The contract: what every provider does, as tests to inherit.

Subclass :class:`ProviderContract` in a test module, say how the provider is made, and pytest does
the rest::

    class TestMyProvider(ProviderContract):
        def provider(self, context):
            return MyProvider(context)

Needs pytest and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import pytest_asyncio
from distributed import Scheduler
from distributed.scheduler import WorkerState

from dask_tide.controller.drain import Drains
from dask_tide.errors import ProviderError
from dask_tide.model import Phase, Pool, Settings, owner_of
from dask_tide.providers.base import ObservedUnit, Provider, ProviderContext, Template

__all__ = ["Platform", "ProviderContract", "process_of"]

_CLUSTER = "tide-contract"
_LOOK_S = 0.02
_SOME = 2
_DNS_LABEL = 63


@dataclass
class Platform:
    """A provider at work, and the scheduler that its workers connect to."""

    scheduler: Scheduler
    context: ProviderContext
    provider: Provider
    deadline_s: float

    async def units(self, pool: str | None = None) -> dict[str, ObservedUnit]:
        """The units there are, by name: what is being stopped or has failed is none."""
        over = (Phase.STOPPING, Phase.FAILED, Phase.GONE)
        observed = (await self.provider.observe()).units
        return {u.name: u for u in observed if u.phase not in over and pool in (None, u.pool)}

    async def shown(self) -> dict[str, ObservedUnit]:
        """All that is observed, by name."""
        return {unit.name: unit for unit in (await self.provider.observe()).units}

    def workers(self, units: Sequence[str]) -> dict[str, list[WorkerState]]:
        """Registered workers by unit, found as the controller finds them."""
        known: dict[str, Any] = dict.fromkeys(units)
        found: dict[str, list[WorkerState]] = {unit: [] for unit in units}
        for ws in self.scheduler.workers.values():
            if owner := owner_of(ws.name, known):
                found[owner].append(ws)
        return found

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Wait for a condition; returns its value."""
        end_s = time.monotonic() + self.deadline_s
        while not (value := await condition()):
            if time.monotonic() > end_s:
                shown = await self.shown()
                pytest.fail(f"not within {self.deadline_s:g} s: {what}; units: {shown}")
            await asyncio.sleep(_LOOK_S)
        return value

    async def registered(self, *units: str) -> dict[str, list[WorkerState]]:
        """Wait until all workers of ``units`` have registered, and the platform has seen that they run."""

        async def complete() -> bool:
            workers, shown = self.workers(units), await self.shown()
            failed = [shown[name].message for name in units if shown[name].phase is Phase.FAILED]
            assert not failed, f"a unit failed: {failed[0]}"
            return all(
                shown[name].phase is Phase.STARTING
                and len(workers[name]) == self.context.templates[shown[name].pool].pool.workers_per_unit
                for name in units
            )

        await self.until(complete, f"the workers of {', '.join(units)} register")
        return self.workers(units)

    async def up(self, pool: str, n: int) -> list[str]:
        """Ask for ``n`` units, wait until they are shown, and return their names."""
        await self.provider.scale_up(pool, n)

        async def enough() -> bool:
            return len(await self.units(pool)) >= n

        await self.until(enough, f"{n} units of pool {pool} are shown")
        return sorted(await self.units(pool))

    async def drained(self, *units: str) -> None:
        """Drain their workers, as the controller does before it lets a unit go."""
        drains = Drains(
            self.scheduler,
            fill_ratio=Settings().fill_ratio,
            timeout_s=self.deadline_s,
            close_workers=self.provider.closes_workers,
            wake=lambda: None,
        )
        for unit, workers in self.workers(units).items():
            if workers:
                pool = (await self.shown())[unit].pool
                drains.start(pool, unit, [(str(ws.name), ws.address) for ws in workers])

        async def all_ended() -> bool:
            return not drains.units

        await self.until(all_ended, f"{', '.join(units)} are drained")
        refused = [str(end.why) for end in drains.take_ended() if not end.done]
        await drains.close()
        assert not refused, refused

    async def down(self, units: Sequence[str]) -> None:
        """Let these go, also where the platform sees late that their workers are at work, and keeps them."""

        async def told() -> bool:
            return not await self.provider.scale_down(units)

        await self.until(told, f"the provider lets {', '.join(units)} go")

    async def gone(self, *units: str) -> None:
        """Wait until nothing of ``units`` is left."""

        async def none() -> bool:
            return not set(units) & set(await self.shown()) and not any(self.workers(units).values())

        await self.until(none, f"nothing is left of {', '.join(units)}")


class ProviderContract:
    """Tests that every provider passes.

    Attributes
    ----------
    pools
        The pools that the provider is given: ``one`` and ``two``, and whichever a subclass adds.
    deadline_s
        How long the platform may take for anything.
    host
        Where the scheduler listens: an address of this machine that workers can reach.
    """

    pools: ClassVar[Mapping[str, Pool]] = {
        "one": Pool("one", threads=1, memory_bytes=2**30, maximum=8),
        "two": Pool("two", threads=2, memory_bytes=2**30, resources=(("GPU", 1.0),), maximum=8),
    }
    deadline_s = 60.0
    host: ClassVar[str] = "127.0.0.1"

    # -- what a subclass says -----------------------------------------------------------------

    def provider(self, context: ProviderContext) -> Provider:
        """Make the provider."""
        raise NotImplementedError

    async def vanish(self, platform: Platform, unit: str) -> None:
        """End a unit behind the provider's back; its worker has registered.

        Some platforms start another one in its place, under another name: they may.
        """
        pytest.skip("this provider's units cannot be ended from outside")

    def make_unable(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the platform not be able to start anything."""
        pytest.skip("this provider's platform cannot be made to refuse")

    async def leftovers(self, platform: Platform, before: frozenset[int]) -> list[str]:
        """What a closed provider has left behind; by default units, and processes not there ``before``.

        Override it where a closed provider does not look any more.
        """
        processes = [process.name() for process in _children() if process.pid not in before]
        return [*await platform.shown(), *processes]

    # -- fixtures -----------------------------------------------------------------------------

    @pytest_asyncio.fixture
    async def make_provider(self, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Platform]]]:
        """A factory of providers, each with a scheduler of its own."""
        platforms: list[Platform] = []

        async def make() -> Platform:
            scheduler = await Scheduler(host=self.host, port=0, dashboard=False)
            folder = tmp_path / f"platform-{len(platforms)}"
            folder.mkdir(mode=0o700)
            context = ProviderContext(
                cluster=_CLUSTER,
                scheduler_address=scheduler.address,
                templates={name: Template(pool) for name, pool in self.pools.items()},
                options={},
                folder=folder,
                security=scheduler.security,
                wake=lambda: None,
            )
            platforms.append(Platform(scheduler, context, self.provider(context), self.deadline_s))
            return platforms[-1]

        yield make
        for platform in platforms:
            await platform.provider.close()
            await platform.scheduler.close()

    @pytest_asyncio.fixture
    async def platform(self, make_provider: Callable[[], Awaitable[Platform]]) -> Platform:
        """One provider with its scheduler."""
        return await make_provider()

    # -- the contract -------------------------------------------------------------------------

    async def test_what_the_controller_reads_is_there(self, platform: Platform) -> None:
        assert platform.provider.boot_s >= 0
        assert isinstance(platform.provider.closes_workers, bool)

    async def test_there_is_nothing_at_first(self, platform: Platform) -> None:
        observation = await platform.provider.observe()
        assert observation.units == ()
        assert observation.limits == ()
        assert not platform.scheduler.workers

    async def test_scale_up_says_how_many_there_should_be(self, platform: Platform) -> None:
        first = await platform.up("one", _SOME)
        assert len(first) == _SOME
        for n in (_SOME, 1, 0):
            await platform.provider.scale_up("one", n)
            assert sorted(await platform.units("one")) == first
        more = await platform.up("one", _SOME + 1)
        assert len(more) == _SOME + 1
        assert set(first) < set(more)

    async def test_scale_up_asked_twice_at_once_counts_once(self, platform: Platform) -> None:
        scale_up = platform.provider.scale_up
        await asyncio.gather(scale_up("one", _SOME), scale_up("one", _SOME))
        names = await platform.up("one", _SOME)
        assert len(names) == _SOME
        await platform.registered(*names)
        assert len(platform.scheduler.workers) == _SOME

    async def test_units_are_shown_without_a_claim_about_their_workers(self, platform: Platform) -> None:
        names = await platform.up("one", 1)
        for _ in range(2):
            shown = await platform.shown()
            assert shown[names[0]].phase in (Phase.PENDING, Phase.STARTING)
            assert shown[names[0]].pool == "one"
            await platform.registered(*names)

    async def test_names(self, make_provider: Callable[[], Awaitable[Platform]]) -> None:
        names = []
        for platform in (await make_provider(), await make_provider()):
            for pool in ("one", "two"):
                made = await platform.up(pool, _SOME)
                names += made
                for name in made:
                    head, _, tail = name.rpartition("-")
                    # Random characters may all be digits; before them is then what all of the pool's have.
                    common = all(other.startswith(f"{head}-") for other in made)
                    assert common or not tail.isdigit(), "no unit's name looks like another one's worker"
        assert len(set(names)) == 2 * 2 * _SOME, "names are unique, also among clusters"
        for name in names:
            assert _CLUSTER in name, "a unit can be found again by its cluster's name"
            assert len(name) <= _DNS_LABEL, "a name is a DNS label"
        assert not any(a != b and b.startswith(a) for a in names for b in names)

    async def test_pools_are_apart(self, platform: Platform) -> None:
        one, two = await platform.up("one", 1), await platform.up("two", 1)
        assert not set(one) & set(two)
        await platform.registered(*one, *two)
        await platform.down(one)
        await platform.gone(*one)
        assert sorted(await platform.units()) == two
        assert await platform.up("one", 1) != one
        assert sorted(await platform.units("two")) == two

    async def test_workers_are_named_and_made_as_their_pool_says(self, platform: Platform) -> None:
        for name, pool in self.pools.items():
            (unit,) = await platform.up(name, 1)
            workers = (await platform.registered(unit))[unit]
            assert len(workers) == pool.workers_per_unit
            for ws in workers:
                assert ws.nthreads == pool.threads
                assert ws.memory_limit == pool.memory_bytes
                assert ws.resources == dict(pool.resources)

    async def test_scale_down_stops_exactly_these(self, platform: Platform) -> None:
        names = await platform.up("one", 3)
        await platform.registered(*names)
        going, staying = names[1:2], [names[0], names[2]]
        await platform.drained(*going)
        await platform.down(going)
        await platform.gone(*going)
        left = sorted(await platform.units())
        assert left == staying, f"{left} were left, not {staying}"
        assert all(platform.workers(staying).values())

    async def test_scale_down_is_idempotent_and_ignores_what_it_does_not_know(
        self, platform: Platform
    ) -> None:
        going, staying = await platform.up("one", 2)
        await platform.registered(going, staying)
        await platform.provider.scale_down([])
        await platform.drained(going)
        await platform.down([going, "nobody-one-xxxxx"])
        await platform.provider.scale_down([going])
        await platform.gone(going)
        await platform.provider.scale_down([going, going])
        assert list(await platform.units()) == [staying]

    async def test_a_unit_that_has_not_started_can_be_stopped(self, platform: Platform) -> None:
        going, staying = await platform.up("one", 2)
        if kept := await platform.provider.scale_down([going]):
            # Its worker has come meanwhile, so that it had to be drained first; this one has nothing to do.
            assert list(kept) == [going]
            await platform.registered(going, staying)
            assert not await platform.provider.scale_down([going])
        await platform.gone(going)
        await platform.registered(staying)
        assert [str(ws.name) for ws in platform.scheduler.workers.values()] == [staying]

    async def test_a_drained_unit_ends_without_having_failed(self, platform: Platform) -> None:
        going, staying = await platform.up("one", 2)
        await platform.registered(going, staying)
        phases: set[Phase] = set()

        async def gone() -> bool:
            unit = (await platform.shown()).get(going)
            phases.update({unit.phase} if unit else ())
            return unit is None

        await platform.drained(going)
        await platform.down([going])
        await platform.until(gone, f"unit {going} has ended")
        assert Phase.FAILED not in phases

    async def test_a_unit_that_vanishes_is_not_shown_as_alive(self, platform: Platform) -> None:
        lost, staying = await platform.up("one", _SOME)
        await platform.registered(lost, staying)
        await self.vanish(platform, lost)

        async def noticed() -> bool:
            return lost not in await platform.units() and not any(platform.workers([lost]).values())

        await platform.until(noticed, f"the end of {lost} is noticed")
        shown = (await platform.shown()).get(lost)
        assert shown is None or shown.message, "a failed unit says why"
        left = await platform.units()
        assert staying in left
        assert len(left) <= _SOME, "the platform itself may have replaced it"
        # One that failed does not count; giving it back makes the platform forget it.
        names = await platform.up("one", _SOME)
        assert len(names) == _SOME
        assert staying in names
        assert lost not in names
        await platform.registered(*names)
        await platform.provider.scale_down([lost])
        await platform.gone(lost)

    async def test_observe_may_be_called_at_any_time(self, platform: Platform) -> None:
        provider = platform.provider
        await asyncio.gather(provider.scale_up("one", 2), *(provider.observe() for _ in range(5)))
        names = await platform.up("one", 2)
        before = await asyncio.gather(*(provider.observe() for _ in range(5)))
        assert all({unit.name for unit in observation.units} == set(names) for observation in before)
        await asyncio.gather(provider.scale_down(names), *(provider.observe() for _ in range(5)))
        await platform.gone(*names)

    async def test_errors_are_provider_errors(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.make_unable(platform, monkeypatch)
        with pytest.raises(ProviderError, match=r"\w"):
            await platform.provider.scale_up("one", 1)

    async def test_close_leaves_nothing(self, make_provider: Callable[[], Awaitable[Platform]]) -> None:
        before = frozenset(process.pid for process in _children())
        platform = await make_provider()
        running = await platform.up("one", 1)
        await platform.registered(*running)
        starting = await platform.up("two", 1)
        await platform.provider.close()
        await platform.provider.close()
        units = (*running, *starting)

        async def clean() -> bool:
            left = await self.leftovers(platform, before)
            return not left and not any(platform.workers(units).values())

        await platform.until(clean, "nothing is left behind")

    async def test_close_of_one_that_was_never_used(
        self, make_provider: Callable[[], Awaitable[Platform]]
    ) -> None:
        await (await make_provider()).provider.close()


def process_of(ws: WorkerState) -> psutil.Process:
    """The child process of this one that runs the worker ``ws``: it listens at its address."""
    port = int(ws.address.rpartition(":")[2])
    for process in _children():
        listening = (c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN)
        if port in listening:
            return process
    raise LookupError(f"no child process listens at {ws.address}")


def _children() -> list[psutil.Process]:
    found = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
