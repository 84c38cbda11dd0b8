"""ReplicaSets: what the provider keeps of each, and who has set its number of pods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from .nodes import Quantities, quantities
from .objects import ManagedFields, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus, Template
from .pods import POOL, TEMPLATE, marks_of

__all__ = ["ReplicaSetView", "read_replicaset"]

#: A refusal names the pod that it was about, another one at each attempt.
_POD = re.compile(r'pods "[^"]*"')


@dataclass(frozen=True)
class ReplicaSetView:
    """What is kept of a ReplicaSet.

    Attributes
    ----------
    name, pool, version
        Its name, its pool's name, its resource version.
    replicas
        The number of pods it should have.
    existing
        The number that its controller has counted.
    template
        Hash of its template: pods with another one are stale.
    refusal
        Why its controller could not create a pod, in the API server's words.
    manager
        Who has last set ``replicas``: the field manager's name, and after a slash the subresource.
    annotations
        Those of the three that its pods are born with.
    requests
        What a pod asks for.
    """

    name: str
    pool: str
    version: int
    replicas: int
    existing: int
    template: str
    refusal: str
    manager: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    requests: Quantities = field(default_factory=dict)


def read_replicaset(replicaset: ReplicaSet) -> ReplicaSetView | None:
    """What to keep of a ReplicaSet; None if it is of no pool, or is being deleted."""
    metadata, spec = replicaset.metadata, replicaset.spec or ReplicaSetSpec()
    status = replicaset.status or ReplicaSetStatus()
    pool = metadata.labels.get(POOL)
    if pool is None or metadata.deletion_timestamp is not None:
        return None
    template = spec.template or Template()
    refusal = ""
    # Until its controller has seen the newest number, its status tells of an earlier one.
    current = status.observed_generation >= metadata.generation
    for condition in status.conditions if current else ():
        if condition.type == "ReplicaFailure" and condition.status == "True":
            refusal = _POD.sub("a pod", condition.message or condition.reason or "no reason given")
    return ReplicaSetView(
        name=metadata.name,
        pool=pool,
        version=int(metadata.resourceVersion),
        replicas=spec.replicas,
        existing=status.replicas,
        template=template.metadata.labels.get(TEMPLATE, ""),
        refusal=refusal,
        manager=_manager(metadata.managed_fields),
        annotations=marks_of(template.metadata.annotations),
        requests=_sum(
            [quantities(container.resources.requests) for container in template.spec.containers or ()]
        ),
    )


def _sum(parts: list[Quantities]) -> Quantities:
    total: dict[str, Decimal] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal()) + amount
    return total


def _manager(entries: list[ManagedFields]) -> str:
    latest, when = "", None
    for entry in entries:
        if "f:replicas" in entry.fields_v1.get("f:spec", {}) and (
            when is None or (entry.time is not None and entry.time >= when)
        ):
            latest, when = f"{entry.manager}/{entry.subresource}", entry.time
    return latest
