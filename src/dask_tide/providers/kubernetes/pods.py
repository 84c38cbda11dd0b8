"""Pods: what the provider keeps of each, and which phase of a unit that is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from dask_tide.model import Phase
from dask_tide.providers.base import ObservedUnit

from .objects import Condition, ContainerStatus, Pod, PodStatus

__all__ = [
    "CLUSTER",
    "COMPONENT",
    "DELETION_COST",
    "DO_NOT_DISRUPT",
    "POOL",
    "SAFE_TO_EVICT",
    "TEMPLATE",
    "PodView",
    "Rank",
    "marks_of",
    "read_pod",
]

#: Labels.
CLUSTER = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
POOL = "dask-tide/pool"
TEMPLATE = "dask-tide/template"

#: The three annotations that the provider may set.
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"

#: Annotations by which a VerticalPodAutoscaler says that it has changed a pod, or is going to; the first
#: says which one it is, and what it has changed.
_UPDATES = "vpaUpdates"
_VERTICAL = (_UPDATES, "vpaInPlaceUpdated", "vpaObservedContainers", "vpaCpuStartupBoost/")

#: Name of the container with the worker, where several are in a pod.
_WORKER = "worker"
#: Why a container waits that will not start by itself. (After a first failed pull it is ErrImagePull.)
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
#: Why containers wait for those before them.
_INITIALIZING = "PodInitializing"
#: What is said of a pod that has no kubelet to speak for it.
_SILENT = "its node does not answer, or is not ready"


class Rank(enum.IntEnum):
    """In which order a ReplicaSet gives up pods; those of the same rank by their deletion cost."""

    NOWHERE = 0  # without a node
    PENDING = 1  # its containers have not started
    UNREADY = 2
    READY = 3


@dataclass(frozen=True)
class PodView:
    """What is kept of a pod.

    Attributes
    ----------
    unit
        As the controller sees it.
    uid
        A pod that is created again has another one.
    template
        Hash of the template it was made from.
    active
        Whether its ReplicaSet counts it: it is not being deleted and has not ended.
    rank
        How soon its ReplicaSet would give it up.
    ready
        Whether its worker is at work: it has registered and is not parked.
    running
        Whether its container runs.
    unschedulable_since
        Since when the scheduler has found no node for it.
    annotations
        Those of the three that it has.
    resized
        What a VerticalPodAutoscaler has written on it; empty: there is none.
    """

    unit: ObservedUnit
    uid: str
    template: str
    active: bool
    rank: Rank
    ready: bool
    running: bool
    unschedulable_since: datetime | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    resized: str = ""

    @property
    def order(self) -> tuple[Rank, int]:
        """Of two pods the one with the lower order goes first."""
        try:
            return self.rank, int(self.annotations.get(DELETION_COST, "0"))
        except ValueError:  # the API server refuses it; one without admission plugins might not
            return self.rank, 0


def read_pod(pod: Pod) -> PodView | None:
    """What to keep of a pod; None if it is of no pool."""
    metadata, status, labels = pod.metadata, pod.status or PodStatus(), pod.metadata.labels
    pool = labels.get(POOL)
    if pool is None:
        return None
    conditions = {condition.type: condition for condition in status.conditions}
    containers = status.container_statuses
    ending = metadata.deletion_timestamp is not None
    ended = status.phase in ("Failed", "Succeeded")
    scheduled = conditions.get("PodScheduled")
    unplaced = None if ending or ended or scheduled is None or scheduled.status != "False" else scheduled
    if status.nominated_node_name:
        unplaced = None  # it gets the place of others, which are about to go
    phase, message = _phase(status, conditions, containers, ending=ending, ended=ended)
    annotations = metadata.annotations
    ready = (condition := conditions.get("Ready")) is not None and condition.status == "True"
    machine = pod.spec.node_name if pod.spec is not None else ""
    if not machine:
        rank = Rank.NOWHERE
    elif status.phase in ("Pending", ""):
        rank = Rank.PENDING
    else:
        rank = Rank.READY if ready else Rank.UNREADY
    return PodView(
        unit=ObservedUnit(
            name=metadata.name,
            pool=pool,
            phase=phase,
            machine=machine,
            message=message,
            waits=unplaced is not None,
        ),
        uid=metadata.uid,
        template=labels.get(TEMPLATE, ""),
        active=not ending and not ended,
        rank=rank,
        ready=ready,
        running=any(c.state.running is not None for c in containers),
        unschedulable_since=unplaced.last_transition_time if unplaced is not None else None,
        annotations=marks_of(annotations),
        resized=_resized(annotations),
    )


def marks_of(annotations: Mapping[str, str]) -> dict[str, str]:
    """Those of the three that there are."""
    return {
        key: annotations[key] for key in (DELETION_COST, SAFE_TO_EVICT, DO_NOT_DISRUPT) if key in annotations
    }


def _resized(annotations: Mapping[str, str]) -> str:
    if _UPDATES in annotations:
        return annotations[_UPDATES]
    found = (f"{key}: {value}" for key, value in annotations.items() if key.startswith(_VERTICAL))
    return next(found, "")


def _phase(
    status: PodStatus,
    conditions: Mapping[str, Condition],
    containers: list[ContainerStatus],
    *,
    ending: bool,
    ended: bool,
) -> tuple[Phase, str]:
    target = conditions.get("DisruptionTarget")
    disrupted = ""
    if target is not None and target.status == "True":
        # Preempted, evicted, or its node is being emptied or gone.
        disrupted = _words(target.reason, target.message)
    if ended:
        words = _words(status.reason, status.message)
        words = words or "; ".join(filter(None, (disrupted, _last_exit(containers)))) or status.phase
        return (Phase.STOPPING if ending else Phase.FAILED), words
    if ending:
        return Phase.STOPPING, disrupted
    # Of what others have put beside a worker nothing is as bad as an end of the worker's task.
    own = [container for container in containers if container.name == _WORKER] or containers
    works = any(container.state.running is not None for container in own)
    # Init containers run before it; those with restartPolicy Always, native sidecars, also beside it.
    before = status.init_container_statuses
    for container in [] if works else [*before, *containers]:
        waiting = container.state.waiting
        if waiting is not None and waiting.reason in _STUCK:
            exit_ = _last_exit([container])
            words = _words(waiting.reason, waiting.message) + (f" ({exit_})" if exit_ else "")
            return Phase.FAILED, (_init(container) if container in before else "") + words
    if status.phase == "Running":
        silent = _SILENT if _silent(conditions) else ""
        words = "; ".join(filter(None, (silent, disrupted))) or _last_exit(containers)
        return (Phase.UNKNOWN if silent else Phase.STARTING), words
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return Phase.PENDING, _words(scheduled.reason, scheduled.message)
    waiting_words = [
        _words(c.state.waiting.reason, c.state.waiting.message)
        for c in containers
        if c.state.waiting is not None
    ]
    return Phase.PENDING, next(iter(_init_words(before) + waiting_words), "")


def _init_words(containers: list[ContainerStatus]) -> list[str]:
    """What is said of each init container that has not done its work: why it waits, or how it failed."""
    found = []
    for container in containers:
        waiting, words = container.state.waiting, ""
        ended = container.state.terminated or container.last_state.terminated
        if waiting is not None and waiting.reason != _INITIALIZING:
            words = _words(waiting.reason, waiting.message)
        elif ended is not None and ended.exit_code:
            words = _last_exit([container])
        if words:
            found.append(_init(container) + words)
    return found


def _init(container: ContainerStatus) -> str:
    return f"init container {container.name}: "


def _silent(conditions: Mapping[str, Condition]) -> bool:
    """Whether its node has not been heard of for a while, or says that it is not well.

    Then the node lifecycle controller (its ``MarkPodsNotReady``) sets ``Ready`` to false and nothing else. A
    kubelet that finds a pod unready gives a reason, such as ``ContainersNotReady``.
    """
    ready, containers = conditions.get("Ready"), conditions.get("ContainersReady")
    if ready is None or containers is None:
        return False
    return ready.status == "False" and not ready.reason and containers.status == "True"


def _last_exit(containers: list[ContainerStatus]) -> str:
    """How a container ended the last time: ``OOMKilled, exit code 137``."""
    for container in containers:
        for state in (container.state, container.last_state):
            ended = state.terminated
            if ended is not None:
                words = _words(ended.reason, ended.message)
                return f"{words}, exit code {ended.exit_code}" if words else f"exit code {ended.exit_code}"
    return ""


def _words(reason: str | None, message: str | None) -> str:
    return ": ".join(part.strip() for part in (reason, message) if part and part.strip())
