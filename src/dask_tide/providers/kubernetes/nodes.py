"""Nodes: whether one is about to go."""

from __future__ import annotations

from dataclasses import dataclass

from .objects import Node, NodeSpec

__all__ = ["NodeView", "read_node"]

#: Taints by which node autoscalers, and AWS's node termination handler, say that a node is to go.
_DOOM = (
    "karpenter.sh/disrupted",
    "ToBeDeletedByClusterAutoscaler",
    "aws-node-termination-handler/",
    "node.cloudprovider.kubernetes.io/shutdown",
)


@dataclass(frozen=True)
class NodeView:
    """What is kept of a node.

    Attributes
    ----------
    doom
        The taint that says that it is about to be taken away; empty: it is not.
    """

    doom: str


def read_node(node: Node) -> NodeView:
    """What to keep of a node."""
    taints = (node.spec or NodeSpec()).taints
    return NodeView(next((taint.key for taint in taints if taint.key.startswith(_DOOM)), ""))
