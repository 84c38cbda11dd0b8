"""Specs of pods: scheduler, worker, notebook server, buffers'. All pass Pod Security's level "restricted"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .golang import compact
from .placement import NO_SPREADING, off_spot, packed
from .release import Manifest, Release

__all__ = [
    "READINESS_PORT",
    "make_mesh_ports",
    "make_notebook_spec",
    "make_placeholder_spec",
    "make_scheduler_spec",
    "make_sizer_spec",
    "make_worker_spec",
]

#: Where a worker's nanny listens while the worker takes part.
READINESS_PORT = 8790
#: Where a worker and its nanny listen in a service mesh, which has to know; else Dask picks ports.
_MESH_PORTS = {"worker": 8788, "nanny": 8789}

_TLS_FOLDER = "/etc/dask-tide-tls"
_POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def make_scheduler_spec(release: Release) -> Manifest:
    """Spec of the scheduler's pod."""
    values = release.values["scheduler"]
    prefix = release.dashboard_prefix
    container: Manifest = {
        "args": [
            *("dask", "scheduler"),
            *("--protocol", release.protocol),
            *("--host", "0.0.0.0"),
            *("--port", "8786"),
            *("--dashboard-address", ":8787"),
            *(("--dashboard-prefix", prefix) if prefix else ()),
            *("--preload", "dask_tide.preload"),
            *(values.get("extraArgs") or ()),
        ],
        "env": [
            {"name": "DASK_CONFIG", "value": "/etc/dask-tide"},
            *_environment(release),
        ],
        "ports": [_port(release.comm_port, 8786), _port("http-dashboard", 8787)],
        # Bare, so that a busy event loop does not fail it; not on 8786: each would be a failed handshake.
        "readinessProbe": {"tcpSocket": {"port": "http-dashboard"}, "periodSeconds": 2},
    }
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "config", "mountPath": "/etc/dask-tide", "readOnly": True},
    ]
    volumes: list[Manifest] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "config", "configMap": {"name": f"{release.name}-config"}},
    ]
    spec = _make_spec(release, "scheduler", _placed(values), container, mounts, volumes)
    spec["automountServiceAccountToken"] = True
    spec["terminationGracePeriodSeconds"] = values["terminationGracePeriodSeconds"]
    return spec


def make_worker_spec(release: Release, pool: Mapping[str, Any]) -> Manifest:
    """Spec of a worker's pod.

    Parameters
    ----------
    release
        The cluster.
    pool
        The pool's values, with defaults.
    """
    grace_s = int(pool["terminationGracePeriodSeconds"])
    dask_resources = pool["daskResources"]
    amounts = " ".join(f"{name}={compact(dask_resources[name])}" for name in sorted(dask_resources))
    container: Manifest = {
        "args": [
            *("dask", "worker", release.address),
            *("--name", "$(POD_NAME)"),
            *("--nthreads", str(pool["threads"])),
            *("--memory-limit", pool["memory"]),
            *(("--resources", amounts) if amounts else ()),
            *("--local-directory", "/tmp"),
            "--no-dashboard",
            *_listen_where_a_mesh_knows(release),
            *("--preload-nanny", "dask_tide.preload"),
            *("--death-timeout", "60"),
            *pool["extraArgs"],
        ],
        "env": [
            {
                "name": "POD_NAME",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
            },
            {"name": "DASK_TIDE__READINESS__PORT", "value": str(READINESS_PORT)},
            # Leaves a quarter of the grace period for closing.
            {"name": "DASK_TIDE__DEPARTURE__TIMEOUT", "value": f"{grace_s * 3 // 4}s"},
            *_interruption(release),
            *_environment(release),
        ],
        "ports": [
            _port("readiness", READINESS_PORT),
            *(_port(name, number) for name, number in make_mesh_ports(release).items()),
        ],
        # No liveness probe: a task in C that keeps the interpreter's lock would fail it.
        "readinessProbe": {"tcpSocket": {"port": "readiness"}, "periodSeconds": 1, "failureThreshold": 1},
    }
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes = [_volume("tmp", pool["scratch"])]
    values = {**pool, "resources": _worker_resources(pool)}
    constraints = pool["topologySpreadConstraints"]
    if pool["packing"]:
        values["affinity"] = packed(pool["affinity"], release.labels("worker"))
        constraints = constraints or NO_SPREADING
    spec = _make_spec(release, "worker", values, container, mounts, volumes)
    spec["terminationGracePeriodSeconds"] = grace_s
    if pool.get("runtimeClassName"):
        spec["runtimeClassName"] = pool["runtimeClassName"]
    if constraints:
        spec["topologySpreadConstraints"] = constraints
    return spec


def make_mesh_ports(release: Release) -> dict[str, int]:
    """Ports of a worker's pod by the names from which meshes read the protocol; none without a mesh."""
    if not release.values["serviceMesh"]["enabled"]:
        return {}
    return {f"{release.protocol}-{name}": number for name, number in _MESH_PORTS.items()}


def _listen_where_a_mesh_knows(release: Release) -> list[str]:
    if not release.values["serviceMesh"]["enabled"]:
        return []
    return [part for name, number in _MESH_PORTS.items() for part in (f"--{name}-port", str(number))]


def make_placeholder_spec(release: Release, name: str) -> Manifest:
    """Spec of a placeholder's pod: it has the room of a pool's unit, where that may run, and does nothing."""
    pool, values = release.pools[name], release.values["buffer"]
    own = release.buffers[name].get("resources")
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # It ends at once. With 0, kube-scheduler may miss that and leave the worker waiting for 5 minutes
        # (kubernetes/kubernetes#141694).
        "terminationGracePeriodSeconds": 1,
        "priorityClassName": values.get("priorityClassName") or release.placeholder_class,
        "securityContext": _POD_SECURITY,
        "containers": [
            {
                "name": "placeholder",
                "image": values["image"],
                "imagePullPolicy": release.values["image"]["pullPolicy"],
                "resources": _worker_resources(pool) if own is None else own,
                "securityContext": _CONTAINER_SECURITY,
            }
        ],
    }
    for key in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName"):
        if pool.get(key):
            spec[key] = pool[key]
    if pull_secrets := pool.get("imagePullSecrets", release.values["image"].get("pullSecrets")):
        spec["imagePullSecrets"] = pull_secrets
    return spec


def make_sizer_spec(release: Release, deployment: str, units: int) -> Manifest:
    """Spec of the pod that gives a buffer another size; it runs where the scheduler does."""
    container: Manifest = {
        "args": [
            *("python", "-m", "dask_tide.providers.kubernetes.buffer"),
            *("--namespace", release.namespace),
            *("--deployment", deployment),
            *("--units", str(units)),
        ],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "name": "schedule",
        "image": release.image,
        "imagePullPolicy": release.values["image"]["pullPolicy"],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec: Manifest = {
        "serviceAccountName": f"{release.name}-buffer",
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    for key in ("nodeSelector", "tolerations"):
        if release.values["scheduler"].get(key):
            spec[key] = release.values["scheduler"][key]
    if pull_secrets := release.values["image"].get("pullSecrets"):
        spec["imagePullSecrets"] = pull_secrets
    return spec


def make_notebook_spec(release: Release) -> Manifest:
    """Spec of the notebook server's pod."""
    values = release.values["notebook"]
    secret = values.get("existingSecret") or f"{release.name}-notebook"
    token = {"name": "JUPYTER_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "token"}}}
    container: Manifest = {
        "args": values["args"],
        "workingDir": "/work",
        "env": [
            {"name": "DASK_SCHEDULER_ADDRESS", "value": release.address},
            token,
            *_environment(release),
        ],
        "ports": [_port("http-notebook", 8888)],
        "readinessProbe": {"tcpSocket": {"port": "http-notebook"}, "periodSeconds": 2},
    }
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "work", "mountPath": "/work"}]
    volumes = [{"name": "tmp", "emptyDir": {}}, _volume("work", values["work"])]
    return _make_spec(release, "notebook", _placed(values), container, mounts, volumes)


def _volume(name: str, source: Mapping[str, Any]) -> Manifest:
    """A volume; of another kind than the default, that one stands beside it, as Helm has it."""
    if len(source) > 1:
        source = {kind: each for kind, each in source.items() if kind != "emptyDir"}
    return {"name": name, **source}


def _make_spec(
    release: Release,
    component: str,
    values: Mapping[str, Any],
    container: Manifest,
    mounts: list[Manifest],
    volumes: list[Manifest],
) -> Manifest:
    """Add to a component's parts what all have alike, and what its values say."""
    image = release.values["image"]
    tls = release.tls["enabled"]
    tls_mount = {"name": "tls", "mountPath": _TLS_FOLDER, "readOnly": True}
    theirs = values.get("env") or []
    said = {one.get("name") for one in theirs}
    container |= {
        "name": component,
        "image": values.get("image") or release.image,
        "imagePullPolicy": image["pullPolicy"],
        # A name that is there twice no patch can change.
        "env": [*(one for one in container["env"] if one["name"] not in said), *theirs],
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [*mounts, *([tls_mount] if tls else ()), *(values.get("volumeMounts") or ())],
    }
    for key in ("envFrom", "resources"):
        if values.get(key):
            container[key] = values[key]
    spec: Manifest = {
        "serviceAccountName": f"{release.name}-{component}",
        "automountServiceAccountToken": False,
        # Kubernetes' variables of a Service called dask-… would be taken for Dask's configuration.
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [*volumes, *([_tls_volume(release)] if tls else ()), *(values.get("volumes") or ())],
    }
    for key in ("nodeSelector", "tolerations", "affinity"):
        if values.get(key):
            spec[key] = values[key]
    if values.get("priorityClassName"):
        spec["priorityClassName"] = release.priority_class(values["priorityClassName"])
    if pull_secrets := values.get("imagePullSecrets", image.get("pullSecrets")):
        spec["imagePullSecrets"] = pull_secrets
    return spec


def _tls_volume(release: Release) -> Manifest:
    secret: Manifest = {"secretName": release.tls_secret, "defaultMode": 0o440}
    if release.tls["source"] == "secret":
        # Somebody's own may hold more, such as the authority's key.
        secret["items"] = [{"key": key, "path": key} for key in ("ca.crt", "tls.crt", "tls.key")]
    return {"name": "tls", "secret": secret}


def _placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of what must not be taken away at short notice, unless they say that it may."""
    return {**values} if values.get("spot") else {**values, "affinity": off_spot(values.get("affinity"))}


def _interruption(release: Release) -> list[Manifest]:
    """How workers ask their machine for a notice, where `tide.interruption` says so."""
    said = (release.values.get("tide") or {}).get("interruption") or {}
    return [
        {
            "name": f"DASK_TIDE__INTERRUPTION__{key.upper()}",
            "value": value if isinstance(value, str) else compact(value),
        }
        for key, value in sorted(said.items())
        if value is not None
    ]


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _environment(release: Release) -> list[Manifest]:
    """Environment of all containers."""
    variables = {"HOME": "/tmp"}
    if release.tls["enabled"]:
        tls = "DASK_DISTRIBUTED__COMM__TLS__"
        variables["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "true"
        variables[f"{tls}CA_FILE"] = f"{_TLS_FOLDER}/ca.crt"
        for role in ("SCHEDULER", "WORKER", "CLIENT"):
            variables[f"{tls}{role}__CERT"] = f"{_TLS_FOLDER}/tls.crt"
            variables[f"{tls}{role}__KEY"] = f"{_TLS_FOLDER}/tls.key"
        # Dask reads certificates at its start: new ones make a new pod.
        variables["TLS_CHECKSUM"] = release.tls_checksum
    return [{"name": name, "value": value} for name, value in variables.items()]


def _worker_resources(pool: Mapping[str, Any]) -> Manifest:
    """The pool's own resources on top of what threads and memory say; null takes one away."""
    resources: Manifest = dict(pool["resources"])
    memory = {"memory": pool["memory"]}
    for kind, amounts in (("requests", {"cpu": str(pool["threads"]), **memory}), ("limits", memory)):
        both = amounts | (resources.get(kind) or {})
        resources[kind] = {name: amount for name, amount in both.items() if amount is not None}
    return resources
