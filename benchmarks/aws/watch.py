"""What Kubernetes shows of workers' pods: when each came, got a machine, was evicted, went."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from rig.clients import ApiError
from rig.cloud import Cloud

__all__ = ["Place", "Seen", "Watch"]

#: Between two looks: by so much a moment may be late.
PAUSE_S = 0.2


@dataclass(frozen=True)
class Place:
    """Where one arm's workers' pods are.

    Attributes
    ----------
    namespace
        Their namespace.
    selector
        Their labels.
    node_pool
        Who makes their machines.
    """

    namespace: str
    selector: str
    node_pool: str


@dataclass
class Seen:
    """A worker's pod.

    Attributes
    ----------
    pod, worker
        Its name, and its Dask worker's.
    seen_s
        When it was first seen, in seconds since 1970, as all that follow.
    placed_s
        When it had a node.
    evicted_s, reason
        When somebody had asked to have it evicted or had preempted it, and why.
    told_s
        When it had been told to go.
    gone_s
        When it was no more.
    """

    pod: str
    worker: str
    seen_s: float
    placed_s: float | None = None
    evicted_s: float | None = None
    reason: str = ""
    told_s: float | None = None
    gone_s: float | None = None


class Watch:
    """A thread that looks at pods again and again; ``with Watch(cloud, places) as watch: …``.

    Parameters
    ----------
    cloud
        Where.
    places
        Of each arm, by name.
    """

    def __init__(self, cloud: Cloud, places: Mapping[str, Place]) -> None:
        self._api = cloud.api()
        self._places = places
        self._pods: dict[str, dict[str, Seen]] = {name: {} for name in places}
        self._looked_s = dict.fromkeys(places, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def pods(self, arm: str) -> list[Seen]:
        """All that were ever seen."""
        return list(self._pods[arm].values())

    def none_left(self, arm: str, since_s: float) -> bool:
        """Whether a look that began after ``since_s`` found no pod."""
        return self._looked_s[arm] > since_s and all(seen.gone_s for seen in self.pods(arm))

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            for arm, place in self._places.items():
                began_s = time.time()
                try:
                    self._look(arm, place)
                except (OSError, ApiError):  # a busy API server; the next look will tell
                    continue
                self._looked_s[arm] = began_s

    def _look(self, arm: str, place: Place) -> None:
        path = f"/api/v1/namespaces/{place.namespace}/pods?resourceVersion=0&labelSelector="
        there = self._api("GET", path + quote(place.selector))["items"]
        now_s, pods = time.time(), self._pods[arm]
        for pod in there:
            uid = pod["metadata"]["uid"]
            if uid not in pods:
                pods[uid] = Seen(pod["metadata"]["name"], _worker(pod), now_s)
            _note(pods[uid], pod, now_s)
        uids = {pod["metadata"]["uid"] for pod in there}
        for uid, seen in list(pods.items()):
            if uid not in uids and seen.gone_s is None:
                seen.gone_s = now_s
                seen.told_s = seen.told_s or now_s


def _note(seen: Seen, pod: dict[str, Any], now_s: float) -> None:
    if seen.placed_s is None and pod["spec"].get("nodeName"):
        seen.placed_s = now_s
    if seen.told_s is None and "deletionTimestamp" in pod["metadata"]:
        seen.told_s = now_s
    if seen.evicted_s is None:
        for condition in pod["status"].get("conditions", ()):
            # Kubernetes says so of each eviction and preemption, and of no pod that its owner deletes.
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                seen.evicted_s, seen.reason = now_s, f"{condition.get('reason')}: {condition.get('message')}"


def _worker(pod: dict[str, Any]) -> str:
    """The name of a pod's worker: what dask-kubernetes tells it, else the pod's own."""
    told = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0].get("env", ())}
    return str(told.get("DASK_WORKER_NAME") or pod["metadata"]["name"])
