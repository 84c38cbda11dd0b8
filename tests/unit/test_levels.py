"""How wide a graph is, counted step by step, equals what a full count gives."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from dask_tide.controller.levels import Levels


def shape_of(waiting):
    """``(levels, tasks)`` by the power of two of a level's tasks, from each level's number of tasks."""
    alike = defaultdict(list)
    for tasks in waiting.values():
        alike[tasks.bit_length()].append(tasks)
    return tuple((len(alike[power]), sum(alike[power])) for power in sorted(alike))


def test_a_tree_and_a_chain():
    levels = Levels()
    for depth, tasks in enumerate([32, 16, 8, 4, 2, 1], start=1):
        for _ in range(tasks):
            levels.add(depth)
    assert levels.shape() == ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32))
    chain = Levels()
    for depth in range(1000):
        chain.add(depth)
    assert chain.shape() == ((1000, 1000),)


@given(st.lists(st.integers(1, 4), max_size=200), st.randoms(use_true_random=False))
def test_as_a_full_count(depths, chance):
    """Tasks begin to wait and cease to in any order."""
    levels = Levels()
    waiting: Counter[int] = Counter()
    for depth in depths:
        levels.add(depth)
        waiting[depth] += 1
        if chance.random() < 0.4:
            ready = chance.choice(sorted(waiting.elements()))
            levels.remove(ready)
            waiting[ready] -= 1
        assert levels.shape() == shape_of(+waiting)
    for depth in waiting.elements():
        levels.remove(depth)
    assert levels.shape() == ()
