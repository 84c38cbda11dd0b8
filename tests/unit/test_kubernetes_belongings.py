"""What a cluster consists of: the order in which it is made and taken away, and what others have left."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from dask_tide.errors import LaunchRejected, Unauthorized, Unavailable
from dask_tide.providers.kubernetes.belongings import Belongings, may_make_policies
from dask_tide.providers.kubernetes.ephemeral import Ephemeral, make_ephemeral
from dask_tide.providers.kubernetes.manifests import Manifest, manifests
from dask_tide.providers.kubernetes.startup import find_trouble

NAMESPACE = "science"
VALUES = {
    "image": {"repository": "example.org/dask-tide"},
    "nodes": {"read": True},
    "security": {"tls": {"enabled": False}},
}
BEYOND = {
    f"{kind}{binding}" for kind in ("ClusterRole", "ValidatingAdmissionPolicy") for binding in ("", "Binding")
}


class Platform:
    """Stands in for `Resources`: objects by kind and name, and what was done in which order."""

    def __init__(self) -> None:
        self.namespace = NAMESPACE
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.done: list[tuple[str, str]] = []
        #: What is raised for these verbs and kinds.
        self.refuses: dict[tuple[str, str], Exception] = {}
        self.forbidden: set[tuple[str, str]] = set()
        self._uids = itertools.count()

    def _do(self, verb: str, kind: str) -> None:
        self.done.append((verb, kind))
        if error := self.refuses.get((verb, kind)):
            raise error

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.objects}

    async def create(self, manifest: Manifest) -> Manifest:
        self._do("create", manifest["kind"])
        made = copy.deepcopy(manifest)
        made["metadata"]["uid"] = str(next(self._uids))
        name = (made["kind"], made["metadata"]["name"])
        if name in self.objects:
            raise LaunchRejected(f"{name} already exists")
        self.objects[name] = made
        return made

    async def get(self, manifest: Manifest) -> Manifest | None:
        return self.objects.get((manifest["kind"], manifest["metadata"]["name"]))

    async def patch(self, manifest: Manifest, change: Mapping[str, Any]) -> Manifest | None:
        return await self.get(manifest)

    async def delete(self, manifest: Manifest) -> None:
        self._do("delete", manifest["kind"])
        del self.objects[manifest["kind"], manifest["metadata"]["name"]]
        if manifest["kind"] == "Job":  # its garbage collector
            for name in [name for name, one in self.objects.items() if _owners(one) == ["Job"]]:
                del self.objects[name]

    async def delete_pods(self, selector: str, grace_s: int) -> None:
        self._do("delete", "Pod")

    async def list(self, version: str, kind: str, *, labels: str = "", fields: str = "") -> list[Manifest]:
        found = [one for (its_kind, _), one in self.objects.items() if its_kind == kind]
        return [{key: value for key, value in one.items() if key != "kind"} for one in found]

    async def may(self, verb: str, group: str, resource: str) -> bool:
        return (verb, resource) not in self.forbidden


def _owners(manifest: Manifest) -> list[str]:
    return [owner["kind"] for owner in manifest["metadata"].get("ownerReferences", ())]


@pytest.fixture
def platform() -> Platform:
    return Platform()


def belongings(platform: Platform) -> Belongings:
    return Belongings(platform, "app=dask-tide", "Cluster dask")  # type: ignore[arg-type]


def objects(name: str = "dask") -> Ephemeral:
    return make_ephemeral(manifests(name, NAMESPACE, VALUES, replicas=0), idle_timeout_s=None, deadline_s=60)


async def test_policies_go_when_the_rights_that_they_narrow_down_have_gone(platform: Platform) -> None:
    """A client's code may still run in the scheduler while its cluster is closed."""
    made = belongings(platform)
    await made.make(objects())
    assert platform.kinds() >= BEYOND | {"Job", "ReplicaSet", "RoleBinding"}
    await made.delete()
    assert platform.objects == {}
    deleted = [kind for verb, kind in platform.done if verb == "delete"]
    last_right = max(deleted.index("RoleBinding"), deleted.index("Job"))
    assert last_right < min(deleted.index(kind) for kind in BEYOND)
    before = list(platform.done)
    await made.delete()
    assert platform.done == before, "once is enough"


@pytest.mark.parametrize("kind", ["Job", "RoleBinding"])
async def test_what_stays_keeps_its_policies(platform: Platform, kind: str) -> None:
    made = belongings(platform)
    await made.make(objects())
    platform.refuses["delete", kind] = Unauthorized("you may not")
    with pytest.raises(Unauthorized):
        await made.delete()
    assert platform.kinds() >= BEYOND
    assert {("delete", "Job"), ("delete", "ReplicaSet"), ("delete", "RoleBinding")} <= set(platform.done)


async def test_what_is_in_no_namespace_and_cannot_be_deleted_is_named(
    platform: Platform, warned: list[str]
) -> None:
    made = belongings(platform)
    await made.make(objects())
    platform.refuses["delete", "ClusterRole"] = Unauthorized("you may not")
    await made.delete()
    assert platform.kinds() == {"ClusterRole"}
    assert any("ClusterRole science.dask.nodes" in line and "you may not" in line for line in warned)


async def test_a_deletion_is_tried_again(platform: Platform) -> None:
    made = belongings(platform)
    await made.make(objects())
    platform.refuses["delete", "Job"] = Unavailable("not now", retry_after_s=0.0)
    with pytest.raises(Unavailable):
        await made.delete()
    assert platform.done.count(("delete", "Job")) > 1


async def test_a_making_that_fails_half_way_leaves_nothing(platform: Platform) -> None:
    made = belongings(platform)
    platform.refuses["create", "ConfigMap"] = LaunchRejected("no")
    with pytest.raises(LaunchRejected):
        await made.make(objects())
    assert "ReplicaSet" in platform.kinds(), "what was begun beside it is waited for"
    assert ("create", "RoleBinding") not in platform.done
    await made.delete()
    assert platform.objects == {}


async def test_another_cluster_of_that_name_keeps_its_pods(platform: Platform) -> None:
    """A release of the chart has no Job whose name would be in the way: its Service is, and later."""
    release = next(one for one in manifests("dask", NAMESPACE, VALUES) if one["kind"] == "Service")
    await platform.create(release)
    made = belongings(platform)
    with pytest.raises(LaunchRejected, match="already exists"):
        await made.make(objects())
    await made.delete()
    assert ("delete", "Pod") not in platform.done
    assert platform.kinds() == {"Service"}


async def test_what_nobody_took_away_goes_with_the_next_cluster_even_of_that_name(
    platform: Platform,
) -> None:
    """Its client and then its Job have gone: nobody has called `delete`."""
    await belongings(platform).make(objects())
    await platform.delete(platform.objects["Job", "dask-scheduler"])
    assert platform.kinds() == BEYOND
    alive = belongings(platform)
    await alive.make(objects("other"))
    left = {name for kind, name in platform.objects if kind in BEYOND}
    assert all(name.startswith("science.other.") for name in left), left
    await belongings(platform).make(objects())
    assert {name.split(".")[1] for kind, name in platform.objects if kind in BEYOND} == {"dask", "other"}


async def test_it_is_noticed_when_somebody_else_deletes_it(platform: Platform) -> None:
    made = belongings(platform)
    assert not await made.ended(), "it has not begun"
    await made.make(objects())
    await made.stay()
    assert not await made.ended()
    await platform.delete(platform.objects["Job", "dask-scheduler"])
    assert await made.ended()
    with pytest.raises(LaunchRejected, match="was deleted while it started"):
        await made.stay()
    trouble = await find_trouble(platform, "dask-scheduler", None, 15.0)  # type: ignore[arg-type]
    assert (trouble.words, trouble.patience_s) == ("Job dask-scheduler was deleted", 0.0)


@pytest.mark.parametrize("verb", ["create", "get", "delete"])
async def test_who_could_not_take_policies_away_makes_none(platform: Platform, verb: str) -> None:
    assert await may_make_policies(platform)  # type: ignore[arg-type]
    platform.forbidden.add((verb, "validatingadmissionpolicybindings"))
    assert not await may_make_policies(platform)  # type: ignore[arg-type]
