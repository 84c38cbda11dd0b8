"""The job on real nodes, and what is seen of it in the scheduler."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from rig.folders import wait_for

from .figures import note

TASK_S = 1.0
DEADLINE_S = 240.0


def keep_diary(client: Client) -> None:
    """Have the scheduler note when workers come and go, and who runs which task when."""

    # Inside of a function, so that it is sent by value: the image has no benchmarks.
    class Diary(SchedulerPlugin):
        name = "diary"

        def __init__(self) -> None:
            self.stays: list[dict[str, Any]] = []
            self.runs: list[dict[str, Any]] = []
            self._staying: dict[str, dict[str, Any]] = {}
            self._begun: dict[str, tuple[str, float]] = {}

        async def start(self, scheduler: Any) -> None:
            self._scheduler = scheduler
            for worker in scheduler.workers:
                self.add_worker(scheduler, worker)

        def add_worker(self, scheduler: Any, worker: str) -> None:
            name = str(scheduler.workers[worker].name)
            self._staying[worker] = {"worker": name, "from_s": time.time(), "to_s": None}
            self.stays.append(self._staying[worker])

        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            self._staying.pop(worker, {})["to_s"] = time.time()

        def transition(self, key: Any, start: Any, finish: Any, *_: Any, **about: Any) -> None:
            if start == "processing":
                name, from_s = self._begun.pop(str(key), ("", time.time()))
                # It may have been given to another one meanwhile.
                name = self._staying.get(about.get("worker") or "", {"worker": name})["worker"]
                for each in about.get("startstops") or ():
                    if each["action"] == "compute":  # until then it waited on its worker
                        from_s = each["start"]
                run = {"key": str(key), "worker": name, "from_s": from_s, "to_s": time.time(), "end": finish}
                self.runs.append(run)
            if finish == "processing":
                on = self._scheduler.tasks[key].processing_on
                self._begun[str(key)] = str(on.name), time.time()

    client.register_plugin(Diary())


def log(client: Client) -> dict[str, list[dict[str, Any]]]:
    """All that was noted, in seconds since 1970.

    Returns
    -------
    ``stays`` of workers (`worker`, `from_s`, `to_s`; None: it is there), and ``runs`` of tasks (`key`,
    `worker`, `from_s`, `to_s`, `end`: "memory", or else it was in vain).
    """

    def read(dask_scheduler: Any) -> dict[str, list[dict[str, Any]]]:
        kept = dask_scheduler.plugins["diary"]
        return {"stays": kept.stays, "runs": kept.runs}

    return dict(client.run_on_scheduler(read))


def diary(client: Client) -> dict[str, dict[str, float]]:
    """When each worker came and went, and how often each task was finished."""
    noted = log(client)
    done = Counter(run["key"] for run in noted["runs"] if run["end"] == "memory")
    return {
        "came": {stay["worker"]: stay["from_s"] for stay in noted["stays"]},
        "went": {stay["worker"]: stay["to_s"] for stay in noted["stays"] if stay["to_s"] is not None},
        "finished": dict(done),
    }


def addresses(client: Client) -> dict[str, str]:
    """Of the workers that the scheduler knows, by name."""
    known = client.scheduler_info(n_workers=-1)["workers"]
    return {str(worker["name"]): address for address, worker in known.items()}


def recomputed(client: Client) -> list[str]:
    """Tasks that were computed more than once."""
    return [key for key, times in diary(client)["finished"].items() if times > 1]


def nth_s(moments: dict[str, float], n: int, since_s: float) -> float | None:
    """When the ``n``-th was, in seconds after ``since_s``; None: there were not so many."""
    sorted_s = sorted(moments.values())
    return sorted_s[n - 1] - since_s if n <= len(sorted_s) else None


def run_job(client: Client, workers: int, tasks: int, after_s: float) -> dict[str, Any]:
    """Run the job; its one answer is kept until the workers have gone, all but the one that holds it.

    Returns
    -------
    Seconds since the job was handed in of the first and last worker's arrival and of the answer; since the
    answer until all but its holder were gone (None: not within ``after_s``); and who is left.
    """

    def nap(_: int) -> int:
        time.sleep(TASK_S)
        return 1

    keep_diary(client)
    # The scheduler's clock is ours: its pod runs on this machine.
    began_s = time.time()
    total = client.submit(sum, client.map(nap, range(tasks), pure=False))
    assert total.result(timeout=DEADLINE_S) == tasks
    gathered_s = time.time() - began_s
    note(f"answer after {gathered_s:.1f} s")
    end_s = time.time() + after_s
    while len(addresses(client)) > 1 and time.time() < end_s:
        time.sleep(0.25)
    left = len(addresses(client))
    noted = diary(client)
    return {
        "first_s": nth_s(noted["came"], 1, began_s),
        f"worker_{workers}_s": nth_s(noted["came"], workers, began_s),
        "gathered_s": gathered_s,
        "gone_s": max(noted["went"].values(), default=0.0) - began_s - gathered_s if left == 1 else None,
        "left": left,
        "workers": len(noted["came"]),
        "recomputed": recomputed(client),
        "came_s": sorted(at - began_s for at in noted["came"].values()),
        "went_s": sorted(at - began_s for at in noted["went"].values()),
    }


def wait_for_workers(client: Client, n: int) -> None:
    """Wait until there are exactly so many workers."""
    wait_for(lambda: len(addresses(client)) == n, f"{n} workers", DEADLINE_S)
