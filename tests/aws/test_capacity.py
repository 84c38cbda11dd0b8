"""Machines that do not come: out of stock, at a limit, refused, lost. It is told, and the work gets done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, Event, Future
from fleet import DEADLINE_S, Fleet
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

#: How soon somebody who asks is told.
TOLD_S = 60.0


def pool(market: str, price: float) -> dict[str, Any]:
    """Workers on machines of one market, one to a machine of four CPUs."""
    term = {"matchExpressions": [{"key": "karpenter.sh/capacity-type", "operator": "In", "values": [market]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {
        "threads": 1,
        "maximum": 4,
        "price": price,
        "spot": market == "spot",
        "affinity": {"nodeAffinity": required},
        "resources": {"requests": {"cpu": "3", "memory": "300Mi"}},
    }


@pytest.fixture(scope="module")
def two_pools(install_once: Callable[..., Fleet]) -> Fleet:
    """Spot, and on demand, which is dearer; tasks are taken to be long."""
    tide = {"forecast": {"prior": "2m"}, "options": {"machine-within": "30s"}}
    return install_once({"spot": pool("spot", 1), "demand": pool("on-demand", 3)}, {"tide": tide})


@pytest.fixture
def fleet(two_pools: Fleet) -> Iterator[Fleet]:
    """It, without workers and machines; Karpenter forgets what was out of stock, which it does in 3 min."""
    two_pools.settled(0, "at first", DEADLINE_S)
    two_pools.no_machines()  # one of the test before could do the work
    yield two_pools
    two_pools.cloud.in_stock()
    two_pools.cloud.throttle(False)
    two_pools.cloud.boots(5.0, joins=True)
    two_pools.cloud.restart_autoscaler()


def until_told(client: Client, count: int) -> list[Future]:
    """Tasks that run until `told` is set."""

    def wait_for_it(number: int) -> int:
        from distributed import Event

        Event("told").wait()
        return number

    Event("told", client=client).clear()
    return list(client.map(wait_for_it, range(count), pure=False))


def at_work(client: Client) -> list[str]:
    """The pools of the workers that have a task."""
    busy = {address for address, keys in client.processing().items() if keys}
    infos = client.scheduler_info(n_workers=-1)["workers"]
    return sorted(str(info["name"]).split("-")[1] for address, info in infos.items() if address in busy)


def all_at_work(client: Client, fleet: Fleet, *pools: str) -> None:
    wait_until(lambda: at_work(client) == sorted(pools), f"work on {pools}", DEADLINE_S, fleet.situation)


def told(fleet: Fleet, words: str) -> None:
    wait_until(lambda: words in fleet.explain(), f"it is told: {words}", TOLD_S, fleet.situation)


def done(client: Client, running: list[Future]) -> None:
    Event("told", client=client).set()
    assert client.gather(running) == list(range(len(running)))


@pytest.fixture
def one_machine(fleet: Fleet) -> Iterator[Fleet]:
    """Its NodePool is at its limit with one."""

    def limit(cpus: int) -> None:
        patch = json.dumps({"spec": {"limits": {"cpu": str(cpus)}}})
        fleet.cloud.kubectl("patch", "nodepool", fleet.node_pool, "--type=merge", f"--patch={patch}")

    limit(4)
    yield fleet
    limit(2000)


def test_p09_a_node_pool_at_its_limit_is_told_in_the_platforms_words(one_machine: Fleet) -> None:
    fleet = one_machine
    with fleet.client() as client:
        running = until_told(client, 2)
        told(fleet, "exceed limits for nodepool")
        all_at_work(client, fleet, "spot")
        done(client, running)
        assert len(fleet.machines()) == 1


def test_without_spot_it_is_told_and_the_work_is_done_on_demand(fleet: Fleet) -> None:
    cloud = fleet.cloud
    cloud.stock_out("*/*/spot")
    with fleet.client() as client:
        running = until_told(client, 2)
        told(fleet, "no instance type")
        all_at_work(client, fleet, "demand", "demand")
        assert {each.market for each in fleet.machines().values()} == {"on-demand"}
        done(client, running)


def test_a_machine_dies_without_notice_and_the_work_is_done(fleet: Fleet) -> None:
    with fleet.client() as client:
        running = until_told(client, 2)
        all_at_work(client, fleet, "spot", "spot")
        lost, left = sorted(fleet.machines())
        fleet.cloud.terminate(lost)
        wait_until(lambda: left in fleet.machines(), "the other is there")
        wait_until(
            lambda: lost not in fleet.where().values() and len(fleet.machines()) == 2,
            "another machine",
            DEADLINE_S,
            fleet.situation,
        )
        all_at_work(client, fleet, "spot", "spot")
        assert lost not in fleet.cloud.nodes()
        done(client, running)


def test_refused_calls_and_an_autoscaler_that_starts_again_make_no_machine_too_many(fleet: Fleet) -> None:
    cloud, before = fleet.cloud, {each.id for each in fleet.bill()}

    def refused() -> int:
        return sum(call["status"] == 503 for call in cloud.api_calls())

    def launched() -> list[str]:
        claims = cloud.kubectl.json(
            "get", "nodeclaims", f"--selector=karpenter.sh/nodepool={fleet.node_pool}"
        )
        ids = (claim.get("status", {}).get("providerID") for claim in claims["items"])
        return [id_ for id_ in ids if id_]

    earlier = refused()
    cloud.throttle(True, "ec2:CreateFleet")
    with fleet.client() as client:
        running = until_told(client, 3)
        wait_until(lambda: refused() > earlier, "AWS refuses", DEADLINE_S, fleet.situation)
        cloud.throttle(False)
        # Before it has written down what it has launched, Karpenter itself would launch it again.
        wait_until(lambda: len(launched()) == 3, "machines are launched", DEADLINE_S, fleet.situation)
        cloud.restart_autoscaler()
        all_at_work(client, fleet, "spot", "spot", "spot")
        done(client, running)
        assert len({each.id for each in fleet.bill()} - before) == 3
