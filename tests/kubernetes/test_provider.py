"""The kubernetes provider against a real API server: more pods, fewer pods, and exactly which."""

from __future__ import annotations

import asyncio
import random

import pytest
from replicasets import MERGE, PoolSet, calm, container, let_go, provided, shows, units
from waiting import until

from dask_tide.model import Phase
from dask_tide.providers.kubernetes.pods import POOL

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.usefixtures("machines")]


@pytest.fixture(scope="module")
def machines(plane):
    return plane.add_kwok_nodes(6, prefix="provider")


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


@pytest.fixture
def nowhere(pool):
    """A pool whose pods find no node."""
    return pool.create_nowhere()


# -- more --------------------------------------------------------------------------------------------------


async def test_units_appear_without_a_name_and_then_with_one(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        before = await provider.observe()
        assert not before.units
        assert not before.frozen
        await provider.scale_up("cpu", 3)
        after = await provider.observe()
        assert len(after.units) + after.requested.get("cpu", 0) == 3
        names = await shows(provider, 3)
        assert names == sorted(pool.pods())
        assert all(unit.machine.startswith("provider-") for unit in (await provider.observe()).units)


async def test_asking_again_for_as_many_does_nothing(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 5)
        await shows(provider, 5)
        for n in (5, 4, 0, 5):
            await provider.scale_up("cpu", n)
        assert provider._api.calls["scale"] == 1
        assert pool.replicas() == 5


@pytest.mark.timeout(300, func_only=True)
async def test_p40_a_thousand_pods_are_as_many_calls_as_one_and_idle_there_are_none(plane, pool):
    pool.delete()
    pool.spec = {"schedulerName": "nobody"}  # what happens to them on nodes is not the point
    pool.create()
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        scale, calls = provider.scales["cpu"], provider._api.calls
        await provider.scale_up("cpu", 1000)
        await until(lambda: len(scale.active()) == 1000 and not scale.requested(), "all have names", 120)
        assert (calls["scale"], calls["list"]) == (1, 3)
        watches = calls["watch"]
        for _ in range(100):
            assert len((await provider.observe()).units) == 1000
            await asyncio.sleep(0.01)
        assert (calls["scale"], calls["list"]) == (1, 3)
        # The API server may end one of a client that was slow; it goes on where that ended.
        assert calls["watch"] - watches <= 1
        # All at once: nobody is to be preferred, so nothing need be marked.
        await until(lambda: len(pool.pods()) == 1000, "they are there", 120)
        assert not await provider.scale_down(sorted(pool.pods()))
        await until(lambda: not scale.active(), "all are gone", 120)
        assert not pool.pods()
        assert (calls["annotate"], calls["list"]) == (0, 3)


async def test_those_that_are_being_deleted_count_as_there(plane, pool):
    pool.delete()
    # Nobody ever confirms that their containers have ended.
    pool.spec = {"terminationGracePeriodSeconds": 3600}
    pool.create()
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        for name in names:
            pool.api("PATCH", pool.path(name), {"metadata": {"finalizers": ["test/hold"]}}, MERGE)
        pool.set_ready(names[:2], False)
        assert not await provider.scale_down(names[:2])
        leaving = units(await provider.observe(), Phase.STOPPING)
        assert sorted(leaving) == names[:2]
        await provider.scale_up("cpu", 5)
        assert pool.replicas() == 3
        for name in names:
            pool.api("PATCH", pool.path(name), {"metadata": {"finalizers": None}}, MERGE)


async def test_what_cannot_start_does_not_count(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        names = await shows(provider, 2)
        crash = container(waiting={"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"})
        pool.set_ready(names[:1], False)
        pool.status(names[0], {"containerStatuses": [crash]})

        async def failed() -> bool:
            return list(units(await provider.observe(), Phase.FAILED)) == names[:1]

        await until(failed, "the pod has failed")
        await provider.scale_up("cpu", 2)
        assert pool.replicas() == 3
        # And given back, it goes, though it is not running.
        await until(lambda: len(pool.pods()) == 3, "another one has come")
        assert not await provider.scale_down(names[:1])
        await until(lambda: set(names[1:]) < set(pool.pods()), "the right one has gone")
        assert names[0] not in pool.pods()
        assert pool.replicas() == 2


async def test_what_an_init_container_keeps_from_starting_does_not_count_either(plane, pool):
    """As those that a service mesh injects; kubelets tell of them apart from the others."""
    pool.delete()
    pool.spec = {"schedulerName": "nobody"}  # kwok's nodes run everything
    pool.create()
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        [name] = await until(pool.pods, "a pod")
        binding = {"kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n-1"}}
        pool.api("POST", f"{pool.path(name)}/binding", binding)
        before = container(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"})
        status = {
            "phase": "Pending",
            "initContainerStatuses": [before | {"name": "istio-init"}],
            "containerStatuses": [container(waiting={"reason": "PodInitializing"})],
        }
        pool.status(name, status)

        async def failed() -> bool:
            found = units(await provider.observe(), Phase.FAILED)
            words = "init container istio-init: ImagePullBackOff: Back-off pulling image"
            return name in found and found[name].message.startswith(words)

        await until(failed, "the pod has failed")
        await provider.scale_up("cpu", 1)
        assert pool.replicas() == 2


async def test_a_pod_that_somebody_relabels_is_no_longer_one_of_the_pool(plane, pool):
    """As one does to look into it; the ReplicaSet makes another one."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        odd, _ = await shows(provider, 2)
        pool.api("PATCH", pool.path(odd), {"metadata": {"labels": {POOL: "debug"}}}, MERGE)
        await until(lambda: odd not in provider.scales["cpu"].active(), "it is not counted")
        assert odd not in await shows(provider, 2)
        pool.delete_pod(odd)
        await until(lambda: odd not in provider._pods.objects, "it is gone")
        assert not any(odd in pods for pods in provider._by_pool.values())


async def test_what_is_left_of_a_pool_that_is_no_longer_configured_is_told(plane, pool, said):
    """As `kubectl apply` leaves it: its ReplicaSet and its pods stay, and are nobody's."""
    PoolSet(plane.api(), pool.namespace, pool="old").create(replicas=1)
    async with provided(plane, pool.namespace) as provider:
        assert not units(await provider.observe())
        assert said("r-old is of pool old, which is not configured: its pods (1) stay") == 1
        assert said("kubectl delete replicaset r-old") == 1


# -- fewer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("annotate", "rounds"), [(True, 10), (False, 5)], ids=["marked", "readiness alone"])
async def test_victims_only_over_many_rounds(plane, pool, annotate, rounds):
    chance = random.Random(4)
    async with provided(plane, pool.namespace, annotate=annotate) as provider:
        await provider.observe()
        for _ in range(rounds):
            await calm(provider)
            await provider.scale_up("cpu", 30)
            names = await shows(provider, 30)
            victims = chance.sample(names, chance.randrange(1, 29))
            provider.mark({name: name not in victims for name in names})
            down = asyncio.create_task(let_go(provider, pool, victims))
            pool.set_ready(victims, False)
            assert not await down
            assert set(pool.pods()) == set(names) - set(victims)
        assert provider.scales["cpu"].misses == 0


async def test_several_drains_that_end_at_once(plane, pool):
    """Each is a call of its own; one of the victims is deleted by somebody meanwhile."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 8)
        names = await shows(provider, 8)
        provider.mark({name: name in names[5:] for name in names})
        first = asyncio.create_task(provider.scale_down(names[:2]))
        await until(lambda: provider.scales["cpu"].going.leaving, "the first ones are to go")
        pool.delete_pod(names[0])
        await until(lambda: names[0] not in provider._known(), "it is gone")
        others = [asyncio.create_task(provider.scale_down([name])) for name in names[2:5]]
        pool.set_ready(names[1:5], False)
        for task in (first, *others):
            assert not await task
        left = set(pool.pods())
        assert set(names[5:]) <= left
        assert not set(names[:5]) & left
        # The ReplicaSet had replaced the one that was deleted; that may have been given up again.
        assert len(left) <= 4


async def test_a_drained_one_goes_although_others_have_no_node_yet(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 3)
        names = await shows(provider, 3)
        pool.change({"spec": {"template": {"spec": {"nodeSelector": {"there-is": "no-such-node"}}}}})
        await provider.scale_up("cpu", 5)

        async def waiting() -> bool:
            return len(units(await provider.observe(), Phase.PENDING)) == 2

        await until(waiting, "two pods wait for a node")
        pool.set_ready(names[:1], False)
        assert not await provider.scale_down(names[:1])
        assert names[0] not in pool.pods()
        await until(lambda: sorted(pool.pods()) == names[1:], "those without a node are given up with it")
        assert provider.scales["cpu"].misses == 0


async def test_a_pod_without_a_node_goes_at_once_and_only_that_one(plane, nowhere):
    async with provided(plane, nowhere.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 10)
        await until(lambda: len(nowhere.pods()) == 10, "ten pods")

        async def all_shown() -> bool:
            return len(units(await provider.observe(), Phase.PENDING)) == 10

        await until(all_shown, "all are shown")
        names = sorted(nowhere.pods())
        assert not await provider.scale_down(names[3:6])
        assert sorted(nowhere.pods()) == names[:3] + names[6:]


async def test_one_that_starts_meanwhile_stays_and_is_given_back(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 3)
        names = await shows(provider, 3)
        pool.set_ready(names[:2], False)
        await until(lambda: not provider._known()[names[1]].ready, "they have not started")
        provider.scales["cpu"].going.before = lambda victims: set(names[2:])
        down = asyncio.create_task(provider.scale_down(names[:2]))
        await until(lambda: provider.scales["cpu"].going.leaving, "they are to go")
        pool.set_ready(names[:1], True)
        await until(lambda: provider._known()[names[0]].ready, "it has started")
        del provider.scales["cpu"].going.before
        provider.scales["cpu"].pods_changed()
        assert await down == [names[0]]
        assert sorted(pool.pods()) == [names[0], names[2]]
        # It is at work, and must not look like one that may go.
        provider.mark({names[0]: True, names[2]: True})
        await until(lambda: pool.cost(names[0]) == "100", "it is protected again")


async def test_nameless_ones_are_cancelled(plane, nowhere):
    """No pod can be made here: they have no names for as long as the test lasts."""
    nowhere.quota(0)
    async with provided(plane, nowhere.namespace) as provider:
        await provider.observe()
        scale = provider.scales["cpu"]
        scale._refused = lambda view: None
        await provider.scale_up("cpu", 5)
        assert (await provider.observe()).requested == {"cpu": 5}
        assert not await provider.scale_down(["cpu?0", "cpu?1", "cpu?4"])
        assert (await provider.observe()).requested == {"cpu": 2}
        assert nowhere.replicas() == 2


async def test_unknown_names_are_ignored(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        assert not await provider.scale_down(["r-cpu-xxxxx", "r-gpu-xxxxx", "gpu?1"])


async def test_one_that_its_kubelet_refuses_is_not_made_again_unasked(plane, nowhere):
    """TopologyAffinityError, say: its ReplicaSet alone would go on without end."""
    async with provided(plane, nowhere.namespace) as provider:
        await provider.observe()
        scale = provider.scales["cpu"]
        await provider.scale_up("cpu", 2)
        await until(lambda: len(provider._known()) == 2, "both are there")
        refused, _ = sorted(provider._known())
        nowhere.fail(refused, "TopologyAffinityError", "Resources cannot be allocated with Topology locality")
        await until(lambda: refused not in scale.active() and len(scale.active()) == 2, "it is made again")
        assert not await provider.scale_down([refused])
        assert nowhere.replicas() == 1
        await until(lambda: len(scale.active()) == 1, "one of those that do not run yet goes")
        calls = provider._api.calls["scale"]
        assert not await provider.scale_down([refused])
        assert provider._api.calls["scale"] == calls, "once"
        await provider.scale_up("cpu", 2)
        await until(lambda: len(scale.active()) == 2, "it is made when somebody asks")


async def test_failed_ones_are_dismissed_and_replaced(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        names = await shows(provider, 2)
        pool.fail(names[0])

        async def failed() -> bool:
            return list(units(await provider.observe(), Phase.FAILED)) == names[:1]

        await until(failed, "it has failed")
        assert "low on memory" in units(await provider.observe(), Phase.FAILED)[names[0]].message
        at_work = lambda: [pod for pod in provider._known().values() if pod.active and pod.ready]  # noqa: E731
        await until(lambda: len(at_work()) == 2, "another one is at work in its stead")
        calls = provider._api.calls["scale"]
        assert not await provider.scale_down(names[:1])
        assert provider._api.calls["scale"] == calls
        assert names[0] not in {unit.name for unit in (await provider.observe()).units}
        await shows(provider, 2)


async def test_one_that_fails_while_it_is_being_given_back_is_dismissed_too(plane, pool):
    """Its kubelet evicts it, say; nobody asks for it again."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        names = await shows(provider, 2)
        down = asyncio.create_task(provider.scale_down(names[:1]))
        await until(lambda: provider.scales["cpu"].going.leaving, "it is to go, and has not parked yet")
        pool.fail(names[0])
        assert not await down
        assert names[0] not in {unit.name for unit in (await provider.observe()).units}
        assert names[0] in pool.pods(), "although it is there until it is collected"


async def test_one_that_is_evicted_and_gone_before_anybody_looks_is_told_once(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        first, second = await shows(provider, 2)
        path = f"/api/v1/namespaces/{pool.namespace}/pods/{first}/eviction"
        pool.api("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first}})
        await until(lambda: first not in provider._pods.objects, "it is gone")
        taken = units(await provider.observe(), Phase.STOPPING)
        assert list(taken) == [first]
        assert "EvictionByEvictionAPI" in taken[first].message
        later = {unit.name for unit in (await provider.observe()).units}
        assert second in later
        assert first not in later


async def test_of_one_that_its_kubelet_evicts_and_that_ends_well_only_an_event_says_why(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        (name,) = await shows(provider, 1)
        words = 'Usage of EmptyDir volume "tmp" exceeds the limit "20Mi".'
        about = {"kind": "Pod", "namespace": pool.namespace, "name": name}
        event = {"metadata": {"name": "evicted"}, "involvedObject": about, "reason": "Evicted"}
        pool.api("POST", f"/api/v1/namespaces/{pool.namespace}/events", event | {"message": words})

        async def told(phase: Phase) -> bool:
            return f"Evicted: {words}" in units(await provider.observe(), phase)[name].message

        await until(lambda: told(Phase.STARTING), "it is told while it drains")
        ended = container(terminated={"exitCode": 0, "reason": "Completed"})
        pool.status(name, {"phase": "Succeeded", "containerStatuses": [ended]})

        async def over() -> bool:
            return name in units(await provider.observe(), Phase.FAILED)

        await until(over, "it has ended")
        assert await told(Phase.FAILED)


# -- others, and earlier lives -----------------------------------------------------------------------------


async def test_two_clusters_in_one_namespace_never_touch_each_other(plane, pool):
    other = PoolSet(plane.api(), pool.namespace, cluster="r-two").create()
    async with (
        provided(plane, pool.namespace, on_close="release") as one,
        provided(plane, pool.namespace, cluster="r-two") as two,
    ):
        await one.observe()
        await two.observe()
        await one.scale_up("cpu", 3)
        await two.scale_up("cpu", 4)
        mine, theirs = await shows(one, 3), await shows(two, 4)
        assert not set(mine) & set(theirs)
        assert not await one.scale_down(theirs)
        other.set_ready(theirs[:1], False)
        assert not await two.scale_down(theirs[:1] + mine)
        assert sorted(pool.pods()) == mine
        assert sorted(other.pods()) == theirs[1:]
        await one.close()
        await until(lambda: not pool.pods(), "the one's pods are gone")
        assert sorted(other.pods()) == theirs[1:]


async def test_pods_of_an_earlier_scheduler_are_adopted_and_parked_ones_go(plane, pool):
    async with provided(plane, pool.namespace) as earlier:
        await earlier.observe()
        await earlier.scale_up("cpu", 5)
        names = await shows(earlier, 5)
        # Two had been drained, marked and parked, when it died before it could lower the number.
        assert earlier.marks is not None
        await earlier.marks.victims(names[:2])
        pool.set_ready(names[:2], False)
    async with provided(plane, pool.namespace) as later:
        found = await later.observe()
        assert sorted(units(found, Phase.STOPPING)) == names[:2]
        assert "earlier scheduler" in units(found, Phase.STOPPING)[names[0]].message
        await until(lambda: sorted(pool.pods()) == names[2:], "the parked ones have gone")
        assert await shows(later, 3) == names[2:]
        await calm(later)
        await later.scale_up("cpu", 4)
        await shows(later, 4)


async def test_closing_releases_everything(plane, pool):
    async with provided(plane, pool.namespace, on_close="release") as provider:
        await provider.observe()
        await provider.scale_up("cpu", 3)
        await shows(provider, 3)
    await until(lambda: not pool.pods(), "no pod is left")
    assert pool.replicas() == 0


async def test_closing_keeps_everything_if_told_so(plane, pool):
    async with provided(plane, pool.namespace, on_close="keep") as provider:
        await provider.observe()
        await provider.scale_up("cpu", 3)
        names = await shows(provider, 3)
    assert pool.replicas() == 3
    assert sorted(pool.pods()) == names


async def test_a_changed_template_makes_the_older_pods_stale(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        (old,) = await shows(provider, 1)
        pool.change({"spec": {"template": {"metadata": {"labels": {"dask-tide/template": "fedcba9876"}}}}})

        async def stale() -> bool:
            return units(await provider.observe())[old].stale

        await until(stale, "the older one is stale")
        assert "0123456789, which is fedcba9876 now" in units(await provider.observe())[old].message
        await provider.scale_up("cpu", 2)
        await shows(provider, 2)
        assert [name for name, unit in units(await provider.observe()).items() if unit.stale] == [old]
