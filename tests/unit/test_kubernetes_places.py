"""Pods without a place: what the autoscalers say of them, and what that limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from dask_tide.model import Phase
from dask_tide.providers.base import ObservedUnit

pytest.importorskip("lightkube")
from dask_tide.providers.kubernetes.events import read_event
from dask_tide.providers.kubernetes.nodes import price_per_s, quantities, read_node
from dask_tide.providers.kubernetes.objects import Event, Node
from dask_tide.providers.kubernetes.options import Options
from dask_tide.providers.kubernetes.places import Places
from dask_tide.providers.kubernetes.pods import PodView, Rank

# As cluster-autoscaler 1.35 and Karpenter 1.14 write them, shortened.
COMING_CA = ("cluster-autoscaler", "TriggeredScaleUp", "pod triggered scale-up: [{workers 0->2 (max: 20)}]")
NONE_CA = (
    "cluster-autoscaler",
    "NotTriggerScaleUp",
    "pod didn't trigger scale-up: 1 max node group size reached",
)
COMING_KARPENTER = ("karpenter", "Nominated", "Pod should schedule on: nodeclaim/workers-x7k2p")
NONE_KARPENTER = (
    "karpenter",
    "FailedScheduling",
    "Failed to schedule pod, no instance type has enough resources",
)
COMING_AUTO = ("eks-auto-mode/compute", "Nominated", "Pod should schedule on: nodeclaim/general-x7k2p")
NONE_AUTO = ("eks-auto-mode/compute", "FailedScheduling", "incompatible with nodepool, no instance type")
SCHEDULER = ("default-scheduler", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.")


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Pool:
    def __init__(self, **options) -> None:
        self.clock = Clock()
        self.places = Places("cpu", Options(**options), self.clock)
        self.pods: dict[str, PodView] = {}

    def pod(self, name, *, waits_s: float | None = None, failed: bool = False) -> None:
        since = None if waits_s is None else datetime.now(UTC) - timedelta(seconds=waits_s)
        phase, rank = (Phase.STARTING, Rank.READY) if since is None else (Phase.PENDING, Rank.NOWHERE)
        phase = Phase.FAILED if failed else phase
        unit = ObservedUnit(name, "cpu", phase, message=f"{name} waits")
        self.pods[name] = PodView(unit, name, "", True, rank, False, False, since)

    def says(self, name, said, *, ago_s: float = 0.0) -> None:
        component, reason, message = said
        at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
        for spelled in ({"reportingComponent": component}, {"source": {"component": component}}):
            raw = {
                "involvedObject": {"kind": "Pod", "name": name},
                "reason": reason,
                "message": message,
                "lastTimestamp": at,
            } | spelled
            event = read_event(msgspec.json.decode(msgspec.json.encode(raw), type=Event))
            assert event is not None
            self.places.said(event)

    @property
    def refused(self) -> set[str]:
        return self.places.refused(self.pods)

    @property
    def limit(self):
        return self.places.limit(self.pods, self.refused, lambda pod: pod.unit.message)


def test_without_a_word_it_is_waited_for_as_long_as_the_options_say():
    pool = Pool(unschedulable_after_s=60.0)
    pool.pod("placed")
    pool.pod("old", waits_s=50)
    assert (pool.refused, pool.limit) == (set(), None)
    pool.pod("young", waits_s=0)
    pool.clock.s += 11
    assert pool.refused == {"old"}
    assert (pool.limit.maximum, pool.limit.message) == (2, "old waits")


@pytest.mark.parametrize("ahead_s", [-3600, -70, 0, 70, 3600])
def test_the_schedulers_clock_need_not_agree_with_the_api_servers(ahead_s):
    """Neither is the right one: what was seen to begin is counted from then."""
    pool = Pool(unschedulable_after_s=60.0)
    assert not pool.refused
    pool.pod("a", waits_s=ahead_s)
    for waited_s in range(60):
        assert not pool.refused, waited_s
        pool.clock.s += 1.0
    assert pool.refused == {"a"}


@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
def test_nor_what_an_autoscaler_says_be_as_old_as_it_says(ahead_s):
    pool = Pool(machine_within_s=600.0)
    assert not pool.refused
    pool.pod("a", waits_s=ahead_s)
    pool.says("a", COMING_CA, ago_s=ahead_s)
    pool.clock.s += 1.0
    assert not pool.refused
    pool.says("a", COMING_KARPENTER, ago_s=ahead_s)  # listed again, it is no older
    assert not pool.refused
    pool.clock.s += 601.0
    assert pool.refused == {"a"}
    assert pool.places.words("a").endswith("; none has come in 600 s")


@pytest.mark.parametrize("waits_s", [-3600, 2 * 3600, 50 * 365 * 86400])
def test_what_was_there_before_us_has_not_waited_for_as_long_as_makes_no_sense(waits_s):
    pool = Pool(unschedulable_after_s=60.0)
    pool.pod("a", waits_s=waits_s)
    assert not pool.refused
    pool.clock.s += 59
    assert not pool.refused
    pool.clock.s += 2
    assert pool.refused == {"a"}


def test_one_that_gets_a_place_of_others_and_loses_it_has_waited_all_the_time():
    pool = Pool(unschedulable_after_s=60.0)
    pool.pod("a", waits_s=5)
    since = pool.pods["a"]
    assert not pool.refused
    pool.clock.s += 40
    pool.pods["a"] = replace(since, unschedulable_since=None)
    assert not pool.refused
    pool.pods["a"] = since
    pool.clock.s += 16
    assert pool.refused == {"a"}
    pool.pod("a", waits_s=0)
    assert not pool.refused, "it had a place meanwhile"
    pool.places.forget("a")
    pool.clock.s += 59
    pool.pod("a", waits_s=0)
    assert not pool.refused, "another one of that name"


@pytest.mark.parametrize("coming", [COMING_CA, COMING_KARPENTER, COMING_AUTO])
def test_a_machine_that_is_coming_is_waited_for(coming):
    pool = Pool(unschedulable_after_s=60.0, machine_within_s=600.0)
    pool.pod("a", waits_s=300)
    pool.says("a", coming)
    assert not pool.refused
    assert pool.places.words("a") == f"{coming[1]}: {coming[2]}"
    pool.clock.s += 599
    pool.says("a", coming)  # as Karpenter does every two minutes
    assert not pool.refused
    pool.clock.s += 2
    assert pool.refused == {"a"}, "it has not joined"
    assert pool.places.words("a").endswith("; none has come in 600 s")
    pool.says("a", (*coming[:2], f"{coming[2]} of another try"))
    assert not pool.refused


@pytest.mark.parametrize("none", [NONE_CA, NONE_KARPENTER, NONE_AUTO])
def test_p09_that_none_is_coming_is_known_long_before_and_in_the_autoscalers_words(none):
    pool = Pool(unschedulable_after_s=60.0)
    pool.pod("a", waits_s=3)
    pool.says("a", none)
    assert pool.refused == {"a"}
    assert none[2] in pool.places.words("a")
    pool.says("a", COMING_KARPENTER)  # it has found another type
    assert not pool.refused


def test_of_many_pods_something_is_said_of_some_only():
    """Karpenter nominates more than five pods a second without a word."""
    pool = Pool(unschedulable_after_s=60.0, machine_within_s=600.0)
    names = [f"p{number}" for number in range(20)]
    for name in names:
        pool.pod(name, waits_s=100)
    assert pool.refused == set(names)
    for name in names[:10]:
        pool.says(name, COMING_KARPENTER)
    assert (pool.refused, pool.limit) == (set(), None)
    for name in names[:10]:
        pool.pod(name)  # they have a place now
    assert pool.refused == set(names[10:])


def test_after_a_restart_old_events_are_as_old_as_they_are():
    pool = Pool(machine_within_s=600.0)
    pool.pod("a", waits_s=900)
    pool.says("a", COMING_CA, ago_s=700)
    assert pool.refused == {"a"}, "it was promised long ago"
    pool.says("a", COMING_KARPENTER, ago_s=300)
    pool.says("a", NONE_CA, ago_s=500)
    assert not pool.refused, "the newer one counts, in whatever order they are listed"


def test_the_schedulers_own_words_are_no_refusal():
    """It says so of each pod that a machine is yet to come for."""
    pool = Pool(unschedulable_after_s=60.0)
    pool.pod("a", waits_s=3)
    pool.says("a", SCHEDULER)
    assert not pool.refused


def test_what_was_said_of_a_pod_goes_with_it():
    pool = Pool()
    pool.pod("a", waits_s=3)
    pool.says("a", NONE_CA)
    pool.places.forget("a")
    assert not pool.refused


def test_a_limit_is_believed_for_a_while_after_those_without_a_place_are_gone():
    pool = Pool()
    pool.pod("placed")
    pool.pod("a", waits_s=3)
    pool.says("a", NONE_CA)
    assert pool.limit.maximum == 1
    del pool.pods["a"]
    assert pool.limit.maximum == 1
    pool.clock.s += 61
    assert pool.limit is None, "it is worth another attempt"


def test_a_limit_is_not_believed_once_somebody_tries_again_or_finds_a_place():
    for waits_s in (1, None):
        pool = Pool()
        pool.pod("a", waits_s=3)
        pool.says("a", NONE_CA)
        assert pool.limit.maximum == 0
        del pool.pods["a"]
        pool.pod("b", waits_s=waits_s)
        assert pool.limit is None


def test_pods_that_have_failed_are_no_sign_of_room():
    """An evicted one is listed until the garbage collector takes it."""
    pool = Pool()
    pool.pod("placed")
    pool.pod("evicted", failed=True)
    pool.pod("a", waits_s=3)
    pool.says("a", NONE_CA)
    assert pool.limit.maximum == 1
    del pool.pods["a"]
    assert pool.limit.maximum == 1


# -- prices -----------------------------------------------------------------------------------------------


def node(labels, allocatable):
    raw = {"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": allocatable}}
    return read_node(msgspec.json.decode(msgspec.json.encode(raw), type=Node))


M5_SPOT = {
    "node.kubernetes.io/instance-type": "m5.xlarge",
    "topology.kubernetes.io/zone": "eu-west-1a",
    "karpenter.sh/capacity-type": "spot",
}


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (M5_SPOT, "m5.xlarge/eu-west-1a/spot"),
        ({"eks.amazonaws.com/capacityType": "ON_DEMAND"}, "//on-demand"),
        ({}, "//"),
    ],
)
def test_what_a_node_is(labels, kind):
    assert node(labels, {}).kind == kind


@pytest.mark.parametrize(
    ("text", "amount"),
    [("1E9", 10**9), ("1e3", 1000), ("2E", 2 * 10**18), ("1.5Gi", 3 * 2**29), ("100m", 0.1)],
)
def test_all_quantities_that_kubernetes_takes_are_understood(text, amount):
    assert float(quantities({"memory": text})["memory"]) == amount


def test_a_pods_price_is_its_share_of_the_machines():
    machine = node(M5_SPOT, {"cpu": "3920m", "memory": "14Gi", "pods": "58"})
    half = quantities({"cpu": "1", "memory": "7Gi", "ephemeral-storage": "1Gi"})
    prices = {"m5.xlarge/*/spot": 0.072, "*/*/*": 1.0}
    assert price_per_s(machine, prices, half) == pytest.approx(0.036 / 3600)
    assert price_per_s(node({}, {"cpu": "2"}), prices, quantities({"cpu": "500m"})) == pytest.approx(
        0.25 / 3600
    )


def test_a_price_that_nobody_knows_is_none():
    machine = node(M5_SPOT, {"cpu": "4"})
    assert price_per_s(machine, {"c5.*/*/*": 1.0}, quantities({"cpu": "1"})) is None
    assert price_per_s(machine, {"*/*/*": 1.0}, {}) is None
    assert price_per_s(node({}, {}), {"*/*/*": 1.0}, quantities({"cpu": "1"})) is None
