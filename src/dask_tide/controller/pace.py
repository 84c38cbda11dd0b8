"""Pace: how long to wait from one tick to the next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Pace"]

#: Ticks are at least this far apart, however often something wakes the controller, and take at
#: most this share of the event loop's time.
_SPACING_S = 0.02
_SHARE = 0.05
#: Ticks of which the shortest one says what a tick takes: one that was held up says nothing of the next.
_TICKS = 3


class Pace:
    """Keeps ticks from taking the scheduler's time.

    What counts is the processor's time: a machine that stands still, or has others to run, has not spent it
    on a tick, and a controller that waited twenty times as long would be blind just then.
    """

    def __init__(self) -> None:
        self._took_s = deque([0.0], maxlen=_TICKS)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around what of a tick holds up the event loop; not around what waits."""
        began_s = time.thread_time()
        yield
        self.took(time.thread_time() - began_s)

    def took(self, seconds: float) -> None:
        """A tick has taken so long."""
        self._took_s.append(seconds)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next tick, whatever happens."""
        return max(_SPACING_S, min(self._took_s) / _SHARE)

    @staticmethod
    def after_failures_s(count: int) -> float:
        """How long to wait before that after so many failed ticks in a row."""
        return min(30.0, 0.1 * 2.0 ** min(count, 10))
