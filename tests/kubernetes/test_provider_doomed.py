"""Pods on a node that is about to go: given up at the notice, and not replaced twice when evicted.

And on one that has gone without a notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from replicasets import MERGE, QUICK, STRATEGIC, PoolSet, provided, shows, units
from waiting import until

from dask_tide.model import Phase

pytestmark = pytest.mark.xdist_group("plane")

TAINT = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def machines(plane):
    """Each has room for two pods."""
    return plane.add_kwok_nodes(2, prefix="doomed", cpus=1)


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


async def test_an_evicted_pod_whose_replacement_was_asked_for_is_not_replaced_again(plane, machines, pool):
    pool.delete()
    names = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(machines)}
    terms = [{"matchExpressions": [names]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    container = {"name": "worker", "image": "none", "resources": {"requests": {"cpu": "400m"}}}
    pool.spec = {"affinity": {"nodeAffinity": required}, "containers": [container]}
    pool.create()
    patient = replace(QUICK, delete_s=60.0)
    async with provided(plane, pool.namespace, nodes=True, patience=patient) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        await shows(provider, 4)
        node = pool.pods()[min(pool.pods())]["spec"]["nodeName"]
        plane.api()("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": [TAINT]}}, MERGE)
        try:

            async def doomed() -> set[str]:
                return {unit.name for unit in (await provider.observe()).units if unit.doomed}

            await until(doomed, "they are shown as doomed")
            given_up = await doomed()
            assert len(given_up) == 2
            assert given_up == {name for name, p in pool.pods().items() if p["spec"]["nodeName"] == node}
            stay = set(pool.pods()) - given_up
            await provider.scale_up("cpu", 6)
            await until(lambda: len(pool.pods()) == 6, "two others wait for a machine")
            seen: set[int] = set()

            async def shown_and(condition: Callable[[], bool]) -> bool:
                observation = await provider.observe()
                here = sum(unit.name not in given_up for unit in units(observation).values())
                seen.add(here + sum(observation.requested.values()))
                return condition()

            for name in sorted(given_up):
                pool.delete_pod(name)
                await shown_and(lambda: True)
            await until(
                lambda: shown_and(lambda: pool.replicas() == 4), "it is lowered", detail=pool.replicas
            )
            made_in_vain = "and nobody made in vain stays"
            await until(lambda: shown_and(lambda: len(pool.pods()) == 4), made_in_vain, detail=pool.pods)
            assert stay <= set(pool.pods())
            assert seen == {4}, "the controller has nothing to give back, and nothing to ask for"
        finally:
            plane.api()("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}}, MERGE)


def ready(status: str) -> dict:
    """What a kubelet says of its node, or somebody else once it says nothing."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": "Ready", "status": status, "lastHeartbeatTime": now, "lastTransitionTime": now}
    return {"status": {"conditions": [condition]}}


@pytest.fixture
def silent(plane, pool):
    """The path of a node without a kubelet, where all pods of the pool go."""
    api, name = plane.api(), f"silent-{pool.namespace}"
    api("POST", "/api/v1/nodes", {"metadata": {"name": name}} | ready("True"))
    pool.delete()
    pool.spec = {"nodeName": name}
    pool.create()
    yield f"/api/v1/nodes/{name}"
    api("DELETE", f"/api/v1/nodes/{name}")


async def test_a_pod_on_its_way_to_a_node_that_does_not_answer_is_not_waited_for(plane, pool, silent):
    """Its kubelet has never said anything of it, so nobody can take that back: the node's taint tells."""
    async with provided(plane, pool.namespace, nodes=True) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)

        async def shown(phase: Phase) -> list[str]:
            return [unit.message for unit in units(await provider.observe(), phase).values()]

        assert await until(lambda: shown(Phase.PENDING), "it is on its way") == [""]
        plane.api()("PATCH", f"{silent}/status", ready("Unknown"), STRATEGIC)
        (words,) = await until(lambda: shown(Phase.UNKNOWN), "nothing is known of it")
        assert words == "its node does not answer (node.kubernetes.io/unreachable)"
        plane.api()("PATCH", f"{silent}/status", ready("True"), STRATEGIC)
        await until(lambda: shown(Phase.PENDING), "it is on its way again")


async def test_a_pod_whose_node_has_gone_is_not_replaced_twice(plane, pool, silent):
    """It is given up when its node no longer answers, and deleted once the machine is known to be gone."""
    async with provided(plane, pool.namespace, nodes=True) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        [lost] = await until(pool.pods, "it is on its way")
        plane.api()("PATCH", f"{silent}/status", ready("Unknown"), STRATEGIC)

        async def given_up() -> bool:
            return lost in units(await provider.observe(), Phase.UNKNOWN)

        await until(given_up, "it is given up")
        await provider.scale_up("cpu", 2)
        await until(lambda: len(pool.pods()) == 2, "there is another one")
        pool.delete_pod(lost)
        await until(lambda: pool.replicas() == 1, "the number is lowered", detail=pool.replicas)
