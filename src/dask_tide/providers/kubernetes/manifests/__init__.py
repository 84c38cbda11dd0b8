"""The objects of a cluster on Kubernetes: the same as those of the Helm chart, from the same values.

``charts/dask-tide`` writes them as templates, this package as pure ``make_*`` functions; both read
the chart's ``values.yaml`` and ``values.schema.json``. :func:`manifests` makes all of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from dask_tide.config import read_section
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.options import Options

from . import access, limits, values, workloads
from .buffer import make_buffer
from .certificates import Certificates, make_certificates
from .golang import plain
from .release import Manifest, Release

__all__ = [
    "Certificates",
    "Manifest",
    "Release",
    "make_all",
    "make_certificates",
    "make_release",
    "manifests",
]


def manifests(
    name: str,
    namespace: str,
    values: Mapping[str, Any] | None = None,
    *,
    tls: Certificates | None = None,
    token: str | None = None,
    replicas: int | None = None,
) -> list[Manifest]:
    """Make all objects of a cluster, in an order in which they can be created.

    Parameters
    ----------
    name
        The cluster's name: Helm's release.
    namespace
        Where it shall be. The namespace itself is not among the objects.
    values
        The chart's values, as in a file for ``helm install --values``.
    tls
        Certificates that exist, where ``security.tls.source`` is ``generated``; None: new ones.
    token
        The notebook server's; None: ``notebook.token``, or a random one.
    replicas
        What the pools' ReplicaSets start with. None leaves it out, so that applying the objects again
        does not undo what the scheduler has scaled; then Kubernetes starts one worker per pool.

    Raises
    ------
    ConfigError
        The name or a value is wrong.

    Examples
    --------
    >>> values = {"image": {"repository": "registry.example/dask-tide"}, "pools": {"cpu": {"maximum": 40}}}
    >>> made = manifests("dask", "science", values)
    >>> [one["metadata"]["name"] for one in made if one["kind"] == "ReplicaSet"]
    ['dask-cpu']
    """
    release = make_release(name, namespace, values, tls=tls, token=token, replicas=replicas)
    if said := (release.values.get("tide") or {}).get("idle-shutdown"):
        expected = "nothing, since Kubernetes would start the scheduler again"
        raise ConfigError("tide.idle-shutdown", said, expected)
    return make_all(release)


def make_release(
    name: str,
    namespace: str,
    given: Mapping[str, Any] | None = None,
    *,
    tls: Certificates | None = None,
    token: str | None = None,
    replicas: int | None = None,
) -> Release:
    """Check name and values, and make certificates where there are none; as :func:`manifests`."""
    values.check_name(name)
    values.check_namespace(namespace)
    checked = values.read(given)
    if namespace.startswith("system-") and (checked["priorityClasses"] or values.buffers(checked)):
        expected = "one that does not begin with system-, or no priorityClasses and no buffer"
        raise ConfigError("namespace", namespace, expected)
    if not checked["image"].get("repository"):
        # TideCluster has an argument for it.
        expected = "the image that you have built (docs/image.md), as none is published; TideCluster: image=…"
        raise ConfigError("image.repository", None, expected)
    wanted = checked["security"]["tls"]
    if not (wanted["enabled"] and wanted["source"] == "generated"):
        tls = None
    elif tls is None:
        tls = make_certificates(name, namespace, days=wanted["validityDays"])
    token = token or checked["notebook"].get("token") or secrets.token_urlsafe(36)
    release = Release(name, namespace, checked, certificates=tls, token=token, replicas=replicas)
    # What the schema lets pass the scheduler might refuse, when everything has been made.
    Options.read(read_section(workloads.make_section(release)).options)
    return release


def make_all(release: Release) -> list[Manifest]:
    """Make all objects, in an order in which they can be created; no two share a part."""
    made = [*_make_rules(release), *_make_scheduler(release), *_make_notebook(release), *_make_pools(release)]
    made += make_buffer(release)
    return [plain(one) for one in made]


def _make_rules(release: Release) -> list[Manifest]:
    """What must be there before a pod starts."""
    chosen = release.values
    made = [limits.make_priority_class(release, name) for name in sorted(chosen["priorityClasses"])]
    if chosen.get("resourceQuota"):
        made.append(limits.make_quota(release))
    if chosen.get("limitRange"):
        made.append(limits.make_limit_range(release))
    made += [access.make_account(release, component) for component in ("scheduler", "worker")]
    if chosen["admission"]["enabled"]:
        made += access.make_admission(release)
    made += access.make_role(release)
    if chosen["nodes"]["read"]:
        made += access.make_node_role(release)
    if chosen["networkPolicy"]["enabled"]:
        made += access.make_network_policies(release)
    if release.certificates is not None:
        made.append(access.make_tls_secret(release, release.certificates))
    elif release.tls["enabled"] and release.tls["source"] == "cert-manager":
        made += access.make_issued_certificates(release)
    return made


def _make_scheduler(release: Release) -> list[Manifest]:
    chosen = release.values
    made = [
        workloads.make_config(release),
        workloads.make_service(release),
        workloads.make_scheduler(release),
    ]
    if chosen["scheduler"]["service"]["type"] != "ClusterIP":
        made.append(workloads.make_outside_service(release))
    if chosen["scheduler"].get("podDisruptionBudget", {}).get("enabled"):
        made.append(workloads.make_disruption_budget(release))
    if chosen["ingress"].get("enabled"):
        made.append(workloads.make_ingress(release))
    if chosen["serviceMonitor"].get("enabled"):
        made.append(workloads.make_service_monitor(release))
    return made


def _make_notebook(release: Release) -> list[Manifest]:
    chosen = release.values["notebook"]
    if not chosen.get("enabled"):
        return []
    made = [access.make_account(release, "notebook")]
    if not chosen.get("existingSecret"):
        made.append(workloads.make_notebook_secret(release))
    return [*made, workloads.make_notebook_service(release), workloads.make_notebook(release)]


def _make_pools(release: Release) -> list[Manifest]:
    made = [workloads.make_pool(release, name) for name in release.pools]
    if release.values["serviceMesh"]["enabled"]:
        made.append(workloads.make_workers_service(release))
    return made
