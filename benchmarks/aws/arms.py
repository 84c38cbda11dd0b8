"""The arms: three ways to have workers on one cloud, at the same time.

Each has a NodePool of its own (:func:`rig.aws.karpenter.node_pool`: spot machines of four CPUs; for `ours`
and `dask-kubernetes` with `consolidateAfter` 5 s and leave to end all machines at once); the same image; at
most six workers of one thread, two of which fit on a machine; and a scheduler on the machine that is always
there.

`ours`
    The chart with ``nodes.read``, ``packing`` and ``spot``, which says that machines may be taken away.
    Nothing is set under ``tide``, and no ``bootTime``: what a machine's boot takes has to be learned.
`dask-kubernetes`
    A DaskCluster with a DaskAutoscaler, which is Dask's stock Adaptive, asked by the operator. Its workers
    have our pods' requests, limits, node selector, toleration and grace period. The operator is a process
    beside the control plane.
`plain`
    Karpenter's defaults (when a machine may go, and how many of them at a time), and the same release as
    `ours`, with those values of the chart that leave pods to Karpenter as anybody's are:
    ``admission.enabled`` and ``nodes.read`` false, so that our scheduler changes no annotation and knows
    nothing of machines; ``packing`` false, so that kube-scheduler spreads workers; and ``podAnnotations``
    that mean nothing (a deletion cost of 0, "true" for `safe-to-evict`, "false" for `do-not-disrupt`). How
    many workers there are, and which ones go, is still decided by our policy: it is less of ourselves, not
    stock Dask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client
from fleet import POOL, Fleet, on_nodes, values
from releases import Release

from benchmarks.kubernetes import jobs, peer
from benchmarks.kubernetes.clusters import namespace
from benchmarks.kubernetes.nodes import keep_s
from dask_tide.providers.kubernetes.pods import DELETION_COST, DO_NOT_DISRUPT, SAFE_TO_EVICT
from rig.aws.karpenter import node_pool
from rig.cloud import Cloud
from rig.folders import wait_for

from .watch import Place

__all__ = ["OURS", "PEERS", "Arm", "arms", "release"]

OURS, OPERATOR, PLAIN = "ours", "dask-kubernetes", "plain"
PEERS = (OPERATOR, PLAIN)
MAXIMUM = 6
_POOL: dict[str, Any] = {"threads": 1, "maximum": MAXIMUM, "spot": True}
_CONSOLIDATE_AFTER = "5s"
_MEANINGLESS = {DELETION_COST: "0", SAFE_TO_EVICT: "true", DO_NOT_DISRUPT: "false"}


@dataclass(frozen=True)
class Arm:
    """One of them, at rest and with a diary.

    Attributes
    ----------
    name
        Its name.
    client
        A client of its scheduler.
    place
        Where its workers' pods are.
    """

    name: str
    client: Client
    place: Place

    def keep_s(self) -> float | None:
        """For how long our policy keeps an idle worker; None: it is not ours."""
        return None if self.name == OPERATOR else keep_s(self.client)


@contextmanager
def _machines(cloud: Cloud, arm: Arm, consolidate_after: str | None) -> Iterator[Arm]:
    """Give an arm its NodePool, and a diary; its machines end with the block."""
    jobs.keep_diary(arm.client)
    cloud.kubectl.apply(node_pool(arm.name, consolidate_after=consolidate_after))
    try:
        yield arm
    finally:
        cloud.kubectl("delete", "nodepool", arm.name, "--wait=false")


@contextmanager
def release(
    cloud: Cloud,
    name: str,
    pool: dict[str, Any],
    more: dict[str, Any],
    consolidate_after: str | None = _CONSOLIDATE_AFTER,
) -> Iterator[Arm]:
    """A release of the chart, with these values of its pool and these others."""
    with namespace(cloud.kubectl, "restricted") as space, TemporaryDirectory() as folder:
        made = Fleet(cloud, space, "r", Path(folder), name)
        try:
            made.apply("install", values(name, cpu=_POOL | pool) | more)
            # The pool's first pod, which Kubernetes starts, would boot a machine.
            made.kubectl("scale", "replicaset/r-cpu", "--replicas=0")
            made.ready()
            wait_for(lambda: not made.all_pods(), "the chart's first pod is gone", 120)
            with made.client() as client:
                arm = Arm(name, client, Place(space, "app.kubernetes.io/component=worker", name))
                with _machines(cloud, arm, consolidate_after):
                    yield arm
        finally:
            made.close()


@contextmanager
def _operator(cloud: Cloud) -> Iterator[Arm]:
    on_system = values(OPERATOR)["scheduler"]
    worker_resources = {"requests": POOL["resources"]["requests"], "limits": {"memory": POOL["memory"]}}
    scheduler, worker = peer.containers(on_system["resources"], worker_resources, POOL["memory"] + "B")
    grace = {"terminationGracePeriodSeconds": POOL["terminationGracePeriodSeconds"]}
    with (
        namespace(cloud.kubectl) as space,
        peer.operator(cloud, space) as operator,
        TemporaryDirectory() as folder,
    ):
        operator.make(
            scheduler,
            worker,
            scheduler_pod={"nodeSelector": on_system["nodeSelector"]},
            worker_pod=on_nodes(OPERATOR) | grace,
        )
        operator.autoscale(MAXIMUM)
        # For its port-forward only.
        made = Release(cloud, space, peer.NAME, Path(folder))
        try:
            port = made.forward(f"service/{peer.NAME}-scheduler", 8786)
            with Client(f"tcp://127.0.0.1:{port}", timeout=30) as client:
                arm = Arm(OPERATOR, client, Place(space, peer.WORKERS, OPERATOR))
                with _machines(cloud, arm, _CONSOLIDATE_AFTER):
                    yield arm
        finally:
            made.close()


@contextmanager
def arms(cloud: Cloud) -> Iterator[list[Arm]]:
    """All three, side by side; they end with the block, and so do their machines."""
    plain = {"packing": False, "podAnnotations": _MEANINGLESS}
    unaware = {"admission": {"enabled": False}, "nodes": {"read": False}}
    with ExitStack() as stack:
        yield [
            stack.enter_context(release(cloud, OURS, {"packing": True}, {})),
            stack.enter_context(_operator(cloud)),
            stack.enter_context(release(cloud, PLAIN, plain, unaware, None)),
        ]
