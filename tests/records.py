"""What a cluster did, taken down without missing anything between two looks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_tide import TideCluster
from dask_tide.controller.journal import Line
from dask_tide.model import EXISTING, LIVE, Action, Phase


class WorkersSeen(SchedulerPlugin):
    """Every worker that ever registered, and how many there were after each change."""

    name = "workers-seen"

    def __init__(self, cluster: TideCluster) -> None:
        self.counts = [0]
        self.names: list[str] = []
        self.left: list[str] = []
        self._names: dict[str, str] = {}

        async def register() -> None:
            assert cluster.scheduler is not None
            cluster.scheduler.add_plugin(self, name=self.name)

        cluster.sync(register)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._names[worker] = str(scheduler.workers[worker].name)
        self.names.append(self._names[worker])
        self.counts.append(len(scheduler.workers))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.left.append(self._names.get(worker, worker))
        self.counts.append(len(scheduler.workers))


def workers(cluster: TideCluster) -> list[str]:
    """Addresses of the workers that are there now."""
    assert cluster.scheduler is not None
    return sorted(cluster.scheduler.workers)


def busy(cluster: TideCluster) -> list[str]:
    """Names of the workers that run tasks now."""
    assert cluster.scheduler is not None
    return sorted(str(ws.name) for ws in cluster.scheduler.workers.values() if ws.processing)


def units(cluster: TideCluster, pool: str | None = None) -> int:
    """How many units exist now, for the platform: also those that start or are being drained."""
    return sum(unit.phase in EXISTING for unit in cluster.workers.values() if pool in (None, unit.pool))


def running(cluster: TideCluster, pool: str | None = None) -> int:
    """How many units have workers now and are not leaving."""
    return sum(unit.phase is Phase.RUNNING for unit in cluster.workers.values() if pool in (None, unit.pool))


def lines(cluster: TideCluster) -> list[Line]:
    """All ticks that changed something, oldest first."""
    return list(cluster.controller.journal.recent)


def actions(cluster: TideCluster, kind: type[Action]) -> list[Any]:
    """Everything of that kind that was decided, oldest first."""
    return [action for line in lines(cluster) for action in line.actions if isinstance(action, kind)]


def reasons(cluster: TideCluster) -> set[str]:
    """Codes of the reasons of all that was decided until now, and of all that was decided not to do."""
    told = lines(cluster)
    if cluster.controller.latest is not None:
        told.append(cluster.controller.latest)
    return {action.why.code for line in told for action in line.actions}


def peak(cluster: TideCluster, pool: str | None = None) -> int:
    """The most units that existed at any moment."""
    return max(
        sum(unit.phase in EXISTING for unit in line.snapshot.units if pool in (None, unit.pool))
        for line in lines(cluster)
    )


def turns(cluster: TideCluster) -> int:
    """How often the number of live units changed its direction; up and down again is one turn."""
    counts = [sum(unit.phase in LIVE for unit in line.snapshot.units) for line in lines(cluster)]
    ups = [after > before for before, after in pairwise(counts) if after != before]
    return sum(one != other for one, other in pairwise(ups))


class Tasks:
    """Functions for tasks that write down each start, and may wait for a gate to open.

    Parameters
    ----------
    folder
        Where to write.
    """

    def __init__(self, folder: Path) -> None:
        self._record = folder / "starts"
        self._record.touch()
        self._gate = folder / "gate"
        self._gates: set[str] = set()

    def function(self, seconds: float = 0.0, *, gated: bool = False, gate: str = "gate") -> Any:
        """A function of any number of arguments that returns the first one.

        Parameters
        ----------
        seconds
            How long it sleeps.
        gated
            Whether it then waits until ``open`` is called with this ``gate``.
        gate
            A name.
        """
        record, wait_for = str(self._record), str(self._gate.with_name(gate)) if gated else ""
        self._gates.add(gate)

        # A closure: pickled by value, with the paths.
        def work(x: Any, *others: Any) -> Any:
            import os
            import time

            from distributed import get_worker

            line = f"{x} {get_worker().name}\n".encode()
            descriptor = os.open(record, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, line)
            os.close(descriptor)
            time.sleep(seconds)
            while wait_for and not os.path.exists(wait_for):  # noqa: PTH110
                time.sleep(0.02)
            return x

        return work

    def open(self, gate: str = "gate") -> None:
        """Let the gated tasks go on."""
        self._gate.with_name(gate).touch()

    def open_all(self) -> None:
        """Let all of them go on."""
        for gate in self._gates:
            self.open(gate)

    @property
    def log(self) -> list[tuple[str, str]]:
        """Each start in its order: the task's first argument and the worker's name."""
        return [(task, worker) for task, worker in map(str.split, self._record.read_text().splitlines())]

    @property
    def starts(self) -> Counter[str]:
        """How often each task was started, by its first argument."""
        return Counter(task for task, _ in self.log)

    @property
    def ran_on(self) -> Counter[str]:
        """How many tasks were started on each worker, by its name."""
        return Counter(worker for _, worker in self.log)
