"""The stabilization window: the largest need of the last while.

As in Kubernetes' HorizontalPodAutoscaler: more is asked for at once, less only when less was
needed all through a window. It keeps a pool from flapping without slowing it on the way up.
"""

from __future__ import annotations

Needs = tuple[tuple[float, int], ...]


def after(needs: Needs, now_s: float, needed: int, horizon_s: float) -> Needs:
    """``needs`` with the need of this moment; what can no longer matter is dropped.

    The result decreases from the oldest entry to the newest, so it has at most as many entries
    as there are different sizes. An entry's time is the last one at which that need was seen.
    """
    kept = [(when, units) for when, units in needs if units > needed and when >= now_s - horizon_s]
    return (*kept, (now_s, needed))


def longest_need(needs: Needs, since_s: float) -> int:
    """The largest need since ``since_s``; the newest one is always counted."""
    recent = [units for when, units in needs if when >= since_s]
    return max(recent, default=needs[-1][1] if needs else 0)
