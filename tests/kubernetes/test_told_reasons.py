"""Why workers do not come, or are taken away, in the platform's own words: what `explain` says of real pods.

Of those that find no node, of quotas and of images that may not be pulled see test_work.py, of memory
test_readiness.py.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from distributed import Client
from releases import DEADLINE_S, POOL, VALUES, Release, ask, calls, is_ready, nap, workers
from waiting import wait_until

from rig.clients import KubectlError
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

TO_SCALE = 'cannot patch resource "replicasets/scale" in API group "apps"'


@pytest.fixture
def small(nodes: Cluster) -> Iterator[dict[str, str]]:
    """A node of the test's own that claims one CPU; what selects it."""
    labels = {"machines": "small"}
    nodes.node_up("small", cpus=1, labels=labels)
    yield labels
    nodes.node_down("small", forget=True)


def one_worker(release: Release, client: Any) -> str:
    """The name of the one that there is, and not of the one that the chart began with."""
    release.settled(0)
    ask(client, "tide_scale", n=1)
    return str(*wait_until(lambda: workers(client), "a worker", DEADLINE_S, release.situation))


def lives(release: Release) -> dict[str, tuple[str, str, int]]:
    """Of each worker's pod, its uid, its phase, and how often it was started again."""
    return {
        name: (
            pod["metadata"]["uid"],
            pod["status"]["phase"],
            sum(container["restartCount"] for container in pod["status"].get("containerStatuses", ())),
        )
        for name, pod in release.all_pods().items()
    }


def test_an_image_that_cannot_be_pulled(install: Callable[..., Release]) -> None:
    """The registry cannot be reached from here; where it can, the words are others, the reasons the same."""
    missing = POOL | {"image": "docker.io/dask-tide/no-such-image:1"}
    image = {"image": VALUES["image"] | {"pullPolicy": "IfNotPresent"}}
    release = install({"pools": {"cpu": missing}} | image)
    with release.client() as client:
        future = client.submit(nap, 0.1)
        release.told(client, "ImagePullBackOff: Back-off pulling image")
        assert "docker.io/dask-tide/no-such-image:1" in release.explain()
        release.told(client, "starts in a row came to nothing")
        del future
    release.settled(0, "when nobody wants it any more")


def test_a_pod_that_is_evicted_by_somebody(install: Callable[..., Release]) -> None:
    release = install()
    with release.client() as client:
        name = one_worker(release, client)
        release.evict(name)
        release.told(
            client, "the platform takes the unit away: EvictionByEvictionAPI: Eviction API: evicting"
        )


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
        release.told(client, 'Evicted: Usage of EmptyDir volume "tmp" exceeds the limit "20Mi"', 150)


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
        release.told(client, "the platform takes the unit away: PreemptionByScheduler: ")
        # The ReplicaSet wants another one, for which there is no room now.
        release.told(client, "Unschedulable: ")


class Rights:
    """What the scheduler of a release may do in its namespace."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._role = f"role/{release.name}-scheduler"
        self._whole = json.loads(release.kubectl("get", self._role, "--output=json"))["rules"]

    def without(self, *rights: tuple[str, str]) -> None:
        """Take these away, and give all others."""
        rules = [
            rule | {"verbs": [verb for verb in rule["verbs"] if (rule["resources"][0], verb) not in rights]}
            for rule in self._whole
        ]
        patch = json.dumps({"rules": rules})
        self._release.kubectl("patch", self._role, "--type=merge", "--patch", patch)
        for resource, verb in rights:
            gone = partial(self._may_not, verb, *resource.split("/"))
            wait_until(gone, f"it may not {verb} {resource}")

    def _may_not(self, verb: str, resource: str, subresource: str = "") -> bool:
        release = self._release
        account = f"--as=system:serviceaccount:{release.namespace}:{release.name}-scheduler"
        what = (
            [f"{resource}/{release.name}-cpu", f"--subresource={subresource}"] if subresource else [resource]
        )
        try:
            return "yes" not in release.kubectl(account, "auth", "can-i", verb, *what)
        except KubectlError:
            return True


def attempts(began_s: float, pause_s: float) -> float:
    """How many there may be at the most, if the pause after each is twice as long."""
    return 2 + math.log2(1 + (time.monotonic() - began_s) / pause_s)


def grows_later(release: Release, client: Client, rights: Rights) -> None:
    """Without the right to set the number of pods, and with it again."""
    before, began_s = calls(client)["scale"], time.monotonic()
    rights.without(("replicasets/scale", "patch"))
    future = client.submit(nap, 0.1)
    release.told(client, "starts in a row came to nothing")
    assert f'replicasets.apps "{release.name}-cpu" is forbidden: User' in release.explain()
    assert TO_SCALE in release.explain()
    tried = wait_until(
        lambda: (count := calls(client)["scale"] - before) >= 4 and count, "it is tried again", DEADLINE_S
    )
    assert tried <= attempts(began_s, 0.5)
    assert release.log().count(TO_SCALE) <= calls(client)["scale"] - before
    assert not release.pods()
    rights.without()
    assert future.result(timeout=DEADLINE_S)


def shrinks_later(release: Release, client: Client, rights: Rights) -> None:
    """The same: who has left the scheduler meanwhile is parked, and waits in its pod with nothing to do."""

    def unready() -> list[str]:
        return [name for name, pod in release.pods().items() if not is_ready(pod)]

    ask(client, "tide_scale", n=2)
    both = wait_until(
        lambda: len(workers(client)) == 2 and not unready() and lives(release),
        "two workers",
        DEADLINE_S,
        release.situation,
    )
    rights.without(("replicasets/scale", "patch"))
    before, began_s = calls(client)["scale"], time.monotonic()
    ask(client, "tide_scale", n=1)
    (parked,) = wait_until(unready, "one is parked", DEADLINE_S, release.situation)
    (other,) = set(both) - {parked}
    tried = wait_until(
        lambda: (count := calls(client)["scale"] - before) >= 3 and count, "it is tried again", DEADLINE_S
    )
    assert tried <= attempts(began_s, 0.5)
    release.told(client, f"{parked} could not be stopped: ")
    assert TO_SCALE in release.explain()
    names = client.gather(client.map(nap, [0.1] * 10, pure=False))
    assert set(names) == set(workers(client)) == {other}
    assert lives(release) == both, "it runs, and never ended"
    assert unready() == [parked]
    rights.without()
    release.settled(1)
    assert lives(release) == {other: both[other]}, "it goes, and no other"
    ask(client, "tide_scale", n=0)
    release.settled(0)


def test_rights_that_are_missing_are_named_without_haste_and_missed_no_longer_once_given(
    install: Callable[..., Release],
) -> None:
    release = install()
    release.settled(0)
    rights = Rights(release)
    with release.client() as client:
        grows_later(release, client, rights)
        shrinks_later(release, client, rights)

    to_list = 'cannot list resource "pods" in API group ""'
    rights.without(("pods", "list"))
    began_s = time.monotonic()
    release.kubectl("delete", "pod", release.scheduler_pod(), deadline_s=60)
    release.close()
    release.ready()
    with release.client() as client:
        release.told(client, to_list)
        future = client.submit(nap, 0.1, pure=False)
        release.told(
            client,
            "the platform did not answer, so nothing is known and nothing is done: listing Pods: pods is",
        )
        # One list of ReplicaSets, one of events, and those of pods that are refused.
        tried = wait_until(
            lambda: (count := calls(client)["list"]) >= 4 and count, "it is tried again", DEADLINE_S
        )
        assert tried <= 2 + attempts(began_s, 2.0)
        assert release.log().count(to_list) == 1
        assert not release.pods()
        rights.without()
        assert future.result(timeout=DEADLINE_S)
        del future
    release.settled(0)
