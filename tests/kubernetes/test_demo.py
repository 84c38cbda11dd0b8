"""``dask tide demo --provider kubernetes``: the story on pods of several nodes, or why it cannot be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from releases import POOL, Release
from waiting import wait_until

from dask_tide.cli import tide as command
from dask_tide.demo import kubernetes
from dask_tide.demo.kubernetes import Installed, worker_nodes
from dask_tide.demo.place import Place
from dask_tide.errors import LaunchRejected
from rig.image_build import TAG
from rig.nodes import Cluster

pytestmark = [
    pytest.mark.xdist_group("nodes"),
    pytest.mark.timeout(300, func_only=True),
    # Here and in the image are two patch releases of Python.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]

PROMISES = (
    "it began with no worker",
    "workers came",
    "more than one came",
    "on more than one machine",
    "one worker stayed, with the answer, and no other",
    "it ended with no worker",
)


@pytest.fixture
def place(nodes: Cluster, new_namespace: Callable[..., str]) -> str:
    """A namespace with the strictest pod security; its name."""
    return new_namespace(nodes.kubectl, "restricted")


@pytest.fixture
def release(nodes: Cluster, place: str, tmp_path: Path) -> Iterator[Release]:
    """The chart, installed."""
    release = Release(nodes, place, "shown", tmp_path)
    release.apply("install", {"pools": {"cpu": POOL}})
    yield release
    release.close()


def left(nodes: Cluster, namespace: str) -> str:
    kinds = "jobs,deployments,replicasets,pods,services,secrets,configmaps,roles"
    return nodes.kubectl(
        "--namespace", namespace, "get", kinds, "--selector=app.kubernetes.io/name=dask-tide", "--output=name"
    )


def demo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["demo", "--provider=kubernetes", *map(str, arguments)])


def test_the_whole_story(nodes: Cluster, place: str, tmp_path: Path) -> None:
    """0 workers, a job, workers on several nodes, one with the answer, none; and nothing is left of it."""
    program = [sys.executable, "-m", "dask", "tide", "demo", "--provider=kubernetes"]
    where = [f"--namespace={place}", f"--kubeconfig={nodes.kubeconfig}", f"--image={TAG}"]
    done = subprocess.run(
        [*program, *where, f"--out={tmp_path / 'picture'}"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    told = done.stdout
    assert done.returncode == 0, told + done.stderr
    for promise in PROMISES:
        assert f"yes  {promise}" in told
    seen = re.search(r"machines +(.*)", told)
    assert seen is not None, told
    assert len(re.findall(r"n\d \(\d workers?\)", seen.group(1))) > 1
    assert re.search(r"workers: \d on n\d, n\d", told)
    assert "Warning" not in done.stderr
    assert (tmp_path / "picture.svg").stat().st_size > 10_000
    assert left(nodes, place) == ""


def test_a_release_is_reached_from_outside(
    nodes: Cluster, place: str, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``--release`` plays the story on; its scheduler need not be up yet."""
    here = Place(namespace=place, kubeconfig=str(nodes.kubeconfig), release=release.name)
    with Installed(here) as installed, installed.get_client() as client:
        assert client.scheduler is not None
        address = client.scheduler.address
        assert address is not None
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(lambda x: x + 1, 1).result(timeout=90) == 2
        assert client.sync(client.scheduler.tide_status)["cluster"] == release.name
    # A promise that depends on it: what carries a taint takes no worker.
    assert worker_nodes(here) == sum(
        "taints" not in node["spec"] for node in nodes.kubectl.json("get", "nodes")["items"]
    )
    with pytest.raises(LaunchRejected, match=f"no release other of the chart in namespace {place}"):
        Installed(Place(here.namespace, here.kubeconfig, release="other")).__enter__()

    monkeypatch.setattr(kubernetes, "TIMEOUT_S", 1.0)
    nodes.kubectl("--namespace", place, "scale", f"deployment/{release.name}-scheduler", "--replicas=0")
    wait_until(lambda: not release.objects("pods", "app.kubernetes.io/component=scheduler"), "no scheduler")
    told = demo(f"--release={release.name}", f"--namespace={place}", f"--kubeconfig={nodes.kubeconfig}")
    assert told.exit_code == 1
    assert f"Error: the scheduler of release {release.name} does not answer" in told.output
    assert "Traceback" not in told.output


def test_what_the_platform_refuses_is_one_sentence(nodes: Cluster, place: str) -> None:
    # Not allowed to list nodes, nor to make anything.
    user = nodes.user_kubeconfig(f"nobody-in-{place}", namespace=place)
    told = demo(f"--kubeconfig={user}", f"--image={TAG}")
    assert told.exit_code == 1
    *_, last = told.output.strip().splitlines()
    assert re.fullmatch(
        rf"Error: creating Job demo-\w+-scheduler: .*nobody-in-{place}.* cannot create .*", last
    ), last

    told = demo(
        f"--namespace={place}", f"--kubeconfig={nodes.kubeconfig}", "--image=docker.io/dask-tide/No:1"
    )
    assert told.exit_code == 1
    *_, last = told.output.strip().splitlines()
    assert re.fullmatch(
        r"Error: Cluster demo-\w+ in .*: its scheduler did not come up.*InvalidImageName.*", last
    )
    assert left(nodes, place) == ""


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    away = tmp_path / "kubeconfig"
    user = {"name": "me", "user": {"token": "secret"}}
    cluster = {"name": "here", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    away.write_text(
        json.dumps({"current-context": "here", "clusters": [cluster], "users": [user], "contexts": [context]})
    )
    for arguments, code, words in (
        ([], 2, "got None, expected a pod's ServiceAccount, $KUBECONFIG or ~/.kube/config"),
        (["--kubeconfig=/no/such/file"], 2, "got '/no/such/file', expected a kubeconfig file"),
        ([f"--kubeconfig={away}", "--context=there"], 2, "got 'there', expected one of here"),
        ([f"--kubeconfig={away}"], 1, "reading Nodes: All connection attempts failed"),
        (["--release=r", "--maximum=3"], 2, "with --release, the maximum and the image are the release's"),
        (["--provider=local", "--namespace=x"], 2, "--namespace: only with --provider kubernetes"),
    ):
        told = demo(*arguments)
        assert told.exit_code == code, told.output
        assert words in told.output
        assert "Traceback" not in told.output
        assert told.exception is None or isinstance(told.exception, SystemExit)
