"""Levels: how wide a graph is, counted as its tasks begin and cease to wait."""

from __future__ import annotations

__all__ = ["Levels"]

#: Widths are told apart by their powers of two; there are no more tasks than the last one.
_POWERS = 48


class Levels:
    """How many tasks wait in each level of a graph: those of one level may run at the same time.

    A chain of a hundred thousand tasks has as many levels. So that nobody ever walks them, they are kept
    in as few sets as there are powers of two: those with one task, with two or three, with four to seven, ...
    """

    __slots__ = ("_levels", "_sums", "_tasks")

    def __init__(self) -> None:
        #: Tasks by level.
        self._tasks: dict[int, int] = {}
        #: By power of two of their tasks: how many levels there are, and how many tasks in all.
        self._levels = [0] * _POWERS
        self._sums = [0] * _POWERS

    def add(self, depth: int) -> None:
        """A task of this level waits."""
        self._change(depth, 1)

    def remove(self, depth: int) -> None:
        """It does no more."""
        self._change(depth, -1)

    def shape(self) -> tuple[tuple[int, int], ...]:
        """``(levels, tasks)`` of levels that are about as wide, the narrowest first."""
        return tuple(
            (levels, tasks) for levels, tasks in zip(self._levels[1:], self._sums[1:], strict=True) if levels
        )

    def _change(self, depth: int, by: int) -> None:
        before = self._tasks.get(depth, 0)
        after = before + by
        if after:
            self._tasks[depth] = after
        else:
            del self._tasks[depth]
        old, new = before.bit_length(), after.bit_length()
        if old == new:
            self._sums[new] += by
            return
        # Those of no tasks are counted, too, and not looked at.
        self._levels[old] -= 1
        self._sums[old] -= before
        self._levels[new] += 1
        self._sums[new] += after
