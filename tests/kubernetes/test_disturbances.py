"""What happens to nodes and pods from outside while there is work, but for nodes that go (test_machines)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import wait
from releases import DEADLINE_S, POOL, Release, ask, computed_once, hold, nap, workers
from waiting import wait_until

from rig.images import TOOLBOX
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

#: Labels of nodes of a test's own.
HERE = {"disturbed": "here"}


@pytest.fixture
def machines(nodes: Cluster) -> Iterator[Callable[..., None]]:
    """Boot nodes of the test's own; workers with ``nodeSelector: HERE`` run on no other."""
    made: list[str] = []

    def boot(*names: str, **options: Any) -> None:
        made.extend(names)
        nodes.nodes_up(*names, labels=HERE, **options)

    yield boot
    for name in set(made) & set(nodes.nodes()):
        nodes.node_down(name, forget=True)


def machine_of(release: Release, worker: str) -> str:
    """The node that a worker's pod is on; empty: it is about to go, or has no node yet."""
    return str(release.pods().get(worker, {"spec": {}})["spec"].get("nodeName", ""))


def condition(pod: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of a pod; empty: it has none such."""
    return next((one for one in pod["status"].get("conditions", ()) if one["type"] == kind), {})


def test_work_goes_on_where_a_kubelet_has_died(
    install: Callable[..., Release], nodes: Cluster, machines: Callable[..., None]
) -> None:
    """Its pods look unready, so a ReplicaSet would give them up first: busy as they are, they stay."""
    release = install({"pools": {"cpu": POOL | {"maximum": 4, "nodeSelector": HERE}}})
    machines("numb", "well")  # younger than the scheduler, which is on neither
    with release.client() as client:
        ask(client, "tide_scale", n=4)
        wait_until(lambda: len(workers(client)) == 4, "four workers", DEADLINE_S, release.situation)
        ask(client, "tide_adapt", minimum=0, maximum=4)
        held = hold(client, 4)
        at = held.placed(release)
        numb = {name for name in at if machine_of(release, name) == "numb"}
        idle = set(at) - numb
        assert numb
        assert idle

        def all_look(ready: str) -> bool:
            return all(condition(release.pods()[name], "Ready")["status"] == ready for name in numb)

        wait_until(lambda: all_look("True"), "its kubelet has seen them ready", DEADLINE_S, release.situation)
        nodes.kill_kubelet("numb")
        wait_until(lambda: all_look("False"), "its pods look unready", DEADLINE_S, release.situation)
        release.told(client, "its node does not answer")
        # The others become idle, hand over their results, and go.
        held.tell(*(at[name] for name in idle))
        wait_until(
            lambda: idle.isdisjoint(workers(client)), "they are drained", DEADLINE_S, release.situation
        )
        assert numb <= set(workers(client)), "the busy ones are there"
        assert numb <= set(release.pods()), "and so are their pods"
        held.tell()
        assert client.gather(held.futures) == [0, 1, 2, 3]
        assert held.begun() == [1] * 4
        assert len(client.gather(client.map(nap, [0.1] * 8, pure=False))) == 8, "the rest still works"
        computed_once(client)
        nodes.start_kubelet("numb")
        held.forget()
        release.settled(0, "as ever")


def preemptor(release: Release, cpu: str) -> dict[str, Any]:
    """A pod that takes others' room."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "urgent",
        "image": TOOLBOX,
        "imagePullPolicy": "Never",
        "args": ["serve", ":8080"],
        "resources": {"requests": {"cpu": cpu}},
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "urgent", "namespace": release.namespace},
        "spec": {
            "priorityClassName": f"{release.namespace}.{release.name}.urgent",
            "nodeSelector": HERE,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }


def test_a_preempted_worker_finishes_its_task_hands_over_its_results_and_is_replaced(
    install: Callable[..., Release], nodes: Cluster, machines: Callable[..., None]
) -> None:
    machines("small", cpus=2)
    resources = {"requests": {"cpu": "900m", "memory": "150Mi"}}
    pool = POOL | {"nodeSelector": HERE, "resources": resources, "priorityClassName": "spare", "maximum": 2}
    classes = {"spare": {"value": -5}, "urgent": {"value": 1000}}
    release = install({"pools": {"cpu": pool}, "priorityClasses": classes})
    try:
        with release.client() as client:
            ask(client, "tide_scale", n=2)
            wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
            results = client.map(nap, [0.1] * 10, pure=False)
            wait(results, timeout=DEADLINE_S)
            before = set(workers(client))
            held = hold(client, 2)
            assert set(held.placed(release)) == before
            nodes.kubectl.apply(preemptor(release, "900m"))
            release.told(client, "PreemptionByScheduler")
            held.tell()
            release.told(client, "Insufficient cpu")
            assert client.gather(held.futures) == [0, 1]
            assert held.begun() == [1, 1]
            assert len(client.gather(results)) == 10
            computed_once(client)
            release.kubectl("wait", "pod/urgent", "--for=condition=Ready", "--timeout=60s", deadline_s=70)
            (left,) = set(workers(client))
            assert left in before
            release.kubectl("delete", "pod", "urgent", deadline_s=70)
            wait_until(lambda: len(workers(client)) == 2, "it is replaced", DEADLINE_S, release.situation)
    finally:
        release.helm("uninstall", release.name)  # priority classes are in no namespace
