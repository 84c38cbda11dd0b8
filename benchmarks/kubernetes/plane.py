"""Growth on fake nodes: from 0 to 100 and 1,000 ready pods, from the command to the last one.

Ours is a real scheduler process that is told so by hand (``tide_scale``): its policy decides, its provider
scales. Peers: ``kubectl scale`` of the same ReplicaSet, and a worker group of dask-kubernetes that is
scaled by ``kubectl patch``. kubectl's time counts from the start of its process, ours from the client's call.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from rig.folders import wait_for
from rig.plane import Plane

from . import peer, size
from .clusters import Clusters, namespace
from .figures import Figures, Sizes, note
from .schedulers import GROW_S, Pool, SchedulerProcess

#: What a DaskCluster on fake nodes is made of.
_CONTAINER = {"image": "none", "resources": {"requests": {"cpu": "10m", "memory": "1Mi"}}}

#: Of pods, ReplicaSets and events: a scheduler that has just started may not have begun all of them.
_WATCHES = 3


def _kubectl(pool: Pool, n: int) -> float:
    began_s = time.perf_counter()
    pool.scale(n)
    pool.ready(n)
    taken_s = time.perf_counter() - began_s
    note(f"kubectl scale: {n} pods in {taken_s:.2f} s")
    pool.empty()
    return taken_s


def grow(pool: Pool, process: SchedulerProcess, n: int) -> dict[str, Any]:
    """Grow by a scheduler: seconds, and the provider's calls meanwhile."""
    wait_for(lambda: process.calls()["watch"] >= _WATCHES, "all of the provider's watches stand", 60)
    before = process.calls()
    began_s = time.perf_counter()
    process.scale(n)
    pool.ready(n)
    taken_s = time.perf_counter() - began_s
    note(f"dask-tide: {n} pods in {taken_s:.2f} s")
    wait_for(lambda: process.units() == n, "the controller knows all pods", 60)
    return {"s": taken_s, "calls": dict(process.calls() - before)}


def _operator(plane: Plane, n: int) -> float:
    with namespace(plane.kubectl) as name, peer.operator(plane, name) as operator:
        operator.make(_CONTAINER | {"name": "scheduler"}, _CONTAINER | {"name": "worker"})
        api = plane.api()
        path = f"/api/v1/namespaces/{name}/pods?resourceVersion=0&labelSelector={peer.WORKERS}"

        def ready() -> bool:
            pods = api("GET", path)["items"]
            conditions = [c for pod in pods for c in pod["status"].get("conditions", ())]
            return sum(1 for c in conditions if c["type"] == "Ready" and c["status"] == "True") >= n

        began_s = time.perf_counter()
        operator.scale(n)
        end_s = began_s + GROW_S
        while not ready():
            if time.perf_counter() > end_s:
                raise TimeoutError(f"dask-kubernetes has not made {n} pods:\n{operator.log()[-2000:]}")
            time.sleep(0.1)
        taken_s = time.perf_counter() - began_s
        note(f"dask-kubernetes: {n} pods in {taken_s:.2f} s")
        return taken_s


def run(clusters: Clusters, sizes: Sizes) -> Figures:
    """All of them, one after the other, on one control plane."""
    plane = clusters.plane
    kubectl_s, ours = [], []
    with namespace(plane.kubectl) as name:
        pool = Pool(plane, name)
        for _ in range(sizes.rounds):
            kubectl_s.append(_kubectl(pool, sizes.some))
            with pool.scheduler() as process:
                ours.append(grow(pool, process, sizes.some))
            pool.empty()
        kubectl_many_s = _kubectl(pool, sizes.many)
    operator_s = _operator(plane, sizes.some)
    many = size.grown(clusters, sizes)
    found = Figures(
        raw={
            "pods": [sizes.some, sizes.many],
            "kubectl scale, s": {sizes.some: kubectl_s, sizes.many: [kubectl_many_s]},
            "dask-tide": {sizes.some: ours, sizes.many: [many["growth"]]},
            "dask-kubernetes, s": {sizes.some: [operator_s]},
        }
    )
    some_s = statistics.median(one["s"] for one in ours)
    found.against(f"0 to {sizes.some} pods; kubectl scale", some_s, statistics.median(kubectl_s), 1.2)
    found.against(f"0 to {sizes.many} pods; kubectl scale", many["growth"]["s"], kubectl_many_s, 1.2)
    found.against(f"0 to {sizes.some} pods; dask-kubernetes", some_s, operator_s, 1 / 5)
    for n, growth in ((sizes.some, ours[0]), (sizes.many, many["growth"])):
        found.alone(f"calls of the provider for {n} pods", sum(growth["calls"].values()), 1, unit="")
    return found
