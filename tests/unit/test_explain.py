"""What `dask tide explain` says of how things stand."""

from __future__ import annotations

import pytest
from builders import NOTHING, pool, snapshot, units

from dask_tide.controller.explain import summary
from dask_tide.controller.journal import Line
from dask_tide.model import Phase


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
