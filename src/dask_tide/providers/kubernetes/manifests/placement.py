"""Which nodes pods want: none that may be taken away at short notice, or those that have workers already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .release import Manifest

__all__ = ["NO_SPREADING", "is_spot", "off_spot", "packed"]

#: Labels of a node that may be taken away at short notice: Karpenter's, EKS's, the user's by custom.
_SPOT = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "node.kubernetes.io/lifecycle": "spot",
}
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_HOST = "kubernetes.io/hostname"

#: Counts no pods. Where a pod has no constraint at all kube-scheduler has some of its own, which spread it.
NO_SPREADING: list[Manifest] = [{"maxSkew": 1, "topologyKey": _HOST, "whenUnsatisfiable": "ScheduleAnyway"}]


def is_spot(pool: Mapping[str, Any]) -> bool:
    """Whether a pool's nodes may be taken away at short notice: it says, selects or requires so."""
    if pool.get("spot") is not None:
        return bool(pool["spot"])
    nodes = (pool.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (nodes.get(_REQUIRED) or {}).get("nodeSelectorTerms") or ()
    required = [each for term in terms for each in term.get("matchExpressions") or ()]
    return any(
        pool["nodeSelector"].get(label) == value
        or any(e["key"] == label and e["operator"] == "In" and value in e.get("values", ()) for e in required)
        for label, value in _SPOT.items()
    )


def off_spot(affinity: Mapping[str, Any] | None) -> Manifest:
    """Affinity that also keeps off such nodes; those that do not say what they are will do."""
    ours = [{"key": label, "operator": "NotIn", "values": [_SPOT[label]]} for label in sorted(_SPOT)]
    affinity = affinity or {}
    nodes = affinity.get("nodeAffinity") or {}
    # One of the terms must hold, and all of what it says.
    terms = (nodes.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    both = [{**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *ours]} for term in terms]
    return {**affinity, "nodeAffinity": {**nodes, _REQUIRED: {"nodeSelectorTerms": both}}}


def packed(affinity: Mapping[str, Any] | None, labels: Mapping[str, str]) -> Manifest:
    """Affinity that also draws a pod to nodes with pods that have these labels."""
    affinity = affinity or {}
    pods = affinity.get("podAffinity") or {}
    term = {"topologyKey": _HOST, "labelSelector": {"matchLabels": dict(labels)}}
    preferred = [*(pods.get(_PREFERRED) or ()), {"weight": 100, "podAffinityTerm": term}]
    return {**affinity, "podAffinity": {**pods, _PREFERRED: preferred}}
