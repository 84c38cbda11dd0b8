"""Nodes: whether one is about to go, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase

from lightkube.utils.quantity import parse_quantity

from .objects import Node, NodeSpec, NodeStatus

__all__ = ["NodeView", "Quantities", "price_per_s", "quantities", "read_node"]

#: Taints by which node autoscalers, and AWS's node termination handler, say that a node is to go.
_DOOM = (
    "karpenter.sh/disrupted",
    "ToBeDeletedByClusterAutoscaler",
    "aws-node-termination-handler/",
    "node.cloudprovider.kubernetes.io/shutdown",
)
#: By this one the node lifecycle controller says that it has not heard of a node for a while.
_UNREACHABLE = "node.kubernetes.io/unreachable"
_TYPE, _ZONE = "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone"
#: Labels that tell whether a machine is a spot one, by who sets them; kOps has no such label of its own.
_MARKETS = ("karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "node.kubernetes.io/lifecycle")
_COUNTED = ("cpu", "memory")

#: CPUs and bytes, as far as they are said.
Quantities = Mapping[str, Decimal]


@dataclass(frozen=True)
class NodeView:
    """What is kept of a node.

    Attributes
    ----------
    doom
        The taint that says that it is about to be taken away; empty: it is not.
    silent
        The taint that says that it does not answer; empty: it does.
    kind
        ``TYPE/ZONE/MARKET``, such as ``m5.xlarge/eu-west-1a/spot``; of what is not known nothing.
    allocatable
        What pods may have of it.
    """

    doom: str = ""
    silent: str = ""
    kind: str = "//"
    allocatable: Quantities = field(default_factory=dict)


def read_node(node: Node) -> NodeView:
    """What to keep of a node."""
    taints, labels = (node.spec or NodeSpec()).taints, node.metadata.labels
    market = next((labels[key] for key in _MARKETS if labels.get(key)), "")
    return NodeView(
        doom=next((taint.key for taint in taints if taint.key.startswith(_DOOM)), ""),
        silent=next((taint.key for taint in taints if taint.key == _UNREACHABLE), ""),
        kind=f"{labels.get(_TYPE, '')}/{labels.get(_ZONE, '')}/{market.lower().replace('_', '-')}",
        allocatable=quantities((node.status or NodeStatus()).allocatable),
    )


def quantities(values: Mapping[str, str]) -> Quantities:
    """CPUs and bytes of a mapping as in the API."""
    return {name: _quantity(values[name]) for name in _COUNTED if name in values}


def _quantity(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        return parse_quantity(text) or Decimal()


def dearest_per_s(prices: Mapping[str, float], *, spot: bool) -> float | None:
    """What a pod costs at the most: the whole of the dearest machine of its market; None: none is known.

    Parameters
    ----------
    prices
        As for :func:`price_per_s`.
    spot
        Whether it may run on spot machines.
    """
    market = "spot" if spot else "on-demand"
    hourly = [price for pattern, price in prices.items() if fnmatchcase(market, pattern.rpartition("/")[2])]
    return max(hourly) / 3600 if hourly else None


def price_per_s(node: NodeView, prices: Mapping[str, float], requests: Quantities) -> float | None:
    """What a pod costs on a node: its share of the machine's price.

    Parameters
    ----------
    node
        The node.
    prices
        Of machines for an hour, by a pattern for :attr:`NodeView.kind`; the first that fits counts
        (:class:`.options.Options` has the most exact one first).
    requests
        What the pod asks for. Its share is that of which it takes the larger part, CPUs or memory.

    Returns
    -------
    Price of a second; None where no pattern fits, or the share is not known.
    """
    hourly = next((price for pattern, price in prices.items() if fnmatchcase(node.kind, pattern)), None)
    shares = [
        float(amount / node.allocatable[name])
        for name, amount in requests.items()
        if node.allocatable.get(name)
    ]
    if hourly is None or not shares:
        return None
    return hourly * min(1.0, max(shares)) / 3600
