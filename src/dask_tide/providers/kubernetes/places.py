"""Places: which pods have none, whether a machine is coming for them, and what the platform says.

A pod that no node has room for waits for a node autoscaler, and that is as it should be: a machine takes
minutes to come. That none is coming is known sooner than that: both autoscalers say so, in events about
the pod. The last word of one counts.

======================  =======================================  ========================================
autoscaler              a machine is coming                      none is
======================  =======================================  ========================================
cluster-autoscaler      ``TriggeredScaleUp``                     ``NotTriggerScaleUp``
Karpenter               ``Nominated``                            ``FailedScheduling`` of its own
======================  =======================================  ========================================

Where none has said anything, there may be none at all; where one has promised a machine, that may never
join: both are waited for, for as long as the options say. Not of each pod something is said (by Karpenter of
five a second at the most): one of which nothing is said waits along with those for which a machine is coming.

The clocks of others may differ from this machine's. So a wait is counted from when it is first seen; only
pods that were there before us have waited for as long as the API server says, if that makes sense.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dask_tide.model import Phase
from dask_tide.providers.base import Limit

from .events import EventView
from .options import Options
from .pods import PodView

__all__ = ["Places"]

#: A refusal is said again and again; one that is younger than the pod's wait is not of an earlier try.
#: An autoscaler that has just been asked may say no to the first group of machines and yes to the next.
_SETTLED_S = 2.0
#: Events say when in whole seconds.
_SECOND_S = 1.0
#: Nothing has waited longer; where it seems so, one of two clocks is wrong, by a time zone perhaps.
_PLAUSIBLE_S = 3600.0
#: For how long it is believed that there was no room once no pod waits for it any more.
_BELIEVED_S = 30.0


@dataclass(frozen=True)
class _Word:
    """What an autoscaler has said last of a pod."""

    coming: bool
    words: str
    at_s: float


class Places:
    """The pods of one pool that have no place.

    Parameters
    ----------
    pool
        Its name.
    options
        How long it is waited for.
    now_s
        A clock that runs evenly.
    """

    def __init__(self, pool: str, options: Options, now_s: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._options = options
        self._now_s = now_s
        self._words: dict[str, _Word] = {}
        #: Of each pod without a place, since when: as the API server says, and on our clock.
        self._waits: dict[str, tuple[datetime, float]] = {}
        #: Whether those that were there before us have been seen.
        self._looked = False
        self._full: tuple[Limit, float] | None = None

    def said(self, event: EventView) -> None:
        """Take note of what an autoscaler says of a pod."""
        if event.machine is None:
            return
        word, earlier = (
            _Word(event.machine, event.words, self._now_s() - event.age_s),
            self._words.get(event.name),
        )
        if earlier is not None and earlier.words == word.words:
            return  # Karpenter repeats itself every two minutes: the same promise, as old as it was
        # A list has them in no order.
        if earlier is None or word.at_s >= earlier.at_s - _SECOND_S:
            self._words[event.name] = word

    def forget(self, name: str) -> None:
        """A pod is gone."""
        self._words.pop(name, None)
        self._waits.pop(name, None)

    def words(self, name: str) -> str:
        """What an autoscaler has said last of a pod, and whether it was so; empty: nothing."""
        word = self._words.get(name)
        if word is None:
            return ""
        kept = not word.coming or self._promised(name)
        return word.words + ("" if kept else f"; none has come in {self._options.machine_within_s:g} s")

    def refused(self, pods: Mapping[str, PodView]) -> set[str]:
        """Names of the pods for which there is no machine and none is coming."""
        waited_s = {
            name: self._now_s() - self._since_s(name, pod.unschedulable_since)
            for name, pod in pods.items()
            if pod.unschedulable_since is not None
        }
        self._looked = True
        promised = any(self._promised(name) for name in waited_s)
        return {name for name in waited_s if self._refused(name, waited_s[name], promised)}

    def _since_s(self, name: str, said: datetime) -> float:
        """Since when a pod has had no place, on our clock; ``said``: on the API server's."""
        waits = self._waits.get(name)
        if waits is None or waits[0] != said:
            waited_s = 0.0 if self._looked else (datetime.now(UTC) - said).total_seconds()
            earlier_s = waited_s if 0.0 < waited_s < _PLAUSIBLE_S else 0.0
            waits = self._waits[name] = said, self._now_s() - earlier_s
        return waits[1]

    def _promised(self, name: str) -> bool:
        word = self._words.get(name)
        if word is None or not word.coming:
            return False
        # Nothing was said of a pod before it waited, whatever the event's clock says.
        _, since_s = self._waits.get(name, (None, word.at_s))
        return not self._overdue(self._now_s() - max(word.at_s, since_s))

    def _overdue(self, waited_s: float) -> bool:
        return waited_s >= self._options.machine_within_s

    def _refused(self, name: str, waited_s: float, promised: bool) -> bool:
        word = self._words.get(name)
        if word is None:
            return self._overdue(waited_s) if promised else waited_s >= self._options.unschedulable_after_s
        return not self._promised(name) if word.coming else waited_s >= _SETTLED_S

    def limit(
        self, pods: Mapping[str, PodView], refused: set[str], message: Callable[[PodView], str]
    ) -> Limit | None:
        """How many pods there is room for, if that is known just now.

        It is believed for a while after the pods that found no place were withdrawn: another attempt so
        soon would end alike.
        """
        if refused:
            placed = sum(
                pod.unit.phase is not Phase.FAILED for name, pod in pods.items() if name not in refused
            )
            limit = Limit(self._pool, placed, message(pods[min(refused)]))
            self._full = limit, self._now_s() + _BELIEVED_S
            return limit
        if self._full is not None and self._now_s() >= self._full[1]:
            self._full = None
        if self._full is None:
            return None
        believed, _ = self._full
        waiting = any(pod.unschedulable_since is not None for pod in pods.values())
        placed = sum(pod.unit.phase is not Phase.FAILED for pod in pods.values())
        if waiting or placed > believed.maximum:
            # Somebody tries again, or more have found a place than were thought to.
            self._full = None
            return None
        return believed
