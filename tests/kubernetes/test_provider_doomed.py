"""Pods on a node that is about to go: given up at the notice, and in the end not replaced twice.

And on one that has gone without a notice.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from replicasets import MERGE, STRATEGIC, PoolSet, provided, shows, units
from waiting import until

from dask_tide.errors import Unavailable
from dask_tide.model import Phase
from dask_tide.providers.base import NAMELESS

pytestmark = pytest.mark.xdist_group("plane")

TAINT = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def machines(plane):
    """Each has room for two pods."""
    return plane.add_kwok_nodes(2, prefix="doomed", cpus=1)


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


async def test_what_is_made_in_vain_for_evicted_pods_is_given_back_alone(plane, machines, pool):
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
            seen: set[int] = set()

            async def as_needed() -> bool:
                """What is too much is given back, as by the controller: first what does not exist yet."""
                observation = await provider.observe()
                here = [name for name in units(observation) if name not in given_up | stay]
                nameless = observation.requested.get("cpu", 0)
                coming = [f"cpu{NAMELESS}{number}" for number in range(nameless)] + sorted(here)
                seen.add(len(stay) + len(coming))
                with suppress(Unavailable):
                    await provider.scale_down(coming[: max(0, len(coming) - 2)])
                return pool.replicas() == len(pool.pods()) == 4

            for name in sorted(given_up):
                pool.delete_pod(name)
            await until(as_needed, "nobody made in vain stays", detail=lambda: str(sorted(pool.pods())))
            assert stay <= set(pool.pods())
            await as_needed()
            assert min(seen) == 4, "there was nothing to ask for again"
        finally:
            plane.api()("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}}, MERGE)


async def test_a_pod_on_its_way_to_a_node_that_does_not_answer_is_not_waited_for(plane, pool):
    """Its kubelet has never said anything of it, so nobody can take that back: the node's taint tells."""
    api, node = plane.api(), "silent"

    def ready(status: str) -> dict:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": "Ready", "status": status, "lastHeartbeatTime": now, "lastTransitionTime": now}
        return {"status": {"conditions": [condition]}}

    api("POST", "/api/v1/nodes", {"metadata": {"name": node}} | ready("True"))
    try:
        pool.delete()
        pool.spec = {"nodeName": node}
        pool.create()
        async with provided(plane, pool.namespace, nodes=True) as provider:
            await provider.observe()
            await provider.scale_up("cpu", 1)

            async def shown(phase: Phase) -> list[str]:
                return [unit.message for unit in units(await provider.observe(), phase).values()]

            assert await until(lambda: shown(Phase.PENDING), "it is on its way") == [""]
            api("PATCH", f"/api/v1/nodes/{node}/status", ready("Unknown"), STRATEGIC)
            (words,) = await until(lambda: shown(Phase.UNKNOWN), "nothing is known of it")
            assert words == "its node does not answer (node.kubernetes.io/unreachable)"
            api("PATCH", f"/api/v1/nodes/{node}/status", ready("True"), STRATEGIC)
            await until(lambda: shown(Phase.PENDING), "it is on its way again")
    finally:
        api("DELETE", f"/api/v1/nodes/{node}")
