"""Machines that are emptied, die or cannot be asked about while there is work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from distributed import Event, wait
from releases import DEADLINE_S, POOL, Release, ask, finished, nap, workers
from waiting import wait_until

from rig.clients import ApiError
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

HERE = {"machines": "ours"}


@pytest.fixture
def machines(nodes: Cluster) -> Iterator[tuple[str, str]]:
    """Two nodes of the test's own; workers with ``nodeSelector: HERE`` run on no other."""
    names = ("doomed", "spared")
    nodes.nodes_up(*names, labels=HERE)
    yield names
    for name in set(names) & set(nodes.nodes()):
        nodes.node_down(name, forget=True)


def machine_of(release: Release, worker: str) -> str:
    """Where it runs; empty: its pod is about to go."""
    pod = release.pods().get(worker)
    return str(pod["spec"]["nodeName"]) if pod else ""


def test_kubectl_drain_loses_nothing_and_scattered_data_neither(
    install: Callable[..., Release], nodes: Cluster, machines: tuple[str, str]
) -> None:
    release = install({"pools": {"cpu": POOL | {"maximum": 4, "nodeSelector": HERE}}})
    doomed, spared = machines
    with release.client() as client:
        ask(client, "tide_scale", n=4)
        wait_until(lambda: len(workers(client)) == 4, "four workers", DEADLINE_S, release.situation)
        futures = client.map(nap, [0.1] * 16, pure=False)
        wait(futures, timeout=DEADLINE_S)
        (scattered,) = client.scatter([b"from outside"])
        assert {machine_of(release, name) for name in workers(client)} == {doomed, spared}
        # `--timeout`: a pod with a grace period of 40 s may take it.
        nodes.kubectl(
            "drain", doomed, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s", deadline_s=80
        )
        wait_until(
            lambda: {machine_of(release, name) for name in release.pods()} == {spared},
            "all are on the other node",
            DEADLINE_S,
            release.situation,
        )
        assert len(client.gather(futures)) == 16
        assert scattered.result() == b"from outside"
        assert set(finished(client).values()) == {1}, "nothing was computed again"


def test_a_node_that_dies_takes_its_work_with_it_and_no_more(
    install: Callable[..., Release], nodes: Cluster, machines: tuple[str, str]
) -> None:
    release = install({"pools": {"cpu": POOL | {"maximum": 4, "nodeSelector": HERE}}})
    doomed, spared = machines
    with release.client() as client:

        def until_told(number: int) -> int:
            from distributed import Event

            Event("told").wait()
            return number

        futures = client.map(until_told, range(4), pure=False)
        wait_until(lambda: len(workers(client)) >= 2, "two workers", DEADLINE_S, release.situation)
        wait_until(
            lambda: {machine_of(release, name) for name in workers(client)} >= {doomed, spared},
            "on both nodes",
            DEADLINE_S,
            release.situation,
        )
        nodes.node_down(doomed, forget=True)
        Event("told", client=client).set()
        assert client.gather(futures) == [0, 1, 2, 3]
        del futures
        wait_until(lambda: not release.pods(), "all are gone", DEADLINE_S, release.situation)


def test_a_job_goes_on_while_the_api_server_is_away(install: Callable[..., Release], nodes: Cluster) -> None:
    release = install()
    with release.client() as client:
        futures = client.map(nap, [1.0] * 24, pure=False)
        # The port-forward ends with the API server, the client with that: what is published stays.
        client.publish_dataset(kept=futures)
        wait_until(lambda: len(workers(client)) >= 2, "workers", DEADLINE_S, release.situation)
    nodes.restart_apiserver(away_s=30)
    release.close()
    with release.client() as client:
        futures = client.get_dataset("kept")
        assert len(client.gather(futures)) == 24
        assert set(finished(client).values()) == {1}, "nothing was computed twice"
        client.unpublish_dataset("kept")
        del futures
        release.settled(0, "as ever")


def test_p30_with_a_budget_the_scheduler_is_not_evicted(install: Callable[..., Release]) -> None:
    values = {"pools": {"cpu": POOL}, "scheduler": {"podDisruptionBudget": {"enabled": True}}}
    release = install(values)

    def refused() -> bool:
        # Until the budget's controller has counted, the answer is another one.
        try:
            release.evict(release.scheduler_pod())
        except ApiError as error:
            return error.status == 429 and "disruption budget" in str(error)
        pytest.fail("the scheduler was evicted")

    wait_until(refused, "the eviction is refused", DEADLINE_S, release.situation)
