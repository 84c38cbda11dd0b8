"""Which kubeconfig is read, and what is said of one that makes no sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes import kubeconfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has nothing, and a process that is in no pod."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kubeconfig, "_ACCOUNT", tmp_path / "account")
    return tmp_path / "home"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("secret")
    (folder / "namespace").write_text("science\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")


def write(path: Path, name: str = "here", **more: object) -> Path:
    """A file with one context, whose cluster is called the same."""
    content = {
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}:1"}}],
        "users": [{"name": name, "user": {"client-certificate": "me.crt", "client-key": "/keys/me.key"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(content | more))
    return path


def server(*arguments: str | None) -> str:
    return str(kubeconfig.read(*arguments).cluster.server)


def test_what_is_said_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".kube" / "config", "default")
    assert server() == "https://default:1"
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "one", "variable")))
    assert server() == "https://variable:1"
    assert server(str(write(tmp_path / "two", "argument"))) == "https://argument:1"
    monkeypatch.setenv("KUBECONFIG", "")
    assert server() == "https://default:1", "empty is not set, as for kubectl"


@pytest.mark.usefixtures("pod")
def test_in_a_pod_it_is_its_service_account_unless_something_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / ".kube" / "config", "default")
    assert server() == "https://10.0.0.1:443"
    assert kubeconfig.own_namespace() == "science"
    assert server(None, "default") == "https://default:1", "a ServiceAccount has no contexts"
    assert kubeconfig.own_namespace(None, "default") is None
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "one", "variable")))
    assert server() == "https://variable:1"
    assert kubeconfig.own_namespace() is None


def test_several_files_are_merged_as_kubectl_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "first" / "config", "one", clusters=None, users=None)
    second = write(tmp_path / "second" / "config", "one")
    third = write(tmp_path / "third" / "config", "two")
    files = (first, tmp_path / "no-such-file", second, third)
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, files)))
    found = kubeconfig.read()
    assert (found.context_name, found.cluster.server) == ("one", "https://one:1")
    assert found.user.client_cert == str(tmp_path / "second" / "me.crt"), "relative to its own file"
    assert found.user.client_key == "/keys/me.key"
    assert server(None, "two") == "https://two:1"


def test_nothing_at_all() -> None:
    with pytest.raises(ConfigError, match=r"ServiceAccount, \$KUBECONFIG or ~/.kube/config: there is none"):
        kubeconfig.read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "a kubeconfig file"),
        (b"\xff\xfe", "a kubeconfig file"),
        (b"[1]", "a kubeconfig file"),
        (b"contexts: [{name: here, context: {cluster: 1}}]", "a kubeconfig file"),
        (b"contexts: [{context: {}}]", "a kubeconfig file"),
        (b"", "one of no context at all"),
        (b"contexts: [{name: here, context: {cluster: gone}}]\ncurrent-context: here", "one that has 'gone'"),
    ],
)
def test_a_file_that_makes_no_sense_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        kubeconfig.read(str(path))
