"""Machines that do not come: out of stock, at a limit, refused, lost. It is told, and the work gets done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client
from fleet import BOOT_S, DEADLINE_S, Fleet, tell, until_told
from waiting import wait_until

from rig.aws.karpenter import node_pool

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]


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


#: Spot, and on demand, which is dearer; tasks are taken to be long.
POOLS = {"spot": pool("spot", 1), "demand": pool("on-demand", 3)}
TIDE = {"forecast": {"prior": "2m"}}


@pytest.fixture(scope="module")
def two_pools(install_once: Callable[..., Fleet]) -> Fleet:
    """The two of them."""
    return install_once(POOLS, {"tide": TIDE})


@pytest.fixture
def fleet(two_pools: Fleet) -> Iterator[Fleet]:
    """It, without workers and machines; Karpenter forgets what was out of stock, which it does in 3 min."""
    two_pools.clear()  # a machine of the test before could do the work
    with two_pools.client() as client:
        wait_until(lambda: room_for_spot(client), "spot is tried again", DEADLINE_S, two_pools.situation)
    yield two_pools
    two_pools.cloud.in_stock()
    two_pools.cloud.throttle(False)
    two_pools.cloud.boots(BOOT_S, joins=True)
    two_pools.cloud.restart_autoscaler()


def room_for_spot(client: Client) -> bool:
    """Whether the controller no longer believes that there is none."""

    def capacity(dask_scheduler: Any) -> Any:
        pools = dask_scheduler.extensions["tide"].snapshot.pools
        return next(state.capacity for state in pools if state.pool.spot)

    return client.run_on_scheduler(capacity) is None


@pytest.fixture
def impatient(install: Callable[..., Fleet]) -> Iterator[Fleet]:
    """Another one, which waits for a machine for half a minute; others would take a slow one for none."""
    fleet = install(POOLS, {"tide": TIDE | {"options": {"machine-within": "30s"}}})
    yield fleet
    fleet.cloud.boots(BOOT_S, joins=True)


@pytest.fixture
def beside(fleet: Fleet) -> Iterator[str]:
    """Its NodePool is at its limit with one machine; the name of another, of machines on demand alone."""
    name, kubectl = f"{fleet.node_pool}-demand", fleet.cloud.kubectl
    other = node_pool(fleet.node_pool, markets=["on-demand"])  # labels and taint are those of the first
    fleet.limit(4)
    kubectl.apply(other | {"metadata": {"name": name}})
    yield name
    kubectl("delete", "nodepool", name, "--wait=false")
    fleet.limit(2000)


def test_p09_a_node_pool_at_its_limit_is_told_and_the_other_pool_takes_over(
    fleet: Fleet, beside: str
) -> None:
    with fleet.client() as client:
        running = until_told(client, 2)
        fleet.told(client, "exceed limits for nodepool")
        fleet.all_at_work(client, "spot", "demand")
        assert [each.market for each in fleet.machines().values()] == ["spot"]
        assert [each.market for each in fleet.cloud.instances(beside)] == ["on-demand"]
        tell(client, running)


def test_p09_pods_that_no_machine_could_ever_take_are_told_and_boot_none(
    install: Callable[..., Fleet],
) -> None:
    nowhere = {"nodeSelector": {"disk": "floppy"}, "daskResources": {"FLOPPY": 1}}
    fleet = install({"cpu": {"maximum": 1}, "nowhere": nowhere})
    with fleet.client() as client:
        impossible = client.submit(lambda: None, resources={"FLOPPY": 1}, pure=False)
        fleet.told(client, "Pool nowhere")
        fleet.told(client, "disk")
        # Others' work goes on, on the one machine that it needs.
        assert client.submit(lambda: 7, pure=False).result(timeout=DEADLINE_S) == 7
        assert impossible.status == "pending"
        assert len(fleet.bill()) == 1
        del impossible
        fleet.settled(0)


@pytest.mark.timeout(900, func_only=True)  # it waits for eight things
def test_without_spot_the_work_is_done_on_demand_and_later_on_spot_again(fleet: Fleet) -> None:
    cloud = fleet.cloud
    cloud.stock_out("*/*/spot")
    with fleet.client() as client:
        running = until_told(client, 2)
        fleet.told(client, "no instance type")
        fleet.all_at_work(client, "demand", "demand")
        assert {each.market for each in fleet.machines().values()} == {"on-demand"}
        tell(client, running)
        cloud.in_stock()
        cloud.restart_autoscaler()  # it would remember for 3 min what was out of stock
        # Who is there takes what comes: it is at work at once, and costs no boot.
        running = until_told(client, 1)
        fleet.all_at_work(client, "demand")
        tell(client, running)
        running.clear()
        fleet.clear()
        # Our own memory of it is shorter.
        wait_until(lambda: room_for_spot(client), "spot is tried again", DEADLINE_S, fleet.situation)
        running = until_told(client, 1)
        fleet.all_at_work(client, "spot")
        assert {each.market for each in fleet.machines().values()} == {"spot"}
        tell(client, running)


def test_a_machine_that_never_joins_is_told_and_the_work_is_done_elsewhere(impatient: Fleet) -> None:
    fleet, cloud = impatient, impatient.cloud
    cloud.boots(joins=False)
    with fleet.client() as client:
        running = until_told(client, 1)
        [lost] = wait_until(fleet.machines, "a machine is launched", DEADLINE_S, fleet.situation)
        cloud.boots(0.0, joins=True)
        fleet.told(client, "none has come in 30 s")
        fleet.all_at_work(client, "demand")
        tell(client, running)
        # Karpenter gives it a quarter of an hour; nobody waits for it any more.
        wait_until(lambda: not fleet.pods("spot"), "nobody waits for it", DEADLINE_S, fleet.situation)
        launched = fleet.bill()
        assert [(each.market, each.joined) for each in launched] == [("spot", False), ("on-demand", True)]
        assert launched[0].node == lost


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
        fleet.all_at_work(client, "spot", "spot", "spot")
        tell(client, running)
        assert len({each.id for each in fleet.bill()} - before) == 3


# The last one: Karpenter waits a minute for the pods of a dead machine, and so would who comes after it.
def test_a_machine_dies_without_notice_and_the_work_is_done(fleet: Fleet) -> None:
    with fleet.client() as client:
        running = until_told(client, 2)
        fleet.all_at_work(client, "spot", "spot")
        lost, left = sorted(fleet.machines())
        fleet.cloud.terminate(lost)
        wait_until(lambda: left in fleet.machines(), "the other is there")
        wait_until(
            lambda: lost not in fleet.where().values() and len(fleet.machines()) == 2,
            "another machine",
            DEADLINE_S,
            fleet.situation,
        )
        fleet.all_at_work(client, "spot", "spot")
        assert lost not in fleet.cloud.nodes()
        tell(client, running)
