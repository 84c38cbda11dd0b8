"""What a cluster consists of: made with its user's rights, and taken away again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from functools import partial

from dask_tide.errors import LaunchRejected, ProviderError, Unauthorized, Unavailable

from .ephemeral import EPHEMERAL, JOB, Ephemeral
from .manifests import Manifest
from .resources import Resources

__all__ = ["Belongings", "may_make_policies"]

logger = logging.getLogger("distributed.tide.kubernetes")

_LOOK_S = 0.25
#: Nobody waits for what pods of a closed cluster still do.
_GRACE_S = 2
_GONE_S = 60.0
_ATTEMPTS = 4
_ADMISSION = "admissionregistration.k8s.io"
_POLICIES = ("validatingadmissionpolicies", "validatingadmissionpolicybindings")


async def may_make_policies(resources: Resources) -> bool:
    """Whether the user may make admission policies, and take them away again."""
    rights = [(verb, resource) for verb in ("create", "get", "delete") for resource in _POLICIES]
    first, *others = (partial(resources.may, verb, _ADMISSION, resource) for verb, resource in rights)
    try:
        # One by itself: it may be the first request, and what it fails of all would fail of.
        return await first() and all(await asyncio.gather(*(may() for may in others)))
    except (Unauthorized, LaunchRejected):
        return False


class Belongings:
    """All objects of one cluster.

    Parameters
    ----------
    resources
        The namespace.
    selector
        Of the labels that all objects of the cluster have.
    called
        The cluster, in messages.
    """

    def __init__(self, resources: Resources, selector: str, called: str) -> None:
        self._resources = resources
        self._selector = selector
        self._called = called
        self._job: Manifest | None = None
        self._made: list[Manifest] = []
        self._beyond: list[Manifest] = []
        #: Until then no pod of ours runs; those with our labels would be another cluster's of that name.
        self._begun = False

    # -- making -----------------------------------------------------------------------------------

    async def make(self, objects: Ephemeral) -> None:
        """Make everything. If that fails half-way, :meth:`delete` removes what was made."""
        await self._sweep(objects.beyond)
        job = self._job = await self._make_job(objects.job)
        namespace: Manifest | None = None
        if objects.beyond:
            with suppress(Unauthorized):
                about = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._namespace}}
                namespace = await self._resources.get(about)
        self._beyond = objects.beyond_of(job, namespace)
        owned = objects.owned_by(job)
        # Whoever may grant only the rights that they have: their bindings are compared with roles that exist.
        for binds in (False, True):
            beyond = [self._resources.create(one) for one in self._beyond if _binds(one) is binds]
            await _all([*beyond, *(self._create(one) for one in owned if _binds(one) is binds)])
        self._begun = True
        await self._change_job(Ephemeral.START)

    async def stay(self) -> None:
        """Take the deadline away by which everything would be deleted."""
        await self._change_job(Ephemeral.STAY)

    async def _make_job(self, job: Manifest) -> Manifest:
        # If the wait for the answer is cut off, nobody would know what was made.
        creating = asyncio.ensure_future(self._resources.create(job))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            with suppress(ProviderError):
                self._job = await creating
            raise

    async def _change_job(self, change: Manifest) -> None:
        assert self._job is not None
        if await self._resources.patch(self._job, change) is None:
            raise LaunchRejected(f"{self._called} was deleted while it started")

    async def _create(self, manifest: Manifest) -> Manifest:
        self._made.append(await self._resources.create(manifest))
        return self._made[-1]

    @property
    def _namespace(self) -> str:
        return self._resources.namespace

    # -- those of clusters that nobody has closed -------------------------------------------------

    async def _sweep(self, alike: Iterable[Manifest]) -> None:
        """Delete those of these kinds whose cluster, one of this namespace, is no more."""
        labels = ",".join(f"{key}={value}" for key, value in EPHEMERAL.items())
        kinds = {(one["apiVersion"], one["kind"]): _binds(one) for one in alike}
        for version, kind in sorted(kinds, key=lambda kind: not kinds[kind]):
            with suppress(Unauthorized):
                for found in await self._resources.list(version, kind, labels=labels):
                    if await self._is_orphan(found):
                        # In a list objects do not say what they are.
                        await self._resources.delete({"apiVersion": version, "kind": kind, **found})

    async def _is_orphan(self, found: Manifest) -> bool:
        mark = found["metadata"].get("annotations", {}).get(JOB, "")
        namespace, _, owner = mark.partition("/")
        name, _, uid = owner.partition("/")
        if namespace != self._namespace:
            return False
        about = {"name": name, "namespace": namespace, "uid": uid}
        return not await self._is_there({"apiVersion": "batch/v1", "kind": "Job", "metadata": about})

    # -- ending -----------------------------------------------------------------------------------

    async def ended(self) -> bool:
        """Whether what was made is gone, though nobody has called :meth:`delete`."""
        return self._job is not None and not await self._is_there(self._job)

    async def delete(self) -> None:
        """Delete everything, and wait until it is gone.

        Raises
        ------
        ProviderError
            It could not be deleted: all that matters is still there.
        """
        job, self._job = self._job, None
        if job is None:
            return
        # Pools would replace pods that are deleted. And while the scheduler still runs it must have no right
        # that policies narrow down, so they are the last to go; nobody else would delete them.
        first = [made for made in self._made if made["kind"] in ("ReplicaSet", "RoleBinding")]
        await _all([self._insist(one) for one in [*first, job]])
        try:
            await _all([self._delete_beyond(one) for one in self._beyond])
        except ProviderError as error:
            names = ", ".join(f"{one['kind']} {one['metadata']['name']}" for one in self._beyond)
            logger.error("%s is deleted, but perhaps not all of %s: %s", self._called, names, error)
        if self._begun:
            with suppress(Unauthorized, Unavailable):
                await self._resources.delete_pods(self._selector, _GRACE_S)
        left = [job, *self._made]
        end_s = time.monotonic() + _GONE_S
        while time.monotonic() < end_s:
            with suppress(Unavailable):
                left = [one for one in left if await self._is_there(one)]
                if not left and not await self._pods():
                    return
            await asyncio.sleep(_LOOK_S)
        kinds = ", ".join(f"{one['kind']} {one['metadata']['name']}" for one in left) or "pods"
        logger.warning("%s is deleted, but %s is still there: Kubernetes collects it", self._called, kinds)

    async def _pods(self) -> list[Manifest]:
        return await self._resources.list("v1", "Pod", labels=self._selector) if self._begun else []

    async def _delete_beyond(self, manifest: Manifest) -> None:
        """Only if it is ours: somebody else's object of this name may have been in the way."""
        found = await self._resources.get(manifest)
        marks = [one["metadata"].get("annotations", {}).get(JOB) for one in (found, manifest) if one]
        if found and marks[0] == marks[1]:
            await self._insist(found)

    async def _insist(self, manifest: Manifest) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._resources.delete(manifest)
            except Unavailable as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(error.retry_after_s)
        return None

    async def _is_there(self, manifest: Manifest) -> bool:
        found = await self._resources.get(manifest)
        return found is not None and found["metadata"]["uid"] == manifest["metadata"]["uid"]


def _binds(manifest: Manifest) -> bool:
    return bool(manifest["kind"].endswith("Binding"))


async def _all(requests: Iterable[Awaitable[object]]) -> None:
    """Wait for all of them, and only then raise what one of them has raised."""
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
