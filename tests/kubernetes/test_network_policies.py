"""The chart's NetworkPolicies, on nodes that enforce them: what Dask needs passes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from distributed import Client, wait
from known import known
from releases import DEADLINE_S, POOL, VALUES, Release, addresses, ask, computed_once, nap, workers
from waiting import wait_until

from rig.image_build import TAG
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

NODES = ("p1", "p2")
HERE = {"nodeSelector": {"policies": "enforced"}}
FRIEND = {"app": "jupyterhub"}
#: Where the pods outside listen.
OPEN = 9999
#: For each HOST:PORT of the arguments, whether a connection to it is made.
_KNOCK = """
import json, socket, sys
def opens(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return False
    return True
print(json.dumps([opens(place) for place in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def walled(nodes: Cluster) -> Iterator[Cluster]:
    """Two more nodes, which enforce NetworkPolicies."""
    nodes.nodes_up(*NODES, labels=HERE["nodeSelector"])
    for name in NODES:
        nodes.enforce_policies(name)
    yield nodes
    for name in NODES:
        nodes.node_down(name, forget=True)


@pytest.fixture(scope="module")
def outside(walled: Cluster) -> Iterator[str]:
    """A namespace with two pods that may connect to anybody, one with a friend's label."""
    name = "test-outside"
    walled.kubectl("create", "namespace", name)
    walled.kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=60s")
    for pod, labels in (("friend", FRIEND), ("stranger", {"app": "anything"})):
        container = {
            "name": pod,
            "image": TAG,
            "imagePullPolicy": "Never",
            "args": ["python", "-m", "http.server", str(OPEN), "--directory", "/tmp"],
            "readinessProbe": {"tcpSocket": {"port": OPEN}, "periodSeconds": 1},
        }
        walled.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod, "namespace": name, "labels": labels},
                "spec": {**HERE, "containers": [container], "terminationGracePeriodSeconds": 1},
            }
        )
    walled.kubectl(
        *("wait", "--for=condition=Ready", "pod/friend", "pod/stranger", "--namespace", name),
        "--timeout=90s",
        deadline_s=100,
    )
    yield name
    walled.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def release(walled: Cluster, outside: str, install_once: Callable[..., Release]) -> Release:
    """Clients may be friends; its pods may connect to their own only, the scheduler to the API server."""
    clients = [
        {
            "podSelector": {"matchLabels": FRIEND},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": outside}},
        }
    ]
    api = walled.kubectl.json("get", "endpoints", "kubernetes", "--namespace", "default")["subsets"]
    rules = [
        {
            "to": [{"ipBlock": {"cidr": f"{each['ip']}/32"}} for each in subset["addresses"]],
            "ports": [{key: port[key] for key in ("port", "protocol")} for port in subset["ports"]],
        }
        for subset in api
    ]
    server = {"args": ["python", "-m", "http.server", "8888", "--directory", "/tmp"]}
    values = {
        "pools": {"cpu": POOL | HERE},
        "scheduler": VALUES["scheduler"] | HERE,
        "notebook": {"enabled": True} | server | VALUES["scheduler"] | HERE,
        "networkPolicy": {"clients": clients, "egress": [], "apiServer": rules},
        "tide": {"release": {"keep": "1m", "tail": "1m"}},
    }
    return install_once(values)


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    """A client, and four workers."""
    with release.client() as client:
        ask(client, "tide_scale", n=4)
        wait_until(lambda: len(workers(client)) == 4, "four workers", DEADLINE_S, release.situation)
        yield client


def opens(cluster: Cluster, namespace: str, pod: str, *places: str) -> list[bool]:
    """Which of these places (``HOST:PORT``) take a pod's connection."""
    said = cluster.kubectl(
        "exec", pod, "--namespace", namespace, "--", "python", "-c", _KNOCK, *places, deadline_s=90
    )
    answers: list[bool] = json.loads(said)
    return answers


def listening(client: Client) -> list[str]:
    """Where workers and their nannies listen."""
    found = known(client)
    return [url.removeprefix("tls://") for url in (*found, *(each["nanny"] for each in found.values()))]


def test_work_is_done_and_results_are_handed_over(release: Release, client: Client) -> None:
    on = {pod["spec"]["nodeName"] for pod in release.pods().values()}
    assert on == set(NODES), "what one gives another passes between nodes, too"
    by_worker = addresses(client)
    data = [
        client.submit(lambda name: (name, name.encode() * 1000), name, workers=[address], pure=False)
        for name, address in by_worker.items()
    ]
    wait(data, timeout=DEADLINE_S)
    # Each gets what all the others have made.
    met = [
        client.submit(lambda *parts: sorted(name for name, _ in parts), *data, workers=[address], pure=False)
        for address in by_worker.values()
    ]
    assert client.gather(met) == [sorted(by_worker)] * 4
    del met
    # And who has to go hands over what it has.
    victim = next(iter(by_worker))
    release.evict(victim)
    wait_until(
        lambda: victim not in workers(client) and len(workers(client)) == 4,
        "another has come",
        DEADLINE_S,
        release.situation,
    )
    assert dict(client.gather(data)) == {name: name.encode() * 1000 for name in by_worker}
    computed_once(client)
    assert set(client.gather(client.map(nap, [0.2] * 40, pure=False))) == set(workers(client))
    del data
    ask(client, "tide_scale", n=0)
    release.settled(0)


def test_only_who_is_named_reaches_the_scheduler_and_nobody_the_workers(
    walled: Cluster, outside: str, release: Release, client: Client
) -> None:
    comm, page = (f"r-scheduler.{release.namespace}:{port}" for port in (8786, 8787))
    inner = listening(client)
    assert len(inner) == 8
    for pod, admitted in (("friend", True), ("stranger", False)):
        assert opens(walled, outside, pod, comm, page) == [admitted, False]
        assert opens(walled, outside, pod, *inner) == [False] * 8
        readiness = [f"{pod['status']['podIP']}:8790" for pod in release.pods().values()]
        assert opens(walled, outside, pod, *readiness) == [True] * 4, "kubelets ask there"
    # They are there, for the others of this release; and there are names.
    worker = next(iter(release.pods()))
    assert opens(walled, release.namespace, worker, comm, page, *inner) == [True] * 10


def _by_value() -> Callable[..., list[bool]]:
    # Inside of a function, so that it is sent by value: no pod can import tests.
    def knock(places: list[str]) -> list[bool]:
        import socket

        def opens(place: str) -> bool:
            host, _, port = place.rpartition(":")
            try:
                socket.create_connection((host, int(port)), 5).close()
            except OSError:
                return False
            return True

        return [opens(place) for place in places]

    def by_the_scheduler(places: list[str]) -> list[bool]:
        from distributed import get_client

        found: list[bool] = get_client().run_on_scheduler(knock, places)
        return found

    return by_the_scheduler


#: A task: which of these places take the scheduler's connection.
by_the_scheduler = _by_value()


def test_workers_that_are_shut_in_reach_their_own_only(
    walled: Cluster, outside: str, release: Release, client: Client
) -> None:
    """Nor do they by the scheduler, in which a task can run code as well, or by the notebook server."""
    api, stranger = (
        walled.kubectl.json("get", *what)
        for what in (
            ("service", "kubernetes", "--namespace", "default"),
            ("pod", "stranger", "--namespace", outside),
        )
    )
    comm = f"r-scheduler.{release.namespace}:8786"
    others = (f"{api['spec']['clusterIP']}:443", f"{stranger['status']['podIP']}:{OPEN}")
    assert opens(walled, outside, "friend", *others) == [True, True], "they are there"
    [notebook] = release.objects("pods", "app.kubernetes.io/component=notebook")
    for pod in (*release.pods(), notebook["metadata"]["name"]):
        assert opens(walled, release.namespace, pod, comm, *others) == [True, False, False], pod
    found = client.submit(by_the_scheduler, [comm, *others], pure=False).result(timeout=DEADLINE_S)
    assert found == [True, True, False], "all that the scheduler needs is the API server"
