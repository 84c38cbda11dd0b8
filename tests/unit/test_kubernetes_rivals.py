"""Who else scales a pool, on a clock of the test's own."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from dask_tide.providers.kubernetes.events import read_event
from dask_tide.providers.kubernetes.objects import Event
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.replicasets import ReplicaSetView
from dask_tide.providers.kubernetes.rivals import Rivals

pytest.importorskip("lightkube")

VIEW = ReplicaSetView("r-cpu", "cpu", 1, 3, 3, "", "", "kubectl/scale")
HPA = "kube-controller-manager/scale"
OLD = "2001-01-01T00:00:00Z"


class World:
    def __init__(self):
        self.now_s = 1000.0
        self.rivals = Rivals("cpu", "r-cpu", patience=Patience(rival_s=300.0), clock=lambda: self.now_s)

    def scaled(self, replicas, manager=HPA, first=False):
        self.rivals.scaled(replace(VIEW, replicas=replicas, manager=manager), first=first)
        return self.rivals.reason()


def test_nobody_is_there():
    assert World().rivals.reason() == ""


@pytest.mark.parametrize("event_first", [False, True])
def test_an_autoscaler_is_named_whichever_is_seen_first(event_first):
    world = World()
    if event_first:
        world.rivals.rescaled("h", "SuccessfulRescale: New size: 3; reason: All metrics below target")
    unnamed = world.scaled(3)
    assert unnamed.startswith("HorizontalPodAutoscaler h " if event_first else "a HorizontalPodAutoscaler ")
    world.rivals.rescaled("h", "SuccessfulRescale: New size: 3; reason: All metrics below target")
    assert world.rivals.reason().startswith(
        "HorizontalPodAutoscaler h scales ReplicaSet r-cpu, too: remove it"
    )


def test_an_autoscaler_of_another_pool_is_not_named():
    world = World()
    world.scaled(3)
    world.rivals.rescaled("other", "SuccessfulRescale: New size: 7; reason: memory above target")
    assert "other" not in world.rivals.reason()


def test_what_an_autoscaler_did_long_ago_or_elsewhere_freezes_nothing():
    world = World()
    world.rivals.rescaled("h", "SuccessfulRescale: New size: 3; reason: All metrics below target")
    assert world.rivals.reason() == ""
    world.scaled(3)
    world.now_s += 300.0
    world.rivals.rescaled("h", "SuccessfulRescale: New size: 3; reason: All metrics below target")
    assert world.rivals.reason() == ""


def test_it_is_believed_for_a_while_after_it_was_last_seen():
    world = World()
    world.scaled(3)
    world.now_s += 200.0
    world.scaled(4)
    world.now_s += 299.0
    assert "has just set 4 replicas" in world.rivals.reason()
    world.now_s += 1.0
    assert world.rivals.reason() == ""


def test_who_was_there_before_us_counts_as_one_only_if_it_is_an_autoscaler():
    world = World()
    assert world.scaled(3, "kubectl/scale", first=True) == ""
    assert world.scaled(4, "kubectl/scale") == ""
    assert world.scaled(5, "kubectl/scale") == ""
    assert world.scaled(6, "kubectl/scale").startswith("kubectl scales")
    assert World().scaled(3, HPA, first=True)


def test_three_changes_in_three_minutes_are_somebody_at_a_keyboard():
    world = World()
    for number in (3, 4, 5, 6):
        assert world.scaled(number, "kubectl/scale") == ""
        world.now_s += 45.0


def test_each_kind_is_told_once(caplog):
    # Dask's loggers need not pass on what they have written.
    logger = logging.getLogger("distributed.tide.kubernetes")
    logger.addHandler(caplog.handler)
    world = World()
    for number in range(5):
        world.scaled(number)
        world.rivals.resized("vpaUpdates: x")
        world.now_s += 1000.0
    logger.removeHandler(caplog.handler)
    told = [words for words in dict.fromkeys(caplog.messages) if "is left alone" in words]
    assert [words.split()[6] for words in told] == ["HorizontalPodAutoscaler", "VerticalPodAutoscaler"]
    # One may be handed over by several loggers; it is the same record then.
    assert len({id(record) for record in caplog.records}) == len(told)


def event(kind, name, reason, message, **more):
    raw = {"involvedObject": {"kind": kind, "name": name}, "reason": reason, "message": message} | more
    return read_event(msgspec.json.decode(msgspec.json.encode(raw), type=Event))


def test_of_events_those_of_pods_and_of_autoscalers_that_scaled_are_read():
    pulled = event("Pod", "p", "Failed", "no such image")
    assert pulled is not None
    assert (pulled.words, pulled.autoscaler, pulled.resized) == ("Failed: no such image", False, False)
    evicted = event("Pod", "p", "EvictedByVPA", "Pod was evicted by VPA Updater")
    assert evicted is not None
    assert evicted.resized
    scaled = event("HorizontalPodAutoscaler", "h", "SuccessfulRescale", "New size: 3; reason: x")
    assert scaled is not None
    assert scaled.autoscaler
    assert event("HorizontalPodAutoscaler", "h", "FailedGetScale", "no such ReplicaSet") is None
    assert event("Node", "n1", "NodeNotReady", "x") is None


@pytest.mark.parametrize(
    "when",
    [{"lastTimestamp": "{}"}, {"eventTime": "{}"}, {"series": {"lastObservedTime": "{}"}, "eventTime": OLD}],
)
def test_an_event_says_how_old_it_is(when):
    at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    said = event("Pod", "p", "EvictedByVPA", "x", **json.loads(json.dumps(when).replace("{}", at)))
    assert said is not None
    assert said.age_s == pytest.approx(3600, abs=60)


def test_one_that_does_not_say_is_new():
    said = event("Pod", "p", "EvictedByVPA", "x")
    assert said is not None
    assert said.age_s == 0
