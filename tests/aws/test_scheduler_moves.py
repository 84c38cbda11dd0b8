"""p30: the machine of the scheduler is drained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from fleet import DEADLINE_S, Fleet, on_nodes, until_told
from releases import computed_once, nap, workers
from waiting import wait_until

from rig.aws.instances import Instance
from rig.aws.karpenter import node_pool
from rig.clients import KubectlError
from rig.cloud import Cloud

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]


@pytest.fixture
def keepers(cloud: Cloud) -> Iterator[str]:
    """A NodePool, also for spot machines, which Karpenter takes where it may: they are cheaper."""
    name = f"keepers-{os.getpid()}"
    cloud.kubectl.apply(node_pool(name))
    yield name
    cloud.kubectl("delete", "nodepool", name, "--wait=false")


def test_p30_the_scheduler_is_not_drained_and_if_it_is_comes_back_off_spot(
    install: Callable[..., Fleet], cloud: Cloud, keepers: str
) -> None:
    little = {"requests": {"cpu": "100m", "memory": "150Mi"}, "limits": {"memory": "1Gi"}}
    scheduler = {**on_nodes(keepers), "resources": little, "podDisruptionBudget": {"enabled": True}}
    fleet = install(more={"scheduler": scheduler, "tide": {"release": {"keep": "3s"}}})

    def machines() -> list[Instance]:
        return cloud.instances(keepers)

    def drain(*how: str) -> None:
        always = ("--ignore-daemonsets", "--delete-emptydir-data")
        cloud.kubectl("drain", machine.node, *always, *how, deadline_s=90)

    [machine] = machines()
    assert machine.market == "on-demand"
    with fleet.client() as client:
        # Not `tell`: what they return is lost with the scheduler, as always with Dask.
        running = until_told(client, 2)
        wait_until(lambda: workers(client), "a worker", DEADLINE_S, fleet.situation)
        before = fleet.scheduler_pod()
        with pytest.raises(KubectlError, match="disruption budget"):
            drain("--timeout=10s")
        assert fleet.scheduler_pod() == before
        assert workers(client)
        # Whoever insists can: this deletes pods, and asks no budget.
        drain("--timeout=80s", "--disable-eviction")
        del running
    fleet.close()
    fleet.ready()
    assert fleet.scheduler_pod() != before
    [other] = (each for each in machines() if each.id != machine.id)
    assert other.market == "on-demand"
    with fleet.client() as client:
        again = client.map(nap, [0.2] * 20, pure=False)
        assert len(client.gather(again)) == 20
        computed_once(client)
        again.clear()
        fleet.settled(0, "after it")
        wait_until(lambda: [each.id for each in machines()] == [other.id], "its old machine goes", DEADLINE_S)
    fleet.no_machines("of workers that nobody knows are left")
