"""Spot machines that are taken back: workers leave within the notice, and nothing is computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import pytest
from distributed import Client, Event, Future, wait
from fleet import DEADLINE_S, Fleet, tell, until_told
from releases import ask, computed_once, nap, workers
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
#: One to a machine of four CPUs; what is left of a notice when Karpenter has heard of it.
SPOT = {
    "spot": True,
    "threads": 1,
    "maximum": 6,
    "terminationGracePeriodSeconds": 100,
    "resources": {"requests": {"cpu": "3", "memory": "300Mi"}},
}


@pytest.fixture(scope="module")
def fleet(install_once: Callable[..., Fleet]) -> Fleet:
    """One pool, on spot machines only."""
    return install_once({"cpu": SPOT}, markets=["spot"])


def start(client: Client, fleet: Fleet, count: int) -> list[str]:
    """Have so many new workers, one to a machine; the machines."""
    ask(client, "tide_scale", n=0)
    fleet.clear()
    ask(client, "tide_scale", n=count)
    wait_until(lambda: len(workers(client)) == count, f"{count} workers", DEADLINE_S, fleet.situation)
    machines = sorted(fleet.where().values())
    assert machines == sorted(fleet.machines()), "one to a machine"
    return machines


def results(client: Client) -> list[Future]:
    """Some on each worker."""
    done = client.map(nap, [0.05] * 8 * len(workers(client)), pure=False)
    wait(done, timeout=DEADLINE_S)
    assert set(client.gather(done)) == set(workers(client)), "all hold results"
    return list(done)


def kept(fleet: Fleet, machine: str) -> list[str]:
    """What the workers' pods there are annotated with against Karpenter."""
    return [
        pod["metadata"]["annotations"].get(DO_NOT_DISRUPT, "")
        for pod in fleet.all_pods().values()
        if pod["spec"].get("nodeName") == machine
    ]


def marks(fleet: Fleet, pod: str) -> dict[str, str | None]:
    """What that pod tells node autoscalers."""
    annotations = fleet.all_pods()[pod]["metadata"]["annotations"]
    return {key: annotations.get(key) for key in (SAFE_TO_EVICT, DO_NOT_DISRUPT)}


def gone_in_time(fleet: Fleet, *machines: str) -> None:
    """They end before their power is cut."""
    wait_until(lambda: not set(machines) & set(fleet.machines()), "they go", DEADLINE_S, fleet.situation)
    paid = [each for each in fleet.bill() if each.node in machines]
    assert len(paid) == len(machines)
    assert all(each.ended_s and each.notice_s and each.ended_s < each.notice_s for each in paid)


def deaf(fleet: Fleet) -> bool:
    """Whether Karpenter is refused messages; it may have asked before, and waits for an answer for 20 s."""
    asked = [call["status"] for call in fleet.cloud.api_calls() if call["operation"] == "ReceiveMessage"]
    return bool(asked) and asked[-1] >= 400


def none_computed_again(client: Client) -> None:
    computed_once(client)


def test_p11_p31_within_the_notice_a_busy_worker_has_left_and_another_one_has_come(fleet: Fleet) -> None:
    with fleet.client() as client:
        [machine] = start(client, fleet, 1)
        done = results(client)
        running = until_told(client, 1)
        wait_until(lambda: kept(fleet, machine) == ["true"], "the busy worker is protected", DEADLINE_S)
        [leaver] = fleet.pods()
        fleet.cloud.interrupt(machine)
        wait_until(lambda: set(kept(fleet, machine)) <= {""}, "it is no longer", DEADLINE_S, fleet.situation)
        wait_until(lambda: len(fleet.machines()) == 2, "another machine", DEADLINE_S, fleet.situation)
        assert leaver in fleet.all_pods(), "which was asked for while there is still the first one"
        assert "its node is about to go" in fleet.explain()
        wait_until(lambda: set(workers(client)) - {leaver}, "another worker", DEADLINE_S, fleet.situation)
        assert leaver in workers(client), "the task runs on"
        tell(client, running)
        gone_in_time(fleet, machine)
        ask(client, "tide_adapt", minimum=0, maximum=6)
        [answers] = fleet.where().values()
        fleet.cloud.interrupt(answers)
        gone_in_time(fleet, answers)
        assert "only on units that are about to go" in fleet.explain(), "no task is left that wants a worker"
        assert len(client.gather(done)) == 8
        none_computed_again(client)


def test_p11_half_of_the_machines_are_taken_back_under_an_exchange_of_all_with_all(fleet: Fleet) -> None:
    count = 16

    def cut(number: int) -> list[bytes]:
        return [bytes([number]) * 50_000 for _ in range(count)]

    def join(number: int, *parts: list[bytes]) -> int:
        import time

        time.sleep(2)
        return sum(part[number][0] for part in parts)

    with fleet.client() as client:
        machines = start(client, fleet, 4)
        ask(client, "tide_adapt", minimum=0, maximum=6)
        parts = client.map(cut, range(count), pure=False)
        joined = [client.submit(join, number, *parts, pure=False) for number in range(count)]
        wait_until(lambda: sum(future.done() for future in joined) >= 4, "it is in full swing", DEADLINE_S)
        for machine in machines[::2]:
            fleet.cloud.interrupt(machine)
        assert client.gather(joined) == [sum(range(count))] * count
        gone_in_time(fleet, *machines[::2])
        assert [len(part) for part in client.gather(parts)] == [count] * count
        none_computed_again(client)


def test_p11_p26_half_of_the_machines_are_taken_back_under_a_p2p_shuffle(fleet: Fleet) -> None:
    """Which would begin again, with all that it was made of, if one of its workers left before its end."""
    array = pytest.importorskip("dask.array")
    last = 15

    def block(part: Any, block_id: tuple[int, int]) -> Any:
        # Until the last one comes the shuffle runs.
        from distributed import Event

        if block_id[0] == last:
            Event("told").wait()
        return part

    def shuffling(dask_scheduler: Any) -> list[int]:
        return [len(known) for known in dask_scheduler.plugins["shuffle"].heartbeats.values()]

    p2p = {"array.rechunk.method": "p2p", "array.chunk-size": "128 kiB"}
    with fleet.client() as client, dask.config.set(p2p):
        machines = start(client, fleet, 4)
        ask(client, "tide_adapt", minimum=0, maximum=6)
        Event("told", client=client).clear()
        rows = array.ones((512, 512), chunks=(32, 512))
        rows = rows.map_blocks(block, dtype=float, meta=rows._meta)
        columns = rows.rechunk((512, 32)).persist()
        wait_until(
            lambda: client.run_on_scheduler(shuffling) == [4], "all take part", DEADLINE_S, fleet.situation
        )
        for machine in machines[::2]:
            fleet.cloud.interrupt(machine)
        wait_until(
            lambda: sum(node in machines[::2] for node in fleet.where().values()) == 0,
            "they are told to go",
            DEADLINE_S,
            fleet.situation,
        )
        Event("told", client=client).set()
        wait(columns, timeout=DEADLINE_S)
        gone_in_time(fleet, *machines[::2])
        assert columns.sum(axis=0).compute().tolist() == [512.0] * 512, "nothing went with them"
        none_computed_again(client)


def test_p11_a_worker_sees_the_notice_itself_where_nobody_else_does(install: Callable[..., Fleet]) -> None:
    fleet = install(
        {"cpu": SPOT}, {"tide": {"interruption": {"watch": "aws", "interval": "1s"}}}, markets=["spot"]
    )
    fleet.cloud.throttle(True, "sqs:ReceiveMessage")
    with fleet.client() as client:
        [machine] = start(client, fleet, 1)
        done = results(client)
        running = until_told(client, 1)
        [leaver] = fleet.pods()
        wait_until(lambda: deaf(fleet), "Karpenter does not hear of it", DEADLINE_S)
        fleet.cloud.interrupt(machine)
        wait_until(lambda: set(workers(client)) - {leaver}, "another worker", DEADLINE_S, fleet.situation)
        assert "EC2 will terminate its spot instance" in fleet.explain()
        # As on a node that is tainted: protected, it would keep its node from being drained.
        free = {SAFE_TO_EVICT: "true", DO_NOT_DISRUPT: None}
        wait_until(lambda: marks(fleet, leaver) == free, "it may be evicted", DEADLINE_S, fleet.situation)
        assert leaver in workers(client), "the task runs on"
        tell(client, running)
        wait_until(lambda: leaver not in workers(client), "the first one leaves", DEADLINE_S, fleet.situation)
        assert machine in fleet.machines(), "while its machine is there"
        assert len(client.gather(done)) == 8
        none_computed_again(client)
