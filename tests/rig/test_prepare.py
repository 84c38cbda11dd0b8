"""``python -m rig prepare``: what it asks of a machine, and what it makes of a refusal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abilities import skip_unless_ci

from rig import __main__ as commands
from rig import binaries, image_build, packages
from rig.buildah import Workshop
from rig.ci import in_ci
from rig.folders import CHECKOUT, RigError

Prepare = Callable[..., list[str]]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepare a machine where packages cannot be installed; what was tried."""
    tried: list[str] = []

    def install(programs: dict[str, str]) -> None:
        tried.append("packages")
        raise RigError("no apt-get")

    def build(**options: Any) -> Path:
        tried.append("image")
        raise RigError("no mirror")

    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path))
    monkeypatch.setattr(packages, "impossible", lambda: "")
    monkeypatch.setattr(packages, "install", install)
    monkeypatch.setattr(binaries, "ensure", lambda *programs: tried.append(" ".join(programs)))
    monkeypatch.setattr(image_build, "missing", lambda: None)
    monkeypatch.setattr(image_build, "build", build)

    def prepare(*programs: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["rig", "prepare", *programs])
        commands.main()
        return tried

    return prepare


def test_root_without_debian_gets_the_programs_all_the_same(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "false")
    assert prepare() == ["packages", " ".join(binaries.PROGRAMS), "image"]
    assert capsys.readouterr().err == "rig: no apt-get\nrig: no mirror\n"


def test_in_ci_that_is_an_error(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="1"):
        prepare()
    assert capsys.readouterr().err == "rig: no apt-get\n"


def test_who_asks_for_a_program_gets_no_packages(prepare: Prepare) -> None:
    """`make check` wants helm, and nothing of the machine changed."""
    assert prepare("helm") == ["helm"]


@pytest.mark.parametrize(
    ("said", "so"), [("true", True), ("1", True), ("True", True), ("false", False), ("", False)]
)
def test_ci_is_what_says_so(monkeypatch: pytest.MonkeyPatch, said: str, so: bool) -> None:
    monkeypatch.setenv("CI", said)
    assert in_ci() == so
    with pytest.raises(pytest.fail.Exception if so else pytest.skip.Exception, match="no Debian"):
        skip_unless_ci("no Debian")


@pytest.mark.parametrize("capability", ["sys_admin", "net_admin"])
def test_a_containers_root_is_told_what_it_lacks(able: None, capability: str) -> None:
    script = (
        "from rig import image_build, packages\nprint(packages.lacking(), image_build.missing(), sep='\\n')"
    )
    command = ["setpriv", f"--bounding-set=-{capability}", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True)
    nodes, image = done.stdout.splitlines()
    assert nodes.startswith(f"nodes need CAP_{capability.upper()} (")
    assert ("CAP_SYS_ADMIN" in image) == (capability == "sys_admin")


def test_what_a_killed_build_left_goes_unless_somebody_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's credentials were in there."""
    monkeypatch.setattr(Workshop, "buildah", lambda *arguments: "")
    left = tmp_path / "temporary" / "step-killed"
    left.mkdir(parents=True)
    (left / "pip.conf").touch()
    with Workshop(tmp_path).opened(wait=False):
        assert not left.exists()
        left.mkdir()
        with pytest.raises(BlockingIOError), Workshop(tmp_path).opened(wait=False):
            pass
        assert left.exists()
