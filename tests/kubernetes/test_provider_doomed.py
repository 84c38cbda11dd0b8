"""Pods on a node that is about to go: given up at the notice, and not replaced twice when evicted."""

from __future__ import annotations

import pytest
from replicasets import MERGE, PoolSet, provided, shows
from waiting import until

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
    async with provided(plane, pool.namespace, nodes=True) as provider:
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
            for name in sorted(given_up):
                pool.delete_pod(name)
            await until(lambda: pool.replicas() == 4, "the number is lowered", detail=pool.replicas)
            await until(lambda: len(pool.pods()) == 4, "and nobody made in vain stays", detail=pool.pods)
            assert stay <= set(pool.pods())
        finally:
            plane.api()("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}}, MERGE)
