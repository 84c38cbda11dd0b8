"""What a pod's status says: phases, the platform's words, and the order in which a ReplicaSet gives pods up.

The statuses are as Kubernetes 1.35 reports them, shortened.
"""

from __future__ import annotations

import msgspec
import pytest

from dask_tide.model import Phase
from dask_tide.providers.kubernetes.nodes import read_node
from dask_tide.providers.kubernetes.objects import Event, Node, Pod, ReplicaSet
from dask_tide.providers.kubernetes.pods import DELETION_COST, Rank, read_pod

pytest.importorskip("lightkube")
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
READY = {"type": "Ready", "status": "True"}
CONTAINERS_READY = {"type": "ContainersReady", "status": "True"}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def container(state, last=None, **more):
    status = {
        "name": "worker",
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    return status | ({"lastState": last} if last else {}) | more


def pod(
    *, node="n1", phase="Pending", conditions=(SCHEDULED,), containers=(), deleted=False, cost=None, **status
):
    """A pod's JSON, read."""
    metadata = {
        "name": "r-cpu-abcde",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"dask-tide/pool": "cpu", "dask-tide/template": "0123456789"},
        "annotations": {DELETION_COST: cost, "other": "x"} if cost is not None else {},
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "worker"}]} | ({"nodeName": node} if node else {}),
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": list(containers)}
        | status,
    }
    view = read_pod(msgspec.json.decode(msgspec.json.encode(raw), type=Pod))
    assert view is not None
    return view


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def terminated(reason, code):
    return {"terminated": {"reason": reason, "exitCode": code, "startedAt": None, "finishedAt": None}}


NEW = {"phase": "Pending", "node": "", "conditions": ()}
UNPLACED = {"phase": "Pending", "node": "", "conditions": (UNSCHEDULABLE,)}
CREATING = {"containers": [container(waiting("ContainerCreating"))]}
PULL_FAILED_ONCE = {"containers": [container(waiting("ErrImagePull", "pull access denied"))]}
NO_IMAGE = {"containers": [container(waiting("ImagePullBackOff", 'Back-off pulling image "x"'))]}
NO_SECRET = {"containers": [container(waiting("CreateContainerConfigError", 'secret "s" not found'))]}
CRASHING = {
    "phase": "Running",
    "containers": [container(waiting("CrashLoopBackOff", "back-off 40s"), terminated("OOMKilled", 137))],
}
#: Somebody has put another container into the pod.
BESIDE = container(waiting("CrashLoopBackOff", "back-off 40s"), terminated("Error", 1)) | {"name": "beside"}
CRASHING_BESIDE = {"phase": "Running", "containers": [BESIDE, container(RUNNING)]}
CRASHING_BESIDE_A_STRANGER = {
    "phase": "Running",
    "containers": [BESIDE, container(RUNNING) | {"name": "mine"}],
}
STUCK_BESIDE = {"containers": [container(waiting("ContainerCreating")), BESIDE]}
RESTARTED = {"phase": "Running", "containers": [container(RUNNING, terminated("Error", 1))]}
AT_WORK = {"phase": "Running", "conditions": (SCHEDULED, READY), "containers": [container(RUNNING)]}
STARTING = {"phase": "Running", "containers": [container(RUNNING)]}


def initializing(*states, worker=None):
    """Others have put init containers before the worker: `init-0`, …"""
    before = [container(*state) | {"name": f"init-{index}"} for index, state in enumerate(states)]
    own = container(waiting("PodInitializing") if worker is None else worker)
    return {"phase": "Pending", "initContainerStatuses": before, "containers": [own]}


UNTOUCHED = (waiting("PodInitializing"),)
INITIALIZED = (terminated("Completed", 0),)
BROKEN_BEFORE = (waiting("CrashLoopBackOff", "back-off 40s"), terminated("Error", 1))
INIT_NO_IMAGE = initializing((waiting("ImagePullBackOff", 'Back-off pulling image "istio"'),), UNTOUCHED)
INIT_NO_SECRET = initializing(INITIALIZED, (waiting("CreateContainerConfigError", 'secret "s" not found'),))
INIT_CRASHING = initializing(INITIALIZED, BROKEN_BEFORE, UNTOUCHED)
INIT_FAILED_ONCE = initializing((terminated("Error", 1),), UNTOUCHED)
INIT_TRIES_AGAIN = initializing((RUNNING, terminated("OOMKilled", 137)), UNTOUCHED)
INIT_PULL_FAILED_ONCE = initializing((waiting("ErrImagePull", "pull access denied"),))
INIT_AT_WORK = initializing(INITIALIZED, (RUNNING,), UNTOUCHED)
INIT_TOOK_TWO_TRIES = initializing((terminated("Completed", 0), terminated("Error", 1)), (RUNNING,))
INITIALIZED_AND_STUCK = initializing(
    INITIALIZED, (RUNNING,), worker=waiting("ImagePullBackOff", 'Back-off pulling image "x"')
)
#: Native sidecars (init containers with restartPolicy Always) run beside the worker, and end on their own.
SIDECAR_CRASHING = initializing(INITIALIZED, BROKEN_BEFORE, worker=RUNNING)
SIDECAR_CRASHING_READY = AT_WORK | {
    "initContainerStatuses": [container(*BROKEN_BEFORE) | {"name": "istio-proxy"}]
}
SIDECAR_CRASHING_BEFORE = initializing(BROKEN_BEFORE, worker=waiting("ContainerCreating"))
#: Its worker has parked or has not registered: the kubelet says so.
UNREADY = AT_WORK | {
    "conditions": (
        SCHEDULED,
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
        {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"},
    )
}
#: Unready by a condition of somebody else's.
GATED = AT_WORK | {
    "conditions": (
        {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
        CONTAINERS_READY,
    )
}
#: The power of its node was cut: nobody but the node lifecycle controller has changed it since.
SILENT = AT_WORK | {"conditions": (SCHEDULED, {"type": "Ready", "status": "False"}, CONTAINERS_READY)}
TAKEN = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByTaintManager",
    "message": "Taint manager: deleting due to NoExecute taint",
}
EVICTED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "The node was low on resource: memory.",
    "conditions": ({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"},),
}
SHUT_DOWN = {
    "phase": "Failed",
    "reason": "Terminated",
    "message": "Pod was terminated in response to imminent node shutdown.",
}
EXITED = {"phase": "Failed", "containers": [container(terminated("Error", 3))]}
#: It has drained its worker; only a condition says why.
OVER = {"phase": "Failed", "containers": [container(terminated("Completed", 0))]}
PREEMPTED = AT_WORK | {
    "conditions": (
        READY,
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
        },
    )
}


@pytest.mark.parametrize(
    ("status", "phase", "words"),
    [
        (NEW, Phase.PENDING, ""),
        (UNPLACED, Phase.PENDING, "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu"),
        (CREATING, Phase.PENDING, "ContainerCreating"),
        (PULL_FAILED_ONCE, Phase.PENDING, "ErrImagePull: pull access denied"),
        (NO_IMAGE, Phase.FAILED, 'ImagePullBackOff: Back-off pulling image "x"'),
        (NO_SECRET, Phase.FAILED, 'CreateContainerConfigError: secret "s" not found'),
        (CRASHING, Phase.FAILED, "CrashLoopBackOff: back-off 40s (OOMKilled, exit code 137)"),
        (CRASHING_BESIDE, Phase.STARTING, "Error, exit code 1"),
        (CRASHING_BESIDE_A_STRANGER, Phase.STARTING, "Error, exit code 1"),
        (STUCK_BESIDE, Phase.FAILED, "CrashLoopBackOff: back-off 40s (Error, exit code 1)"),
        (RESTARTED, Phase.STARTING, "Error, exit code 1"),
        (
            INIT_NO_IMAGE,
            Phase.FAILED,
            'init container init-0: ImagePullBackOff: Back-off pulling image "istio"',
        ),
        (INIT_NO_SECRET, Phase.FAILED, "init container init-1: CreateContainerConfigError: secret"),
        (
            INIT_CRASHING,
            Phase.FAILED,
            "init container init-1: CrashLoopBackOff: back-off 40s (Error, exit code 1)",
        ),
        (INIT_FAILED_ONCE, Phase.PENDING, "init container init-0: Error, exit code 1"),
        (INIT_TRIES_AGAIN, Phase.PENDING, "init container init-0: OOMKilled, exit code 137"),
        (INIT_PULL_FAILED_ONCE, Phase.PENDING, "init container init-0: ErrImagePull: pull access denied"),
        (INIT_AT_WORK, Phase.PENDING, "PodInitializing"),
        (INIT_TOOK_TWO_TRIES, Phase.PENDING, "PodInitializing"),
        (INITIALIZED_AND_STUCK, Phase.FAILED, 'ImagePullBackOff: Back-off pulling image "x"'),
        (SIDECAR_CRASHING, Phase.PENDING, "init container init-1: CrashLoopBackOff: back-off 40s"),
        (SIDECAR_CRASHING_READY, Phase.STARTING, ""),
        (SIDECAR_CRASHING_BEFORE, Phase.FAILED, "init container init-0: CrashLoopBackOff: back-off 40s"),
        (STARTING, Phase.STARTING, ""),
        (AT_WORK, Phase.STARTING, ""),
        (AT_WORK | {"conditions": (READY, CONTAINERS_READY)}, Phase.STARTING, ""),
        (UNREADY, Phase.STARTING, ""),
        (GATED, Phase.STARTING, ""),
        (SILENT, Phase.UNKNOWN, "its node does not answer, or is not ready"),
        (
            SILENT | {"conditions": (*SILENT["conditions"], TAKEN)},
            Phase.UNKNOWN,
            "its node does not answer, or is not ready; DeletionByTaintManager: Taint manager",
        ),
        (SILENT | {"deleted": True}, Phase.STOPPING, ""),
        (EVICTED, Phase.FAILED, "Evicted: The node was low on resource: memory."),
        (SHUT_DOWN, Phase.FAILED, "Terminated: Pod was terminated in response to imminent node shutdown."),
        (EXITED, Phase.FAILED, "Error, exit code 3"),
        (PREEMPTED, Phase.STARTING, "PreemptionByScheduler: default-scheduler: preempting"),
        (PREEMPTED | {"deleted": True}, Phase.STOPPING, "PreemptionByScheduler"),
        (PREEMPTED | OVER, Phase.FAILED, "PreemptionByScheduler: default-scheduler: preempting"),
        (PREEMPTED | OVER | {"deleted": True}, Phase.STOPPING, "PreemptionByScheduler"),
        (AT_WORK | {"deleted": True}, Phase.STOPPING, ""),
        (EVICTED | {"deleted": True}, Phase.STOPPING, "Evicted"),
    ],
)
def test_phases_and_words(status, phase, words):
    view = pod(**status)
    assert view.unit.phase is phase
    assert view.unit.message.startswith(words)
    assert bool(view.unit.message) == bool(words)
    assert view.active == (not status.get("deleted") and status.get("phase") != "Failed")


def test_since_when_it_finds_no_node():
    assert pod(**UNPLACED).unschedulable_since is not None
    assert pod(**CREATING).unschedulable_since is None
    assert pod(**UNPLACED, deleted=True).unschedulable_since is None


def test_the_order_in_which_a_replicaset_gives_pods_up():
    expected = [
        pod(**NEW),
        pod(**CREATING),
        pod(**STARTING, cost="-100"),
        pod(**CRASHING, cost="0"),
        pod(**STARTING, cost="100"),
        pod(**AT_WORK, cost="-100"),
        pod(**AT_WORK),
        pod(**AT_WORK, cost="100"),
    ]
    assert [view.order for view in expected] == sorted(view.order for view in expected)
    assert [view.rank for view in expected[:3]] == [Rank.NOWHERE, Rank.PENDING, Rank.UNREADY]


def test_of_the_annotations_only_those_that_are_ours_are_kept():
    assert pod(**AT_WORK, cost="5").annotations == {DELETION_COST: "5"}
    assert pod(**AT_WORK, cost="nonsense").order == (Rank.READY, 0)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"other": "x", "vpa.example.com/x": "y"}, ""),
        ({"vpaObservedContainers": "worker"}, "vpaObservedContainers: worker"),
        ({"vpaInPlaceUpdated": "true"}, "vpaInPlaceUpdated: true"),
        ({"vpaCpuStartupBoost/worker": "{}"}, "vpaCpuStartupBoost/worker: {}"),
        (
            {"vpaObservedContainers": "worker", "vpaUpdates": "Pod resources updated by v: container 0: cpu"},
            "Pod resources updated by v: container 0: cpu",
        ),
    ],
)
def test_what_a_vertical_pod_autoscaler_writes_on_a_pod(annotations, words):
    metadata = {"name": "x", "labels": {"dask-tide/pool": "cpu"}, "annotations": annotations}
    view = read_pod(msgspec.json.decode(msgspec.json.encode({"metadata": metadata}), type=Pod))
    assert view is not None
    assert view.resized == words
    assert not view.annotations


@pytest.mark.parametrize(
    ("taints", "doom"),
    [
        ([], ""),
        ([{"key": "nvidia.com/gpu"}, {"key": "node.kubernetes.io/unschedulable"}], ""),
        ([{"key": "x"}, {"key": "karpenter.sh/disrupted"}], "karpenter.sh/disrupted"),
        ([{"key": "ToBeDeletedByClusterAutoscaler"}], "ToBeDeletedByClusterAutoscaler"),
        ([{"key": "aws-node-termination-handler/spot-itn"}], "aws-node-termination-handler/spot-itn"),
        ([{"key": "node.cloudprovider.kubernetes.io/shutdown"}], "node.cloudprovider.kubernetes.io/shutdown"),
    ],
)
def test_taints_that_say_that_a_node_is_about_to_go(taints, doom):
    raw = {"metadata": {"name": "n1"}, "spec": {"taints": taints}}
    assert read_node(msgspec.json.decode(msgspec.json.encode(raw), type=Node)).doom == doom


@pytest.mark.parametrize(
    ("key", "silent"), [("node.kubernetes.io/unreachable", True), ("node.kubernetes.io/not-ready", False)]
)
def test_a_taint_that_says_that_a_node_does_not_answer(key, silent):
    raw = {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "x"}, {"key": key}]}}
    node = read_node(msgspec.json.decode(msgspec.json.encode(raw), type=Node))
    assert node.silent == (key if silent else "")


def test_a_pod_of_no_pool_is_nobodys():
    assert read_pod(msgspec.json.decode(b'{"metadata": {"name": "x"}}', type=Pod)) is None


@pytest.mark.parametrize("kind", [Pod, ReplicaSet, Node, Event])
def test_a_bookmark_has_nothing_but_a_version(kind):
    """lightkube's own types refuse it."""
    raw = b'{"kind": "X", "metadata": {"resourceVersion": "42", "creationTimestamp": null}}'
    assert msgspec.json.decode(raw, type=kind).metadata.resourceVersion == "42"
