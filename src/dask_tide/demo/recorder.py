"""Watch a cluster from outside: what its scheduler and its provider show, five times a second.

It asks by RPC only, so it watches any Dask cluster; what only this project's know (units that
have not registered yet, decisions and their reasons) is read in :class:`Facts` and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from distributed import Client

from .job import STAGES

INTERVAL_S = 0.2
#: How often a waiting thread looks whether the recording has failed meanwhile.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many tasks are in which state."""

    waiting: int = 0
    ready: int = 0
    running: int = 0
    done: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.ready + self.running + self.done

    def __add__(self, other: Tasks) -> Tasks:
        return Tasks(
            self.waiting + other.waiting,
            self.ready + other.ready,
            self.running + other.running,
            self.done + other.done,
        )


@dataclass(frozen=True, slots=True)
class Worker:
    """One registered worker; ``state`` is busy, idle or leaving. Without a ``machine`` it is not known."""

    name: str
    state: str
    results: int
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of dask-tide's; ``at_s`` is when the recorder first saw it."""

    at_s: float
    action: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """The machines for workers, where those come and go, too: how many boot, and how many are there."""

    booting: int = 0
    ready: int = 0

    @property
    def total(self) -> int:
        return self.booting + self.ready


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at one moment, ``at_s`` seconds after the recording began.

    Of the ``starting`` workers some may be ``waiting`` for a place on a machine. Units without a worker any
    more that are still there are ``ending``. Without a ``fleet`` nobody looks at machines.
    """

    at_s: float
    stages: Mapping[str, Tasks] = field(default_factory=dict)
    workers: tuple[Worker, ...] = ()
    starting: int = 0
    ending: int = 0
    busy_s: float = 0.0
    waiting: int = 0
    fleet: Fleet | None = None

    @property
    def tasks(self) -> Tasks:
        return sum(self.stages.values(), Tasks())

    @property
    def units(self) -> int:
        """Workers there and on their way."""
        return len(self.workers) + self.starting

    @property
    def machines(self) -> list[str]:
        """Those that workers are on."""
        return sorted({worker.machine for worker in self.workers if worker.machine})

    def count(self, state: str) -> int:
        """Workers in this state."""
        return sum(worker.state == state for worker in self.workers)


@dataclass(slots=True)
class Recording:
    """All samples, and what was decided meanwhile.

    Attributes
    ----------
    samples
        In the order of time.
    decisions
        Likewise, each once.
    spent_s
        Worker-seconds: seconds of units, times their price.
    starts
        Units that were started.
    """

    samples: list[Sample] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    spent_s: float = 0.0
    starts: int = 0

    @property
    def peak(self) -> int:
        """The most workers that were registered at one time."""
        return max((len(sample.workers) for sample in self.samples), default=0)

    @property
    def machines(self) -> dict[str, int]:
        """How many workers have worked on each machine, the whole time."""
        found = {
            (worker.name, worker.machine)
            for sample in self.samples
            for worker in sample.workers
            if worker.state == "busy"
        }
        return dict(sorted(Counter(machine for _, machine in found if machine).items()))

    @property
    def most_machines(self) -> int:
        """The most machines that there were at one time, those that booted included."""
        return max((sample.fleet.total for sample in self.samples if sample.fleet), default=0)

    @property
    def machines_s(self) -> float:
        """Seconds of machines, from their launch to their end."""
        return sum(
            before.fleet.total * (after.at_s - before.at_s)
            for before, after in pairwise(self.samples)
            if before.fleet
        )

    @property
    def busy_s(self) -> float:
        """Seconds that tasks took, added up."""
        return max((sample.busy_s for sample in self.samples), default=0.0)


async def observe(dask_scheduler: Any = None) -> dict[str, Any]:
    """Count tasks, list workers, ask dask-tide's controller if there is one; runs in the scheduler.

    A task counts as running if its worker has a thread for it: the scheduler gives workers a
    few more than that, so that they do not wait for the next.
    """
    running: dict[str, int] = {}
    workers = []
    for worker in dask_scheduler.workers.values():
        for task in list(worker.processing)[: worker.nthreads]:
            running[task.group.name] = running.get(task.group.name, 0) + 1
        state = "busy" if worker.processing else "idle"
        if worker.status.name in ("closing_gracefully", "closing"):
            state = "leaving"
        workers.append((str(worker.name), state, len(worker.has_what)))
    stages = {}
    for name, group in dask_scheduler.task_groups.items():
        states = group.states
        started = running.get(name, 0)
        stages[name] = {
            "waiting": states["waiting"],
            "ready": states["queued"] + states["no-worker"] + states["processing"] - started,
            "running": started,
            "done": states["memory"] + states["released"] + states["forgotten"] + states["erred"],
        }
    # Groups are forgotten with their last task, prefixes are not.
    busy_s = sum(prefix.all_durations.get("compute", 0.0) for prefix in dask_scheduler.task_prefixes.values())
    ask = dask_scheduler.handlers.get("tide_status")
    tide = {} if ask is None else await ask()
    return {"stages": stages, "workers": workers, "busy_s": busy_s, "tide": tide}


def stages_after(before: Mapping[str, Tasks], groups: Mapping[str, Mapping[str, int]]) -> dict[str, Tasks]:
    """The job's stages now: a group that the scheduler has forgotten had been done."""
    forgotten = {name: Tasks(done=tasks.total) for name, tasks in before.items()}
    return forgotten | {name: Tasks(**groups[name]) for name in STAGES if name in groups}


class Facts:
    """What dask-tide's controller says of units, decisions and costs.

    Its methods take the reply of the scheduler's handler ``tide_status``. Without a controller
    that is empty, and nothing is known but how many workers the cluster plans to have: then
    worker-seconds and starts are taken from the samples.

    Parameters
    ----------
    cluster
        A TideCluster, or any of Dask's cluster classes.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._known: set[tuple[object, ...]] = set()
        self._names: set[str] = set()
        #: What was spent and started before the recording began.
        self._before: tuple[float, int] | None = None

    def starting(self, status: Mapping[str, Any], registered: Collection[str]) -> int:
        """Count the units that have none of the ``registered`` workers, by name."""
        if "units" in status:
            return self._count(status, registered, ("requested", "pending", "starting"))
        return max(0, len(getattr(self._cluster, "plan", ())) - len(registered))

    def ending(self, status: Mapping[str, Any], registered: Collection[str]) -> int:
        """Count the units whose workers have gone, and which the platform still has."""
        return self._count(status, registered, ("running", "draining", "stopping", "expired", "unknown"))

    def waiting(self, status: Mapping[str, Any], registered: Collection[str]) -> int:
        """Of these, count those that the platform has no place for yet."""
        return self._count(status, registered, ("pending",))

    def _count(self, status: Mapping[str, Any], registered: Collection[str], phases: tuple[str, ...]) -> int:
        # The controller's last tick may not know yet of a worker that is there by now.
        there = {*registered, *(name.rpartition("-")[0] for name in registered)}
        units = status.get("units", ())
        return sum(unit["phase"] in phases and unit["name"] not in there for unit in units)

    def machines(self, status: Mapping[str, Any]) -> dict[str, str]:
        """Of each unit that is on one."""
        return {unit["name"]: unit["machine"] for unit in status.get("units", ())}

    def new_decisions(self, status: Mapping[str, Any], at_s: float) -> list[Decision]:
        """Those not seen before, at this recorder's time: no two clocks need to agree.

        The first time there are none: what was decided before the recording began is no part of it.
        """
        new, first = [], self._before is None
        for each in status.get("decisions", ()):
            key = (each["at_s"], each["action"], each["pool"], each["count"], each["why"])
            if key not in self._known:
                self._known.add(key)
                if first:
                    continue
                sentence = each.get("sentence") or f"{each['action']} {each['count']}: {each['why']}"
                if len(status.get("pools", ())) == 1:
                    # Then it need not be named, and the reason has more room.
                    sentence = sentence.removeprefix(f"Pool {each['pool']}: ")
                new.append(Decision(at_s, each["action"], sentence))
        return new

    def account(self, status: Mapping[str, Any], recording: Recording, sample: Sample) -> None:
        """Keep ``recording.spent_s`` and ``recording.starts`` up to date."""
        self._names.update(worker.name for worker in sample.workers)
        before = recording.samples[-1].at_s if recording.samples else sample.at_s
        if self._before is None:
            self._before = float(status.get("spent", 0.0)), int(status.get("starts", 0))
        spent_s = float(status.get("spent", recording.spent_s + sample.units * (sample.at_s - before)))
        starts = int(status.get("starts", len(self._names)))
        recording.spent_s, recording.starts = spent_s - self._before[0], starts - self._before[1]


class Recorder(AbstractContextManager["Recorder"]):
    """Record in a thread of its own for as long as the context lasts.

    Parameters
    ----------
    client
        A synchronous client of the cluster.
    cluster
        See :class:`Facts`.
    show
        Is called in that thread with the recording, after each sample.
    fleet
        Is asked for the machines at each sample; by default nobody looks at them.
    interval_s
        Seconds between two samples.
    """

    def __init__(
        self,
        client: Client,
        cluster: Any,
        show: Callable[[Recording], None] = lambda _: None,
        fleet: Callable[[], Fleet | None] = lambda: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.recording = Recording()
        self._client = client
        self._facts = Facts(cluster)
        self._show = show
        self._fleet = fleet
        self._interval_s = interval_s
        self._began = time.monotonic()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="demo-recorder")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._running = self._pool.submit(self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()

    def now_s(self) -> float:
        """Seconds since the recording began."""
        return time.monotonic() - self._began

    def wait_until(self, true_of: Callable[[Sample], bool], timeout_s: float) -> bool:
        """Wait for a sample of which ``true_of`` is true.

        Returns
        -------
        bool
            False if there was none within ``timeout_s``.

        Raises
        ------
        Exception
            Whatever ended the recording, if it has ended.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (self.recording.samples and true_of(self.recording.samples[-1])):
                if self._running is not None and self._running.done():
                    self._running.result()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, _LOOK_S))
        return True

    def watch(self, seconds: float) -> None:
        """Go on recording for this long, so that a state can be seen."""
        self.wait_until(lambda _: False, seconds)

    def _record(self) -> None:
        busy_before_s: float | None = None
        while not self._stop.is_set():
            seen = self._client.run_on_scheduler(observe)
            status = seen["tide"]
            if busy_before_s is None:
                busy_before_s = seen["busy_s"]
            at_s = self.now_s()
            samples = self.recording.samples
            machines = self._facts.machines(status)
            workers = [
                # A unit of several workers gives them its name and a number.
                Worker(name, state, results, machines.get(name) or machines.get(name.rpartition("-")[0], ""))
                for name, state, results in seen["workers"]
            ]
            registered = {worker.name for worker in workers}
            sample = Sample(
                at_s=at_s,
                stages=stages_after(samples[-1].stages if samples else {}, seen["stages"]),
                workers=tuple(sorted(workers, key=lambda worker: worker.name)),
                starting=self._facts.starting(status, registered),
                ending=self._facts.ending(status, registered),
                busy_s=seen["busy_s"] - busy_before_s,
                waiting=self._facts.waiting(status, registered),
                fleet=self._fleet(),
            )
            with self._changed:
                self.recording.decisions += self._facts.new_decisions(status, at_s)
                self._facts.account(status, self.recording, sample)
                samples.append(sample)
                self._changed.notify_all()
            self._show(self.recording)
            self._stop.wait(self._interval_s)
