"""What a workload cost on one arm, from what was written down of it: the bill, the diary, the pods."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rig.aws.instances import Instance

from .watch import Seen

__all__ = [
    "WAITS",
    "evicted_busy",
    "first_task_s",
    "machines",
    "requested_s",
    "run_twice",
    "worker_s",
]

#: A task that an eviction ended may have ended before the eviction was seen.
LATE_S = 1.0
#: A worker measures how far its clock is from its scheduler's, and is wrong by less than this.
CLOCKS_S = 0.1


def machines(bill: Iterable[Instance]) -> dict[str, Any]:
    """Machine-seconds and dollars that were paid for, and for what."""
    paid = sorted(bill, key=lambda each: each.launched_s)
    return {
        "machine_s": sum(each.paid_s for each in paid),
        "dollars": sum(each.cost for each in paid),
        "launched": len(paid),
        "machines": [asdict(each) for each in paid],
    }


def worker_s(stays: Iterable[Mapping[str, Any]], from_s: float, to_s: float) -> float:
    """Seconds of registered workers between two moments."""
    spans = ((max(stay["from_s"], from_s), min(stay["to_s"] or to_s, to_s)) for stay in stays)
    return float(sum(max(0.0, end_s - began_s) for began_s, end_s in spans))


def evicted_busy(pods: Iterable[Seen], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Workers that were evicted, or preempted, while they had a task."""

    def had_task(worker: str, at_s: float) -> bool:
        return any(
            run["worker"] == worker
            and run["from_s"] <= at_s <= run["to_s"] + (0.0 if run["end"] == "memory" else LATE_S)
            for run in runs
        )

    return [pod.worker for pod in pods if pod.evicted_s is not None and had_task(pod.worker, pod.evicted_s)]


def first_task_s(spans: Iterable[Mapping[str, float]], runs: Iterable[Mapping[str, Any]]) -> list[float]:
    """How long each submission has waited for its first task to begin."""
    begun = sorted(run["from_s"] for run in runs if run["end"] == "memory")
    waits = []
    for span in spans:
        first_s = next(at_s for at_s in begun if at_s >= span["submitted_s"] - CLOCKS_S)
        waits.append(max(0.0, first_s - span["submitted_s"]))
    return waits


def percentile_95(values: Sequence[float]) -> float:
    """The value that 95 % of them do not exceed: of fewer than twenty the highest."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


#: What is told of waits, by name.
WAITS: dict[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "95th percentile": percentile_95,
}


def run_twice(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Tasks that were given to a worker more than once, and those that were finished more than once."""
    runs = list(runs)
    begun = Counter(run["key"] for run in runs)
    done = Counter(run["key"] for run in runs if run["end"] == "memory")
    return {
        "begun_again": sorted(key for key, times in begun.items() if times > 1),
        "recomputed": sorted(key for key, times in done.items() if times > 1),
    }


def requested_s(calls: Iterable[Mapping[str, Any]], bill: Iterable[Instance]) -> float | None:
    """When AWS was asked for the first of these instances; None: there are none.

    Calls do not say whose they are: it is that call of `CreateFleet` during which the instance was made.
    """
    launched_s = min((each.launched_s for each in bill), default=None)
    if launched_s is None:
        return None
    during = [
        call["at_s"]
        for call in calls
        if call["operation"] == "CreateFleet"
        and call["at_s"] - 0.1 <= launched_s <= call["at_s"] + call["took_s"] + 0.1
    ]
    return max(during, default=launched_s)
