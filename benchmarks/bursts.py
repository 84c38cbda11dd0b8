"""Bursts: 5 of 24 tasks of 0.5 s, 8 s apart, at most 6 single-threaded workers.

The ideal burst takes 2 s (24 × 0.5 s on 6 workers) and all bursts 60 worker-seconds.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from distributed import LocalCluster

from dask_tide import TideCluster

BURSTS, TASKS, TASK_S, APART_S, MAXIMUM = 5, 24, 0.5, 8.0, 6


class _Watch:
    """Integrates registered workers over time, and counts those that ever registered."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._stop = threading.Event()
        self.worker_s = 0.0
        self.started: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last_s = time.perf_counter()
        while not self._stop.wait(0.02):
            now_s = time.perf_counter()
            addresses = list(self._scheduler.workers)
            self.worker_s += len(addresses) * (now_s - last_s)
            self.started.update(addresses)
            last_s = now_s

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _run(cluster: Any) -> dict[str, Any]:
    def work(i: int) -> int:
        time.sleep(TASK_S)
        return i

    with cluster, cluster.get_client() as client:
        watch = _Watch(cluster.scheduler)
        took_s = []
        for burst in range(BURSTS):
            began_s = time.perf_counter()
            futures = client.map(work, range(TASKS), key=f"burst{burst}", pure=False)
            client.gather(futures)
            took_s.append(round(time.perf_counter() - began_s, 2))
            del futures
            time.sleep(APART_S)
        end_s = time.perf_counter() + 30
        while cluster.scheduler.workers and time.perf_counter() < end_s:
            time.sleep(0.05)
        watch.stop()
    return {
        "burst_s": took_s,
        "mean_burst_s": round(sum(took_s) / BURSTS, 2),
        "worker_s": round(watch.worker_s, 1),
        "starts": len(watch.started),
    }


def run() -> dict[str, Any]:
    """Both clusters, one after the other."""
    ideal_s = BURSTS * TASKS * TASK_S
    stock = LocalCluster(
        n_workers=0, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=None, silence_logs=50
    )
    stock.adapt(minimum=0, maximum=MAXIMUM)
    found = {"stock": _run(stock)}
    tide = TideCluster(maximum=MAXIMUM, memory_limit="1 GiB", dashboard_address=None, silence_logs=50)
    found["tide"] = _run(tide)
    return {
        **found,
        "ideal_worker_s": ideal_s,
        "ratios": {
            "mean burst, tide / stock": round(
                found["tide"]["mean_burst_s"] / found["stock"]["mean_burst_s"], 3
            ),
            "worker-seconds, tide / stock": round(found["tide"]["worker_s"] / found["stock"]["worker_s"], 3),
            "worker-seconds, tide / ideal": round(found["tide"]["worker_s"] / ideal_s, 3),
        },
    }
