"""The chart's pods, and which machines they may be on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.aws.check.machines import Group
from deploy.aws.check.problems import Place
from deploy.aws.check.sizes import mebibytes

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True)
class Pool:
    """What the scheduler is told of a pool."""

    spot: bool
    maximum: int
    price: float
    threads: int
    boot_time: str | None


@dataclass(frozen=True)
class Pods:
    """Pods that are alike, of one release.

    Attributes
    ----------
    key
        Where the values file says what they are.
    pool
        Whose workers they are; None: nobody's.
    """

    place: Place
    key: str
    spec: Mapping[str, Any]
    annotations: Mapping[str, str]
    pool: Pool | None = None

    @property
    def count(self) -> int:
        """How many there are at the most."""
        return 1 if self.pool is None else self.pool.maximum

    @property
    def selector(self) -> dict[str, str]:
        return dict(self.spec.get("nodeSelector") or {})

    @property
    def tolerations(self) -> list[dict[str, Any]]:
        return list(self.spec.get("tolerations") or [])

    @property
    def terms(self) -> list[list[dict[str, Any]]]:
        """What nodes must have: all of one of these."""
        affinity = (self.spec.get("affinity") or {}).get("nodeAffinity") or {}
        required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
        terms = required.get("nodeSelectorTerms") or [{}]
        return [list(term.get("matchExpressions") or []) for term in terms]

    @property
    def preferences(self) -> list[dict[str, Any]]:
        """What nodes had better have."""
        affinity = (self.spec.get("affinity") or {}).get("nodeAffinity") or {}
        terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        return [each for term in terms for each in term["preference"].get("matchExpressions") or []]

    @property
    def millicpu(self) -> int:
        total = 0.0
        for container in self.spec["containers"]:
            text = str(container["resources"]["requests"]["cpu"])
            total += float(text[:-1]) if text.endswith("m") else float(text) * 1000
        return int(total)

    @property
    def memory_mib(self) -> int:
        return sum(
            mebibytes(str(container["resources"]["requests"]["memory"]))
            for container in self.spec["containers"]
        )

    def selects(self, group: Group, market: str) -> bool:
        """Whether a group's machines in a market have the labels of `nodeSelector`."""
        return all(
            fulfils({"operator": "In", "values": [value]}, group.values(key, market))
            for key, value in self.selector.items()
        )

    def markets(self, group: Group) -> tuple[str, ...]:
        """Those of a group's markets in which they may be; none: they never come."""
        return tuple(
            market
            for market in group.markets
            if self.selects(group, market)
            and any(
                all(fulfils(expression, group.values(expression["key"], market)) for expression in term)
                for term in self.terms
            )
        )


def fulfils(expression: Mapping[str, Any], values: tuple[str, ...] | None) -> bool:
    """Kubernetes' rule for a label that may have these values, for at least one of them."""
    operator, wanted = str(expression["operator"]), list(expression.get("values") or [])
    if values is None:
        return operator != "DoesNotExist"
    if operator == "In":
        return any(value in wanted for value in values)
    if operator == "NotIn":
        return not values or any(value not in wanted for value in values)
    return bool(values) == (operator != "DoesNotExist")


def pods_of(file: str, documents: Sequence[Mapping[str, Any]]) -> list[Pods]:
    """The pods that a release makes, but for placeholders."""
    [config] = [document for document in documents if "tide.json" in (document.get("data") or {})]
    pools = {
        name: Pool(
            *(bool(told.get("spot")), int(told["maximum"]), float(told["price"])),
            *(int(told["threads"]), told.get("boot-time")),
        )
        for name, told in json.loads(config["data"]["tide.json"])["tide"]["pools"].items()
    }
    made = []
    for document in documents:
        labels = document["metadata"].get("labels", {})
        component = str(labels.get("app.kubernetes.io/component"))
        if document["kind"] not in ("ReplicaSet", "Deployment") or component == "buffer":
            continue
        template = document["spec"]["template"]
        name = labels.get("dask-tide/pool")
        annotations = template["metadata"].get("annotations", {})
        key = f"pools.{name}" if name else component
        made.append(Pods(Place(file), key, template["spec"], annotations, pools.get(name)))
    return made
