"""What runs: the scheduler, the pools, the notebook server, and how they are reached."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from .golang import compact, digest, pretty
from .placement import is_spot
from .pods import make_mesh_ports, make_notebook_spec, make_scheduler_spec, make_worker_spec
from .release import OWN_LABELS, Manifest, Release

__all__ = [
    "PROTECTED",
    "make_config",
    "make_disruption_budget",
    "make_ingress",
    "make_notebook",
    "make_notebook_secret",
    "make_notebook_service",
    "make_pool",
    "make_scheduler",
    "make_service",
    "make_service_monitor",
    "make_workers_service",
]

_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
#: Annotations of a worker that may not go: newcomers and busy ones.
PROTECTED = {
    "controller.kubernetes.io/pod-deletion-cost": "100",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    _DO_NOT_DISRUPT: "true",
}


def make_config(release: Release) -> Manifest:
    """ConfigMap with the scheduler's Dask configuration."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": release.metadata(f"{release.name}-config", "scheduler"),
        "data": {"tide.json": _config(release) + "\n"},
    }


def make_scheduler(release: Release) -> Manifest:
    """Deployment of the scheduler."""
    values = release.values["scheduler"]
    # The configuration is read at the start only.
    checksum = {"checksum/config": hashlib.sha256(_config(release).encode()).hexdigest()}
    annotations = {**(values.get("podAnnotations") or {}), **checksum}
    return _make_deployment(release, "scheduler", values, annotations, make_scheduler_spec(release))


def make_service(release: Release) -> Manifest:
    """Service by which clients and workers find the scheduler."""
    values = release.values["scheduler"]["service"]
    annotations = values.get("annotations") if values["type"] == "ClusterIP" else None
    ports = {release.comm_port: 8786, "http-dashboard": 8787}
    return _make_service(release, "scheduler", ports, annotations=annotations)


def make_outside_service(release: Release) -> Manifest:
    """The one for clients outside of the cluster. Not the dashboard: it asks nobody who he is."""
    values = release.values["scheduler"]["service"]
    return _make_service(
        release,
        "scheduler",
        {release.comm_port: 8786},
        name="scheduler-outside",
        annotations=values.get("annotations"),
        type=values["type"],
        # With "Cluster" nodes put their own address in place of the client's, which networkPolicy.clients
        # could not let in.
        externalTrafficPolicy="Local",
    )


def make_workers_service(release: Release) -> Manifest:
    """Headless Service of the workers: a mesh learns from it which addresses and ports they have."""
    return _make_service(
        release,
        "worker",
        make_mesh_ports(release),
        name="workers",
        clusterIP="None",
        # One that takes no new work is not ready, and still gives its results away.
        publishNotReadyAddresses=True,
    )


def make_notebook_service(release: Release) -> Manifest:
    """Service of the notebook server."""
    return _make_service(release, "notebook", {"http-notebook": 8888})


def _make_service(
    release: Release,
    component: str,
    ports: Mapping[str, int],
    *,
    name: str = "",
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Manifest:
    """Service of a component's pods, with ports of theirs by name; ``spec`` is what else it says."""
    listed = [
        {"name": port, "port": number, "targetPort": port, "protocol": "TCP"}
        for port, number in ports.items()
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": release.metadata(
            f"{release.name}-{name or component}", component, annotations=annotations
        ),
        "spec": {"type": "ClusterIP", "selector": release.labels(component), "ports": listed, **spec},
    }


def make_ingress(release: Release) -> Manifest:
    """Ingress to the status page."""
    values = release.values["ingress"]
    name = f"{release.name}-scheduler"
    backend = {"service": {"name": name, "port": {"name": "http-dashboard"}}}
    path = {"path": values["path"], "pathType": values["pathType"], "backend": backend}
    rule: Manifest = {"http": {"paths": [path]}}
    if values.get("host"):
        rule["host"] = values["host"]
    spec: Manifest = {"rules": [rule]}
    if values.get("className"):
        spec["ingressClassName"] = values["className"]
    if values.get("tls"):
        spec["tls"] = values["tls"]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": release.metadata(name, "scheduler", annotations=values.get("annotations")),
        "spec": spec,
    }


def make_disruption_budget(release: Release) -> Manifest:
    """PodDisruptionBudget that forbids evictions of the scheduler."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": release.metadata(f"{release.name}-scheduler", "scheduler"),
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": release.labels("scheduler")}},
    }


def make_service_monitor(release: Release) -> Manifest:
    """ServiceMonitor: the Prometheus operator scrapes the scheduler's metrics."""
    values = release.values["serviceMonitor"]
    metadata = release.metadata(f"{release.name}-scheduler", "scheduler")
    metadata["labels"] |= values.get("labels") or {}
    endpoint = {
        "port": "http-dashboard",
        "path": f"{release.dashboard_prefix}/metrics",
        "interval": values["interval"],
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata,
        "spec": {"selector": {"matchLabels": release.labels("scheduler")}, "endpoints": [endpoint]},
    }


def make_pool(release: Release, name: str) -> Manifest:
    """ReplicaSet of a pool.

    Its template has the label ``dask-tide/template``, a digest of the pod's spec, labels and annotations,
    which tells workers of this template from those of an earlier one. It is not in the selector, which cannot
    change. Marks do not count: they are the scheduler's to change on pods that run.
    """
    pool = release.pools[name]
    labels = release.labels("worker", name)
    spec = make_worker_spec(release, pool)
    own = {key: value for key, value in pool["podLabels"].items() if key not in OWN_LABELS}
    unmarked = {key: value for key, value in pool["podAnnotations"].items() if key not in PROTECTED}
    stamp = digest(compact({"labels": own, "annotations": unmarked, "spec": spec}))
    template = {
        "metadata": {
            "labels": {**own, **labels, "dask-tide/template": stamp},
            "annotations": {**_protected(release, pool), **pool["podAnnotations"]},
        },
        "spec": spec,
    }
    replicas = {} if release.replicas is None else {"replicas": release.replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": release.metadata(f"{release.name}-{name}", "worker", pool=name),
        "spec": {**replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def make_notebook(release: Release) -> Manifest:
    """Deployment of the notebook server."""
    values = release.values["notebook"]
    # The server reads its token at the start only. What a Secret of somebody else's holds is not known here.
    checksum = {} if values.get("existingSecret") else {"checksum/token": digest(release.token)}
    annotations = {**(values.get("podAnnotations") or {}), **checksum}
    return _make_deployment(release, "notebook", values, annotations, make_notebook_spec(release))


def make_notebook_secret(release: Release) -> Manifest:
    """Secret with the notebook server's token."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": release.metadata(f"{release.name}-notebook", "notebook"),
        "type": "Opaque",
        "data": {"token": base64.b64encode(release.token.encode()).decode()},
    }


def _make_deployment(
    release: Release,
    component: str,
    values: Mapping[str, Any],
    annotations: Mapping[str, str],
    spec: Manifest,
) -> Manifest:
    labels = release.labels(component)
    own = {key: value for key, value in (values.get("podLabels") or {}).items() if key not in OWN_LABELS[:3]}
    metadata: Manifest = {"labels": {**own, **labels}}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": release.metadata(f"{release.name}-{component}", component),
        "spec": {
            "replicas": 1,
            # Two schedulers at a time would scale the same pools.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": metadata, "spec": spec},
        },
    }


def _protected(release: Release, pool: Mapping[str, Any]) -> dict[str, str]:
    """The annotations that newcomers have."""
    values = release.values
    if is_spot(pool) and not (values["nodes"]["read"] and values["admission"]["enabled"]):
        # Nobody would take it back when the node is about to go, and Karpenter would wait until it is gone.
        return {key: value for key, value in PROTECTED.items() if key != _DO_NOT_DISRUPT}
    return PROTECTED


def make_section(release: Release) -> Manifest:
    """The section ``tide`` of the scheduler's configuration."""
    tide: Manifest = dict(release.values.get("tide") or {})
    tide["options"] = {
        "on-close": "keep",  # the next scheduler, which the Deployment starts, takes over the workers
        **(tide.get("options") or {}),
        "namespace": release.namespace,
        "annotate": release.values["admission"]["enabled"],
        "nodes": release.values["nodes"]["read"],
    }
    tide["provider"] = "kubernetes"
    tide["name"] = release.name
    tide["pools"] = {name: _pool_config(pool) for name, pool in release.pools.items()}
    return tide


def _config(release: Release) -> str:
    # JSON is YAML, and looks the same whoever writes it.
    return pretty({"tide": make_section(release)})


def _pool_config(pool: Mapping[str, Any]) -> Manifest:
    entry: Manifest = {key: pool[key] for key in ("threads", "memory", "minimum", "maximum", "price")}
    entry["resources"] = pool["daskResources"]
    if is_spot(pool):
        entry["spot"] = True
    if pool.get("bootTime"):
        entry["boot-time"] = pool["bootTime"]
    return entry
