"""AWS's node termination handler, by its own chart: with Karpenter, kOps has nobody who hears a notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.aws.check.machines import Group
from deploy.aws.check.problems import Place, Problem

FILE = "kops/termination-handler-values.yaml"
_QUEUE = "it asks its machine: there is no queue, and no right to read one"
_RECOMMENDATION = "a recommendation is no notice, and machines may live for hours after it"
#: Values that must be said, since most are not the chart's defaults, and why.
_SAID = {
    "enableSqsTerminationDraining": (False, _QUEUE),
    "useHostNetwork": (True, "with a hop limit of 1 its machine would not answer"),
    "taintNode": (True, "by that taint the scheduler learns of it, and stops protecting workers"),
    "enableSpotInterruptionDraining": (True, "else nobody drains a spot machine that is about to go"),
    "enableRebalanceMonitoring": (False, _RECOMMENDATION),
    "enableRebalanceDraining": (False, _RECOMMENDATION),
}
#: Other values of the chart's that we may set.
_OTHERS = ("daemonsetNodeSelector", "daemonsetTolerations", "enableASGLifecycleDraining", "resources")


def check(values: Mapping[str, Any], groups: Sequence[Group]) -> Iterator[Problem]:
    """Whether it is on all spot machines, and does there what the scheduler relies on."""
    place = Place(FILE)
    for name in values:
        yield from place.expect_one_of(name, name, [*_SAID, *_OTHERS])
    for name, (wanted, why) in _SAID.items():
        value = values.get(name)
        yield from place.expect(value is wanted, name, value, f"{str(wanted).lower()}, said: {why}")
    selector = values.get("daemonsetNodeSelector") or {}
    found = [group for group in groups if selector.items() <= group.labels.items()]
    spot = [group for group in groups if group.spot]
    names = ", ".join(group.name for group in spot)
    words = f"labels of all groups with spot machines, and of no other: {names}"
    yield from place.expect(found == spot, "daemonsetNodeSelector", selector, words)
    tolerations = values.get("daemonsetTolerations") or []
    for taint in (taint for group in spot for taint in group.taints):
        tolerated = any(taint.tolerated_by(toleration) for toleration in tolerations)
        yield from place.expect(tolerated, "daemonsetTolerations", tolerations, f"one of {taint}")
