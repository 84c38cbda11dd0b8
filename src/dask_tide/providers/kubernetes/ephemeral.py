"""Manifests of a cluster that lasts as long as somebody uses it: those of the chart, and one owner of all.

The chart's scheduler is a Deployment and is there until somebody uninstalls it. Here it is a Job with the
same pod, which owns everything else (``docs/decisions/0007-ephemeral-clusters.md``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from .manifests import Manifest

__all__ = ["EPHEMERAL", "JOB", "Ephemeral", "make_ephemeral"]

#: Label of what is in no namespace, and annotation that names the Job it belongs to.
EPHEMERAL, JOB = {"dask-tide/lifetime": "ephemeral"}, "dask-tide/job"
#: A scheduler that crashes more often than that is not started again, and the cluster ends.
_CRASHES = 50
_COMMAND = ["dask", "scheduler"]


@dataclass(frozen=True)
class Ephemeral:
    """Objects of a cluster.

    Attributes
    ----------
    job
        The scheduler and owner of the others. It starts nothing until :attr:`START` is merged into it, and is
        deleted when it has not been told to :attr:`STAY` by its deadline.
    owned
        The others in its namespace, without their owner.
    beyond
        Those in no namespace: nothing in a namespace can own them.
    """

    job: Manifest
    owned: list[Manifest]
    beyond: list[Manifest]

    START: ClassVar[Manifest] = {"spec": {"parallelism": 1}}
    STAY: ClassVar[Manifest] = {"spec": {"activeDeadlineSeconds": None}}

    def owned_by(self, job: Manifest) -> list[Manifest]:
        """Those in the namespace, owned by the Job as it was created."""
        owner = {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        return [_with(manifest, ownerReferences=[owner]) for manifest in self.owned]

    def beyond_of(self, job: Manifest, namespace: Manifest | None) -> list[Manifest]:
        """Those in no namespace: they go with the namespace, if not before, and say whose they are."""
        metadata = job["metadata"]
        mark = {JOB: f"{metadata['namespace']}/{metadata['name']}/{metadata['uid']}"}
        owners = []
        if namespace is not None:
            uid = namespace["metadata"]["uid"]
            owners = [
                {"apiVersion": "v1", "kind": "Namespace", "name": namespace["metadata"]["name"], "uid": uid}
            ]
        return [
            _with(
                manifest,
                annotations={**manifest["metadata"].get("annotations", {}), **mark},
                labels={**manifest["metadata"].get("labels", {}), **EPHEMERAL},
                ownerReferences=owners,
            )
            for manifest in self.beyond
        ]


def make_ephemeral(
    manifests: list[Manifest], *, idle_timeout_s: float | None, deadline_s: float
) -> Ephemeral:
    """Make an ephemeral cluster's objects of those of a lasting one.

    Parameters
    ----------
    manifests
        From :func:`.manifests.manifests`.
    idle_timeout_s
        See :mod:`.lifetime`; None: it ends only when somebody ends it.
    deadline_s
        For whoever creates it to have connected.
    """
    [deployment] = [one for one in manifests if one["kind"] == "Deployment" and _runs_scheduler(one)]
    others = [one for one in manifests if one is not deployment]
    return Ephemeral(
        job=_make_job(deployment, idle_timeout_s, deadline_s),
        owned=[one for one in others if "namespace" in one["metadata"]],
        beyond=[one for one in others if "namespace" not in one["metadata"]],
    )


def _runs_scheduler(deployment: Manifest) -> bool:
    return bool(deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "scheduler")


def _make_job(deployment: Manifest, idle_timeout_s: float | None, deadline_s: float) -> Manifest:
    template = copy.deepcopy(deployment["spec"]["template"])
    template["spec"]["restartPolicy"] = "OnFailure"
    [container] = template["spec"]["containers"]
    command, arguments = container["args"][: len(_COMMAND)], container["args"][len(_COMMAND) :]
    assert command == _COMMAND, command
    program = ["python", "-m", "dask_tide.providers.kubernetes.lifetime"]
    timeout = [] if idle_timeout_s is None else ["--idle-timeout", f"{idle_timeout_s:g}s"]
    container["args"] = [*program, *timeout, *arguments]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _with(deployment, labels=deployment["metadata"]["labels"] | EPHEMERAL)["metadata"],
        "spec": {
            # Not `suspend`: the deadline of a suspended Job does not run.
            "parallelism": 0,
            "completions": 1,
            "activeDeadlineSeconds": max(1, round(deadline_s)),
            "ttlSecondsAfterFinished": 0,
            "backoffLimit": _CRASHES,
            "template": template,
        },
    }


def _with(manifest: Manifest, **metadata: object) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], **metadata}}
