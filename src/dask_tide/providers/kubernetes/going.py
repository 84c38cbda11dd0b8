"""Going: the pods of a pool that are to go, and which others a ReplicaSet would pick before them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from dask_tide.errors import Unavailable
from dask_tide.model import Phase

from .patience import Patience
from .pods import PodView, Rank
from .pool_pods import PoolPods

__all__ = ["Going", "some"]

#: So many times the usual start of a pod others are waited for rather than given up with one that has failed.
_STARTS = 6
#: So many names are said at once.
_SHOWN = 5


class Going:
    """The pods that are to go.

    Parameters
    ----------
    pods
        The pool's.
    patience
        How long to wait for what.
    clock
        Seconds that increase steadily.

    Attributes
    ----------
    leaving
        Their names, and whether their workers had been at work when that was said, and have been drained. One
        that was not, and is ready later, has started meanwhile.
    due
        Those for which the number was lowered just now.
    used
        Pods, going or not, whose workers have tasks or results.
    """

    def __init__(self, pods: PoolPods, *, patience: Patience, clock: Callable[[], float]) -> None:
        self._pods = pods
        self._patience = patience
        self._clock = clock
        self.leaving: dict[str, bool] = {}
        #: When that was said.
        self._since_s: dict[str, float] = {}
        self.due: set[str] = set()
        self.used: frozenset[str] = frozenset()
        #: Pods that have had a worker, whether or not they were ever seen as ready.
        self._worked: frozenset[str] = frozenset()

    def told(self, protected: Mapping[str, bool]) -> None:
        """Take which pods have a worker, and whether those have tasks or results."""
        self.used = frozenset(name for name, used in protected.items() if used)
        self._worked = (self._worked | protected.keys()) & self._pods.now().keys()

    def say(self, victims: Collection[str]) -> None:
        """These are to go, too."""
        pods = self._pods.now()
        self.leaving = {
            name: self.leaving.get(name, self._was_at_work(pods[name]))
            for name in (self.leaving.keys() | victims) & pods.keys()
        }
        self._since_s = {name: self._since_s.get(name, self._clock()) for name in self.leaving}

    def stay(self, kept: Iterable[str]) -> None:
        """These stay after all."""
        for name in kept:
            self.leaving.pop(name, None)

    def waiting(self, names: Collection[str]) -> list[str]:
        """Those that do not run yet: one is as good as another."""
        return sorted(filter(self._waits, self._pods.active() & set(names)))

    def _waits(self, name: str) -> bool:
        """Whether it does not run yet: pods are pending, too, while something beside their worker is."""
        at_work = name in self.used or self.leaving.get(name)
        return self._pods[name].rank < Rank.UNREADY and not at_work

    def _starts(self, name: str) -> bool:
        """Whether it does not run yet, and may."""
        return self._waits(name) and self._pods[name].unit.phase is not Phase.FAILED

    def _was_at_work(self, pod: PodView) -> bool:
        """Whether the worker of one that is to go has been drained: it may not have been seen as ready."""
        return pod.ready or (pod.unit.name in self._worked and pod.unit.phase is not Phase.FAILED)

    def _parked(self) -> set[str]:
        """Those that are to go and are not at work: it does not matter which of them goes first."""
        return {name for name in self.leaving if not self._pods.ready(name) and name not in self.used}

    def _drained(self, names: Iterable[str]) -> bool:
        return any(self.leaving.get(name) for name in names)

    def before(self, victims: Collection[str]) -> set[str]:
        """Other pods that the ReplicaSet may pick rather than the last of these."""
        pods = self._pods.now()
        if not victims:
            return set()
        last = max(pods[name].order for name in victims)
        others = self._pods.active() - self.due - set(victims) - self._parked()
        before = {name for name in others if pods[name].order <= last}
        if all(map(self._starts, victims)):
            # As good as those that would go as soon.
            before -= {name for name in before if pods[name].order == last and self._waits(name)}
        return before

    def given_up(self, going: set[str]) -> set[str]:
        """Pods that do not run, and would be picked first.

        Raises
        ------
        Unavailable
            A pod that may be at work would be, or one that starts rather than one that has failed to.
        """
        first = self.before(going)
        ready = any(map(self._pods.ready, going))
        pending = set(self.waiting(first))
        at_work = first - pending if ready else first & self.used
        if at_work:
            still = "still ready" if ready else "parked" if self._drained(going) else "not marked"
            raise Unavailable(f"pods {some(going)} are {still}, and {some(at_work)} would go first")
        starting = {name for name in pending if self._starts(name) and self._pods[name].rank > Rank.NOWHERE}
        ended = not self._drained(going) and not any(map(self._starts, going))
        waited_s = self._clock() - min(map(self._said_s, going), default=0.0)
        if starting and ended and waited_s < _STARTS * self._patience.start_s:
            # None of these was drained: no machine becomes free of which the others could make use. But they
            # may never start.
            raise Unavailable(f"pods {some(starting)} start, and would go rather than {some(going)}")
        return pending

    def _said_s(self, name: str) -> float:
        return self._since_s.get(name, self._clock())

    def free(self) -> int:
        """How many pods would go before any that may be at work."""
        pods, active = self._pods.now(), self._pods.active()
        others = active - self.due - self._parked()
        first = min((pods[name].order for name in others - set(self.waiting(others))), default=None)
        return sum(1 for name in active if first is None or pods[name].order < first)

    def has_started(self, name: str) -> bool:
        """Whether one that is to go has got to work meanwhile: nobody has drained what runs there now.

        It had not started when it was to go, or its container was started again.
        """
        pod = self._pods.now().get(name)
        if pod is None:
            return False
        # A worker that is parked has left the scheduler.
        at_work = name in self.used and pod.unit.phase is not Phase.FAILED
        return at_work or (not self.leaving.get(name) and self._pods.ready(name))


def some(names: Collection[str]) -> str:
    """Their names, or the first ones and how many more."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
