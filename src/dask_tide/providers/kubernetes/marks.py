"""Marks: the annotations by which pods say whether they may go.

=============  ==================================  =============  ==================
pod            deletion cost                       safe-to-evict  do-not-disrupt
=============  ==================================  =============  ==================
protected      100                                 false          true
idle           0                                   true           none
victim         -100                                true           none
=============  ==================================  =============  ==================

The last two of a protected pod are those of its pool's template, which may protect it from one of
the node autoscalers only, or from none. On spot machines Karpenter heeds its own annotation until
the power is cut: a pod there must not have it, unless nodes are watched. On a node that is about to go
(its taints say so, or a pod on it was told) no pod is protected.

A ReplicaSet that has to choose between pods takes the one with the lowest deletion cost, and node
autoscalers leave nodes with pods alone that are not safe to evict. Pods are born protected. One
that has been idle for a while says so (a worker that rests between two tasks does not), one that
gets work or results is protected at once; all of it at a bounded rate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dask_tide.errors import LaunchRejected, ProviderError, Unauthorized

from .api import Api
from .patience import Patience
from .pods import DELETION_COST, DO_NOT_DISRUPT, SAFE_TO_EVICT, PodView

__all__ = ["IDLE", "PROTECTED", "VICTIM", "Annotations", "Marks"]

logger = logging.getLogger("distributed.tide.kubernetes")

Annotations = Mapping[str, str | None]

PROTECTED: Annotations = {DELETION_COST: "100", SAFE_TO_EVICT: "false", DO_NOT_DISRUPT: "true"}
IDLE: Annotations = {DELETION_COST: "0", SAFE_TO_EVICT: "true", DO_NOT_DISRUPT: None}
VICTIM: Annotations = {DELETION_COST: "-100", SAFE_TO_EVICT: "true", DO_NOT_DISRUPT: None}

#: Patches a second; and at once, of victims.
_RATE, _AT_ONCE = 10.0, 16
#: Pause when there is nothing to do, or after an error.
_PAUSE_S = 0.25
#: If so many pods in a row get no answer it is not for the pods: the server is away.
_SEVERAL = 3


@dataclass(frozen=True)
class _Refusal:
    """A pod that could not be patched: it is not tried for ``pause_s``, until ``until_s``.

    ``answered``: that is what the server said; otherwise it failed, or a webhook that it asked.
    """

    pause_s: float
    until_s: float
    answered: bool


class Marks:
    """Brings pods' annotations to what they should be, a few a second.

    Parameters
    ----------
    api
        The API server.
    pods
        The pods as they are now, by name.
    protected
        What the pods of a pool have that are to be protected.
    patience
        How long a pod must be idle.
    clock
        Seconds that increase steadily.
    """

    def __init__(
        self,
        api: Api,
        pods: Callable[[], Mapping[str, PodView]],
        protected: Callable[[str], Annotations],
        *,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._pods = pods
        self._protected = protected
        self._patience = patience
        self._clock = clock
        self._idle_since: dict[str, float] = {}
        self._wishes: dict[str, bool] = {}
        self._victims: set[str] = set()
        #: Those that are being marked just now: once is enough.
        self._marking: set[str] = set()
        #: Names of nodes that are about to go.
        self.doomed: frozenset[str] = frozenset()
        #: Names of pods that know it from elsewhere.
        self._noticed: frozenset[str] = frozenset()
        #: After a refusal: until when nothing is tried, and not each pod that was refused.
        self._refused_until_s = self._pause_s = 0.0
        self._refused: dict[str, _Refusal] = {}
        #: Those that were tried since the server has last answered.
        self._unanswered: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; in a running event loop."""
        self._task = asyncio.create_task(self._run(), name="dask-tide-marks")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wish(self, protected: Mapping[str, bool], noticed: Iterable[str] = ()) -> None:
        """Say which units have work or hold results, and which are idle; the others stay as they are.

        And which were told that their node is about to go, whatever its taints say.
        """
        now_s = self._clock()
        self._wishes, self._noticed = dict(protected), frozenset(noticed)
        idle_since = self._idle_since
        self._idle_since = {
            name: idle_since.get(name, now_s) for name, protect in protected.items() if not protect
        }

    async def victims(self, names: Iterable[str]) -> set[str]:
        """Mark these now; returns those that could be."""
        names = set(names)
        self._victims |= names
        if self._clock() < self._refused_until_s:
            return set()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def mark(name: str) -> str:
            async with gate:
                return name if await self._patch(name, VICTIM) else ""

        self._marking |= names
        try:
            return set(await asyncio.gather(*map(mark, sorted(names)))) - {""}
        finally:
            self._marking -= names

    def spare(self, names: Iterable[str]) -> None:
        """Those were to go and stay."""
        self._victims -= set(names)

    def pending(self) -> list[tuple[str, Annotations]]:
        """The pods whose annotations are not as they should be.

        First those on nodes that are about to go, then those that must be protected; of each those last that
        could not be patched before.
        """
        now_s = self._clock()
        found: list[tuple[int, bool, str, Annotations]] = []
        pods = self._pods()
        self._victims &= pods.keys()
        self._refused = {name: refusal for name, refusal in self._refused.items() if name in pods}
        self._unanswered &= pods.keys()
        for name, pod in pods.items():
            resting = name in self._refused and now_s < self._refused[name].until_s
            if not pod.active or resting or name in self._marking:
                continue
            wanted = self._wanted(name, pod, now_s)
            if wanted is not None and any(pod.annotations.get(key) != value for key, value in wanted.items()):
                urgency = 0 if self._is_doomed(name, pod) else 2 if wanted is IDLE else 1
                found.append((urgency, name in self._refused, name, wanted))
        return [(name, wanted) for *_, name, wanted in sorted(found, key=lambda entry: entry[:3])]

    def _wanted(self, name: str, pod: PodView, now_s: float) -> Annotations | None:
        if name in self._victims:
            return VICTIM
        protect = self._wishes.get(name)
        if self._is_doomed(name, pod):
            # Protected, it would run until the power is cut: it must leave while there is time.
            return {**IDLE, DELETION_COST: PROTECTED[DELETION_COST] if protect else IDLE[DELETION_COST]}
        if protect is None:
            return None
        if protect:
            return self._protected(pod.unit.pool)
        if now_s - self._idle_since[name] < self._patience.idle_s:
            return None
        return IDLE

    def _is_doomed(self, name: str, pod: PodView) -> bool:
        return pod.unit.machine in self.doomed or name in self._noticed

    async def _run(self) -> None:
        while True:
            pending = self.pending() if self._clock() >= self._refused_until_s else []
            for name, wanted in pending[: int(_RATE)]:
                done = await self._patch(name, wanted)
                # Of one that gets no answer the reason may be its own.
                if not done and (self._is_away() or name not in self._unanswered):
                    pending = []
                    break
                await asyncio.sleep(1 / _RATE)
            if not pending:
                await asyncio.sleep(_PAUSE_S)

    async def _patch(self, name: str, wanted: Annotations) -> bool:
        """Whether it was done."""
        try:
            await self._api.annotate(name, dict(wanted))
        except (Unauthorized, LaunchRejected) as error:  # by the Role, by an admission policy or webhook
            if not any(refusal.answered for refusal in self._refused.values()):
                logger.warning("Pods cannot be marked; readiness alone selects victims. %s", error)
            self._unanswered.clear()
            # What refuses one pod may allow the next one.
            self._rest(name, self._patience.marks_refused_s, answered=True)
            if isinstance(error, Unauthorized):
                self._pause_s = self._longer(self._pause_s)
                self._refused_until_s = self._clock() + self._pause_s
            return False
        except ProviderError as error:
            logger.info("%s", error)
            self._unanswered.add(name)
            patience = self._patience
            # Not longer: of one or two pods nobody knows whether it is they or the server.
            self._rest(name, patience.failed_max_s if self._is_away() else patience.refused_max_s)
            return False
        self._refused.pop(name, None)
        self._unanswered.clear()
        self._pause_s = 0.0
        return True

    def _is_away(self) -> bool:
        return len(self._unanswered) >= _SEVERAL

    def _rest(self, name: str, at_most_s: float, *, answered: bool = False) -> None:
        """Do not try this one for a while, which is longer each time."""
        pause_s = self._longer(self._refused[name].pause_s if name in self._refused else 0.0)
        pause_s = min(pause_s, at_most_s)
        self._refused[name] = _Refusal(pause_s, self._clock() + pause_s, answered)

    def _longer(self, pause_s: float) -> float:
        # Short at first: a server that has just started refuses everything for a moment, and on a node that
        # is about to go there are two minutes in all.
        return min(2 * pause_s or self._patience.refused_s, self._patience.marks_refused_s)
