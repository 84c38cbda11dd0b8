"""Objects of Kubernetes' API, of each only the fields that are read here.

lightkube has all of them in full; its types refuse a bookmark, an object of the kind that has nothing
but a version. And reading a tenth of a pod costs a tenth, in the scheduler's event loop.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import msgspec
from lightkube.core.resource import ApiInfo, GlobalResource, NamespacedResourceG, ResourceDef

__all__ = ["Event", "Node", "Pod", "ReplicaSet"]

_VERBS = ["list", "watch"]


class _Object(msgspec.Struct, frozen=True, rename="camel"):
    """Named as in the API, but for Python's spelling."""


class ManagedFields(_Object, frozen=True):
    manager: str = ""
    subresource: str = ""
    time: datetime | None = None
    fields_v1: dict[str, Any] = {}


class Metadata(_Object, frozen=True):
    name: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 -- lightkube reads it
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None


class OwnedMetadata(Metadata, frozen=True):
    generation: int = 0
    managed_fields: list[ManagedFields] = []


class Condition(_Object, frozen=True):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_transition_time: datetime | None = None


class Waiting(_Object, frozen=True):
    reason: str | None = None
    message: str | None = None


class Terminated(_Object, frozen=True):
    exit_code: int = 0
    reason: str | None = None
    message: str | None = None


class ContainerState(_Object, frozen=True):
    waiting: Waiting | None = None
    running: dict[str, Any] | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Object, frozen=True):
    name: str = ""
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodSpec(_Object, frozen=True):
    node_name: str = ""


class PodStatus(_Object, frozen=True):
    phase: str = ""
    reason: str | None = None
    message: str | None = None
    conditions: list[Condition] = []
    init_container_statuses: list[ContainerStatus] = []
    container_statuses: list[ContainerStatus] = []
    nominated_node_name: str = ""


class Pod(NamespacedResourceG, _Object, frozen=True):
    """A pod."""

    _api_info: ClassVar[ApiInfo] = ApiInfo(ResourceDef("", "v1", "Pod"), "pods", _VERBS)  # type: ignore[misc]
    metadata: Metadata = Metadata()
    spec: PodSpec | None = None
    status: PodStatus | None = None


class Resources(_Object, frozen=True):
    requests: dict[str, str] = {}


class Container(_Object, frozen=True):
    resources: Resources = Resources()


class TemplateSpec(_Object, frozen=True):
    containers: list[Container] | None = None  # a bookmark's are null


class Template(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: TemplateSpec = TemplateSpec()


class ReplicaSetSpec(_Object, frozen=True):
    replicas: int = 1
    template: Template | None = None


class ReplicaSetStatus(_Object, frozen=True):
    replicas: int = 0
    observed_generation: int = 0
    conditions: list[Condition] = []


class ReplicaSet(NamespacedResourceG, _Object, frozen=True):
    """A ReplicaSet."""

    _api_info: ClassVar[ApiInfo] = ApiInfo(ResourceDef("apps", "v1", "ReplicaSet"), "replicasets", _VERBS)  # type: ignore[misc]
    metadata: OwnedMetadata = OwnedMetadata()
    spec: ReplicaSetSpec | None = None
    status: ReplicaSetStatus | None = None


class ObjectReference(_Object, frozen=True):
    kind: str = ""
    name: str = ""


class EventSource(_Object, frozen=True):
    component: str | None = None


class EventSeries(_Object, frozen=True):
    last_observed_time: datetime | None = None


class Event(NamespacedResourceG, _Object, frozen=True):
    """An event."""

    _api_info: ClassVar[ApiInfo] = ApiInfo(ResourceDef("", "v1", "Event"), "events", _VERBS)  # type: ignore[misc]
    metadata: Metadata = Metadata()
    involved_object: ObjectReference = ObjectReference()
    reporting_component: str | None = None
    source: EventSource = EventSource()
    reason: str | None = None
    message: str | None = None
    series: EventSeries | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None


class Taint(_Object, frozen=True):
    key: str = ""


class NodeSpec(_Object, frozen=True):
    taints: list[Taint] = []


class NodeStatus(_Object, frozen=True):
    allocatable: dict[str, str] = {}


class Node(GlobalResource, _Object, frozen=True):
    """A node."""

    _api_info: ClassVar[ApiInfo] = ApiInfo(ResourceDef("", "v1", "Node"), "nodes", _VERBS)  # type: ignore[misc]
    metadata: Metadata = Metadata()
    spec: NodeSpec | None = None
    status: NodeStatus | None = None
