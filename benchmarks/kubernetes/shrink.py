"""Shrinking with half of the workers holding data: nothing computed again, the right ones go, how fast.

100 processes of workers do not fit on a small machine. So 12 of them on real nodes shrink to 2; and 100 pods
on fake nodes shrink to 10, whose workers are real, too, but live together in one process with the scheduler
and its controller, and close where a pod's would park. Both are told by hand.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from distributed import Client, Scheduler, Worker, wait
from replicasets import PoolSet
from waiting import until

from dask_tide.controller.attach import attach
from dask_tide.providers.base import NAMELESS, ProviderContext
from dask_tide.providers.kubernetes.provider import KubernetesProvider
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


class _Together(KubernetesProvider):
    """The provider, for workers that close when they are drained."""

    closes_workers = True

    def __init__(self, plane: Plane, namespace: str, context: ProviderContext) -> None:
        super().__init__(context)
        self._plane, self._namespace = plane, namespace

    async def scale_down(self, units: Sequence[str]) -> Collection[str]:
        # What each pod's kubelet finds of a worker that has parked; here it takes longer, one by one.
        pool = PoolSet(self._plane.api(), self._namespace)  # a connection is for one thread
        await asyncio.to_thread(pool.set_ready, [unit for unit in units if NAMELESS not in unit], False)
        return await super().scale_down(units)


async def _pods(plane: Plane, name: str, n: int) -> dict[str, Any]:
    pool = PoolSet(plane.api(), name).create()
    where = {"namespace": name, "kubeconfig": str(plane.kubeconfig), "on-close": "keep"}
    tide = {"name": pool.cluster, "pools": {pool.pool: {"maximum": n}}, "options": where}
    async with AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            Scheduler(host="127.0.0.1", port=0, dashboard_address=":0")
        )
        controller = attach(scheduler, tide, provider=partial(_Together, plane, name))
        provider = controller.provider
        assert isinstance(provider, _Together)
        client = await stack.enter_async_context(Client(scheduler.address, asynchronous=True))
        controller.scale(n)
        names = await pool.running(n)
        # They share one process, so each may use all of what it may.
        workers = [Worker(scheduler.address, name=each, nthreads=1, memory_limit="8GiB") for each in names]
        await asyncio.gather(*map(stack.enter_async_context, workers))
        stack.push_async_callback(controller.close)  # before they end, or it would ask for others
        chosen = random.Random(4)
        holders = chosen.sample(workers, n // 2)
        futures = [
            client.submit(_make, 4 * number + part, workers=[holder.address], pure=False)
            for number, holder in enumerate(holders)
            for part in range(4)
        ]
        await wait(futures, timeout=jobs.DEADLINE_S)
        before = provider._api.calls.copy()
        began_s = time.perf_counter()
        controller.scale(n // 10)
        await until(lambda: len(scheduler.workers) == n // 10, "the workers have left", 120)
        left_s = time.perf_counter() - began_s
        while len(await asyncio.to_thread(pool.pods)) > n // 10:
            assert time.perf_counter() - began_s < jobs.DEADLINE_S, "their pods go"
        gone_s = time.perf_counter() - began_s
        values = await client.gather(futures)
        finished = Counter(
            key
            for key, start, end, *_ in scheduler.transition_log
            if (start, end) == ("processing", "memory")
        )
        return {
            "from": n,
            "to": n // 10,
            "results": len(futures),
            "workers_gone_s": left_s,
            "pods_gone_s": gone_s,
            "results_right": values == [_make(number) for number in range(len(futures))],
            "recomputed": sorted(key for key, times in finished.items() if times > 1),
            "calls": dict(provider._api.calls - before),
            "wrong": sorted({ws.name for ws in scheduler.workers.values()} ^ pool.pods().keys()),
            "misses": provider.scales[pool.pool].misses,
        }


def _make(number: int) -> bytes:
    return bytes([number % 256]) * RESULT_BYTES


def _misses(client: Client) -> int:
    """Pods that went although others had been picked."""

    def count(dask_scheduler: Any) -> int:
        provider = dask_scheduler.extensions["tide"].provider
        return sum(scale.misses for scale in provider.scales.values())

    return int(client.run_on_scheduler(count))


def _workers(cluster: Cluster, n: int) -> dict[str, Any]:
    def make(i: int) -> bytes:  # sent by value
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
    logging.getLogger("distributed").setLevel(logging.ERROR)  # they all live here
    with namespace(plane.kubectl) as name:
        pods = asyncio.run(_pods(plane, name, sizes.some))
    workers = _workers(clusters.nodes, sizes.workers)
    found = Figures(raw={"pods": pods, "workers": workers})
    for what, one in (("workers in one process", pods), ("workers", workers)):
        few = f"{one['from']} to {one['to']} {what}"
        found.alone(f"{few}: drained and struck off after", one["workers_gone_s"])
        found.alone(f"{few}: pods gone after", one["pods_gone_s"])
        found.alone(f"{few}: wrong ones", len(one["wrong"]) + one["misses"], 0, unit="")
        found.alone(f"{few}: computed again", len(one["recomputed"]), 0, unit="")
        assert one["results_right"]
    return found
