"""Programs from Go modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rig import binaries
from rig.binaries import Module
from rig.clients import existing
from rig.folders import CHECKOUT, RigError

HELLO = 'package main\n\nfunc main() { println("hello") }\n'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """A module with one program, `hello`, and a cache of its own."""
    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path / "cache"))
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "go.mod").write_text("module hello\n\ngo 1.25.0\n")
    (folder / "main.go").write_text(HELLO)
    module = Module("hello", {"hello": "."})
    object.__setattr__(module, "folder", folder)
    monkeypatch.setattr(binaries, "MODULES", (module,))
    return module


def test_a_program_is_built_once(module: Module, capfd: pytest.CaptureFixture[str]) -> None:
    path = binaries.ensure("hello")["hello"]
    assert subprocess.run([path], capture_output=True, text=True, check=True).stderr == "hello\n"
    assert "built hello" in capfd.readouterr().err
    assert binaries.ensure("hello")["hello"] == path
    assert "built" not in capfd.readouterr().err
    assert [left.name for left in path.parent.iterdir()] == ["hello"]


@pytest.mark.parametrize("changed", ["go.mod", "main.go"])
def test_a_change_of_the_module_builds_anew(module: Module, changed: str) -> None:
    before = module.output()
    (module.folder / changed).write_text((module.folder / changed).read_text() + "\n// changed\n")
    assert module.output() != before


def test_a_failed_build_says_why_and_leaves_nothing(module: Module) -> None:
    (module.folder / "main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(RigError, match="undefined: undefined"):
        binaries.ensure("hello")
    assert list(module.output().iterdir()) == []


def test_what_a_killed_builder_left_is_removed(module: Module) -> None:
    left = module.output() / ".building-killed"
    left.mkdir(parents=True)
    binaries.ensure("hello")
    assert not left.exists()


def test_two_builders_at_once_build_once(module: Module) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom rig import binaries\n"
        "module = binaries.Module('hello', {'hello': '.'})\n"
        "object.__setattr__(module, 'folder', Path(sys.argv[1]))\n"
        "binaries.MODULES = (module,)\nbinaries.ensure('hello')\n"
    )
    command = [sys.executable, "-c", script, str(module.folder)]
    builders = [subprocess.Popen(command, cwd=CHECKOUT, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    said = "".join(builder.communicate(timeout=120)[1] for builder in builders)
    assert [builder.returncode for builder in builders] == [0, 0], said
    assert said.count("built hello") == 1, said


def test_programs_that_the_user_gives_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert binaries.ensure("etcd")["etcd"] == tmp_path / "etcd"


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(RigError, match=r"no program 'kubedoom'; there are kube-apiserver,"):
        binaries.ensure("kubedoom")


def test_the_version_is_that_of_the_module() -> None:
    kubernetes = binaries.MODULES[0]
    version = next(
        line
        for line in (kubernetes.folder / "go.mod").read_text().split("\n")
        if "k8s.io/kubernetes v" in line
    )
    assert f"gitVersion={version.split()[1]} " in kubernetes.flags()


def test_the_users_cluster_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    monkeypatch.delenv("DASK_TIDE_KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert existing() is None
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "one"))
    assert existing() == tmp_path / "one"
    monkeypatch.setenv("DASK_TIDE_KUBECONFIG", str(tmp_path / "two"))
    assert existing() == tmp_path / "two"
    monkeypatch.setenv("DASK_TIDE_KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(RigError, match="no such file"):
        existing()
