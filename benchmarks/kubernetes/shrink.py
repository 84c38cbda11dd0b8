"""Shrinking with half of the workers holding data: nothing computed again, the right ones go, how fast.

100 real workers do not fit on a small machine. So 12 of them on real nodes shrink to 2, told by hand; and on
fake nodes the provider alone lets 90 of 100 pods go, whose readiness is patched as if their workers had
parked.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from distributed import Client, wait
from replicasets import PoolSet, provided

from dask_tide.providers.kubernetes.patience import Patience
from rig.folders import wait_for
from rig.nodes import Cluster
from rig.plane import Plane

from . import jobs
from .clusters import Clusters, namespace
from .figures import Figures, Sizes
from .nodes import release
from .schedulers import scale

RESULT_BYTES = 2**20
LEFT = 2


async def _pods(plane: Plane, name: str, n: int) -> dict[str, Any]:
    chosen = random.Random(4)
    pool = PoolSet(plane.api(), name).create()
    async with provided(plane, name, patience=Patience()) as provider:
        await provider.observe()
        await provider.scale_up("cpu", n)
        names = await pool.running(n)
        holders = chosen.sample(names, n // 2)
        staying = set(chosen.sample(holders, n // 10))
        victims = sorted(set(names) - staying)
        provider.mark({one: one in staying for one in names})
        # What the kubelets do within a second of the workers' parking; it takes longer here, one by one.
        await asyncio.to_thread(pool.set_ready, victims, False)
        before = provider._api.calls.copy()
        began_s = time.perf_counter()
        kept = await provider.scale_down(victims)
        taken_s = time.perf_counter() - began_s
        return {
            "from": n,
            "to": len(staying),
            "s": taken_s,
            "calls": dict(provider._api.calls - before),
            "kept": sorted(kept),
            "wrong": sorted(staying - pool.pods().keys()),
            "misses": provider.scales["cpu"].misses,
        }


def _misses(client: Client) -> int:
    """Pods that went although others had been picked."""

    def count(dask_scheduler: Any) -> int:
        provider = dask_scheduler.extensions["tide"].provider
        return sum(scale.misses for scale in provider.scales.values())

    return int(client.run_on_scheduler(count))


def _workers(cluster: Cluster, n: int) -> dict[str, Any]:
    def make(i: int) -> bytes:
        time.sleep(0.1)
        return bytes([i]) * RESULT_BYTES

    with release(cluster, n) as made, made.client() as client:
        jobs.keep_diary(client)
        scale(client, n)
        jobs.wait_for_workers(client, n)
        futures = client.map(make, range(4 * n), pure=False)
        wait(futures, timeout=jobs.DEADLINE_S)
        # Half of the workers keep what they made; what the others made is forgotten.
        holding = set(list(jobs.addresses(client).values())[::2])
        places = client.who_has(futures)
        kept = {i: future for i, future in enumerate(futures) if holding & set(places[future.key])}
        del futures
        wait_for(lambda: len(client.who_has()) == len(kept), "the rest is forgotten", 30)
        began_s = time.time()
        scale(client, LEFT)
        jobs.wait_for_workers(client, LEFT)
        workers_s = time.time() - began_s
        wait_for(lambda: len(made.all_pods()) == LEFT, f"{LEFT} pods", 90)
        pods_s = time.time() - began_s
        survivors = set(jobs.addresses(client))
        right = all(value == bytes([i]) * RESULT_BYTES for i, value in client.gather(kept).items())
        return {
            "from": n,
            "to": LEFT,
            "results": len(kept),
            "workers_gone_s": workers_s,
            "pods_gone_s": pods_s,
            "results_right": right,
            "recomputed": jobs.recomputed(client),
            "wrong": sorted(survivors ^ set(made.pods())),
            "misses": _misses(client),
        }


def run(clusters: Clusters, sizes: Sizes) -> Figures:
    """On fake nodes, then on real ones."""
    plane = clusters.plane
    with namespace(plane.kubectl) as name:
        pods = asyncio.run(_pods(plane, name, sizes.some))
    workers = _workers(clusters.nodes, sizes.workers)
    found = Figures(raw={"pods": pods, "workers": workers})
    few = f"{pods['from']} to {pods['to']} pods"
    found.alone(f"{few}: all gone after", pods["s"])
    found.alone(f"{few}: wrong ones", len(pods["wrong"]) + pods["misses"], 0, unit="")
    few = f"{workers['from']} to {workers['to']} workers"
    found.alone(f"{few}: drained and struck off after", workers["workers_gone_s"])
    found.alone(f"{few}: pods gone after", workers["pods_gone_s"])
    found.alone(f"{few}: wrong ones", len(workers["wrong"]) + workers["misses"], 0, unit="")
    found.alone(f"{few}: computed again", len(workers["recomputed"]), 0, unit="")
    assert workers["results_right"]
    return found
