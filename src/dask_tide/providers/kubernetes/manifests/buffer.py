"""Warm capacity: placeholders, which workers push out and which then wait for another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .golang import compact, digest
from .pods import make_placeholder_spec, make_sizer_spec
from .release import Manifest, Release

__all__ = ["make_buffer"]

_COMPONENT = "buffer"
#: A time that was missed, since the control plane was away, still counts for so long.
_LATE_S = 3600
_TRIES = 4
_LONGEST_S = 600


def make_buffer(release: Release) -> list[Manifest]:
    """All objects of the buffers: priority, placeholders, and what changes their number by the clock."""
    buffers = release.buffers
    if not buffers:
        return []
    made = [] if release.values["buffer"].get("priorityClassName") else [_make_priority(release)]
    made += [_make_placeholders(release, pool) for pool in buffers]
    if timed := [pool for pool, values in buffers.items() if values.get("schedule")]:
        made += _make_rights(release, timed)
        made += [
            _make_cron_job(release, pool, entry) for pool in timed for entry in buffers[pool]["schedule"]
        ]
    return made


def _deployment(release: Release, pool: str) -> str:
    return f"{release.name}-{pool}-buffer"


def _make_priority(release: Release) -> Manifest:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": release.metadata(release.placeholder_class, _COMPONENT, namespaced=False),
        "value": release.values["buffer"]["priority"],
        "preemptionPolicy": "Never",
        "description": "Placeholders of dask-tide: room for workers that are yet to come",
    }


def _make_placeholders(release: Release, pool: str) -> Manifest:
    values, labels = release.buffers[pool], release.labels(_COMPONENT, pool)
    replicas: int | None = release.replicas if values.get("schedule") else values["units"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": release.metadata(_deployment(release, pool), _COMPONENT, pool=pool),
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            # None too many during an update, and `helm --wait` waits for none: they may be pending for long.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": make_placeholder_spec(release, pool)},
        },
    }


def _make_rights(release: Release, pools: list[str]) -> list[Manifest]:
    """The right to scale these placeholders, and nothing else."""
    name = f"{release.name}-buffer"
    metadata = release.metadata(name, _COMPONENT)
    rbac = "rbac.authorization.k8s.io"
    rule = {
        "apiGroups": ["apps"],
        "resources": ["deployments/scale"],
        "resourceNames": [_deployment(release, pool) for pool in pools],
        "verbs": ["patch"],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            "automountServiceAccountToken": False,
        },
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": release.namespace}],
        },
    ]


def _make_cron_job(release: Release, pool: str, entry: Mapping[str, Any]) -> Manifest:
    zone = entry.get("timeZone") or "Etc/UTC"
    # A CronJob's name has 52 characters at the most, too few for the pool's.
    name = f"{release.name}-buffer-{digest(compact([pool, entry['at'], zone]))[:8]}"
    spec = make_sizer_spec(release, _deployment(release, pool), entry["units"])
    job = {
        "backoffLimit": _TRIES,
        "activeDeadlineSeconds": _LONGEST_S,
        "template": {"metadata": {"labels": release.labels("buffer-schedule", pool)}, "spec": spec},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": release.metadata(name, _COMPONENT, pool=pool),
        "spec": {
            "schedule": entry["at"],
            "timeZone": zone,
            "startingDeadlineSeconds": _LATE_S,
            "concurrencyPolicy": "Replace",
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": {"spec": job},
        },
    }
