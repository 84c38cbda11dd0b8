"""Which annotations pods should have, on a clock of the test's own; and what a refused patch does."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace

import pytest
from waiting import until

from dask_tide.errors import LaunchRejected, Unauthorized, Unavailable
from dask_tide.model import Phase
from dask_tide.providers.base import ObservedUnit
from dask_tide.providers.kubernetes.marks import IDLE, PROTECTED, VICTIM, Marks
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.pods import DELETION_COST, DO_NOT_DISRUPT, SAFE_TO_EVICT, PodView, Rank

pytest.importorskip("lightkube")


class Pods:
    """Pods, a clock, and an API server that patches them."""

    def __init__(self, *names, protected=PROTECTED):
        self.now_s = 0.0
        self.refusal = None
        self.refused = {}
        self.patched = []
        annotations = {key: value for key, value in PROTECTED.items() if value is not None}
        unit = ObservedUnit("", "cpu", Phase.STARTING, "n1")
        self.pods = {
            name: PodView(replace(unit, name=name), name, "", True, Rank.READY, True, True, None, annotations)
            for name in names
        }
        self.marks = Marks(
            self,  # type: ignore[arg-type]  # all of it that is called
            lambda: self.pods,
            lambda pool: protected,
            patience=Patience(idle_s=5.0),
            clock=lambda: self.now_s,
        )

    async def annotate(self, name, annotations):
        self.patched.append(name)
        if (refusal := self.refused.get(name, self.refusal)) is not None:
            raise refusal
        before = self.pods[name].annotations
        merged = {key: value for key, value in {**before, **annotations}.items() if value is not None}
        self.pods[name] = replace(self.pods[name], annotations=merged)
        return True

    def wish(self, at_s, **protected):
        self.now_s = at_s
        self.marks.wish(protected)
        return dict(self.marks.pending())


def test_one_that_rests_between_two_tasks_does_not_say_so():
    pods = Pods("a")
    for at_s, protected in enumerate([False, False, False, True, False, False, False, False]):
        assert pods.wish(at_s, a=protected) == {}


def test_one_that_has_been_idle_for_a_while_says_so():
    pods = Pods("a")
    assert pods.wish(0, a=False) == {}
    assert pods.wish(4.9, a=False) == {}
    assert pods.wish(5.0, a=False) == {"a": IDLE}


async def test_busy_again_is_protected_at_once_and_first():
    pods = Pods("a", "b", "c")
    pods.wish(0, a=False, b=False, c=False)
    pods.now_s = 9.0
    await pods.annotate("c", IDLE)
    assert pods.wish(9.0, a=False, b=False, c=True) == {"c": PROTECTED, "a": IDLE, "b": IDLE}
    assert next(iter(dict(pods.marks.pending()))) == "c"


def test_of_what_nobody_said_anything_stays_as_it_is():
    pods = Pods("a", "b")
    assert pods.wish(9.0, a=True) == {}


#: As a pool's template has it on spot nodes that nobody watches.
SPOT = {**PROTECTED, DO_NOT_DISRUPT: None}


async def test_a_pool_that_karpenter_may_disturb_is_never_protected_from_it():
    pods = Pods("a", protected=SPOT)
    await pods.annotate("a", {DO_NOT_DISRUPT: None})
    assert pods.wish(0, a=True) == {}
    pods.wish(1, a=False)
    assert pods.wish(9, a=False) == {"a": IDLE}
    await pods.annotate("a", IDLE)
    assert pods.wish(10, a=True) == {"a": SPOT}


def test_p31_on_a_doomed_node_nobody_is_protected_from_eviction():
    pods = Pods("a", "b")
    pods.marks.doomed = frozenset({"n1"})
    wanted = pods.wish(0, a=True, b=False)
    assert wanted["a"] == {**IDLE, DELETION_COST: "100"}
    assert wanted["b"] == IDLE


def test_p11_a_pod_that_was_told_of_its_machines_end_is_not_protected_from_eviction_either():
    """Where nobody taints nodes: its worker has read it in the instance's metadata."""
    pods = Pods("a", "b")
    pods.marks.wish({"a": True, "b": True}, ["a"])
    assert dict(pods.marks.pending()) == {"a": {**IDLE, DELETION_COST: PROTECTED[DELETION_COST]}}
    pods.marks.wish({"a": True, "b": True})
    assert not pods.marks.pending()


async def test_p31_those_on_a_doomed_node_come_first():
    pods = Pods("a", "b", "c")
    pods.pods["c"] = replace(pods.pods["c"], unit=replace(pods.pods["c"].unit, machine="n2"))
    await pods.annotate("a", IDLE)
    pods.marks.doomed = frozenset({"n2"})
    assert list(pods.wish(0, a=True, b=True, c=True)) == ["c", "a"]


def test_p31_one_that_has_not_registered_yet_is_not_protected_there_either():
    pods = Pods("a")
    pods.marks.doomed = frozenset({"n1"})
    assert pods.wish(0) == {"a": IDLE}


def test_p31_a_node_that_stays_after_all_protects_again():
    pods = Pods("a")
    pods.pods["a"] = replace(pods.pods["a"], annotations={DELETION_COST: "100", SAFE_TO_EVICT: "true"})
    pods.marks.doomed = frozenset({"n1"})
    assert pods.wish(0, a=True) == {}
    pods.marks.doomed = frozenset()
    assert pods.wish(1, a=True) == {"a": PROTECTED}


async def test_a_victim_remains_one_until_it_is_spared():
    pods = Pods("a", "b")
    await pods.marks.victims(["a"])
    assert pods.pods["a"].annotations[DELETION_COST] == VICTIM[DELETION_COST]
    assert pods.wish(0, a=True, b=True) == {}
    pods.marks.spare(["a"])
    assert pods.wish(1, a=True, b=True) == {"a": PROTECTED}


async def test_those_that_end_are_not_patched():
    pods = Pods("a")
    await pods.marks.victims(["a"])
    pods.marks.spare([])
    pods.pods["a"] = replace(pods.pods["a"], active=False, annotations={})
    assert pods.wish(9.0, a=True) == {}
    del pods.pods["a"]
    assert pods.wish(9.0, a=True) == {}


async def test_where_pods_may_not_be_patched_it_is_tried_ever_more_rarely():
    pods = Pods("a", "b")
    pods.refusal = Unauthorized("no patch pods")
    pods.wish(0, a=False, b=False)
    pods.wish(9, a=False, b=False)
    await pods.marks.victims(["a"])
    await pods.marks.victims(["b"])
    assert pods.patched == ["a"]
    pauses = []
    for _ in range(12):
        began_s = pods.now_s
        count = len(pods.patched)
        while len(pods.patched) == count:
            pods.now_s += 1
            await pods.marks.victims(["b"])
        pauses.append(pods.now_s - began_s)
    assert pauses[:3] == [2, 4, 8], "a server that has just started is asked again soon"
    assert pauses[-1] == Patience().marks_refused_s
    pods.refusal = None
    pods.now_s += Patience().marks_refused_s
    pods.marks.start()
    await until(lambda: not pods.marks.pending(), "it is done once it may be")
    await pods.marks.stop()


async def test_one_pod_that_is_refused_keeps_no_other_from_being_marked():
    pods = Pods("a", "b")
    pods.refused = {"a": LaunchRejected("denied by a webhook")}
    pods.marks.doomed = frozenset({"n1"})
    pods.wish(0, a=True, b=True)
    pods.marks.start()
    await until(lambda: "b" not in dict(pods.wish(0, a=True, b=True)), "the other one is")
    assert pods.patched[:2] == ["a", "b"]
    pods.refused = {}
    pods.now_s = Patience().refused_s
    await until(lambda: not pods.marks.pending(), "and it is tried again soon")
    await pods.marks.stop()


async def test_one_pod_whose_webhook_fails_keeps_no_other_from_being_marked():
    """The API server says 500 then, as if it were not well itself."""
    pods = Pods("a", "b", "c")
    pods.refused = {"a": Unavailable("failed calling webhook")}
    pods.marks.doomed = frozenset({"n1"})
    pods.wish(0, a=True, b=True, c=True)
    pods.marks.start()
    await until(lambda: not pods.marks.pending(), "the others are")
    assert pods.patched == ["a", "b", "c"]
    for pause_s in (2, 4, 8, 16, 30, 30):
        count = len(pods.patched)
        pods.now_s += pause_s - 0.1
        assert not pods.marks.pending(), "it rests ever longer"
        pods.now_s += 0.1
        await until(lambda: len(pods.patched) > count, "it is tried again")  # noqa: B023 -- awaited here
    assert set(pods.patched[3:]) == {"a"}
    pods.refused = {}
    pods.now_s += Patience().marks_refused_s
    await until(lambda: pods.pods["a"].annotations[SAFE_TO_EVICT] == "true", "it is marked at last")
    await pods.marks.stop()


async def test_that_pods_may_not_be_marked_is_told_whatever_was_away_before(caplog):
    # Dask's loggers need not pass on what they have written.
    logger = logging.getLogger("distributed.tide.kubernetes")
    logger.addHandler(caplog.handler)
    pods = Pods("a", "b", "c")
    pods.refused = {"a": Unavailable("away"), "b": LaunchRejected("denied"), "c": LaunchRejected("denied")}
    for name in pods.pods:
        await pods.marks.victims([name])
    logger.removeHandler(caplog.handler)
    told = {id(record) for record in caplog.records if "cannot be marked" in record.getMessage()}
    assert len(told) == 1, "once"


async def test_however_many_webhooks_fail_the_others_are_marked():
    names = [f"bad-{number}" for number in range(8)]
    pods = Pods(*names, "good")
    pods.refused = dict.fromkeys(names, Unavailable("failed calling webhook"))
    pods.marks.doomed = frozenset({"n1"})
    pods.wish(0, **dict.fromkeys(pods.pods, True))
    pods.marks.start()
    await until(lambda: pods.pods["good"].annotations[SAFE_TO_EVICT] == "true", "it is, in the end")
    pods.pods["good"] = replace(pods.pods["good"], annotations={})
    pods.now_s += Patience().marks_refused_s  # all may be tried again
    assert next(iter(dict(pods.marks.pending()))) == "good", "those that have failed before come after it"
    await pods.marks.stop()


async def test_where_the_server_is_away_it_is_tried_again_without_haste():
    pods = Pods(*"abcdefgh")
    pods.refusal = Unavailable("away")
    idle = dict.fromkeys(pods.pods, False)
    pods.wish(0, **idle)
    pods.wish(9, **idle)
    tried_s, annotate = [], pods.annotate

    async def timed(name, annotations):
        tried_s.append(asyncio.get_running_loop().time())
        return await annotate(name, annotations)

    pods.annotate = timed
    pods.marks.start()
    await until(lambda: len(pods.patched) >= 6, "it is tried again")
    assert pods.patched[:6] == list("abcdef")
    # It takes three in a row to know; then it is one at a time.
    assert all(later - earlier > 0.2 for earlier, later in itertools.pairwise(tried_s[2:]))
    pods.refusal = None
    pods.now_s += Patience().failed_max_s
    await until(lambda: not pods.marks.pending(), "all are marked")
    assert all(pod.annotations[SAFE_TO_EVICT] == "true" for pod in pods.pods.values())
    await pods.marks.stop()
    await asyncio.sleep(0)


async def test_a_victim_that_is_being_marked_is_not_marked_a_second_time():
    """Who brings the others' annotations up to date may wake before the API server has answered."""
    pods, answered = Pods("a", "b"), asyncio.Event()
    annotate = pods.annotate

    async def slowly(name, annotations):
        await answered.wait()
        return await annotate(name, annotations)

    pods.annotate = slowly
    marking = asyncio.create_task(pods.marks.victims(["a"]))
    await asyncio.sleep(0)
    assert pods.marks.pending() == []
    answered.set()
    assert await marking == {"a"}
    assert pods.marks.pending() == []
    assert pods.patched == ["a"]
