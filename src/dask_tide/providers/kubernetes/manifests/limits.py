"""What holds for a whole namespace or cluster: quota, ranges, priorities."""

from __future__ import annotations

from .release import Manifest, Release

__all__ = ["make_limit_range", "make_priority_class", "make_quota"]


def make_quota(release: Release) -> Manifest:
    """ResourceQuota of the namespace."""
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": release.metadata(release.name),
        "spec": release.values["resourceQuota"],
    }


def make_limit_range(release: Release) -> Manifest:
    """LimitRange of the namespace."""
    return {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": release.metadata(release.name),
        "spec": release.values["limitRange"],
    }


def make_priority_class(release: Release, name: str) -> Manifest:
    """PriorityClass by its short name."""
    values = release.values["priorityClasses"][name]
    manifest: Manifest = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": release.metadata(release.cluster_scoped(name), namespaced=False),
        "value": values["value"],
    }
    for key in ("preemptionPolicy", "description"):
        if values.get(key):
            manifest[key] = values[key]
    return manifest
