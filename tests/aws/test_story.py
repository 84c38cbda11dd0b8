"""The whole idea, top to bottom: work, workers, machines; and back to nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from distributed import Client, Event, Future
from fleet import DEADLINE_S, PER_MACHINE, POOL, Fleet, most_at_once
from releases import addresses, computed_once, nap
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400, func_only=True)]

MACHINES = POOL["maximum"] // PER_MACHINE
#: More work than one worker could do while machines boot.
TASKS, TASK_S = 400, 2.0
#: Reasons of events that tell of pods that were ended from outside.
ENDS = ("Evicted", "Preempted")


def _by_value():
    # Inside of a function, so that it is sent by value: workers cannot import tests.
    def until_enough(_: int) -> str:
        """Take TASK_S, or no time at all once it is enough; say on which worker."""
        from distributed import Event, get_worker

        Event("enough").wait(timeout=TASK_S)
        return str(get_worker().name)

    return until_enough


until_enough = _by_value()


def test_machines_rise_and_ebb_with_the_work(fleet: Fleet) -> None:
    tell(fleet)


def test_they_do_with_cluster_autoscaler(grouped: Callable[..., Fleet]) -> None:
    tell(grouped())


def tell(fleet: Fleet) -> None:
    """Play the story; each act has to begin."""

    def wait(condition, what: str):
        return wait_until(condition, what, DEADLINE_S, fleet.situation)

    fleet.settled(0, "as nobody computes")
    assert not fleet.bill(), "no machine was asked for before there was work"
    with fleet.client() as client:
        first = client.submit(nap, 0.1, pure=False)
        wait(fleet.waiting, "a worker is asked for; it waits for a machine")
        wait(lambda: len(fleet.machines()) == 1, "a machine is asked for")
        first.result(timeout=DEADLINE_S)
        assert len(fleet.bill()) == 1, "one worker needs one machine"

        parts = client.map(until_enough, range(TASKS))
        answer = client.submit(lambda workers: sorted(set(workers)), parts)
        del parts, first
        wait(lambda: len(fleet.waiting()) > 1, "more are asked for than there is room for")
        wait(lambda: len(fleet.machines()) == MACHINES, "their machines come")
        wait(lambda: len(busy(client)) == POOL["maximum"], "all of them work")
        assert not fleet.waiting()
        Event("enough", client=client).set()
        wait(answer.done, "the result")
        assert not evicted(fleet), "nobody was evicted while there was work"

        wait(
            lambda: list(fleet.all_pods()) == holders(client, answer),
            "workers go but the one with the answer",
        )
        wait(lambda: list(fleet.machines()) == list(fleet.where().values()), "machines go but its one")

        assert len(answer.result(timeout=DEADLINE_S)) == POOL["maximum"]
        computed_once(client)
        answer.release()
        fleet.settled(0, "once the answer was fetched")

        launched = len(fleet.bill())
        again = client.submit(nap, 0.1, pure=False)
        again.result(timeout=DEADLINE_S)
        assert len(fleet.bill()) == launched, "a machine was warm"
        again.release()
        fleet.settled(0, "once more")
    fleet.no_machines()
    assert most_at_once(fleet.bill()) == MACHINES


def busy(client: Client) -> list[str]:
    """Addresses of the workers that have something to do."""
    return [address for address, keys in client.processing().items() if keys]


def holders(client: Client, future: Future) -> list[str]:
    """Names of the workers that hold a result."""
    at = addresses(client)
    return [name for name in at if at[name] in client.who_has([future])[future.key]]


def evicted(fleet: Fleet) -> str:
    """What Kubernetes says of pods that were evicted or preempted."""
    said = (
        fleet.kubectl("get", "events", f"--field-selector=reason={each}", "--no-headers") for each in ENDS
    )
    return "".join(said)
