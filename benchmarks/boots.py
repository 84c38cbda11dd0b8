"""Boots: time from the first task to the Nth registered worker, N = 1 and 6.

Peers: ``LocalCluster.adapt``, and the floor, which is how long ``LocalCluster(n_workers=N)``
itself takes to have N workers. Each is measured three times; the median counts.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from distributed import LocalCluster

from dask_tide import TideCluster

SIZES, ROUNDS = (1, 6), 3
_COMMON: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": "1 GiB", "dashboard_address": None}


def _adaptive(cluster: Any, n: int) -> float:
    def work(i: int) -> int:
        time.sleep(2)
        return i

    with cluster, cluster.get_client() as client:
        began_s = time.perf_counter()
        futures = client.map(work, range(n * 4), pure=False)
        while len(cluster.scheduler.workers) < n:
            if time.perf_counter() - began_s > 60:
                return float("nan")
            time.sleep(0.005)
        took_s = time.perf_counter() - began_s
        client.cancel(futures)
    return took_s


def _stock(n: int) -> float:
    cluster = LocalCluster(n_workers=0, silence_logs=50, **_COMMON)
    cluster.adapt(minimum=0, maximum=n)
    return _adaptive(cluster, n)


def _tide(n: int, settle_s: float) -> float:
    cluster = TideCluster(maximum=n, silence_logs=50, **_COMMON)
    # A fresh cluster's forkserver is still importing; one in use for a few seconds is not.
    time.sleep(settle_s)
    return _adaptive(cluster, n)


def _floor(n: int) -> float:
    began_s = time.perf_counter()
    with LocalCluster(n_workers=n, silence_logs=50, **_COMMON) as cluster:
        while len(cluster.scheduler.workers) < n:
            time.sleep(0.005)
        return time.perf_counter() - began_s


def run() -> dict[str, Any]:
    """All of them, side by side."""
    found: dict[str, Any] = {"seconds": {}, "ratios": {}}
    for n in SIZES:
        raw: dict[str, list[float]] = {"stock": [], "tide": [], "tide, just created": [], "floor": []}
        for _ in range(ROUNDS):
            raw["stock"].append(_stock(n))
            raw["tide"].append(_tide(n, 3.0))
            raw["tide, just created"].append(_tide(n, 0.0))
            raw["floor"].append(_floor(n))
        medians = {name: round(statistics.median(times), 3) for name, times in raw.items()}
        found["seconds"][f"N={n}"] = {"median": medians, "raw": raw}
        for peer in ("stock", "floor"):
            found["ratios"][f"N={n}, tide / {peer}"] = round(medians["tide"] / medians[peer], 3)
    return found
