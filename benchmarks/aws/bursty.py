"""Five bursty workloads: what machines cost and how long it takes, three ways at once on one cloud.

The arms are those of :mod:`benchmarks.aws.arms`, the workloads those of :mod:`benchmarks.aws.workloads`.
For each boot time all arms are installed anew; then one workload runs after the other, each on all arms at
the same time and from nothing: no worker, and no machine for workers. What schedulers learn from one they
know in the next.

Machine-seconds
    From an instance's launch to its termination, summed over all that were launched for that arm, until
    the last one has gone; taken from the simulated AWS's bill. Dollars are spot prices of that.
Makespan
    From the first submission to the last result, without the pauses that the workload makes.
Worker-seconds
    From registration with the scheduler to its end.
Evicted busy workers
    Those whose pods Kubernetes marks with `DisruptionTarget` (an eviction or a preemption; Karpenter's
    drains are evictions) while a task of theirs runs. It need not be lost: our workers drain at SIGTERM.
Latency
    From the submission to the first pod (what our layers add; seen by looking every 0.2 s, so up to 0.3 s
    too late), and from there to the `CreateFleet` call that made the first machine (Karpenter's batching:
    1 s without a new pod of anybody, at most 10 s; the arms' pods prolong each other's).
First task
    From a submission that nobody is at work for to the first moment of its first task; of all of them, the
    median and the 95th percentile.
Nothing left
    From the last result to no pod, no machine of the workers and no volume of one. The bound is how long the
    policy keeps an idle worker at that moment, and the platform's delay as measured: from the moment at which
    the last pod is told to go to the end of the last machine.

One machine of two CPUs runs all of this, thirty processes of Dask at once; it is slower than AWS and the
same for all arms. Boot times vary by 20 % either way, and machines do not take turns: single figures have
that much noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.kubernetes.figures import Figures, note
from rig import image_build
from rig.cloud import Cloud, Sky

from . import race, reckoning
from .arms import OURS, PEERS, arms
from .settings import Settings
from .workloads import WORKLOADS

MACHINES_RATIO, MAKESPAN_RATIO, ADDED_S = 0.6, 1.0, 2.0
#: What each workload took on each arm.
_Taken = dict[str, dict[str, dict[str, Any]]]


@contextmanager
def started() -> Iterator[Cloud]:
    """One with real machines; while you work on this, ``DASK_TIDE_CLOUD`` names one that runs."""
    if name := os.environ.get("DASK_TIDE_CLOUD"):
        yield Cloud.attach(name)
        return
    with Cloud.start(sky=Sky(), tars=[image_build.build()]) as cloud:
        yield cloud


def run(settings: Settings) -> Iterator[Figures]:
    """For each boot time, each workload; the figures grow with each."""
    found = Figures()
    with started() as cloud:
        for boot_s in settings.boots:
            cloud.boots(boot_s)
            taken: _Taken = {}
            found.raw[f"boot {boot_s:g} s"] = taken
            with arms(cloud) as made:
                for name in settings.workloads:
                    what = (WORKLOADS[name].__doc__ or "").splitlines()[0]
                    pace = "" if settings.pace == 1 else f" (but at pace {settings.pace:g})"
                    note(f"boot {boot_s:g} s, {name}: {what}{pace}")
                    taken[name] = race.run(cloud, made, name, WORKLOADS[name], settings.pace)
                    yield found
                _tell(found, f"{boot_s:g} s", taken)
                yield found


def _tell(found: Figures, boot: str, taken: _Taken) -> None:
    for name, by_arm in taken.items():
        _compare(found, f"boot {boot}, {name}", [by_arm])
    _compare(found, f"boot {boot}, all", list(taken.values()), MACHINES_RATIO, MAKESPAN_RATIO)
    ours = {name: by_arm[OURS] for name, by_arm in taken.items()}
    evicted = {
        arm: _sum([_count(by_arm[arm], "evicted_busy") for by_arm in taken.values()])
        for arm in (OURS, *PEERS)
    }
    found.alone(f"boot {boot}, evicted busy workers", evicted[OURS], 0, unit="")
    for peer in PEERS:
        found.against(f"boot {boot}, evicted busy workers; {peer}", evicted[OURS], evicted[peer], None, "")
    found.alone(f"boot {boot}, submission to first pod, worst", _worst(ours, "to_pod_s"), ADDED_S)
    found.alone(f"boot {boot}, pod to CreateFleet, worst", _worst(ours, "pod_to_request_s"))
    waits = {
        arm: [wait_s for by_arm in taken.values() for wait_s in by_arm[arm].get("first_task_s", ())]
        for arm in (OURS, *PEERS)
    }
    for peer in PEERS:
        for what, of in reckoning.WAITS.items():
            ours_s, peers_s = (of(waits[arm]) if waits[arm] else None for arm in (OURS, peer))
            found.against(f"boot {boot}, submission to first task, {what}; {peer}", ours_s, peers_s, None)
    for name, one in ours.items():
        found.alone(f"boot {boot}, {name}: nothing left after", one.get("left_after_s"), _bound_s(one))


def _bound_s(one: dict[str, Any]) -> float | None:
    """How soon nothing should be left."""
    keep_s, left_s, told_s = (one.get(key) for key in ("keep_s", "left_after_s", "last_told_after_s"))
    return None if keep_s is None or left_s is None or told_s is None else keep_s + left_s - told_s


def _compare(
    found: Figures,
    what: str,
    races: list[dict[str, dict[str, Any]]],
    machines_goal: float | None = None,
    makespan_goal: float | None = None,
) -> None:
    def total(arm: str, key: str) -> float | None:
        return _sum([by_arm[arm].get(key) for by_arm in races])

    units = {"machine_s": "s", "makespan_s": "s", "worker_s": "s", "dollars": "$", "launched": ""}
    goals = {"machine_s": machines_goal, "makespan_s": makespan_goal}
    names = {"machine_s": "machine-seconds", "makespan_s": "makespan", "worker_s": "worker-seconds"}
    for key, unit in units.items():
        if key in goals or machines_goal is not None:
            for peer in PEERS:
                label = f"{what}: {names.get(key, key)}; {peer}"
                found.against(label, total(OURS, key), total(peer, key), goals.get(key), unit)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _count(one: dict[str, Any], key: str) -> float | None:
    return len(one[key]) if key in one else None


def _worst(ours: dict[str, dict[str, Any]], key: str) -> float | None:
    known = [one[key] for one in ours.values() if one.get(key) is not None]
    return max(known) if known and len(known) == len(ours) else None
