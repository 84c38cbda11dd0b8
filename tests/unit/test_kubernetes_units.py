"""What pods need of ledger and policy: units without a name, taken, given back, stale; frozen pools."""

from __future__ import annotations

import msgspec
import pytest
from builders import (
    DRAINING,
    after_a_while,
    busy,
    decided,
    held,
    idle,
    launched,
    let_go,
    pool,
    snapshot,
    the,
    together,
    units,
    work,
)

from dask_tide.controller.ledger import Ledger
from dask_tide.model import Code, Drain, Launch, Phase, Pool, Release
from dask_tide.providers.base import Observation, ObservedUnit

MUCH = work(ready=1000, duration_s=600.0)
POOLS = {"cpu": Pool("cpu", price=2.0)}


def observed(*names, phase=Phase.STARTING, requested=0, **fields):
    shown = tuple(ObservedUnit(name, "cpu", phase, **fields) for name in names)
    return Observation(shown, requested={"cpu": requested} if requested else {})


def update(ledger, now_s, observation, registered=(), leaving=()):
    """The units' phases by name."""
    found = ledger.update(now_s, observation, set(registered), set(leaving), POOLS)
    return {unit.name: unit.phase for unit in found}


# -- the ledger --------------------------------------------------------------------------------------------


def test_units_without_a_name_are_requested_and_count_from_when_they_were_asked_for():
    ledger = Ledger(120.0)
    ledger.asked("cpu", 1, 10.0)
    assert update(ledger, 12.0, observed(requested=2)) == {"cpu?0": Phase.REQUESTED, "cpu?1": Phase.REQUESTED}
    assert [unit.age_s for unit in ledger.update(12.0, None, set(), set(), POOLS)] == [2.0, 2.0]


def test_a_unit_that_gets_its_name_is_not_counted_twice_and_has_not_failed():
    ledger = Ledger(120.0)
    ledger.asked("cpu", 1, 0.0)
    update(ledger, 0.0, observed(requested=2))
    assert update(ledger, 1.0, observed("r-cpu-a", requested=1)) == {
        "r-cpu-a": Phase.STARTING,
        "cpu?0": Phase.REQUESTED,
    }
    update(ledger, 9.0, observed("r-cpu-a"), ["r-cpu-a"])
    assert ledger.records["cpu"].failed == 0
    assert ledger.records["cpu"].boot_s == 9.0


def test_units_without_a_name_cost_nothing():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("r-cpu-a", requested=5))
    update(ledger, 10.0, observed("r-cpu-a", requested=5))
    assert ledger.spent == 20.0


def test_what_the_platform_takes_away_is_said_once_with_its_words():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("a", "b"), ["a", "b"])
    ledger.released(["b"])
    taken = observed("a", "b", phase=Phase.STOPPING, message="PreemptionByScheduler")
    assert update(ledger, 1.0, taken, ["a"]) == {"a": Phase.STOPPING, "b": Phase.STOPPING}
    update(ledger, 2.0, taken)
    assert ledger.taken == [("cpu", "a", "PreemptionByScheduler")]
    update(ledger, 3.0, observed())
    assert ledger.records["cpu"].failed == 0


def test_one_that_vanishes_at_work_is_told():
    ledger = Ledger(120.0)
    update(
        ledger,
        0.0,
        observed("at-work", "released", "without-worker"),
        ["at-work", "released", "without-worker"],
    )
    ledger.released(["released"])
    assert (
        update(ledger, 1.0, observed("at-work", "without-worker"), ["at-work"])["without-worker"]
        is Phase.STARTING
    )
    update(ledger, 2.0, observed())
    words = "it vanished without a word"
    assert ledger.taken == [("cpu", "at-work", words), ("cpu", "without-worker", words)]


def test_one_that_was_to_go_and_stays_is_at_work_again():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("a", "b"))
    ledger.released(["a", "b"])
    assert update(ledger, 1.0, observed("a", "b"), ["a"])["a"] is Phase.STOPPING
    ledger.stays(["a"])
    assert update(ledger, 2.0, observed("a", "b"), ["a"]) == {"a": Phase.RUNNING, "b": Phase.STOPPING}


def test_those_that_stay_unasked_are_nobodys_concern():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("a"), ["a"])
    ledger.stays(["a", "unknown"])
    assert update(ledger, 1.0, observed("a"), ["a"]) == {"a": Phase.RUNNING}


def test_stale_ones_are_known_as_such():
    ledger = Ledger(120.0)
    shown = Observation((ObservedUnit("a", "cpu", Phase.STARTING, message="old", stale=True),))
    (unit,) = ledger.update(0.0, shown, {"a"}, set(), POOLS)
    assert unit.stale
    assert unit.message == "old"


# -- nodes that do not answer -------------------------------------------------------------------------------


def test_a_unit_on_a_node_that_does_not_answer_is_unknown_once_its_worker_is_gone():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("a", "b"), ["a", "b"])
    silent = observed("a", "b", phase=Phase.UNKNOWN, message="its node does not answer")
    # The node's kubelet alone may have died.
    assert update(ledger, 1.0, silent, ["a"]) == {"a": Phase.RUNNING, "b": Phase.UNKNOWN}
    assert update(ledger, 2.0, observed("a", "b"), ["a", "b"]) == dict.fromkeys("ab", Phase.RUNNING)
    assert update(ledger, 3.0, silent, ["a"])["b"] is Phase.UNKNOWN
    assert update(ledger, 123.0, silent, ["a"]) == {"a": Phase.RUNNING, "b": Phase.EXPIRED}


def test_others_come_at_once_for_those_on_a_node_that_does_not_answer():
    parts = together(busy(2), (units(2, Phase.UNKNOWN, start=2), ()))
    much = work(ready=2, processing=2, duration_s=600.0)
    assert launched(decided(snapshot(pool(), **parts, work=[much]))) == {"cpu": 2}
    # They may come back: the maximum holds for them, too.
    assert not launched(decided(snapshot(pool(maximum=4), **parts, work=[much])))


# -- frozen pools ------------------------------------------------------------------------------------------


def test_nothing_is_done_about_a_frozen_pool():
    frozen = pool(state={"frozen": "a HorizontalPodAutoscaler scales it"})
    for parts in (idle(5), busy(2), (units(2, Phase.FAILED), ()), (units(2, Phase.EXPIRED), ())):
        world = snapshot(frozen, **together(parts), work=[MUCH] if parts[1] else [])
        for actions in (decided(world), after_a_while(world)):
            assert held(actions) == Code.FROZEN.name
            assert not launched(actions)
            assert not let_go(actions)


def test_the_work_of_a_frozen_pool_goes_to_another():
    world = snapshot(
        pool(price=1.0, state={"frozen": "there is no ReplicaSet"}), pool("more", price=3.0), work=[MUCH]
    )
    assert launched(decided(world)) == {"more": 100}


def test_a_frozen_pool_says_why():
    actions = decided(snapshot(pool(state={"frozen": "there is no ReplicaSet r-cpu"}), work=[MUCH]))
    assert "there is no ReplicaSet r-cpu" in str(actions[0].why)


# -- stale units -------------------------------------------------------------------------------------------


def stale(parts, count):
    """The first ones were made from an older template."""
    some_units, some_workers = parts
    older = [
        msgspec.structs.replace(
            unit, stale=index < count, message="made from template 1" if index < count else ""
        )
        for index, unit in enumerate(some_units)
    ]
    return tuple(older), some_workers


@pytest.mark.parametrize("kept", [{"minimum": 3}, {"floor": 3}, {"manual": 3}], ids=str)
def test_idle_stale_units_that_are_to_be_there_go_one_after_the_other(kept):
    state = {} if "minimum" in kept else kept
    parts = stale(idle(3), 2)
    world = snapshot(pool(state=state, minimum=kept.get("minimum", 0)), **together(parts))
    actions = decided(world)
    drain = the(actions, Drain)
    assert drain.units == ("cpu-u0",)
    assert drain.why.code == Code.STALE.name
    assert "made from template 1" in str(drain.why)
    assert not drain.busy


def test_the_next_stale_one_goes_when_the_one_before_it_is_replaced():
    some_units, some_workers = stale(idle(2), 2)
    coming = units(1, Phase.STARTING, start=2)
    world = snapshot(pool(minimum=3), units=[*some_units, *coming], workers=some_workers)
    assert not let_go(decided(world))


def test_new_ones_come_for_those_that_go():
    leaving = tuple(msgspec.structs.replace(unit, phase=DRAINING, stale=True) for unit in units(2))
    world = snapshot(pool(minimum=3), units=[*leaving, *units(1, start=2)], workers=idle(1, start=2)[1])
    assert the(decided(world), Launch).count == 2


def test_busy_stale_units_stay():
    assert not let_go(decided(snapshot(pool(), **together(stale(busy(3), 3)))))


def test_stale_units_stay_while_there_is_work_for_them():
    assert not let_go(decided(snapshot(pool(maximum=3), **together(stale(idle(3), 3)), work=[MUCH])))


def test_stale_units_that_hold_only_copies_go_last_or_not_at_all():
    parts = stale(idle(2, pinned="it holds a shuffle"), 1)
    assert not let_go(decided(snapshot(pool(minimum=2), **together(parts))))


def test_of_surplus_units_the_stale_ones_go_first():
    parts = stale(idle(4), 0)
    older = tuple(msgspec.structs.replace(u, stale=u.name == "cpu-u2") for u in parts[0])
    actions = after_a_while(snapshot(pool(minimum=3), units=older, workers=parts[1]))
    assert let_go(actions) == {"cpu-u2"}


def test_those_without_a_name_are_released_first():
    nameless = tuple(
        msgspec.structs.replace(u, name=f"cpu?{i}") for i, u in enumerate(units(2, Phase.REQUESTED))
    )
    actions = after_a_while(snapshot(pool(minimum=1), units=[*nameless, *units(1)], workers=idle(1)[1]))
    assert set(the(actions, Release).units) == {"cpu?0", "cpu?1"}


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.STARTING])
def test_units_on_their_way_are_not_renewed(phase):
    older = tuple(msgspec.structs.replace(unit, stale=True) for unit in units(2, phase))
    assert not let_go(decided(snapshot(pool(minimum=2), units=older)))


@pytest.mark.parametrize("more", [{"work": [MUCH]}, {}], ids=["work", "minimum"])
@pytest.mark.parametrize("how", [{"unplaced": True}, {"age_s": 1000.0}], ids=str)
def test_those_that_wait_in_vain_are_not_left_to_an_older_template(how, more):
    """An upgrade has mended it: a ReplicaSet does not change the pods that it has."""
    older = tuple(msgspec.structs.replace(unit, stale=True, **how) for unit in units(2, Phase.PENDING))
    full = {"capacity": 0, "capacity_message": "no such node"}
    world = snapshot(pool(minimum=2, maximum=2, state=full), units=older, **more)
    release = the(decided(world), Release)
    assert (set(release.units), release.why.code) == ({"cpu-u0", "cpu-u1"}, "STALE_WAITING")
    mended = tuple(msgspec.structs.replace(unit, stale=False) for unit in older)
    assert not let_go(decided(msgspec.structs.replace(world, units=mended)))


def test_for_how_long_the_platform_has_shown_none_of_those_that_were_asked_for():
    """However long that is, and anew with each that it shows."""
    ledger = Ledger(120.0)
    ledger.asked("cpu", 2, 0.0)

    def owed_for(now_s, observation):
        found = ledger.update(now_s, observation, set(), set(), POOLS)
        return {unit.age_s for unit in found if unit.phase is Phase.REQUESTED}

    assert owed_for(1.0, observed(requested=2)) == {1.0}
    assert owed_for(300.0, observed(requested=2)) == {300.0}
    assert owed_for(301.0, observed("r-cpu-a", requested=1)) == {0.0}
    assert owed_for(311.0, observed("r-cpu-a", requested=3)) == {10.0}
    assert owed_for(312.0, observed("r-cpu-a")) == set()


# -- what is learned of a start ----------------------------------------------------------------------------


def test_a_worker_that_comes_while_the_platform_is_away_took_as_long_as_it_took():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed())
    ledger.asked("cpu", 1, 0.0)
    update(ledger, 1.0, observed("r-cpu-a"))
    update(ledger, 5.0, None, ["r-cpu-a"])
    update(ledger, 180.0, observed("r-cpu-a"), ["r-cpu-a"])
    assert ledger.records["cpu"].boot_s == 5.0
    assert ledger.records["cpu"].started == 1


def test_what_was_refused_lends_its_time_to_nobody():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed())
    ledger.asked("cpu", 5, 0.0)
    update(ledger, 49.0, None)
    ledger.asked("cpu", 5, 50.0)
    names = [f"r-cpu-{i}" for i in range(5)]
    update(ledger, 51.0, observed(*names, phase=Phase.PENDING))
    update(ledger, 55.0, observed(*names), names)
    assert ledger.records["cpu"].boot_s == 5.0


def test_nothing_is_learned_of_starts_that_an_earlier_controller_saw_begin():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("r-cpu-a", phase=Phase.PENDING, waits=True))
    update(ledger, 5.0, observed("r-cpu-a"), ["r-cpu-a"])
    assert ledger.records["cpu"].cold_boot_s is None


def test_nothing_is_learned_of_starts_for_which_there_was_no_place():
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed())
    ledger.asked("cpu", 1, 0.0)
    update(ledger, 60.0, observed("r-cpu-a", phase=Phase.PENDING, waits=True, unplaced=True))
    update(ledger, 600.0, observed("r-cpu-a"), ["r-cpu-a"])
    assert ledger.records["cpu"].cold_boot_s is None


@pytest.mark.parametrize(
    ("there", "failed"),
    [({"waits": True}, 0), ({}, 0), ({"machine": "node"}, 1), ({"phase": Phase.STARTING}, 1)],
    ids=str,
)
def test_what_is_given_up_before_it_had_a_machine_has_not_failed(there, failed):
    """A ReplicaSet deletes pods without a machine first; they are gone without a word."""
    ledger = Ledger(120.0)
    update(ledger, 0.0, observed("a", **({"phase": Phase.PENDING} | there)))
    update(ledger, 1.0, observed())
    assert ledger.records["cpu"].failed == failed
