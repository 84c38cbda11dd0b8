"""The races between the provider that lowers a number and the ReplicaSet that picks the pods."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import pytest
from replicasets import QUICK, PoolSet, calm, let_go, provided, shows
from waiting import until

from dask_tide.errors import Unavailable
from dask_tide.providers.kubernetes.pods import DELETION_COST
from rig.clients import ApiError

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.usefixtures("machines")]


@pytest.fixture(scope="module")
def machines(plane):
    return plane.add_kwok_nodes(2, prefix="provider")


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


async def test_race_a_marked_victim_beside_an_unready_busy_pod(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        pool.set_ready(names[3:], False)  # busy, and its node does not answer
        down = asyncio.create_task(provider.scale_down(names[:1]))
        pool.set_ready(names[:1], False)
        assert not await down
        assert sorted(pool.pods()) == names[1:]


async def test_race_a_victim_that_never_parks_beside_an_unready_busy_pod(plane, pool):
    """Then nothing is done: the busy one would go."""
    async with provided(plane, pool.namespace, patience=replace(QUICK, park_s=1.0, start_s=0.5)) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 3)
        names = await shows(provider, 3)
        pool.set_ready(names[2:], False)
        await until(lambda: not provider._known()[names[2]].ready, "it is seen as unready")
        with pytest.raises(Unavailable, match=f"{names[0]} are still ready, and {names[2]}"):
            await provider.scale_down(names[:1])
        assert sorted(pool.pods()) == names
        # And when the busy one is well again, the mark does.
        pool.set_ready(names[2:], True)
        await until(lambda: provider._known()[names[2]].ready, "it is ready again")
        assert not await provider.scale_down(names[:1])
        assert sorted(pool.pods()) == names[1:]


async def test_race_another_pod_is_deleted_while_the_number_is_lowered(plane, pool):
    async with provided(plane, pool.namespace, patience=replace(QUICK, delete_s=2.0)) as provider:
        await provider.observe()
        for _ in range(3):
            await calm(provider)
            await provider.scale_up("cpu", 6)
            names = await shows(provider, 6)
            pool.set_ready(names[:2], False)
            api = provider._api
            original = api.scale

            async def scale(replicaset: str, replicas: int) -> str:
                with suppress(ApiError):  # told again, it is gone
                    pool.delete_pod(names[5])  # noqa: B023 -- within this round
                return await original(replicaset, replicas)  # noqa: B023

            api.scale = scale
            assert not await provider.scale_down(names[:2])
            api.scale = original
            assert set(names[2:5]) <= set(pool.pods())
            assert not set(names[:2]) & set(pool.pods())


async def test_race_the_victim_itself_is_deleted_first(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        pool.set_ready(names[:1], False)
        pool.delete_pod(names[0])
        await pool.running(4)
        assert not await provider.scale_down(names[:1])
        # Its replacement is a unit like any other, with a name of its own, to be drained if too many.
        assert len(await shows(provider, 4)) == 4
        assert set(names[1:]) < set(pool.pods())


async def test_race_unready_busy_pods_without_any_mark(plane, pool):
    """Nobody can tell them apart, so nothing is done until they are well again."""
    quick = replace(QUICK, start_s=0.5)
    async with provided(plane, pool.namespace, annotate=False, patience=quick) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        provider.mark(dict.fromkeys(names[1:], True))
        pool.set_ready(names[:3], False)
        await until(lambda: sum(pod.ready for pod in provider._known().values()) == 1, "three are not")
        with pytest.raises(Unavailable, match=f"{names[0]} are not marked, and {names[1]}, {names[2]} would"):
            await provider.scale_down(names[:1])
        assert sorted(pool.pods()) == names
        pool.set_ready(names[1:3], True)
        await until(lambda: sum(pod.ready for pod in provider._known().values()) == 3, "they are well again")
        assert not await provider.scale_down(names[:1])
        assert sorted(pool.pods()) == names[1:]


async def test_race_unready_pods_without_any_mark(plane, pool):
    """Nobody can tell them apart: the wrong one may go, which is noticed, and the victims go in the end."""
    quick = replace(QUICK, start_s=0.5, delete_s=2.0)
    async with provided(plane, pool.namespace, annotate=False, patience=quick) as provider:
        await provider.observe()
        scale = provider.scales["cpu"]
        for _ in range(3):
            await calm(provider)
            await provider.scale_up("cpu", 6)
            names = await shows(provider, 6)
            pool.set_ready(names[:4], False)
            await until(lambda: sum(pod.ready for pod in provider._known().values()) == 2, "four are not")
            missed = scale.misses
            provider.mark(dict.fromkeys(names[4:], True))
            assert not await let_go(provider, pool, names[:2])
            left = set(pool.pods())
            assert not set(names[:2]) & left
            assert set(names[4:]) <= left
            assert len(set(names[2:4]) - left) == scale.misses - missed
            assert pool.replicas() == len(left)
            pool.set_ready(sorted(left & set(names[2:4])), True)


@pytest.fixture
def nowhere(pool):
    """A pool whose pods find no node."""
    return pool.create_nowhere()


async def test_race_those_that_do_not_run_yet_go_while_others_are_given_back(plane, nowhere):
    """As where the number is lowered while pods are made: some go anyway, and not those that are named."""
    async with provided(plane, nowhere.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 6)
        await until(lambda: len(provider._known()) == 6, "all wait for a machine")
        *_, first, second = known = sorted(provider._known())
        for name in (first, second):
            await provider._api.annotate(name, {DELETION_COST: "-200"})
        costs = lambda: [provider._known()[name].annotations[DELETION_COST] for name in (first, second)]  # noqa: E731
        await until(lambda: costs() == ["-200"] * 2, "those should be the first to go")
        scale, marks = provider.scales["cpu"], provider.marks
        assert marks is not None
        marking, sparing = marks.victims, scale._spared

        async def late(names: Iterable[str]) -> set[str]:
            await until(lambda: len(provider._known()) == 4, "those have gone")
            return await marking(names)

        async def resumed(victims: set[str]) -> set[str]:
            plane.kept.signal("kube-controller-manager", signal.SIGCONT)
            return await sparing(victims)

        marks.victims, scale._spared = late, resumed
        plane.kept.signal("kube-controller-manager", signal.SIGSTOP)
        try:
            await scale._number.set(4)
            kept = await provider.scale_down(known[:2])
        finally:
            plane.kept.signal("kube-controller-manager", signal.SIGCONT)
        left = set(nowhere.pods())
        assert nowhere.replicas() == len(left) == 4
        assert set(kept) == left & set(known[:2])


async def test_race_another_pod_that_does_not_run_yet_goes_instead_of_one_that_does_not(plane, nowhere):
    """One is as good as the other: the number is not lowered for the victim a second time."""
    pool = nowhere
    async with provided(plane, pool.namespace, patience=replace(QUICK, delete_s=2.0)) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        await until(lambda: len(provider._known()) == 4, "all wait for a machine")
        victim, other, *_ = sorted(provider._known())
        api = provider._api
        original = api.scale

        async def scale(replicaset: str, replicas: int) -> str:
            await api.annotate(other, {DELETION_COST: "-200"})
            cost = lambda: provider._known()[other].annotations[DELETION_COST]  # noqa: E731
            await until(lambda: cost() == "-200", "it is the first to go")
            api.scale = original
            return await original(replicaset, replicas)

        api.scale = scale
        assert await provider.scale_down([victim]) == [victim]
        assert victim in pool.pods()
        assert other not in pool.pods()
        assert pool.replicas() == len(pool.pods()) == 3
        assert provider.scales["cpu"].misses == 1


async def test_race_pods_that_do_not_run_yet_without_any_mark(plane, nowhere):
    """Nobody can tell them apart: one goes, whichever, and not all of them."""
    quick = replace(QUICK, delete_s=2.0)
    async with provided(plane, nowhere.namespace, annotate=False, patience=quick) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 6)
        await until(lambda: len(provider._known()) == 6, "all wait for a machine")
        victim, *_ = sorted(provider._known())
        kept = await provider.scale_down([victim])
        left = set(nowhere.pods())
        assert nowhere.replicas() == len(left) == 5
        assert set(kept) == left & {victim}
