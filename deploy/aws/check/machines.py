"""Groups of machines, said alike whether kOps, Karpenter or EKS makes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.sizes import FILE as SIZES_FILE
from deploy.aws.check.sizes import Size, Sizes

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
#: Karpenter's labels of instance types, of which a pool lists those that it takes.
FAMILY = "karpenter.k8s.aws/instance-family"
CPU = "karpenter.k8s.aws/instance-cpu"
TYPE = "node.kubernetes.io/instance-type"
ZONE = "topology.kubernetes.io/zone"
CAPACITY = "karpenter.sh/capacity-type"
#: Labels by which the scheduler tells a node's market, as Karpenter, EKS and our groups of kOps set them.
LIFECYCLE = "node.kubernetes.io/lifecycle"
EKS_CAPACITY = "eks.amazonaws.com/capacityType"
MARKETS = (CAPACITY, EKS_CAPACITY, LIFECYCLE)
SPOT, ON_DEMAND = "spot", "on-demand"
#: The root volume's device in Amazon Linux 2023, and what is said where a volume is another, or stays.
ROOT_DEVICE = "/dev/xvda"
ROOT = f"{ROOT_DEVICE}, Amazon Linux 2023's root: another name makes a second volume beside a small root"
KEPT = "true: nobody else deletes the volumes of machines that are gone"
#: What the cloud says of each node, whose group need not say it.
_OF_THE_CLOUD = {
    TYPE,
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    ZONE,
}


@dataclass(frozen=True)
class Taint:
    """A taint of a group's machines."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}"

    def tolerated_by(self, toleration: Mapping[str, Any]) -> bool:
        """Kubernetes' rule: an empty key or effect is any, and Equal is the default operator."""
        if toleration.get("effect") not in (None, "", self.effect):
            return False
        if toleration.get("operator", "Equal") == "Exists":
            return toleration.get("key") in (None, "", self.key)
        return toleration.get("key") == self.key and toleration.get("value", "") == self.value


@dataclass(frozen=True)
class Group:
    """Machines that are alike.

    Attributes
    ----------
    place
        Where it is said.
    sizes
        Of the types it may take.
    maxima
        Machines at the most, for each of `sizes`.
    markets
        :data:`SPOT`, whose machines may be taken away on two minutes' notice, :data:`ON_DEMAND`, or both.
    choices
        Labels besides `labels`, each with the values that it may have.
    hop_limit
        Of its machines' metadata: from 2 on they answer pods.
    """

    place: Place
    name: str
    labels: dict[str, str]
    taints: tuple[Taint, ...]
    sizes: tuple[Size, ...]
    maxima: tuple[int, ...]
    markets: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hop_limit: int = 1

    @property
    def spot(self) -> bool:
        return SPOT in self.markets

    def values(self, label: str, market: str) -> tuple[str, ...] | None:
        """What a label of its machines in a market may be; none: it has no such label; None: who knows."""
        if label == CAPACITY and CAPACITY in self.choices:
            return (market,)
        if label in self.labels:
            return (self.labels[label],)
        return self.choices.get(label, None if label in _OF_THE_CLOUD else ())

    def room(self, millicpu: int, memory_mib: int) -> int:
        """How many pods that ask for this much fit at the least, whatever types it gets."""
        rooms = [
            size.holds(millicpu, memory_mib) * most
            for size, most in zip(self.sizes, self.maxima, strict=True)
        ]
        return min(rooms, default=0)


def parse_taint(text: str) -> Taint | None:
    """Read kOps's way to write one, ``key=value:effect``; None if it is not that."""
    found = re.fullmatch(r"([^=:]+)(?:=([^=:]*))?:(\w+)", text)
    return Taint(found[1], found[2] or "", found[3]) if found else None


def known_sizes(
    place: Place, key: str, types: list[str], sizes: Sizes
) -> tuple[list[Problem], tuple[Size, ...]]:
    """Sizes of instance types, and a problem for each that is not in the table."""
    problems: list[Problem] = []
    known: list[Size] = []
    for name in types:
        size = sizes.get(name)
        problems += place.expect(size is not None, key, name, f"an instance type of {SIZES_FILE}; add it")
        if size is not None:
            known.append(size)
    return problems, tuple(known)


def same_size(place: Place, key: str, types: list[str], known: tuple[Size, ...]) -> Iterator[Problem]:
    """cluster-autoscaler plans with the first type of a group, whatever Auto Scaling then starts."""
    words = "types of one size: cluster-autoscaler plans with the first"
    yield from place.expect(len(set(known)) <= 1, key, types, words)
