"""What `dask tide explain` says of how things stand, and of what led there."""

from __future__ import annotations

import itertools

import pytest
from builders import NOTHING, pool, snapshot, units

from dask_tide.controller.explain import story, summary
from dask_tide.controller.journal import Line
from dask_tide.model import Code, Hold, Launch, Phase, why


def said(world) -> str:
    return "\n".join(summary(Line(0.0, world, NOTHING, ())))


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"boot_s": None}, "boot time not measured yet"),
        ({"boot_s": 2.0}, "boot time 2.0 s"),
        ({"boot_s": 2.0, "cold_boot_s": 61.04}, "boot time 2.0 s, 61.0 s where a machine must come"),
        ({"boot_s": None, "cold_boot_s": 61.04}, "boot time 61.0 s where a machine must come"),
    ],
)
def test_the_boot_times_that_were_learned(measured, words):
    assert said(snapshot(pool(state=measured))).endswith(f"maximum 100; {words}.")


def test_a_platform_that_shows_nothing_of_what_it_was_asked_for():
    """A ReplicaSet's controller that has lost its API server, say: nothing else tells."""
    asked = units(3, Phase.REQUESTED, age_s=38.4)
    slow = "The platform has shown none of those 3 for 38 s."
    assert slow in said(snapshot(units=asked))
    assert "3 requested" in said(snapshot(units=asked))
    assert "has shown none" not in said(snapshot(units=units(3, Phase.REQUESTED, age_s=1.0)))
    assert "has shown none" not in said(snapshot(units=units(3, Phase.PENDING, age_s=38.4)))


def told(*decisions) -> list[list[str]]:
    """What the story says at each of these lines, without the time."""
    lines = [Line(float(at_s), snapshot(), NOTHING, actions) for at_s, actions in enumerate(decisions)]
    counts = [len([*story(lines[:n])]) for n in range(len(lines) + 1)]
    sentences = [sentence.split("  ", 1)[1] for sentence in story(lines)]
    return [sentences[start:end] for start, end in itertools.pairwise(counts)]


def impossible(example, tasks=1) -> Hold:
    return Hold("", why(Code.IMPOSSIBLE, tasks=tasks, example=example, missing="no pool offers it"))


def test_all_that_cannot_be_helped_is_told_and_each_once():
    """The second kind never was, and one that is bound made the first be told with every line."""
    idle = Hold("cpu", why(Code.NO_WORK))
    bound = Hold("", why(Code.BOUND, tasks=2, example="load-3"))
    gpu, fpga = impossible("train-1"), impossible("synth-2")
    first, second, third, fourth, fifth = told(
        (idle, gpu, bound),
        (idle, impossible("train-1", tasks=9), fpga, bound),
        (idle, fpga, bound),
        (idle,),
        (idle, fpga),
    )
    assert [sentence.split(" such as ")[1].split()[0] for sentence in first[1:]] == ["train-1", "load-3"]
    (only,) = second
    assert "synth-2 can never run here" in only
    assert not third
    assert not fourth
    assert fifth == [only], "it is so again"


def test_why_nothing_is_done_is_told_where_that_changed():
    idle, enough = Hold("cpu", why(Code.NO_WORK)), Hold("cpu", why(Code.ENOUGH, have=1))
    launch = Launch("cpu", 1, why(Code.MINIMUM, have=0, want=1))
    said = told((idle,), (idle,), (launch,), (launch,), (enough,), (Hold("cpu", why(Code.ENOUGH, have=2)),))
    assert [len(sentences) for sentences in said] == [1, 0, 1, 1, 1, 0]
