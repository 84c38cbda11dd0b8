"""A job on three real nodes: 240 tasks of a second, from nothing to 12 workers and back.

Ours is the chart's release. Peers: the floor, which is ``kubectl scale`` of the same ReplicaSet to 12 below
the same scheduler without the controller (from the start of kubectl's process to the registration); and the
same job below dask-kubernetes with its DaskAutoscaler, its pods from our image and of the same size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client
from releases import POOL, VALUES, Release

from dask_tide.providers.kubernetes.manifests import manifests
from rig.clients import Kubectl
from rig.folders import wait_for
from rig.nodes import Cluster

from . import jobs, peer
from .clusters import Clusters, namespace
from .figures import Figures, Sizes

GATHERED_S = 32.0


@contextmanager
def release(cluster: Cluster, workers: int) -> Iterator[Release]:
    """A release of the chart with one pool, at rest."""
    with namespace(cluster.kubectl, "restricted") as name, TemporaryDirectory() as folder:
        made = Release(cluster, name, "bench", Path(folder))
        try:
            made.apply("install", _values(workers))
            made.ready()
            wait_for(lambda: not made.all_pods(), "the chart's first pod is gone", 90)
            yield made
        finally:
            made.close()


def _values(workers: int) -> dict[str, Any]:
    return {"pools": {"cpu": POOL | {"maximum": workers}}}


def keep_s(client: Client) -> float:
    """What it costs to start a worker again: so long the policy keeps one that is idle."""

    def read(dask_scheduler: Any) -> float:
        tide = dask_scheduler.extensions["tide"]
        records = tide.ledger.records
        # Where no machine had room yet, that start was not measured.
        return float(max(records[name].boot_s or pool.boot_s for name, pool in tide.pools.items()))

    return float(client.run_on_scheduler(read))


def _ours(cluster: Cluster, sizes: Sizes) -> dict[str, Any]:
    with release(cluster, sizes.workers) as made, made.client() as client:
        found = jobs.run_job(client, sizes.workers, sizes.tasks, sizes.after_s)
        return found | {"break_even_s": keep_s(client)}


def _floor(cluster: Cluster, workers: int) -> dict[str, Any]:
    with namespace(cluster.kubectl, "restricted") as name, TemporaryDirectory() as folder:
        made = Release(cluster, name, "floor", Path(folder))
        objects = manifests("floor", name, VALUES | _values(workers), replicas=0)
        for one in objects:
            if one["kind"] == "Deployment":
                _without_controller(one)
        cluster.kubectl.apply(*objects)
        try:
            made.ready()
            with made.client() as client:
                jobs.keep_diary(client)
                began_s = time.time()
                made.kubectl("scale", "replicaset/floor-cpu", f"--replicas={workers}")
                kubectl_s = time.time() - began_s
                jobs.wait_for_workers(client, workers)
                came = jobs.diary(client)["came"]
        finally:
            made.close()
            _delete_policies(cluster.kubectl, objects)
    return {
        "kubectl_s": kubectl_s,
        "first_s": jobs.nth_s(came, 1, began_s),
        f"worker_{workers}_s": jobs.nth_s(came, workers, began_s),
        "came_s": sorted(at - began_s for at in came.values()),
    }


def _without_controller(deployment: dict[str, Any]) -> None:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    at = container["args"].index("--preload")
    del container["args"][at : at + 2]


def _delete_policies(kubectl: Kubectl, objects: list[dict[str, Any]]) -> None:
    """Those do not go with their namespace."""
    for one in objects:
        if one["kind"].startswith("ValidatingAdmissionPolicy"):
            kubectl("delete", one["kind"].lower(), one["metadata"]["name"])


def _operator(cluster: Cluster, sizes: Sizes) -> dict[str, Any]:
    resources = {"requests": POOL["resources"]["requests"], "limits": {"memory": POOL["memory"]}}
    scheduler, worker = peer.containers(VALUES["scheduler"]["resources"], resources, "400MiB")
    with (
        namespace(cluster.kubectl) as name,
        peer.operator(cluster, name) as operator,
        TemporaryDirectory() as folder,
    ):
        operator.make(scheduler, worker)
        operator.autoscale(sizes.workers)
        # For its port-forward only.
        made = Release(cluster, name, peer.NAME, Path(folder))
        try:
            port = made.forward(f"service/{peer.NAME}-scheduler", 8786)
            with Client(f"tcp://127.0.0.1:{port}", timeout=30) as client:
                return jobs.run_job(client, sizes.workers, sizes.tasks, sizes.after_s)
        finally:
            made.close()


def run(clusters: Clusters, sizes: Sizes) -> Figures:
    """All three, one after the other, on one cluster."""
    cluster = clusters.nodes
    ours = _ours(cluster, sizes)
    floor = _floor(cluster, sizes.workers)
    operator = _operator(cluster, sizes)
    found = Figures(
        raw={
            "workers": sizes.workers,
            "tasks": sizes.tasks,
            "dask-tide": ours,
            "floor": floor,
            "dask-kubernetes": operator,
        }
    )
    last = f"worker_{sizes.workers}_s"
    found.against("first worker; floor", ours["first_s"], floor["first_s"], 1.2)
    found.against(f"worker {sizes.workers}; floor", ours[last], floor[last], 1.2)
    found.against("first worker; dask-kubernetes", ours["first_s"], operator["first_s"], None)
    found.against(f"worker {sizes.workers}; dask-kubernetes", ours[last], operator[last], None)
    found.against("gathered; dask-kubernetes", ours["gathered_s"], operator["gathered_s"], None)
    found.alone("gathered", ours["gathered_s"], GATHERED_S)
    found.alone("all but the holder gone after", ours["gone_s"], ours["break_even_s"])
    found.against(
        f"workers left {sizes.after_s:.0f} s after; dask-kubernetes", ours["left"], operator["left"], None, ""
    )
    found.alone("tasks computed twice", len(ours["recomputed"]), 0, unit="")
    return found
