"""Five bursty workloads: what a user submits, and how long that takes.

Tasks sleep, so that a machine of two CPUs does for all workers. No workload knows on what it runs; all
of them suit six workers with one thread each. Times and numbers stood here before anything was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from distributed import Client, Future

__all__ = ["WORKLOADS", "User"]

_Nap: TypeAlias = "Future[int]"
#: For what is asked for at once.
DEADLINE_S = 900.0


def _by_value() -> Callable[..., int]:
    # Inside of a function, so that it is sent by value: the image has no benchmarks.
    def nap(seconds: float, *_: object) -> int:
        import time

        time.sleep(seconds)
        return 1

    return nap


_nap = _by_value()


@dataclass(frozen=True)
class Span:
    """From the moment at which something was asked for to its answer, in seconds since 1970."""

    submitted_s: float
    answered_s: float


class User:
    """Somebody who submits tasks, waits for results and thinks.

    Parameters
    ----------
    client
        Of a scheduler.
    name
        The workload's; its tasks are called so, and nobody else's.
    pace
        1, or less: so much of all numbers and times, but for a task's own.
    """

    def __init__(self, client: Client, name: str, pace: float = 1.0) -> None:
        self.client = client
        self.name = name
        self.pace = pace
        self.spans: list[Span] = []

    def many(self, number: int) -> int:
        """So many, at this pace."""
        return max(2, round(self.pace * number))

    def naps(self, seconds: Sequence[float], *after: Sequence[_Nap], stage: str = "nap") -> list[_Nap]:
        """Submit tasks that sleep, each after one of each of these lists; they are alike by their names."""
        made: list[_Nap] = self.client.map(_nap, seconds, *after, key=f"{self.name}-{stage}", pure=False)
        return made

    def ask(self, work: Callable[[], list[_Nap]]) -> None:
        """Submit something, wait for its results and fetch them; they are forgotten then."""
        submitted_s = time.time()
        futures = work()
        while not all(future.done() for future in futures):
            if time.time() - submitted_s > DEADLINE_S:
                raise TimeoutError(f"{self.name}: no answer after {DEADLINE_S:g} s")
            time.sleep(0.02)
        assert self.client.gather(futures) == [1] * len(futures)
        self.spans.append(Span(submitted_s, time.time()))

    def think(self, seconds: float) -> None:
        """Do nothing for a while."""
        time.sleep(self.pace * seconds)

    def makespan_s(self) -> float:
        """From the first submission to the last result, without the pauses for thought."""
        return sum(span.answered_s - span.submitted_s for span in self.spans)

    def told(self) -> list[dict[str, float]]:
        """The spans, for raw numbers."""
        return [asdict(span) for span in self.spans]


def one_burst(user: User) -> None:
    """180 tasks of 3 s, and nothing more: 90 s for six workers."""
    user.ask(lambda: user.naps([3.0] * user.many(180)))


def bursts(user: User) -> None:
    """Four times 48 tasks of 2.5 s, which are 20 s for six workers, and 15 s between them."""
    for number in range(4):
        if number:
            user.think(15)
        user.ask(lambda: user.naps([2.5] * user.many(48)))


def long_gaps(user: User) -> None:
    """Twice 60 tasks of 3 s, which are 30 s for six workers, and 2 min between: no machine waits so long."""
    user.ask(lambda: user.naps([3.0] * user.many(60)))
    user.think(120)
    user.ask(lambda: user.naps([3.0] * user.many(60)))


def long_tail(user: User) -> None:
    """120 tasks of 2 s, which are 40 s for six workers, then three of 80 s: half of the workers idle."""
    user.ask(lambda: user.naps([2.0] * user.many(120) + [80.0 * user.pace] * 3))


def stages(user: User) -> None:
    """At once 72 tasks of 2 s, joined by 12, one of 40 s; after that 72 again, joined by 12, one answer."""

    def graph() -> list[_Nap]:
        wide = user.many(12)
        read = user.naps([2.0] * (6 * wide), stage="read")
        joined = user.naps([2.0] * wide, *(read[i::6] for i in range(6)), stage="join")
        fitted = user.naps([40.0 * user.pace], *([each] for each in joined), stage="fit")
        written = user.naps([2.0] * (6 * wide), fitted * (6 * wide), stage="apply")
        summed = user.naps([2.0] * wide, *(written[i::6] for i in range(6)), stage="sum")
        return user.naps([1.0], *([each] for each in summed), stage="answer")

    user.ask(graph)


#: By name.
WORKLOADS: dict[str, Callable[[User], Any]] = {
    "one-burst": one_burst,
    "bursts": bursts,
    "long-gaps": long_gaps,
    "long-tail": long_tail,
    "stages": stages,
}
