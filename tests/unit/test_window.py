"""The stabilization window."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_tide.policy.window import Needs, after, longest_need

SERIES = st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(0, 20)), min_size=1, max_size=40)


def remembered(series, horizon_s):
    """The needs after a series of ``(pause_s, needed)``, and the series with its moments."""
    needs: Needs = ()
    now_s, seen = 0.0, []
    for pause_s, needed in series:
        now_s += pause_s
        needs = after(needs, now_s, needed, horizon_s)
        seen.append((now_s, needed))
    return needs, seen


def test_more_counts_at_once():
    assert longest_need(after(((0.0, 2),), 1.0, 5, 10.0), 0.0) == 5


def test_less_counts_once_the_window_has_passed():
    needs = after(((0.0, 5),), 1.0, 2, 10.0)
    assert longest_need(needs, 0.0) == 5
    assert longest_need(needs, 0.5) == 2


def test_a_need_lasts_from_when_it_was_last_seen():
    needs = after(after(((0.0, 5),), 7.0, 5, 10.0), 8.0, 0, 10.0)
    assert longest_need(needs, 7.0) == 5


def test_the_newest_need_counts_however_short_the_window():
    assert longest_need(((3.0, 4),), 9.0) == 4
    assert longest_need((), 0.0) == 0


@settings(max_examples=300, deadline=None)
@given(SERIES, st.floats(0.0, 10.0), st.floats(0.0, 1.0))
def test_it_is_the_largest_need_of_the_window(series, horizon_s, part):
    needs, seen = remembered(series, horizon_s)
    since_s = seen[-1][0] - horizon_s * part
    assert longest_need(needs, since_s) == max(units for when, units in seen if when >= since_s)


@settings(max_examples=300, deadline=None)
@given(SERIES, st.floats(0.0, 10.0))
def test_it_stays_small(series, horizon_s):
    needs, _ = remembered(series, horizon_s)
    assert [units for _, units in needs] == sorted({units for _, units in needs}, reverse=True)
    assert [when for when, _ in needs] == sorted(when for when, _ in needs)


@settings(max_examples=100, deadline=None)
@given(SERIES, st.floats(0.0, 10.0))
def test_remembering_the_same_moment_twice_changes_nothing(series, horizon_s):
    needs, seen = remembered(series, horizon_s)
    now_s, needed = seen[-1]
    assert after(needs, now_s, needed, horizon_s) == needs
