"""Consolidation by the autoscaler: the idle may be moved to a fuller machine, and nobody who is busy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fleet import DEADLINE_S, Fleet
from releases import addresses, ask, hold, workers
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400, func_only=True)]


#: Nobody goes but whom the autoscaler evicts.
KEPT = {"cpu": {"maximum": 4}}, {"tide": {"release": {"keep": "3s"}}}


def test_p31_karpenter_moves_the_idle_worker_and_never_the_busy_one(install: Callable[..., Fleet]) -> None:
    the_idle_is_moved(install(*KEPT))


def test_p31_cluster_autoscaler_does(grouped: Callable[..., Fleet]) -> None:
    the_idle_is_moved(grouped(*KEPT))


def the_idle_is_moved(fleet: Fleet) -> None:
    """Of two machines with one worker each, the busy one's stays, and the idle one begins anew beside it."""

    def wait(condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what, DEADLINE_S, fleet.situation)

    with fleet.client() as client:
        ask(client, "tide_scale", n=4)
        wait(lambda: len(workers(client)) == 4, "four workers")
        where = fleet.where()
        assert len(set(where.values())) == 2, "two fit on a machine"
        apart = {machine: name for name, machine in where.items()}.values()
        at = addresses(client)
        held = hold(client, 2, workers=[at[name] for name in apart])
        number = held.placed(fleet)
        assert set(number) == set(apart)
        ask(client, "tide_scale", n=2)
        assert set(fleet.settled(2, "the idle ones go")) == set(apart)
        ask(client, "tide_adapt", minimum=2)

        busy, idle = apart
        uid = fleet.pods()[busy]["metadata"]["uid"]
        held.tell(number[idle])
        held.futures[number[idle]].result(timeout=DEADLINE_S)
        held.futures[number[idle]].release()
        wait(lambda: list(fleet.machines()) == [where[busy]], "its machine has gone")
        wait(
            lambda: (
                set(fleet.where().values()) == {where[busy]} and set(workers(client)) == set(fleet.pods())
            ),
            "another worker has come, beside the busy one",
        )
        assert len(workers(client)) == 2
        assert len(fleet.bill()) == 2, f"no machine was bought for it:\n{fleet.situation()}"
        assert idle not in fleet.all_pods()
        assert fleet.pods()[busy]["metadata"]["uid"] == uid
        held.tell()
        assert held.futures[number[busy]].result(timeout=DEADLINE_S) == number[busy]
        assert held.begun() == [1, 1], "nobody was interrupted"
