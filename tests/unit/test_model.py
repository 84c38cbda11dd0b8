"""The model: names, slots, reasons, phases, and the way to JSON and back."""

from __future__ import annotations

import math
import string

import msgspec
import pytest
from builders import pool, snapshot, units, work, workers_of

from dask_tide import model
from dask_tide.model import (
    BOOTING,
    EXISTING,
    LIVE,
    TRANSITIONS,
    Action,
    Code,
    Drain,
    Hold,
    Launch,
    Phase,
    Pool,
    Release,
    Snapshot,
    Unit,
    owner_of,
    why,
)


@pytest.mark.parametrize(
    ("needs", "slots"),
    [
        ((), 8),
        ((("GPU", 1.0),), 2),
        ((("GPU", 0.5),), 4),
        ((("GPU", 0.1),), 8),  # each task takes a thread, too
        ((("GPU", 3.0),), 0),
        ((("GPU", 0.0),), 8),
        ((("TPU", 1.0),), 0),
        ((("GPU", 1e-320),), 8),  # any client may ask for that
        ((("GPU", math.inf),), 0),
        ((("GPU", math.nan),), 8),
        ((("GPU", 1.0), ("MEMORY", 8.0)), 1),
    ],
)
def test_slots_are_threads_or_bundles_of_resources(needs, slots):
    shape = Pool("gpu", threads=8, resources=(("GPU", 2.0), ("MEMORY", 10.0)))
    assert shape.slots_per_unit(needs) == slots
    assert msgspec.structs.replace(shape, workers_per_unit=4).slots_per_unit(needs) == 4 * slots


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("cpu-1", "cpu-1"),
        ("cpu-1-0", "cpu-1"),
        ("cpu-1-13", "cpu-1"),
        ("cpu-1-x", ""),
        ("cpu-1-", ""),
        ("cpu", ""),
        ("cpu-10", ""),
        ("tcp://127.0.0.1:1", ""),
        (3, "3"),  # LocalCluster's names are integers
        ("3-1", "3"),
        ("", ""),
    ],
)
def test_a_worker_belongs_to_the_unit_whose_name_it_has(name, owner):
    assert owner_of(name, {n: Unit(n, "cpu", Phase.RUNNING) for n in ("cpu-1", "3")}) == owner


def test_the_longer_of_two_names_wins():
    assert owner_of("a-1", {n: Unit(n, "cpu", Phase.RUNNING) for n in ("a", "a-1")}) == "a-1"


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("n", [1, 2])
def test_every_reason_is_a_sentence(code, n):
    names = {name for _, name, _, _ in string.Formatter().parse(code.value) if name}
    sentence = str(why(code, **dict.fromkeys(names, n)))
    assert sentence
    assert not sentence.endswith(".")
    assert "{" not in sentence


def test_a_reason_counts_in_singular_and_plural():
    one = why(Code.IMPOSSIBLE, tasks=1, example="x", missing="GPU")
    assert str(one).startswith("1 task such as")
    assert str(why(Code.IMPOSSIBLE, tasks=2, example="x", missing="GPU")).startswith("2 tasks such as")


def test_no_two_reasons_are_the_same_sentence():
    assert len({code.value for code in Code}) == len(list(Code))  # an enum would make them aliases
    assert len(Code.__members__) == len(list(Code))


def test_every_phase_has_its_edges_and_none_leads_to_itself():
    assert set(TRANSITIONS) == set(Phase)
    assert all(phase not in targets for phase, targets in TRANSITIONS.items())
    assert not TRANSITIONS[Phase.GONE]


def test_every_phase_can_be_reached_and_left():
    reached = frozenset().union(*TRANSITIONS.values())
    assert reached == set(Phase) - {Phase.REQUESTED}
    assert all(Phase.GONE in targets for phase, targets in TRANSITIONS.items() if phase is not Phase.GONE)


def test_what_was_told_to_stop_never_comes_back():
    seen, new = set(), {Phase.STOPPING}
    while new:
        seen |= new
        new = set().union(*(TRANSITIONS[p] - {Phase.UNKNOWN} for p in new)) - seen
    assert not seen & LIVE


def test_sets_of_phases_contain_one_another():
    assert BOOTING < LIVE < EXISTING
    assert Phase.RUNNING in LIVE - BOOTING
    assert not EXISTING & {Phase.GONE, Phase.FAILED}


def test_a_snapshot_survives_json():
    some = units(2, machine="node-1") + units(1, Phase.PENDING, of="gpu", message="no room")
    world = snapshot(
        pool(resources={"GPU": 1}, state={"manual": 2, "capacity": 3}),
        units=some,
        workers=workers_of(some, held_bytes=5, only_copies=0, pinned="an actor"),
        work=[work(needs={"GPU": 0.5}, ready=3, duration_s=1 / 3)],
        now_s=1e9 + 1 / 3,
        keep_s=7.0,
    )
    assert msgspec.json.decode(msgspec.json.encode(world), type=Snapshot) == world


def test_actions_survive_json():
    reason = why(Code.MINIMUM, have=0, want=1)
    actions: tuple[Action, ...] = (
        Launch("cpu", 1, reason),
        Drain("cpu", ("u",), (("u", "tcp://1"),), reason, busy=True),
        Release("cpu", ("u",), reason),
        Hold("", reason),
    )
    assert msgspec.json.decode(msgspec.json.encode(actions), type=tuple[Action, ...]) == actions


def test_values_cannot_be_changed():
    with pytest.raises(AttributeError):
        pool().floor = 3


def test_every_public_name_is_exported_on_purpose():
    modules = {"actions", "pools", "reasons", "snapshot", "units", "work", "workers"}
    public = {name for name in dir(model) if not name.startswith("_")} - modules - {"annotations"}
    assert public == set(model.__all__)
