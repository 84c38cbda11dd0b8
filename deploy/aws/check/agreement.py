"""Whether the chart's pods and the groups of machines are for each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.aws.check.machines import Group
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.sizes import mebibytes

#: Of the two minutes from a spot machine's notice to its end, what the notice itself may need to arrive.
NOTICE_S = 120
NOTICE_DELAY_S = 15
_HARD = ("NoSchedule", "NoExecute")
_PROTECTION = "karpenter.sh/do-not-disrupt"


@dataclass(frozen=True)
class Pods:
    """Pods that are alike, of one release.

    Attributes
    ----------
    key
        Where the values file says what they are.
    count
        At the most.
    """

    place: Place
    key: str
    count: int
    spec: Mapping[str, Any]
    annotations: Mapping[str, str]

    @property
    def is_worker(self) -> bool:
        return self.key != "scheduler"

    @property
    def selector(self) -> dict[str, str]:
        return dict(self.spec.get("nodeSelector", {}))

    @property
    def tolerations(self) -> list[dict[str, Any]]:
        return list(self.spec.get("tolerations", []))

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


def pods_of(
    file: str, documents: Sequence[Mapping[str, Any]], values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[Pods]:
    """The pods that a release makes."""
    made = []
    for document in documents:
        labels = document["metadata"].get("labels", {})
        if document["kind"] not in ("ReplicaSet", "Deployment"):
            continue
        template = document["spec"]["template"]
        pool = labels.get("dask-tide/pool")
        key = f"pools.{pool}" if pool else str(labels.get("app.kubernetes.io/component"))
        given = values.get("pools", {}).get(pool) or {}
        count = int(given.get("maximum", defaults["poolDefaults"]["maximum"])) if pool else 1
        annotations = template["metadata"].get("annotations", {})
        made.append(Pods(Place(file), key, count, template["spec"], annotations))
    return made


def check(pods: Sequence[Pods], groups: Sequence[Group], values: Mapping[str, Any]) -> Iterator[Problem]:
    """What keeps the pods of a values file from running where they should, or what makes it cost more."""
    wanted: dict[str, list[Pods]] = {}
    for some in pods:
        found = [group for group in groups if some.selector.items() <= group.labels.items()]
        own = {key: value for group in groups for key, value in group.labels.items()}
        known = "; ".join(f"{group.name} has {_words(group.labels)}" for group in groups)
        key = f"{some.key}.nodeSelector"
        holds = bool(found) and bool(some.selector.keys() & own.keys())
        yield from some.place.expect(holds, key, some.selector, f"labels of a group: {known}")
        for group in found:
            wanted.setdefault(group.name, []).append(some)
            yield from _tolerates(some, group)
            yield from _fits(some, group)
            yield from _survives(some, group, values)
        yield from _needs(some, found)
    for group in groups:
        if group.taints:
            selected = "; ".join(f"{some.key} selects {_words(some.selector)}" for some in pods)
            words = f"labels that pods of {pods[0].place.file} select: {selected}"
            yield from group.place.expect(group.name in wanted, "labels", group.labels, words)
        elif group.name in wanted:
            yield group.place.problem("taints", [], "one: other pods would come, and their machines never go")
    yield from _room(wanted, groups)
    busy = values.get("scheduler", {}).get("podDisruptionBudget", {}).get("enabled")
    words = "true: an update of the scheduler's machine would end the work in hand"
    yield from pods[0].place.expect(busy is True, "scheduler.podDisruptionBudget.enabled", busy, words)


def _words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "no labels"


def _tolerates(pods: Pods, group: Group) -> Iterator[Problem]:
    for taint in group.taints:
        if taint.effect in _HARD:
            holds = any(taint.tolerated_by(toleration) for toleration in pods.tolerations)
            words = f"one of {taint}, which {group.name} has ({group.place.file})"
            yield from pods.place.expect(holds, f"{pods.key}.tolerations", pods.tolerations, words)


def _needs(pods: Pods, found: Sequence[Group]) -> Iterator[Problem]:
    taints = [taint for group in found for taint in group.taints]
    for index, toleration in enumerate(pods.tolerations):
        holds = any(taint.tolerated_by(toleration) for taint in taints) or not found
        words = f"a taint of the group it runs in: {', '.join(map(str, taints)) or 'none'}"
        yield from pods.place.expect(holds, f"{pods.key}.tolerations[{index}]", toleration, words)


def _fits(pods: Pods, group: Group) -> Iterator[Problem]:
    for size in group.sizes:
        if not size.holds(pods.millicpu, pods.memory_mib):
            asked = f"{pods.millicpu}m CPU, {pods.memory_mib}Mi"
            free = f"{size.free_millicpu}m CPU and {size.free_mib}Mi"
            words = f"at most {free}: what a machine of {group.name} has left"
            yield Problem(pods.place.file, f"{pods.key}.resources", asked, words)
            return


def _survives(pods: Pods, group: Group, values: Mapping[str, Any]) -> Iterator[Problem]:
    if not group.spot:
        return
    if not pods.is_worker:
        yield pods.place.problem(
            f"{pods.key}.nodeSelector", pods.selector, f"no spot machines: {group.name} has some"
        )
        return
    grace_s = pods.spec.get("terminationGracePeriodSeconds", 30)
    most_s = NOTICE_S - NOTICE_DELAY_S
    words = f"at most {most_s}: a spot machine of {group.name} goes {NOTICE_S} s after its notice"
    yield from pods.place.expect(
        grace_s <= most_s, f"{pods.key}.terminationGracePeriodSeconds", grace_s, words
    )
    reads = values.get("nodes", {}).get("read")
    words = (
        f"true, or podAnnotations {_PROTECTION}: false: it would hold a busy worker until the power is cut"
    )
    holds = reads is True or pods.annotations.get(_PROTECTION) == "false"
    yield from pods.place.expect(holds, "nodes.read", reads, words)


def _room(wanted: Mapping[str, Sequence[Pods]], groups: Sequence[Group]) -> Iterator[Problem]:
    for group in groups:
        for some in wanted.get(group.name, []):
            sharing = [other for other in groups if some in wanted.get(other.name, [])]
            room = sum(other.room(some.millicpu, some.memory_mib) for other in sharing)
            words = (
                f"at most {room}: what the groups {', '.join(other.name for other in sharing)} have room for"
            )
            yield from some.place.expect(some.count <= room, f"{some.key}.maximum", some.count, words)


def first_machines(file: str, pods: Sequence[Pods]) -> str:
    """What an installation costs before anybody computes: the chart's ReplicaSets have no `replicas`."""
    pools = ", ".join(some.key for some in pods if some.is_worker)
    return f"{file}: its first installation may boot a machine for each of {pools}; idle, it goes again"
