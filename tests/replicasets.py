"""A pool's ReplicaSet on a plane, and the kubernetes provider above it; its pods do as the test says."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.security import Security
from waiting import until, wait_until

from dask_tide.errors import Unavailable
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import Observation, ObservedUnit, ProviderContext, Template
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.pods import DELETION_COST, DO_NOT_DISRUPT, SAFE_TO_EVICT, Rank
from dask_tide.providers.kubernetes.provider import KubernetesProvider
from rig.clients import Api, ApiError
from rig.plane import Plane

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

#: As patient as a test.
QUICK = Patience(
    failed_s=0.1,
    failed_max_s=0.5,
    refused_s=0.5,
    refused_max_s=1.0,
    park_s=20.0,
    start_s=20.0,
    delete_s=20.0,
    quota_s=2.0,
    quota_max_s=4.0,
    rival_s=3.0,
    idle_s=0.3,
)
_CONTAINER = {
    "name": "worker",
    "image": "docker.io/dask-tide/none:none",
    "resources": {"requests": {"cpu": "10m", "memory": "1Mi"}},
}
PROTECTED = {DELETION_COST: "100", SAFE_TO_EVICT: "false", DO_NOT_DISRUPT: "true"}


#: By namespace, cluster and pool.
_made: dict[tuple[str, str, str], PoolSet] = {}


@dataclass
class PoolSet:
    """One pool's ReplicaSet.

    Attributes
    ----------
    api
        The API server, as the cluster's admin.
    namespace, cluster, pool
        Where it is and whose.
    """

    api: Api
    namespace: str
    cluster: str = "r"
    pool: str = "cpu"
    template: str = "0123456789"
    spec: dict[str, Any] = field(default_factory=dict)
    #: Pods that are unready because the test says so.
    unready: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.cluster}-{self.pool}"

    @property
    def labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "dask-tide",
            "app.kubernetes.io/instance": self.cluster,
            "app.kubernetes.io/component": "worker",
            "dask-tide/pool": self.pool,
        }

    @property
    def sets(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/replicasets"

    def pod_template(self) -> dict[str, Any]:
        spec = {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [copy.deepcopy(_CONTAINER)],
        } | self.spec
        labels = self.labels | {"dask-tide/template": self.template}
        return {"metadata": {"labels": labels, "annotations": dict(PROTECTED)}, "spec": spec}

    def create(self, replicas: int = 0) -> PoolSet:
        body = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": self.name, "labels": self.labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": self.labels},
                "template": self.pod_template(),
            },
        }
        self.api("POST", f"{self.sets}?fieldManager=dask-tide", body)
        _made[self.namespace, self.cluster, self.pool] = self
        return self

    def delete(self) -> None:
        self.api("DELETE", f"{self.sets}/{self.name}")

    def create_nowhere(self) -> PoolSet:
        """Another one in its stead, whose pods find no node."""
        self.delete()
        self.spec = {"nodeSelector": {"there-is": "no-such-node"}}
        return self.create()

    def change(self, patch: Mapping[str, Any]) -> None:
        self.api("PATCH", f"{self.sets}/{self.name}?fieldManager=helm", patch, MERGE)

    def replicas(self) -> int:
        return int(self.api("GET", f"{self.sets}/{self.name}")["spec"]["replicas"])

    def version(self) -> str:
        """The version of the list of pods."""
        listed = self.api("GET", f"/api/v1/namespaces/{self.namespace}/pods")
        return str(listed["metadata"]["resourceVersion"])

    # -- its pods -----------------------------------------------------------------------------------

    def pods(self) -> dict[str, dict[str, Any]]:
        """Those that are not being deleted."""
        selector = f"app.kubernetes.io/instance={self.cluster},dask-tide/pool={self.pool}"
        found = self.api("GET", f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}")
        return {
            pod["metadata"]["name"]: pod
            for pod in found["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    def path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{pod}"

    def delete_pod(self, pod: str) -> None:
        self.api("DELETE", f"{self.path(pod)}?gracePeriodSeconds=0")

    def status(self, pod: str, status: Mapping[str, Any]) -> None:
        self.api("PATCH", f"{self.path(pod)}/status", {"status": status}, STRATEGIC)

    def set_ready(self, pods: Sequence[str], ready: bool) -> None:
        """What the kubelet's readiness probe finds; not ready: the worker has parked."""
        self.unready = self.unready - set(pods) if ready else self.unready | set(pods)
        # Without a reason it would be the node that is not well.
        reason = None if ready else "ContainersNotReady"
        for pod in pods:
            self.status(pod, {"conditions": [{"type": "Ready", "status": str(ready), "reason": reason}]})

    def fail(self, pod: str, reason: str = "Evicted", message: str = "The node was low on memory") -> None:
        self.status(pod, {"phase": "Failed", "reason": reason, "message": message})

    def cost(self, pod: str) -> str:
        return str(self.pods()[pod]["metadata"]["annotations"][DELETION_COST])

    def quota(self, pods: int) -> None:
        """So many pods may be in the namespace, and no more."""
        quotas = f"/api/v1/namespaces/{self.namespace}/resourcequotas"
        spec = {"spec": {"hard": {"pods": str(pods)}}}
        if self.api("GET", quotas)["items"]:
            self.api("PATCH", f"{quotas}/quota", spec, MERGE)
        else:
            self.api("POST", quotas, {"kind": "ResourceQuota", "metadata": {"name": "quota"}} | spec)
        # Until then it refuses everything, with other words.
        hard = {"pods": str(pods)}
        wait_until(
            lambda: self.api("GET", f"{quotas}/quota")["status"].get("hard") == hard, "the quota is known"
        )

    def quota_used(self) -> int:
        """How many pods count against it."""
        path = f"/api/v1/namespaces/{self.namespace}/resourcequotas/quota"
        return int(self.api("GET", path)["status"]["used"]["pods"])

    async def running(self, count: int) -> list[str]:
        """Wait until there are so many pods, all of them ready; their names."""

        def all_ready() -> bool:
            pods = self.pods()
            return len(pods) == count and all(map(_ready, pods.values()))

        await until(
            all_ready, f"{count} pods of {self.name} are ready", detail=lambda: str(sorted(self.pods()))
        )
        return sorted(self.pods())


def container(**state: Any) -> dict[str, Any]:
    """A container's status."""
    return {"name": "worker", "image": "", "imageID": "", "ready": False, "restartCount": 1, "state": state}


def _ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def context(
    kubeconfig: Path | None,
    namespace: str,
    *,
    cluster: str = "r",
    pools: Sequence[str] = ("cpu",),
    folder: Path = Path(),
    options: Mapping[str, Any] | None = None,
) -> ProviderContext:
    """What a provider in that namespace is made from."""
    where = {"namespace": namespace} | ({"kubeconfig": str(kubeconfig)} if kubeconfig else {})
    return ProviderContext(
        cluster=cluster,
        scheduler_address="tls://r-scheduler:8786",
        templates={name: Template(Pool(name)) for name in pools},
        options=where | {"on-close": "keep"} | dict(options or {}),
        folder=folder,
        security=Security(),
        wake=lambda: None,
    )


@asynccontextmanager
async def provided(
    plane: Plane,
    namespace: str,
    *,
    patience: Patience = QUICK,
    kubeconfig: Path | None = None,
    in_cluster: bool = False,
    pools: Sequence[str] = ("cpu",),
    cluster: str = "r",
    **options: Any,
) -> AsyncIterator[KubernetesProvider]:
    """A provider in that namespace; whatever it has running ends with the block."""
    options = {name.replace("_", "-"): value for name, value in options.items()}
    where = None if in_cluster else kubeconfig or plane.kubeconfig
    made = context(where, namespace, cluster=cluster, pools=pools, options=options)
    provider = KubernetesProvider(made, patience)
    try:
        yield provider
    finally:
        await provider.close()


def units(observation: Observation, *phases: Phase) -> dict[str, ObservedUnit]:
    """The units in these phases, or all but those that are leaving."""
    if phases:
        return {unit.name: unit for unit in observation.units if unit.phase in phases}
    return {unit.name: unit for unit in observation.units if unit.phase is not Phase.STOPPING}


async def calm(provider: KubernetesProvider) -> None:
    """Wait until nothing is being deleted."""

    async def none() -> bool:
        return not units(await provider.observe(), Phase.STOPPING)

    await until(none, "nothing is being deleted")


async def shows(provider: KubernetesProvider, count: int) -> list[str]:
    """Wait until the provider shows so many running units, all of them ready, and none without a name."""

    namespace, cluster = provider._api.namespace, provider._context.cluster

    async def enough() -> bool:
        observation = await provider.observe()
        # A kubelet would do so after its node had been silent for a while; kwok's forget their pods.
        for name, pod in provider._known().items():
            made = _made[namespace, cluster, pod.unit.pool]
            if pod.active and pod.rank is Rank.UNREADY and name not in made.unready:
                with suppress(ApiError):
                    made.set_ready([name], True)
        ready = [pod for pod in provider._known().values() if pod.active and pod.ready]
        return (
            len(units(observation, Phase.STARTING)) == len(ready) == count
            and not observation.requested
            and len(units(observation)) == count
        )

    def detail() -> str:
        return str([(name, pod.unit.phase.value, pod.ready) for name, pod in provider._known().items()][:40])

    await until(enough, f"the provider shows {count} running units", detail=detail)
    return sorted(units(await provider.observe(), Phase.STARTING))


async def let_go(provider: KubernetesProvider, pool: PoolSet, victims: Sequence[str]) -> Collection[str]:
    """Ask until it has been done, as the controller does; a node that was silent is well again meanwhile."""
    while True:
        try:
            return await provider.scale_down(victims)
        except Unavailable:
            pool.set_ready(sorted(set(pool.pods()) - pool.unready), True)
