"""How long the controller waits from tick to tick."""

from __future__ import annotations

import time

import pytest

from dask_tide.controller.pace import Pace


def test_ticks_take_a_twentieth_of_the_time():
    pace = Pace()
    for _ in range(3):
        pace.took(0.1)
    assert pace.pause_s == pytest.approx(2.0)


def test_short_ticks_keep_a_distance():
    pace = Pace()
    pace.took(1e-6)
    assert pace.pause_s == 0.02


@pytest.mark.parametrize("at", range(3))
def test_one_tick_that_was_held_up_makes_the_next_one_no_later(at):
    """A garbage collection in the middle of one took 0.5 s; the controller was blind for 10 s."""
    pace = Pace()
    for n in range(3):
        pace.took(0.5 if n == at else 0.001)
        assert pace.pause_s == 0.02


def test_a_machine_that_stands_still_is_no_work():
    pace = Pace()
    for _ in range(3):
        with pace.measured():
            time.sleep(0.2)
    assert pace.pause_s < 0.2 / 0.05


def test_after_any_number_of_failed_ticks_another_one_follows():
    assert [Pace.after_failures_s(n) for n in (1, 2, 3, 1024, 10**6)] == [0.2, 0.4, 0.8, 30.0, 30.0]
