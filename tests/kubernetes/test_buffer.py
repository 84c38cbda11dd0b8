"""Where pods go, with the real kube-scheduler: warm buffers, packing, and what stays off spot nodes.

Nodes and their pods are kwok's; no container runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from waiting import wait_until

from dask_tide.providers.kubernetes.manifests import Manifest, manifests
from rig.clients import Api, ApiError
from rig.plane import Plane

pytestmark = pytest.mark.xdist_group("plane")

SCHEDULE = [
    {"at": "0 8 * * 1-5", "timeZone": "Europe/Berlin", "units": 3},
    {"at": "0 18 * * 1-5", "timeZone": "Europe/Berlin", "units": 0},
]
MERGE = "application/merge-patch+json"


class Place:
    """A namespace with a release, and nodes that take no other's pods."""

    def __init__(self, plane: Plane, namespace: str) -> None:
        self.plane = plane
        self.api = plane.api()
        self.namespace = namespace
        self.objects: list[Manifest] = []
        self.nodes: list[str] = []

    def add_nodes(self, count: int = 1, cpus: int = 4, labels: Mapping[str, str] | None = None) -> list[str]:
        taint = {"key": "only", "value": self.namespace, "effect": "NoSchedule"}
        own = {**(labels or {}), "only": self.namespace}
        made = self.plane.add_kwok_nodes(count, cpus, prefix=self.namespace, labels=own, taints=[taint])
        self.nodes += made
        return made

    @property
    def here(self) -> dict[str, Any]:
        """Values of what runs on these nodes only."""
        toleration = {"key": "only", "operator": "Equal", "value": self.namespace}
        return {"nodeSelector": {"only": self.namespace}, "tolerations": [toleration]}

    def install(self, values: Mapping[str, Any]) -> None:
        pools = {"cpu": {"threads": 2, "memory": "1Gi", **self.here}}
        image = {"image": {"repository": "example.org/dask-tide"}}
        both = image | {"admission": {"enabled": False}, "poolDefaults": self.here, "pools": pools, **values}
        self.objects = manifests("r", self.namespace, both, replicas=0)
        self.plane.kubectl.apply(*self.objects)

    def kubectl(self, *arguments: str) -> str:
        return self.plane.kubectl("--namespace", self.namespace, *arguments)

    def scale(self, pool: str, count: int) -> None:
        self.kubectl("scale", "replicaset", f"r-{pool}", f"--replicas={count}")

    def pods(self, component: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io%2Fcomponent%3D{component}"
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}"
        pods: list[dict[str, Any]] = self.api("GET", path)["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def on(self, component: str) -> list[str]:
        """The nodes of a component's pods, one for each; those that no node has room for have `pending`."""

        def where(pod: dict[str, Any]) -> str:
            if node := pod["spec"].get("nodeName"):
                return str(node)
            conditions = {one["type"]: one for one in pod["status"].get("conditions", ())}
            why = conditions.get("PodScheduled", {}).get("reason")
            return "pending" if why == "Unschedulable" else "new"

        return sorted(where(pod) for pod in self.pods(component))

    def wait_for(self, component: str, *nodes: str) -> None:
        where = f"pods of {component} are on {', '.join(nodes) or 'none'}"
        wait_until(lambda: self.on(component) == sorted(nodes), where, detail=lambda: self.on(component))


@pytest.fixture
def place(plane: Plane, new_namespace: Callable[..., str]) -> Iterator[Place]:
    place = Place(plane, new_namespace(plane.kubectl, "restricted"))
    yield place
    for one in place.objects:
        if "namespace" not in one["metadata"]:
            plane.kubectl("delete", one["kind"], one["metadata"]["name"], "--ignore-not-found")
    if place.nodes:
        plane.kubectl("delete", "node", *place.nodes)


# Warm capacity


def test_workers_push_placeholders_out_which_then_wait_for_a_machine(place: Place) -> None:
    [warm] = place.add_nodes(cpus=4)
    place.install({"buffer": {"pools": {"cpu": {"units": 2}}}})
    place.wait_for("buffer", warm, warm)
    place.scale("cpu", 1)
    place.wait_for("worker", warm)
    place.wait_for("buffer", warm, "pending")
    place.scale("cpu", 2)
    place.wait_for("worker", warm, warm)
    place.wait_for("buffer", "pending", "pending")
    # What a node autoscaler does about pods that wait.
    [new] = place.add_nodes(cpus=4)
    place.wait_for("buffer", new, new)
    place.scale("cpu", 0)
    place.wait_for("worker")
    place.wait_for("buffer", new, new)


def test_workers_that_come_together_push_placeholders_out_together(place: Place) -> None:
    """Half of the times kube-scheduler forgot one for 5 minutes, while placeholders had no grace period."""
    [warm] = place.add_nodes(cpus=4)
    place.install({"buffer": {"pools": {"cpu": {"units": 2}}}})
    for _ in range(6):
        place.wait_for("buffer", warm, warm)
        place.scale("cpu", 2)
        place.wait_for("worker", warm, warm)
        place.scale("cpu", 0)
        place.wait_for("worker")


def test_placeholders_push_nobody_out(place: Place) -> None:
    """Not even those whose priority is lower still: another pool's."""
    [full] = place.add_nodes(cpus=2)
    classes = {"spare": {"value": -1000}}
    cpu = {"threads": 2, "memory": "1Gi", **place.here}
    pools = {"cpu": cpu, "spare": {**cpu, "priorityClassName": "spare"}}
    buffer = {"pools": {"cpu": {"units": 0}}}
    place.install({"priorityClasses": classes, "pools": pools, "buffer": buffer})
    place.scale("spare", 1)
    place.wait_for("worker", full)
    place.kubectl("scale", "deployment", "r-cpu-buffer", "--replicas=1")
    place.wait_for("buffer", "pending")
    [placeholder] = place.pods("buffer")
    assert placeholder["spec"]["priority"] == -10
    assert place.on("worker") == [full]


def sizing(place: Place, units: int) -> list[str]:
    """What the CronJob that sets this number runs in its container."""
    found = [
        one["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
        for one in place.plane.kubectl.json("--namespace", place.namespace, "get", "cronjobs")["items"]
    ]
    [command] = [args for args in found if args[-1] == str(units)]
    return [str(part) for part in command]


def run(place: Place, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run it here, with the token that it has there."""
    kubeconfig = place.plane.serviceaccount_kubeconfig(place.namespace, "r-buffer")
    return subprocess.run(
        [sys.executable, *command[1:]],
        env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_clock_changes_the_number_of_placeholders(place: Place) -> None:
    place.install({"buffer": {"pools": {"cpu": {"schedule": SCHEDULE}}}})

    def replicas() -> int:
        found = place.kubectl("get", "deployment", "r-cpu-buffer", "--output=jsonpath={.spec.replicas}")
        return int(found)

    command = sizing(place, 3)
    # The role may take a moment to count.
    wait_until(
        lambda: run(place, command).returncode == 0,
        "the buffer was scaled",
        detail=lambda: run(place, command),
    )
    assert replicas() == 3
    done = run(place, sizing(place, 0))
    assert (done.returncode, done.stderr, replicas()) == (0, "", 0)


def test_the_clock_may_do_nothing_else(place: Place) -> None:
    place.install({"buffer": {"pools": {"cpu": {"schedule": SCHEDULE}}}})
    command = sizing(place, 3)
    wait_until(lambda: run(place, command).returncode == 0, "its role counts")
    other = [part.replace("r-cpu-buffer", "r-scheduler") for part in command]
    refused = run(place, other)
    assert refused.returncode == 1
    assert "r-scheduler" in refused.stderr
    assert "forbidden" in refused.stderr
    assert "Traceback" not in refused.stderr

    api = Api(place.plane.serviceaccount_kubeconfig(place.namespace, "r-buffer"))
    apps, core = f"/apis/apps/v1/namespaces/{place.namespace}", f"/api/v1/namespaces/{place.namespace}"
    replicas = {"spec": {"replicas": 1}}
    attempts: list[tuple[Any, ...]] = [
        ("GET", f"{apps}/deployments"),
        ("GET", f"{apps}/deployments/r-cpu-buffer"),
        ("GET", f"{apps}/deployments/r-cpu-buffer/scale"),
        ("PATCH", f"{apps}/deployments/r-cpu-buffer", replicas, MERGE),
        ("DELETE", f"{apps}/deployments/r-cpu-buffer"),
        ("PATCH", f"{apps}/deployments/r-scheduler/scale", replicas, MERGE),
        ("PATCH", f"{apps}/replicasets/r-cpu/scale", replicas, MERGE),
        ("GET", f"{core}/pods"),
        ("GET", f"{core}/secrets/r-tls"),
        ("GET", "/api/v1/nodes"),
    ]
    for attempt in attempts:
        with pytest.raises(ApiError, match=r"^403"):
            api(*attempt)


def test_the_clocks_own_pods_are_restricted_and_go_where_the_scheduler_goes(place: Place) -> None:
    [node] = place.add_nodes()
    place.install({"buffer": {"pools": {"cpu": {"schedule": SCHEDULE}}}, "scheduler": place.here})
    [first, _] = place.kubectl("get", "cronjobs", "--output=name").split()
    place.kubectl("create", "job", "now", f"--from={first}")
    place.wait_for("buffer-schedule", node)


# Packing


@pytest.mark.parametrize("packing", [True, False])
def test_packing_fills_machines(place: Place, packing: bool) -> None:
    """Even with many on one: there kube-scheduler's own spreading outweighed the preference (18, 3 and 3)."""
    nodes = place.add_nodes(3, cpus=32)
    pools = {name: {"threads": 1, "memory": "1Gi", "packing": packing, **place.here} for name in ("a", "b")}
    place.install({"pools": pools})
    for pool in pools:
        place.scale(pool, 12)
    wait_until(lambda: [node in nodes for node in place.on("worker")] == [True] * 24, "workers have nodes")
    # All fit one machine; kube-scheduler by itself spreads them.
    assert (len(set(place.on("worker"))) == 1) is packing


def test_packed_workers_take_another_machine_when_one_is_full(place: Place) -> None:
    nodes = place.add_nodes(3, cpus=4)
    pools = {"cpu": {"threads": 2, "memory": "1Gi", "packing": True, **place.here}}
    place.install({"pools": pools})
    place.scale("cpu", 3)
    wait_until(lambda: [node in nodes for node in place.on("worker")] == [True] * 3, "workers have nodes")
    assert len(set(place.on("worker"))) == 2


# Spot


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("karpenter.sh/capacity-type", "spot"),
        ("eks.amazonaws.com/capacityType", "SPOT"),
        ("node.kubernetes.io/lifecycle", "spot"),
    ],
)
def test_scheduler_and_notebook_wait_rather_than_run_on_spot(place: Place, label: str, value: str) -> None:
    place.add_nodes(labels={label: value})
    place.install({"scheduler": place.here, "notebook": {"enabled": True, **place.here}})
    for component in ("scheduler", "notebook"):
        place.wait_for(component, "pending")
    [safe] = place.add_nodes()
    for component in ("scheduler", "notebook"):
        place.wait_for(component, safe)


def test_the_scheduler_may_run_on_spot_where_that_is_said(place: Place) -> None:
    [spot] = place.add_nodes(labels={"karpenter.sh/capacity-type": "spot"})
    place.install({"scheduler": {"spot": True, **place.here}})
    place.wait_for("scheduler", spot)
