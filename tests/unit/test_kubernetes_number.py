"""What a ReplicaSet's number is, as the watch and our own calls tell it: also where the server goes back."""

from __future__ import annotations

import pytest

from dask_tide.providers.kubernetes.number import Number
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.replicasets import ReplicaSetView
from dask_tide.providers.kubernetes.rivals import Rivals

pytest.importorskip("lightkube")


class World:
    """An API server that replies with the versions that it is told to."""

    namespace = "science"

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.rivals = Rivals("cpu", "r-cpu", patience=Patience())
        self.number = Number("r-cpu", self, self.rivals)  # type: ignore[arg-type]  # all of it that is called

    async def scale(self, replicaset: str, replicas: int) -> str:
        return str(self.versions.pop(0))

    async def set(self, replicas: int, *, version: int) -> int:
        """Ask for so many; the number that is wanted then."""
        self.versions.append(version)
        await self.number.set(replicas)
        return self.number.wanted

    def see(self, version: int, replicas: int, manager: str = "dask-tide/scale") -> int:
        """The watch shows it; the number that is wanted then."""
        self.number.seen(ReplicaSetView("r-cpu", "cpu", version, replicas, replicas, "", "", manager))
        return self.number.wanted


async def test_of_a_reply_and_the_watch_the_later_one_counts_whichever_comes_first():
    world = World()
    assert world.see(10, 2) == 2
    assert await world.set(5, version=14) == 5
    assert world.see(12, 3) == 5, "the watch is late"
    assert world.see(13, 4) == 5, "and still is"
    assert world.see(16, 7) == 7
    assert await world.set(6, version=15) == 7, "the reply is"


async def test_a_server_that_was_restored_from_a_backup_is_believed():
    """Its versions are lower than any that were seen."""
    world = World()
    assert world.see(100_000, 5) == 5
    assert world.see(480, 0, "kubectl/scale") == 0
    assert world.number.frozen() == ""
    assert await world.set(3, version=501) == 3
    assert world.see(490, 1) == 3, "the watch is late"
    assert world.see(501, 3) == 3
    assert world.see(502, 2) == 2
    assert await world.set(6, version=504) == 6


async def test_after_a_restore_a_reply_that_is_late_does_not_count_either():
    world = World()
    assert await world.set(5, version=100_000) == 5
    world.see(100_000, 5)
    assert world.see(480, 0) == 0
    world.see(490, 1)
    assert await world.set(3, version=485) == 1


async def test_a_server_that_was_restored_is_believed_by_its_reply_too():
    """The ReplicaSet is as old in the backup as the watch has shown it; ours of later is lost."""
    world = World()
    assert world.see(5, 0) == 0
    assert await world.set(4, version=100_000) == 4
    world.see(5, 0)
    assert await world.set(0, version=480) == 0
    assert world.see(481, 1) == 1


async def test_a_replicaset_that_is_made_anew_has_what_it_is_made_with():
    """Behind the same address there may be another server by then."""
    world = World()
    world.see(100_000, 5)
    world.number.seen(None)
    assert world.number.wanted == 0
    assert world.number.frozen()
    assert world.see(600, 2, "helm/") == 2
    assert await world.set(4, version=601) == 4
    assert world.see(601, 4) == 4


async def test_who_makes_a_replicaset_anew_again_and_again_is_no_autoscaler():
    world = World()
    for version in range(1, 20, 2):
        assert world.see(version, 3, "helm/") == 3
        world.number.seen(None)
    world.see(21, 3, "helm/")
    assert world.number.frozen() == ""
