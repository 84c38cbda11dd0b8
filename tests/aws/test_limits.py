"""Limits of one's own, and work that is not worth a machine: no machine too many, and the work gets done."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, Event, wait
from fleet import BOOT_S, DEADLINE_S, PER_MACHINE, Fleet, most_at_once, tell, until_told
from releases import ask, computed_once, nap
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

#: A machine's price of 1 a second, of which a unit takes 1.7 of 3.92 CPUs: three units, not four.
PRICES = {"*/spot": 3600.0}
BUDGET = 3.5 * 3600 * 1.7 / 3.92
AFFORDABLE = 3
TIDE = {
    "aim": "thrifty",
    "forecast": {"prior": "2m"},
    "limits": {"budget-per-hour": BUDGET},
    "options": {"prices": PRICES},
    "release": {"keep": "3s"},
}
THREADS = 2
TASK_S = 1.0


@pytest.fixture(scope="module")
def limited(install_once: Callable[..., Fleet]) -> Fleet:
    """Two pools that share a budget; tasks are taken to be long, time is cheap, and idle workers go soon."""
    pools = {"cpu": {}, "other": {"daskResources": {"OTHER": 1}, "maximum": 1}}
    return install_once(pools, {"tide": TIDE}, markets=["spot"])


@pytest.fixture
def fleet(limited: Fleet) -> Iterator[Fleet]:
    """It, without workers and machines."""
    limited.clear()
    yield limited
    limited.kubectl("delete", "quota", "--all")
    limited.limit(2000)
    limited.cloud.boots(BOOT_S)


def test_the_budget_holds_is_told_and_what_it_held_back_follows(fleet: Fleet) -> None:
    before = len(fleet.bill())
    with fleet.client() as client:
        running = until_told(client, 4 * THREADS)
        # At first one unit's price is not known, and one is all that the pool's own would allow.
        fleet.all_at_work(client, *["cpu"] * AFFORDABLE)
        fleet.told(client, f"the work could use 4 units, the budget allows {AFFORDABLE}")
        held = client.submit(nap, 0.1, resources={"OTHER": 1}, pure=False)
        fleet.told(client, "Pool other: nothing to do: the work could use 1 unit, the budget allows 0")
        assert len(fleet.pods()) == AFFORDABLE
        tell(client, running)
        running.clear()
        assert held.result(timeout=DEADLINE_S).startswith("r-other-"), "others have gone"
        assert len(fleet.bill()) - before == math.ceil(AFFORDABLE / PER_MACHINE), (
            "and it has taken their place"
        )
        computed_once(client)


def test_p39_quota_2_ask_4(fleet: Fleet) -> None:
    """On machines that come and go: none for a pod that may not be, and no calls by the hundred."""
    before, changes = len(fleet.bill()), generation(fleet)
    fleet.kubectl("create", "quota", "few", "--hard=pods=3")  # one is the scheduler's
    with fleet.client() as client:
        running = until_told(client, 4 * THREADS)
        fleet.told(client, "exceeded quota: few")
        fleet.all_at_work(client, "cpu", "cpu")
        tell(client, running)
        assert fleet.log().count("exceeded quota: few") == 1, "one warning"
        running.clear()
        fleet.settled(0, "once more")
    assert len(fleet.bill()) - before == 1
    # Up to one, to three, down to the two that there are, and to none; perhaps it was tried again.
    assert generation(fleet) - changes <= 8
    assert refusals(fleet) <= 20


def generation(fleet: Fleet) -> int:
    """How often the ReplicaSet's number was changed, by whomever."""
    return int(fleet.kubectl("get", "replicaset", "r-cpu", "--output=jsonpath={.metadata.generation}"))


def refusals(fleet: Fleet) -> int:
    """How many pods could not be created."""
    command = ("--namespace", fleet.namespace, "get", "events", "--field-selector=reason=FailedCreate")
    return sum(event.get("count") or 1 for event in fleet.cloud.kubectl.json(*command)["items"])


def sizes(client: Client) -> dict[str, str]:
    """What the scheduler takes each machine for."""

    def ask_provider(dask_scheduler: Any) -> Any:
        return dask_scheduler.extensions["tide"].provider._machines()

    told: dict[str, str] = client.run_on_scheduler(ask_provider)
    return told


def _by_value() -> Callable[[int], str]:
    # Inside of a function, so that it is sent by value: workers cannot import tests.
    def until_enough(_: int) -> str:
        """Take TASK_S, or no time at all once it is enough; say on which worker."""
        from distributed import Event, get_worker

        Event("enough").wait(timeout=TASK_S)
        return str(get_worker().name)

    return until_enough


until_enough = _by_value()


def test_p33_work_that_would_be_done_before_a_machine_comes_asks_for_none(fleet: Fleet) -> None:
    """Another worker on the machine that is there would pay, one for which a machine must boot would not."""
    fleet.cloud.boots(30.0)
    before = len(fleet.bill())
    with fleet.client() as client:
        # Its time is learned, and that of a machine.
        client.submit(until_enough, 0, pure=False).result(timeout=DEADLINE_S)
        [machine] = fleet.machines()
        learned = ask(client, "tide_status")["pools"]["cpu"]
        near_s, far_s = learned["boot_s"] or 5.0, learned["cold_boot_s"]
        assert far_s > 2 * near_s
        assert sizes(client)[machine].startswith("cpu 3.9, memory "), "room is counted by size"
        # Two workers would pay if work for three boots of each were left: between that of the two times.
        work_s = 3 * THREADS * math.sqrt(near_s * far_s)
        tasks = client.map(until_enough, range(1, math.ceil(work_s / TASK_S)), pure=False)
        fleet.told(client, "would find too little of the")
        wait_until(
            lambda: sum(task.done() for task in tasks) > len(tasks) / 2, "half of it is done", DEADLINE_S
        )
        Event("enough", client=client).set()
        wait(tasks, timeout=DEADLINE_S)
        workers = set(client.gather(tasks))
        assert len(workers) <= PER_MACHINE
        assert set(fleet.pods()) <= workers, "none that came for nothing"
        assert list(fleet.machines()) == [machine]
        assert len(fleet.bill()) - before == 1


@pytest.mark.timeout(900, func_only=True)  # it waits for seven things
def test_three_clusters_share_a_node_pool_at_its_limit(fleet: Fleet, install: Callable[..., Fleet]) -> None:
    most = 2
    fleet.limit(4 * most)
    before = len(fleet.bill())
    others = [
        install(None, {"tide": {"release": TIDE["release"]}}, share=fleet, ready=False) for _ in range(2)
    ]
    for other in others:
        other.ready()
    fleets = [fleet, *others]
    with fleet.client() as one, others[0].client() as two, others[1].client() as three:
        clients = [one, two, three]
        jobs = [client.map(nap, [0.5] * 40, pure=False) for client in clients]
        wait_until(
            lambda: all(task.done() for job in jobs for task in job),
            "all three get their turn",
            2 * DEADLINE_S,
            lambda: "\n\n".join(each.situation() for each in fleets),
        )
        by = [set(client.gather(job)) for client, job in zip(clients, jobs, strict=True)]
        assert not (by[0] & by[1] | by[0] & by[2] | by[1] & by[2]), "workers of its own"
        for each, client in zip(fleets, clients, strict=True):
            computed_once(client)
            ended = each.kubectl("get", "events", "--output=json")
            reasons = {event["reason"] for event in json.loads(ended)["items"]}
            assert not reasons & {"Evicted", "Preempted"}, "nobody else has ended its pods"
        jobs.clear()
        for each in fleets:
            each.settled(0, "at the end")
    fleet.no_machines("at the end")
    assert most_at_once(fleet.bill()[before:]) == most
