"""The kubernetes provider's annotations: who may go, who may not, and on which nodes nobody is kept."""

from __future__ import annotations

import pytest
from replicasets import PoolSet, provided, shows, units
from waiting import until

from dask_tide.providers.kubernetes.pods import DO_NOT_DISRUPT, SAFE_TO_EVICT

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.usefixtures("machines")]

DISRUPTED = "karpenter.sh/disrupted"


@pytest.fixture(scope="module")
def machines(plane):
    return plane.add_kwok_nodes(2, prefix="provider")


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


def marks_on(pool, name):
    return pool.pods()[name]["metadata"]["annotations"]


async def test_marks_follow_what_the_workers_do(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)
        one, two = await shows(provider, 2)
        provider.mark({one: True, two: False})
        await until(lambda: pool.cost(two) == "0", "an idle pod says so")
        assert marks_on(pool, two)[SAFE_TO_EVICT] == "true"
        assert DO_NOT_DISRUPT not in marks_on(pool, two)
        assert pool.cost(one) == "100"
        provider.mark({one: True, two: True})
        await until(lambda: pool.cost(two) == "100", "a busy pod is protected")
        assert marks_on(pool, two)[DO_NOT_DISRUPT] == "true"


@pytest.mark.parametrize("template", [None, "false"])
async def test_a_pod_is_protected_from_nothing_that_its_template_does_not_say(plane, pool, template):
    """On spot nodes that nobody watches Karpenter's annotation would keep a worker until the power is cut."""
    pool.change({"spec": {"template": {"metadata": {"annotations": {DO_NOT_DISRUPT: template}}}}})
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        (name,) = await shows(provider, 1)
        provider.mark({name: False})
        await until(lambda: pool.cost(name) == "0", "an idle pod says so")
        provider.mark({name: True})
        await until(lambda: pool.cost(name) == "100", "a busy pod is protected")
        assert marks_on(pool, name)[SAFE_TO_EVICT] == "false"
        assert marks_on(pool, name).get(DO_NOT_DISRUPT) == template


async def test_p31_on_a_node_that_is_about_to_go_nobody_is_kept_and_all_know_why(plane, pool):
    async with provided(plane, pool.namespace, nodes=True) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 6)
        names = await shows(provider, 6)
        provider.mark(dict.fromkeys(names, True))
        on = {name: pod["spec"]["nodeName"] for name, pod in pool.pods().items()}
        doomed = on[names[0]]
        there = {name for name in names if on[name] == doomed}
        plane.kubectl("taint", "node", doomed, f"{DISRUPTED}:NoSchedule")
        try:
            await until(
                lambda: {name for name in names if DO_NOT_DISRUPT not in marks_on(pool, name)} == there,
                "those on it are not protected from Karpenter any more",
            )
            assert {name for name in names if marks_on(pool, name)[SAFE_TO_EVICT] == "true"} == there
            # They have work: where a ReplicaSet chooses, newcomers go first.
            assert {pool.cost(name) for name in names} == {"100"}
            shown = units(await provider.observe())
            told = {name for name in names if f"its node is about to go ({DISRUPTED})" in shown[name].message}
            assert told == there
        finally:
            plane.kubectl("taint", "node", doomed, f"{DISRUPTED}:NoSchedule-")
        await until(
            lambda: all(DO_NOT_DISRUPT in marks_on(pool, name) for name in names),
            "it stays after all, and so do they",
        )
        assert not any(unit.message for unit in units(await provider.observe()).values())
