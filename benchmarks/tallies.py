"""Tallies: what counting costs per transition, against what the scheduler itself spends on one.

The plugin's cost is measured by direct calls, a million of them, of the transitions that tasks
of a real scheduler go through, and what a task more costs that has to wait for two others; the
scheduler's from its process's CPU time over a real job of small tasks on real workers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
from distributed import Client, Scheduler
from distributed.deploy.subprocess import SubprocessCluster

from dask_tide.controller.tally import Tally

from .ticks import _nothing, populate

CALLS, JOB, TREE = 1_000_000, 20_000, 100_000


async def _plugin_us() -> float:
    """Microseconds of one call."""
    scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False, validate=False)
    try:

        async def close() -> None:
            pass

        populate(scheduler, 10_000)
        tally = Tally(scheduler, wake=_nothing, on_restart=_nothing, on_close=close)
        tally._class_of.clear()
        startstops = [{"action": "compute", "start": 1.0, "stop": 2.0}]
        keys = list(scheduler.tasks)
        life: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("released", "waiting", {}),
            ("waiting", "queued", {}),
            ("queued", "processing", {}),
            ("processing", "memory", {"startstops": startstops, "worker": "w", "nbytes": 1, "type": b""}),
            ("memory", "released", {}),
        )
        calls = 0
        began_s = time.process_time()
        while calls < CALLS:
            for start, finish, arguments in life:
                for key in keys:
                    tally.transition(key, start, finish, stimulus_id="benchmark", **arguments)
            calls += len(life) * len(keys)
        taken_s = time.process_time() - began_s
        began_s = time.process_time()
        for _ in range(calls // len(keys)):
            for _key in keys:
                pass
        return (taken_s - (time.process_time() - began_s)) / calls * 1e6
    finally:
        scheduler.tasks.clear()
        await scheduler.close()


async def _waiting_us() -> float:
    """Microseconds for which a task of a binary tree begins to wait and ceases to."""
    scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False, validate=False)
    try:

        async def close() -> None:
            pass

        populate(scheduler, TREE)
        tasks = list(scheduler.tasks.values())
        tally = Tally(scheduler, wake=_nothing, on_restart=_nothing, on_close=close)
        tally._class_of.clear()
        for number, ts in enumerate(tasks):
            for other in tasks[2 * number + 1 : 2 * number + 3]:
                ts.add_dependency(other)
            ts.waiting_on = set(ts.dependencies)
            ts.state = "released"
        began_s = time.process_time()
        # The last ones first, as the scheduler does it.
        for ts in tasks:
            ts.state = "waiting"
            tally.transition(ts.key, "released", "waiting", stimulus_id="benchmark")
        for ts in reversed(tasks):
            tally.transition(ts.key, "waiting", "queued", stimulus_id="benchmark")
        return (time.process_time() - began_s) / TREE * 1e6
    finally:
        scheduler.tasks.clear()
        await scheduler.close()


def _counter(dask_scheduler: Any) -> int:
    return int(dask_scheduler.transition_counter)


def _scheduler_us() -> Any:
    """Microseconds of CPU time of a scheduler process per transition, in a job of small tasks."""

    def work(i: int) -> int:
        return i

    def pid() -> int:
        import os

        return os.getpid()

    with (
        SubprocessCluster(n_workers=2, threads_per_worker=1, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        process = psutil.Process(client.run_on_scheduler(pid))
        client.gather(client.map(work, range(1000)))
        before, used = client.run_on_scheduler(_counter), sum(process.cpu_times()[:2])
        futures = client.map(work, range(1000, 1000 + JOB))
        client.gather(futures)
        del futures
        transitions = client.run_on_scheduler(_counter) - before
        return (sum(process.cpu_times()[:2]) - used) / transitions * 1e6


def run() -> dict[str, Any]:
    """Measure both."""
    plugin_us, waiting_us, scheduler_us = (
        asyncio.run(_plugin_us()),
        asyncio.run(_waiting_us()),
        _scheduler_us(),
    )
    # In a graph a task goes through five transitions, two of which are these.
    in_a_graph_us = (3 * plugin_us + waiting_us) / 5
    return {
        "plugin_us_per_transition": round(plugin_us, 3),
        "plugin_us_of_waiting": round(waiting_us, 3),
        "scheduler_us_per_transition": round(scheduler_us, 1),
        "ratios": {
            "plugin / scheduler": round(plugin_us / scheduler_us, 4),
            "the same where each task waits for two": round(in_a_graph_us / scheduler_us, 4),
        },
        "aim": "<= 0.02",
        "reached": in_a_graph_us / scheduler_us <= 0.02,
    }
