"""Objects of any kind in one namespace and beyond it, as manifests: made, read, changed, deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx2
from lightkube import ApiError
from lightkube.core.generic_client import GenericClient

from .api import FIELD_MANAGER, Api, translated
from .manifests import Manifest

__all__ = ["Resources"]

_NOT_FOUND, _CONFLICT = 404, 409


class Resources:
    """Objects that this program makes for a user, with the user's rights.

    Parameters
    ----------
    api
        The connection to the API server; errors are those that it raises.
    """

    def __init__(self, api: Api) -> None:
        self.namespace = api.namespace
        #: For what is no request for an object, such as a WebSocket.
        self.http: httpx2.AsyncClient = api._client._client._client

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; raises LaunchRejected if there is one of this name."""
        made = await self._send("POST", collection(manifest, self.namespace), _called(manifest), manifest)
        assert made is not None
        return made

    async def get(self, manifest: Manifest) -> Manifest | None:
        """The object of the same kind and name, None if there is none."""
        return await self._send("GET", self._path(manifest), _called(manifest))

    async def patch(self, manifest: Manifest, change: Mapping[str, Any]) -> Manifest | None:
        """Merge a change into the object of the same kind and name, None if there is none."""
        return await self._send("PATCH", self._path(manifest), _called(manifest), change)

    async def delete(self, manifest: Manifest) -> None:
        """Delete this very object, if it has a ``uid``, else the one of its name; what it owns, later."""
        options: Manifest = {"propagationPolicy": "Background"}
        if uid := manifest["metadata"].get("uid"):
            options["preconditions"] = {"uid": uid}
        await self._send("DELETE", self._path(manifest), _called(manifest), options)

    async def delete_pods(self, selector: str, grace_s: int) -> None:
        """Delete the pods with these labels, with less than their own grace period."""
        path = f"api/v1/namespaces/{self.namespace}/pods"
        options = {"gracePeriodSeconds": grace_s}
        await self._send("DELETE", path, f"pods {selector}", options, {"labelSelector": selector})

    async def list(self, version: str, kind: str, *, labels: str = "", fields: str = "") -> list[Manifest]:
        """All objects of a kind: in the namespace, or everywhere for a kind that has none."""
        about = {"apiVersion": version, "kind": kind, "metadata": {}}
        if kind in _NAMESPACED_READS:
            about["metadata"] = {"namespace": self.namespace}
        params = {"labelSelector": labels, "fieldSelector": fields}
        found = await self._send(
            "GET",
            collection(about, self.namespace),
            f"{kind}s",
            params={k: v for k, v in params.items() if v},
        )
        return [] if found is None else found["items"]

    async def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether the user may do this with objects that are in no namespace."""
        attributes = {"verb": verb, "group": group, "resource": resource}
        review = await self._send(
            "POST",
            "apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "one's own rights",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        return bool(review and review["status"].get("allowed"))

    async def log(self, pod: str, *, lines: int, previous: bool = False) -> str:
        """The end of a pod's log, or of that of the container before; empty if there is none."""
        path = f"api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        params = {"tailLines": str(lines), "previous": str(previous).lower()}
        with translated(f"reading the log of pod {pod}"):
            response = await self.http.get(path, params=params)
        return response.text.strip() if response.is_success else ""

    def _path(self, manifest: Manifest) -> str:
        return f"{collection(manifest, self.namespace)}/{manifest['metadata']['name']}"

    async def _send(
        self,
        method: str,
        path: str,
        what: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Manifest | None:
        writes = {"fieldManager": FIELD_MANAGER} if method in ("POST", "PATCH") else {}
        merges = "application/merge-patch+json" if method == "PATCH" else "application/json"
        with translated(f"{_VERBS[method]} {what}"):
            response = await self.http.request(
                method,
                path,
                params={**(params or {}), **writes},
                content=None if body is None else json.dumps(body),
                headers={"Content-Type": merges} if body is not None else None,
            )
            try:
                GenericClient.raise_for_status(response)  # type: ignore[no-untyped-call]
            except ApiError as error:
                # A conflict in deleting: another object has that name now.
                gone = (_NOT_FOUND, _CONFLICT) if method == "DELETE" else (_NOT_FOUND,)
                if method != "POST" and error.status.code in gone:
                    return None
                raise
            content: Manifest = response.json()
        return content


_VERBS = {"POST": "creating", "GET": "reading", "PATCH": "changing", "DELETE": "deleting"}
_NAMESPACED_READS = ("Pod", "Event", "Job")


def collection(manifest: Manifest, namespace: str) -> str:
    """Path of the collection that an object is in."""
    group, slash, _ = manifest["apiVersion"].partition("/")
    base = f"apis/{manifest['apiVersion']}" if slash else f"api/{group}"
    kind = manifest["kind"].lower()
    plural = re.sub("y$", "ie", kind) if kind.endswith("y") else re.sub("(s|x|ch)$", r"\1e", kind)
    within = f"/namespaces/{namespace}" if "namespace" in manifest["metadata"] else ""
    return f"{base}{within}/{plural}s"


def _called(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"
