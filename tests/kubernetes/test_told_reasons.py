"""Why workers do not come, or are taken away, in the platform's own words: what `explain` says of real pods.

Of those that find no node, of quotas and of images that may not be pulled see test_work.py, of memory
test_readiness.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from releases import DEADLINE_S, POOL, Release, ask, nap, workers
from waiting import wait_until

from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]


@pytest.fixture
def small(nodes: Cluster) -> Iterator[dict[str, str]]:
    """A node of the test's own that claims one CPU; what selects it."""
    labels = {"machines": "small"}
    nodes.node_up("small", cpus=1, labels=labels)
    yield labels
    nodes.node_down("small", forget=True)


def told(release: Release, words: str, deadline_s: float = DEADLINE_S) -> None:
    wait_until(lambda: words in release.explain(), f"it is told: {words}", deadline_s, release.situation)


def one_worker(release: Release, client: Any) -> str:
    """The name of the one that there is, and not of the one that the chart began with."""
    release.settled(0)
    ask(client, "tide_scale", n=1)
    return str(*wait_until(lambda: workers(client), "a worker", DEADLINE_S, release.situation))


def test_an_image_that_cannot_be_pulled(install: Callable[..., Release]) -> None:
    """The registry cannot be reached from here; where it can, the words are others, the reasons the same."""
    missing = POOL | {"image": "docker.io/dask-tide/no-such-image:1"}
    image = {"image": {"tag": "dev", "pullPolicy": "IfNotPresent"}}
    release = install({"pools": {"cpu": missing}} | image)
    with release.client() as client:
        future = client.submit(nap, 0.1)
        told(release, "ImagePullBackOff: Back-off pulling image")
        assert "docker.io/dask-tide/no-such-image:1" in release.explain()
        told(release, "starts failed in a row")
        del future
    release.settled(0, "when nobody wants it any more")


def test_a_pod_that_is_evicted_by_somebody(install: Callable[..., Release]) -> None:
    release = install()
    with release.client() as client:
        name = one_worker(release, client)
        release.evict(name)
        told(release, "the platform takes the unit away: EvictionByEvictionAPI: Eviction API: evicting")


def test_a_pod_that_its_node_evicts(install: Callable[..., Release]) -> None:
    """For too much local storage: the same way as for too little memory, but a test can have it."""
    little = POOL | {"scratch": {"emptyDir": {"sizeLimit": "20Mi"}}}
    release = install({"pools": {"cpu": little}})

    def fill() -> int:
        from pathlib import Path

        return Path("/tmp/much").write_bytes(b"x" * 50 * 2**20)

    with release.client() as client:
        one_worker(release, client)
        assert client.submit(fill).result(timeout=DEADLINE_S)
        # The kubelet measures volumes once a minute, and looks at that every ten seconds.
        told(release, 'Evicted: Usage of EmptyDir volume "tmp" exceeds the limit "20Mi"', 150)


def test_a_pod_that_must_make_room_for_a_more_important_one(
    install: Callable[..., Release], nodes: Cluster, small: dict[str, str]
) -> None:
    most = {"requests": {"cpu": "600m", "memory": "150Mi"}}
    spare = POOL | {"nodeSelector": small, "priorityClassName": "spare", "resources": most}
    release = install({"pools": {"cpu": spare}, "priorityClasses": {"spare": {"value": -5}}})
    with release.client() as client:
        name = one_worker(release, client)
        assert release.pods()[name]["spec"]["nodeName"] == "small"
        important = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "important", "namespace": release.namespace},
            "spec": {
                "nodeSelector": small,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "important",
                        "image": "docker.io/dask-tide/toolbox:rig",
                        "args": ["sleep"],
                        "resources": most,
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        }
        release.kubectl("apply", "--filename=-", stdin=json.dumps(important))
        told(release, "the platform takes the unit away: PreemptionByScheduler: ")
        # The ReplicaSet wants another one, for which there is no room now.
        told(release, "Unschedulable: ")
