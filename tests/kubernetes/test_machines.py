"""Machines that are emptied, die or cannot be asked about while there is work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from distributed import Client, wait
from releases import DEADLINE_S, POOL, VALUES, Held, Release, ask, computed_once, hold, nap, workers
from waiting import wait_until

from rig.clients import ApiError
from rig.folders import CHECKOUT
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

HERE = {"machines": "ours"}
MAXIMUM = 8
#: A controller that meets a server which does not serve yet waits for up to a minute before it asks again,
#: and pods pass through three of them.
AGAIN_S = 180.0
#: How soon a connection counts as broken whose other end is silent.
SOON = [{"name": "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", "value": "15s"}]


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release], nodes: Cluster) -> Iterator[Release]:
    """Its workers run on nodes of the module's own, and no other; its scheduler, which is older, does not."""
    pool = POOL | {"maximum": MAXIMUM, "nodeSelector": HERE, "env": SOON}
    scheduler = VALUES["scheduler"] | {"podDisruptionBudget": {"enabled": True}, "env": SOON}
    release = install_once({"pools": {"cpu": pool}, "scheduler": scheduler})
    nodes.node_up("spared", labels=HERE)
    yield release
    nodes.node_down("spared", forget=True)


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        yield client


@pytest.fixture
def doomed(nodes: Cluster, release: Release) -> Iterator[str]:
    """The name of a node that does not outlive the test."""
    name = "doomed"
    nodes.node_up(name, labels=HERE)
    yield name
    if name in nodes.nodes():
        nodes.node_down(name, forget=True)
    else:
        nodes.kubectl("delete", "node", name, "--ignore-not-found")


def machine_of(release: Release, worker: str) -> str:
    """Where it runs; empty: its pod is about to go."""
    pod = release.pods().get(worker)
    return str(pod["spec"]["nodeName"]) if pod else ""


def spread(release: Release, client: Client, nodes: Cluster, machines: list[str]) -> None:
    """Have two workers on each of these, whichever Kubernetes would prefer."""
    for number, machine in enumerate(machines, start=1):
        others = [other for other in machines if other != machine]
        nodes.kubectl("cordon", *others)
        ask(client, "tide_scale", n=2 * number)
        there = partial(lambda n: len(workers(client)) == n, 2 * number)
        wait_until(there, f"two workers on {machine}", DEADLINE_S, release.situation)
        nodes.kubectl("uncordon", *others)
    assert {machine_of(release, name) for name in workers(client)} == set(machines)


def test_p30_with_a_budget_the_scheduler_is_not_evicted(release: Release) -> None:
    def refused() -> bool:
        # Until the budget's controller has counted, the answer is another one.
        try:
            release.evict(release.scheduler_pod())
        except ApiError as error:
            return error.status == 429 and "disruption budget" in str(error)
        pytest.fail("the scheduler was evicted")

    wait_until(refused, "the eviction is refused", DEADLINE_S, release.situation)


def test_kubectl_drain_waits_for_tasks_and_loses_nothing(
    release: Release, client: Client, nodes: Cluster, doomed: str
) -> None:
    spread(release, client, nodes, [doomed, "spared"])
    results = client.map(nap, [0.1] * 16, pure=False)
    wait(results, timeout=DEADLINE_S)
    (scattered,) = client.scatter([b"from outside"])
    held = hold(client, 4)
    leaving = {name for name in held.placed(release) if machine_of(release, name) == doomed}
    drain = ("drain", doomed, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
    with ThreadPoolExecutor(1) as beside:
        drained = beside.submit(nodes.kubectl, *drain, deadline_s=80)
        wait_until(
            lambda: len(release.pods()) == 4 and leaving.isdisjoint(release.pods()),
            "others have been asked for",
            DEADLINE_S,
            release.situation,
        )
        assert leaving <= set(release.all_pods()), "those that leave still have their tasks"
        assert not drained.done()
        for name in leaving:
            release.told(client, f"{name}: the platform takes the unit away: EvictionByEvictionAPI")
        held.tell()
        drained.result()
    assert client.gather(held.futures) == [0, 1, 2, 3]
    assert held.begun() == [1] * 4, "nothing was started twice"
    assert len(client.gather(results)) == 16
    assert scattered.result() == b"from outside"
    computed_once(client)
    assert {machine_of(release, name) for name in release.pods()} == {"spared"}
    ask(client, "tide_adapt", minimum=0, maximum=MAXIMUM)
    held.forget()
    del results, scattered
    release.settled(0)


#: Run in the cluster's network, where Services can be reached without the API server.
MEANWHILE = """
import json, sys, time
from distributed import Client, Security
from releases import ask, hold, workers

folder, address, away_s = sys.argv[1:]
end_s = time.monotonic() + float(away_s)
security = Security(
    tls_ca_file=f"{folder}/ca.crt",
    tls_client_cert=f"{folder}/tls.crt",
    tls_client_key=f"{folder}/tls.key",
    require_encryption=True,
)
with Client(f"tls://{address}", timeout=30, security=security) as client:
    held = hold(client, 6)
    held.publish()
    held.tell(0)
    first = held.futures[0].result(timeout=60)
    words = ""
    while time.monotonic() < end_s or "did not answer" not in words:
        words = ask(client, "tide_explain", lines=0)
        time.sleep(0.2)
    told = {"topic": held.topic, "first": first, "words": words, "workers": sorted(workers(client))}
print(json.dumps(told))
"""
#: Run there, too: nobody else reaches etcd.
COMPACT = "import sys; from rig.nodes import Cluster; Cluster.attach(sys.argv[1]).compact_etcd()"


@pytest.mark.timeout(600, func_only=True)  # it waits for the job without an API server, and for AGAIN_S
def test_what_is_asked_for_while_the_api_server_is_away_comes_when_it_is_back(
    release: Release, nodes: Cluster
) -> None:
    with release.client() as client:
        ask(client, "tide_adapt", minimum=2, maximum=2)
        wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
        results = client.map(nap, [0.1] * 8, pure=False)
        wait(results, timeout=DEADLINE_S)
        # A port-forward ends with the API server, and its client with that: what is published stays.
        client.publish_dataset(results, name="results")
        before = sorted(workers(client))
        ask(client, "tide_adapt", minimum=2, maximum=MAXIMUM)
    service = release.objects("service")[0]["spec"]["clusterIP"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(CHECKOUT)])
    there = partial(nodes.run_in, env=os.environ | {"PYTHONPATH": paths}, timeout=120)
    with nodes.apiserver_away():
        command = [sys.executable, "-c", MEANWHILE, str(release.folder), f"{service}:8786", "30"]
        told = json.loads(there(command).stdout)
        # Whoever goes on with a version from before is told "410 Gone".
        there([sys.executable, "-c", COMPACT, nodes.folder.name])
    assert told["first"] == 0, "the job went on"
    assert "the platform did not answer, so nothing is known and nothing is done" in told["words"]
    assert told["workers"] == before, told["words"]
    release.close()
    with release.client() as client:
        held = Held.published(client, told["topic"])
        wait_until(lambda: all(held.begun()), "the others have got workers", AGAIN_S, release.situation)
        assert set(before) < set(workers(client))
        held.tell()
        assert client.gather(held.futures) == list(range(6))
        assert held.begun() == [1] * 6, "nothing was started twice"
        assert len(client.gather(client.get_dataset("results"))) == 8
        computed_once(client)
        for name in ("results", told["topic"]):
            client.unpublish_dataset(name)
        held.forget()
        # They would stay as long as a start took just now.
        ask(client, "tide_scale", n=0)
        release.settled(0, "as ever")
        ask(client, "tide_adapt", minimum=0, maximum=MAXIMUM)


def test_a_node_without_power_is_no_capacity_and_its_work_goes_elsewhere(
    release: Release, client: Client, nodes: Cluster, doomed: str
) -> None:
    """Nobody says that it is gone, as a cloud's controller would: its pods seem to run for minutes."""
    spread(release, client, nodes, [doomed, "spared"])
    ask(client, "tide_adapt", minimum=0, maximum=MAXIMUM)
    held = hold(client, 4)
    at = held.placed(release)
    lost = {name for name in at if machine_of(release, name) == doomed}
    nodes.node_down(doomed)

    def unknown() -> set[str]:
        units = ask(client, "tide_status")["units"]
        return {unit["name"] for unit in units if unit["phase"] == "unknown"}

    wait_until(lambda: unknown() == lost, "they are not counted on", DEADLINE_S, release.situation)
    assert "(unknown): its node does not answer, or is not ready" in release.explain()
    assert lost <= set(release.pods()), "though Kubernetes shows them as running"
    wait_until(lambda: lost.isdisjoint(workers(client)), "Dask has noticed, too", DEADLINE_S)
    again = held.placed(release)
    assert {machine_of(release, name) for name in again} == {"spared"}
    held.tell()
    assert client.gather(held.futures) == [0, 1, 2, 3]
    assert held.begun() == [2 if number in {at[name] for name in lost} else 1 for number in range(4)]
    held.forget()
    wait_until(lambda: set(release.all_pods()) == lost, "the others are done", DEADLINE_S, release.situation)
