"""Whether a scheduler's pod comes up, and if not, why: in the platform's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dask_tide.errors import (
    CapacityExhausted,
    LaunchRejected,
    ProviderError,
    QuotaExceeded,
    Unauthorized,
    Unavailable,
)

from .manifests import Manifest
from .resources import Resources

__all__ = ["Trouble", "find_trouble", "newest"]

#: What passes by itself in a moment is no trouble.
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing", "")
#: Waiting will not help.
_HOPELESS = ("InvalidImageName", "ErrImageNeverPull", "CrashLoopBackOff")
_LOG_LINES, _SHOWN_LINES = 100, 10
#: The last line of a traceback, or of what click has to say.
_RAISED = re.compile(r"([\w.]*(Error|Exception)): ")
#: A container's end is known a moment before the end of its log.
_FLUSH_S = 1.0
#: What kubelet says instead of a log, with status 200.
_NO_LOG = "unable to retrieve container logs"


@dataclass(frozen=True)
class Trouble:
    """What keeps a scheduler from coming up.

    Attributes
    ----------
    words
        The platform's own.
    patience_s
        Give up when it has been so for this long; None: only at the end of the time limit.
    """

    words: str
    patience_s: float | None

    @property
    def kind(self) -> str:
        """The same for what is the same trouble, though its words change."""
        reason = self.words.partition(":")[0]
        return "ErrImagePull" if reason == "ImagePullBackOff" else reason

    def error(self, message: str) -> ProviderError:
        """Make an error of it."""
        if self.kind == "Forbidden":
            return Unauthorized(message)
        if self.kind == "Unreachable":
            return Unavailable(message)
        if "exceeded quota" in self.words:
            return QuotaExceeded(message)
        if "Unschedulable" in self.words:
            return CapacityExhausted(message)
        return LaunchRejected(message) if self.words else Unavailable(message)


def newest(pods: list[Manifest]) -> Manifest | None:
    """The pod that counts: the last one that was made and is not about to go."""
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return max(staying, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


async def find_trouble(resources: Resources, job: str, pod: Manifest | None, patience_s: float) -> Trouble:
    """What keeps the pod of a Job from running, as far as the platform says.

    Parameters
    ----------
    resources
        The namespace.
    job
        The Job's name.
    pod
        Its pod, None if there is none.
    patience_s
        For how long a trouble that may pass is borne.
    """
    if pod is None:
        return await _find_trouble_of_job(resources, job, patience_s)
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _ON_ITS_WAY and not _has_failed(container):
            continue
        if reason == "CrashLoopBackOff" or _has_failed(container):
            return Trouble(await _crash(resources, name, container), _FLUSH_S)
        if reason:
            hopeless = reason in _HOPELESS
            return Trouble(f"{reason}: {waiting.get('message', '')}", 0.0 if hopeless else patience_s)
    if status.get("phase") == "Failed":
        words = f"{status.get('reason', 'the pod has failed')}: {status.get('message', '')}"
        return Trouble(words, patience_s)
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            # A node may be on its way.
            return Trouble(f"{condition.get('reason', '')}: {condition.get('message', '')}", None)
    return Trouble(await _events(resources, name, "Pod"), None)


async def _find_trouble_of_job(resources: Resources, job: str, patience_s: float) -> Trouble:
    metadata = {"name": job, "namespace": resources.namespace}
    with suppress(Unauthorized):
        if await resources.get({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}) is None:
            return Trouble(f"Job {job} was deleted", 0.0)
    words = await _events(resources, job, "Job")
    return Trouble(words, patience_s if words else None)


def _has_failed(container: Mapping[str, Any]) -> bool:
    ends = (container.get(state, {}).get("terminated") for state in ("state", "lastState"))
    return any(end and end.get("exitCode") for end in ends)


async def _crash(resources: Resources, pod: str, container: Mapping[str, Any]) -> str:
    state, before = container.get("state", {}), container.get("lastState", {})
    ended = state.get("terminated") or before.get("terminated") or {}
    log = ""
    with suppress(ProviderError):
        log = await resources.log(pod, lines=_LOG_LINES, previous="terminated" not in state)
    said = "nothing is known of it" if not log or log.startswith(_NO_LOG) else _telling(log)
    return f"{ended.get('reason', 'Error')}, exit code {ended.get('exitCode')}. The end of its log:\n{said}"


def _telling(log: str) -> str:
    """The errors in the end of a log, or if there are none the last lines."""
    lines = log.splitlines()
    errors = [line for line in lines if " - ERROR - " in line or _RAISED.match(line)]
    return "\n".join((errors or lines)[-_SHOWN_LINES:])


async def _events(resources: Resources, name: str, kind: str) -> str:
    """The last warning about an object; none where the user may not read events."""
    fields = f"involvedObject.name={name},involvedObject.kind={kind},type=Warning"
    try:
        events = await resources.list("v1", "Event", fields=fields)
    except (Unauthorized, Unavailable):
        return ""
    if not events:
        return ""
    last = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return f"{last.get('reason', '')}: {last.get('message', '')}"
