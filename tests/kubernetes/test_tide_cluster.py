"""TideCluster with Kubernetes, from outside of it: makes everything, uses it, and leaves nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.comm.core import connect
from distributed.core import Status, rpc
from distributed.security import Security
from waiting import until, wait_until

from dask_tide import TideCluster
from dask_tide.errors import CapacityExhausted, LaunchRejected, ProviderError, QuotaExceeded
from rig.image_build import TAG
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

#: For a scheduler or a worker to come up on a machine that does other things, too.
UP_S = 120.0
#: What is made, by the names that kubectl has for it.
KINDS = "jobs,pods,replicasets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies"
VALUES: dict[str, Any] = {
    "poolDefaults": {
        "memory": "512Mi",
        "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}},
        # Workers whose scheduler has ended first take their time over it.
        "terminationGracePeriodSeconds": 10,
    },
    "scheduler": {"resources": {"requests": {"cpu": "100m", "memory": "200Mi"}}},
}

#: A scheduler that ends with an error at its start.
BANANAS = {"scheduler": {"env": [{"name": "DASK_TIDE__INTERVAL", "value": "bananas"}]}}

_names = (f"tide-{number}" for number in itertools.count())


@pytest.fixture
def place(nodes: Cluster, new_namespace: Callable[..., str]) -> str:
    """A namespace with the strictest pod security; its name."""
    return new_namespace(nodes.kubectl, "restricted")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trouble that may pass is borne for a shorter time."""
    monkeypatch.setattr("dask_tide.providers.kubernetes.cluster._PATIENCE_S", 2.0)


@pytest.fixture
def afloat(nodes: Cluster, place: str) -> Iterator[Callable[..., TideCluster]]:
    """A factory of clusters that close when the test ends."""
    with ExitStack() as stack:

        def make(**arguments: Any) -> TideCluster:
            cluster = TideCluster(**(usual(nodes, place) | arguments))
            stack.callback(cluster.close)
            return cluster

        yield make


def usual(nodes: Cluster, namespace: str) -> dict[str, Any]:
    return {
        "provider": "kubernetes",
        "name": next(_names),
        "namespace": namespace,
        "kubeconfig": nodes.kubeconfig,
        "image": TAG,
        "values": VALUES,
        "maximum": 3,
        "dashboard_address": ":0",
        "timeout": UP_S,
    }


def left(nodes: Cluster, namespace: str, name: str = "") -> list[str]:
    """What is there of our objects: in the namespace and beyond."""
    labels = "app.kubernetes.io/name=dask-tide" + (f",app.kubernetes.io/instance={name}" if name else "")
    found = nodes.kubectl.json("--namespace", namespace, "get", KINDS, "--selector", labels)["items"]
    beyond = nodes.kubectl.json(
        "get",
        "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings",
        "--selector",
        labels,
    )["items"]
    found += [one for one in beyond if one["metadata"]["name"].startswith(f"{namespace}.")]
    return sorted(f"{one['kind']} {one['metadata']['name']}" for one in found)


# -- life -----------------------------------------------------------------------------------------


def test_from_nothing_to_nothing_p38(nodes: Cluster, place: str, afloat: Callable[..., TideCluster]) -> None:
    """Make, compute on pods, explain, scale by hand, adapt, close: nothing is left."""
    cluster = afloat()
    assert cluster.status is Status.running
    assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
    with cluster.get_client() as client:
        assert client.gather(client.map(lambda x: x + 1, range(8))) == list(range(1, 9))
        assert client.submit(lambda: bytes(3_000_000)).result() == bytes(3_000_000)
        wait_until(lambda: cluster.workers, "news of workers")
        assert all(name.startswith(f"{cluster.name}-default-") for name in cluster.workers)
        assert "asked for" in cluster.explain()
        status = cluster.tide_status()
        assert (status["cluster"], status["provider"], status["mode"]) == (
            cluster.name,
            "kubernetes",
            "automatic",
        )
        cluster.scale(2)
        assert cluster.tide_status()["mode"] == "manual"
        cluster.wait_for_workers(2, timeout=UP_S)
        assert "Adaptive" not in cluster._scaling_status()
        adapting = cluster.adapt(maximum=2)
        assert adapting.periodic_callback is not None
        assert cluster.tide_status()["pools"]["default"]["maximum"] == 2
        logs = cluster.get_logs()
        assert "asked for" in logs["Cluster"]
        assert len(logs) >= 3
    assert {"Job", "ReplicaSet", "Secret", "ValidatingAdmissionPolicy"} <= {
        one.split()[0] for one in left(nodes, place, cluster.name)
    }
    cluster.close()
    cluster.close()
    assert cluster.status is Status.closed
    assert left(nodes, place) == []


async def test_asynchronous_and_the_dashboard(nodes: Cluster, place: str) -> None:
    arguments = usual(nodes, place) | {"asynchronous": True}
    async with TideCluster(**arguments) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(lambda x: x + 1, 1) == 2
            await cluster.scale(1)
            assert (await cluster.tide_status())["mode"] == "manual"
            assert "asked for" in await cluster.explain()
        address, path = cluster.dashboard_link.removeprefix("http://").split("/", 1)
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
    assert left(nodes, place) == []


def test_two_in_one_namespace(nodes: Cluster, place: str, afloat: Callable[..., TideCluster]) -> None:
    """Neither sees the other's pods, and closing one leaves the other alone; one name is given once."""
    one, other = afloat(maximum=1), afloat(maximum=1)
    with one.get_client() as first, other.get_client() as second:
        futures = [first.submit(lambda x: x, 1), second.submit(lambda x: x, 2)]
        assert [future.result() for future in futures] == [1, 2]
        assert not set(one.workers) & set(other.workers)
    # Its worker may go meanwhile, as nobody needs it.
    before = [each for each in left(nodes, place, one.name) if not each.startswith("Pod ")]
    with pytest.raises(LaunchRejected, match="already exists"):
        afloat(name=one.name)
    assert set(before) <= set(left(nodes, place, one.name)), "who came second takes nothing away"
    one.close()
    assert left(nodes, place, one.name) == []
    with other.get_client() as client:
        assert client.submit(lambda x: x, 3).result() == 3


def test_another_scheduler_when_its_pod_is_deleted(
    nodes: Cluster, place: str, afloat: Callable[..., TideCluster]
) -> None:
    """The Job takes SIGTERM for no end, and the cluster object finds the new pod."""
    cluster = afloat(maximum=1)
    selector = "app.kubernetes.io/component=scheduler"
    pods = ["--namespace", place, "get", "pods", "--selector", selector]
    [before] = nodes.kubectl.json(*pods)["items"]
    nodes.kubectl("--namespace", place, "delete", "pod", before["metadata"]["name"], "--wait=false")

    def another() -> bool:
        names = {pod["metadata"]["name"] for pod in nodes.kubectl.json(*pods)["items"]}
        return len(names) == 1 and before["metadata"]["name"] not in names

    wait_until(another, "another pod and no longer that", UP_S)

    def works() -> bool:
        try:
            with Client(cluster, timeout=10, set_as_default=False) as client:
                return client.submit(lambda x: x + 1, 1).result(timeout=60) == 2
        except (OSError, TimeoutError):
            return False

    wait_until(works, "work on the new one", UP_S)
    cluster.scale(1)  # else the worker may go before the cluster has connected again
    wait_until(lambda: cluster.workers, "the cluster hears of workers again", UP_S, cluster.explain)


# -- when it does not come up ---------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"image": "docker.io/dask-tide/no-such-image:1"}, LaunchRejected, "ErrImage|ImagePullBackOff"),
        (
            {"values": {"scheduler": {"nodeSelector": {"no": "such"}}}},
            CapacityExhausted,
            "Unschedulable.*selec",
        ),
        ({"values": BANANAS}, LaunchRejected, "tide.interval: got .bananas"),
        ({"values": {"image": {"pullPolicy": "Never"}}, "image": "no/such:1"}, LaunchRejected, "NeverPull"),
    ],
    ids=["image", "node", "crash", "never"],
)
def test_what_does_not_come_up_is_told_and_removed(
    nodes: Cluster, place: str, arguments: dict[str, Any], kind: type[ProviderError], words: str
) -> None:
    limit = {"timeout": "20s"} if kind is CapacityExhausted else {}
    with pytest.raises(kind, match=words):
        TideCluster(**(usual(nodes, place) | arguments | limit))
    assert left(nodes, place) == []


@pytest.mark.usefixtures("impatient")
def test_a_quota_and_a_missing_namespace_are_told(nodes: Cluster, place: str) -> None:
    nodes.kubectl("--namespace", place, "create", "quota", "none", "--hard=pods=0")
    quota = f"/api/v1/namespaces/{place}/resourcequotas/none"
    wait_until(lambda: nodes.api()("GET", quota).get("status", {}).get("hard"), "the quota holds")
    with pytest.raises(QuotaExceeded, match="exceeded quota"):
        TideCluster(**usual(nodes, place))
    assert left(nodes, place) == []
    with pytest.raises(LaunchRejected, match="not found"):
        TideCluster(**(usual(nodes, place) | {"namespace": "no-such-namespace"}))


async def test_deleted_while_it_starts_is_told(nodes: Cluster, place: str) -> None:
    """At once, not at the end of the time limit."""
    nowhere = {"scheduler": {"nodeSelector": {"no": "such"}}}
    arguments = usual(nodes, place) | {"values": nowhere, "timeout": "10m"}
    cluster = TideCluster(**arguments, asynchronous=True)
    start = asyncio.ensure_future(cluster._begin())
    jobs = ("--namespace", place, "get", "jobs")
    job = await until(lambda: nodes.kubectl.json(*jobs)["items"], "its Job is there")
    await until(lambda: nodes.kubectl.json("--namespace", place, "get", "pods")["items"], "so is its pod")
    await asyncio.to_thread(
        nodes.kubectl, "--namespace", place, "delete", "job", job[0]["metadata"]["name"], "--wait=false"
    )
    with pytest.raises(LaunchRejected, match="was deleted"):
        await asyncio.wait_for(start, UP_S)
    assert await asyncio.to_thread(left, nodes, place) == []


async def test_closing_while_it_starts_leaves_nothing(nodes: Cluster, place: str) -> None:
    cluster = TideCluster(**usual(nodes, place), asynchronous=True)
    start = asyncio.ensure_future(cluster._begin())
    await until(lambda: asyncio.to_thread(left, nodes, place), "something is there")
    await cluster.close()
    assert cluster.status is Status.closed
    assert await asyncio.to_thread(left, nodes, place) == []
    await asyncio.gather(start, return_exceptions=True)


# -- without anybody ------------------------------------------------------------------------------

_FORGETFUL = """
    import json, os, signal, sys
    from distributed import fire_and_forget
    from dask_tide import TideCluster

    def work(seconds):
        import time
        time.sleep(seconds)

    arguments = json.loads(sys.argv[1])
    cluster = TideCluster(**arguments)
    client = cluster.get_client()
    if tasks := int(sys.argv[2]):
        fire_and_forget(client.map(work, [4.0] * tasks, pure=False))
        client.submit(int, 1, priority=1).result()
    host = cluster._site._host
    security = host.security
    print(json.dumps([security.tls_ca_file, security.tls_client_cert, security.tls_client_key]), flush=True)
    sys.stdin.read()
"""


def forget(nodes: Cluster, place: str, folder: Path, tasks: int, **more: Any) -> tuple[str, Security]:
    """Have a process make a cluster, give it work and be killed; return its name and credentials."""
    script = folder / "forgetful.py"
    script.write_text(textwrap.dedent(_FORGETFUL))
    arguments = usual(nodes, place) | {"kubeconfig": str(nodes.kubeconfig), **more}
    command = [sys.executable, str(script), json.dumps(arguments), str(tasks)]
    with (
        (folder / "forgetful.log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert line, (folder / "forgetful.log").read_text()
    ca, certificate, key = json.loads(line)
    security = Security(
        require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=key
    )
    return arguments["name"], security


async def test_when_its_client_is_killed_the_work_is_done_and_then_everything_goes_p37_p38(
    nodes: Cluster, place: str, tmp_path: Path
) -> None:
    """Idle means without queued work, too; and what is in no namespace goes with the next cluster there."""
    name, security = await asyncio.to_thread(forget, nodes, place, tmp_path, 4, maximum=1, idle_timeout="1s")
    command = ["--namespace", place, "port-forward", f"service/{name}-scheduler", ":8786"]
    forward = await asyncio.create_subprocess_exec(
        *nodes.kubectl.command(*command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert forward.stdout is not None
        port = (await forward.stdout.readline()).decode().split("->")[0].rpartition(":")[2].strip()
        # No client: who only asks is not connected.
        async with rpc(
            f"tls://127.0.0.1:{port}", connection_args=security.get_connection_args("client")
        ) as asking:
            counts = [(await asking.tide_status())["unfinished_tasks"]]
            while counts[-1]:
                await asyncio.sleep(0.1)
                counts.append((await asking.tide_status())["unfinished_tasks"])
        assert max(counts) >= 2, "there was queued work after its client's death"
    finally:
        forward.kill()
        await forward.wait()

    def here() -> list[str]:
        return [one for one in left(nodes, place) if "Admission" not in one]

    await until(lambda: not here(), "everything goes by itself", UP_S, here)
    assert len(left(nodes, place)) == 4, "two policies and their bindings, which nobody may delete"
    async with TideCluster(**usual(nodes, place), asynchronous=True) as cluster:
        assert left(nodes, place, name) == []
        assert left(nodes, place, cluster.name)
    assert left(nodes, place) == []


def test_killed_in_the_middle_of_the_making_it_goes_by_its_deadline(
    nodes: Cluster, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_tide.providers.kubernetes import cluster as module
    from dask_tide.providers.kubernetes.belongings import Belongings

    monkeypatch.setattr(module, "_MARGIN_S", 0.0)

    class KilledError(Exception):
        pass

    async def killed(self: Any, deadline_s: float) -> str:
        raise KilledError

    async def nothing(self: Any) -> None:
        pass

    monkeypatch.setattr(module.KubernetesHost, "_reach", killed)
    monkeypatch.setattr(Belongings, "delete", nothing)
    values = VALUES | {"admission": {"enabled": False}}
    with pytest.raises(KilledError):
        TideCluster(**(usual(nodes, place) | {"timeout": "10s", "values": values}))
    assert left(nodes, place)
    wait_until(lambda: not left(nodes, place), "its deadline ends it", UP_S, lambda: left(nodes, place))


# -- rights ---------------------------------------------------------------------------------------


def test_with_the_rights_of_one_namespace_only(nodes: Cluster, place: str) -> None:
    """Without admission policies: then the scheduler may not patch pods, and that is told."""
    user = f"user-of-{place}"
    grant = ["create", "rolebinding", "edits", "--clusterrole=admin", f"--user={user}"]
    nodes.kubectl("--namespace", place, *grant)
    kubeconfig = nodes.user_kubeconfig(user, namespace=place)
    arguments = usual(nodes, place) | {"kubeconfig": kubeconfig, "namespace": None}
    with TideCluster(**arguments) as cluster, cluster.get_client() as client:
        assert client.submit(lambda x: x + 1, 1).result() == 2
        assert "may not create admission policies" in cluster.get_logs()["Cluster"]
        role = nodes.kubectl.json("--namespace", place, "get", "role", f"{cluster.name}-scheduler")
        assert not any("patch" in rule["verbs"] and "pods" in rule["resources"] for rule in role["rules"])
        assert not any("Admission" in one for one in left(nodes, place))
    assert left(nodes, place) == []


async def test_a_client_without_a_certificate_is_refused_p41(nodes: Cluster, place: str) -> None:
    async with TideCluster(**usual(nodes, place), asynchronous=True) as cluster:
        port = cluster.scheduler_address.rpartition(":")[2]
        with pytest.raises(OSError):  # noqa: PT011 - Dask's own, several kinds
            await connect(f"tcp://127.0.0.1:{port}", timeout=3)
        stranger = Security.temporary()
        with pytest.raises(OSError):  # noqa: PT011
            await connect(f"tls://127.0.0.1:{port}", timeout=3, **stranger.get_connection_args("client"))
        comm = await connect(
            cluster.scheduler_address, timeout=10, **cluster.security.get_connection_args("client")
        )
        await comm.close()
