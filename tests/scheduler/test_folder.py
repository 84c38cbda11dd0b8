"""Whose folder a cluster's logs and journal may lie in."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Scheduler

from dask_tide.controller.attach import attach
from dask_tide.controller.folder import named_folder, private_folder
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.provider import KubernetesProvider
from dask_tide.testing import RecordingProvider

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders have no modes there")

ANOTHER = 4002
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a folder to another user"
)


@pytest.fixture(params=[0o022, 0o002, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    return folder


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def everybodys(folder: Path) -> None:
    folder.chmod(0o777)


def anothers(folder: Path) -> None:
    os.chown(folder, ANOTHER, ANOTHER)


def anothers_though_sticky(folder: Path) -> None:
    folder.chmod(0o1777)
    anothers(folder)


def anothers_link(folder: Path) -> None:
    folder.rename(folder.with_name("target"))
    folder.symlink_to("target")
    os.chown(folder, ANOTHER, ANOTHER, follow_symlinks=False)


def linked(folder: Path) -> None:
    (folder.parent / "target").mkdir(mode=0o700)
    (folder / "tide-test").symlink_to(folder.parent / "target")


def own_of_a_group(folder: Path) -> None:
    (folder / "tide-test").mkdir()
    (folder / "tide-test").chmod(0o770)


def own_of_everybody(folder: Path) -> None:
    (folder / "tide-test").mkdir()
    (folder / "tide-test").chmod(0o707)


def own_of_another(folder: Path) -> None:
    (folder / "tide-test").mkdir(mode=0o700)
    anothers(folder / "tide-test")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (everybodys, "others may write to it, its mode is 0777"),
        (linked, "it is a link"),
        (own_of_a_group, "others may write to it, its mode is 0770"),
        (own_of_everybody, "others may write to it, its mode is 0707"),
        *(
            pytest.param(make, f"it belongs to user {ANOTHER}", marks=as_root)
            for make in (anothers, anothers_though_sticky, anothers_link, own_of_another)
        ),
    ],
)
async def test_a_folder_into_which_others_could_put_something_is_refused(
    folder: Path, make: Callable[[Path], None], reason: str
) -> None:
    """Who owns it, or may write to it, could put a folder of his own in the place of the cluster's."""
    make(folder)
    before = {*folder.parent.rglob("*")}
    made: list[Any] = []
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        with pytest.raises(ConfigError) as error:
            attach(scheduler, {"folder": str(folder), "name": "tide-test"}, provider=made.append)  # type: ignore[arg-type]
        assert "tide" not in scheduler.extensions
    assert (error.value.key, error.value.value) == ("tide.folder", str(folder))
    assert error.value.expected.endswith(f": {reason}")
    assert not made
    assert {*folder.parent.rglob("*")} == before


def test_folders_that_ordinary_users_have(folder: Path) -> None:
    """Of a group (each user has one of his own with umask 002), sticky as /tmp, or at a link's end."""
    for allowed in (0o755, 0o775, 0o2770, 0o1777, 0o1775):
        folder.chmod(allowed)
        assert mode(named_folder(folder, f"tide-{allowed:o}")) & 0o777 == 0o700
        assert mode(folder) == allowed, "it is left as it is"
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert named_folder(link, "tide-755").is_dir(), "once more, after a restart"


@as_root
def test_roots_folder_is_everybodys_to_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o1777)
    named_folder(folder, "tide-test")
    os.chown(folder / "tide-test", ANOTHER, ANOTHER)
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    assert named_folder(folder, "tide-test").is_dir()


@pytest.mark.usefixtures("umask")
def test_what_is_made_here_nobody_else_can_write_to(tmp_path: Path) -> None:
    """With umask 002 the folder was the group's, with 000 everybody's."""
    named = named_folder(tmp_path / "new" / "folder", "tide-test")
    assert mode(named) == 0o700
    assert mode(named.parent) & 0o022 == mode(named.parent.parent) & 0o022 == 0
    with dask.config.set({"temporary-directory": str(tmp_path / "fast")}):
        private, clean_up = private_folder("tide-test")
    assert mode(private) == 0o700
    assert mode(private.parent) & 0o022 == 0
    clean_up()


async def test_volumes_of_pods_are_nobody_elses(folder: Path) -> None:
    """Kubernetes mounts an emptyDir, and some drivers all that they have, with mode 0777."""
    everybodys(folder)
    assert KubernetesProvider.alone

    class Alone(RecordingProvider):
        alone = True

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        controller = attach(scheduler, {"folder": str(folder), "name": "tide-test"}, provider=Alone)
        assert (folder / "tide-test").is_dir()
        await controller.close()
