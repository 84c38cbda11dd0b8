"""cluster-autoscaler and its group, whose machines do not come: it is told, and the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fleet import DEADLINE_S, TOLD_S, Fleet, tell, until_told
from waiting import wait_until

from rig.aws.cluster_autoscaler import GROUP

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400, func_only=True)]

LOOKS_S = 60.0
#: One of these fits on a machine of four CPUs.
ALONE = {"threads": 1, "maximum": 4, "resources": {"requests": {"cpu": "3", "memory": "300Mi"}}}


@pytest.fixture(scope="module")
def alone(grouped: Callable[..., Fleet]) -> Fleet:
    """Workers that each have a machine of their own; tasks are taken to be long."""
    return grouped({"cpu": ALONE}, {"tide": {"forecast": {"prior": "2m"}}})


@pytest.fixture
def fleet(alone: Fleet) -> Iterator[Fleet]:
    """The same, without workers and machines."""
    alone.settled(0, "before")
    alone.no_machines()
    yield alone
    alone.cloud.in_stock()
    size(alone, 50)


def size(fleet: Fleet, maximum: int) -> None:
    """Give the group another maximum; its autoscaler, which looks once a minute, starts again."""
    fleet.cloud.aws("autoscaling", "update_auto_scaling_group", AutoScalingGroupName=GROUP, MaxSize=maximum)
    fleet.cloud.restart_autoscaler()


def test_p09_a_group_at_its_maximum_is_told_and_a_larger_one_is_used(fleet: Fleet) -> None:
    size(fleet, 1)
    with fleet.client() as client:
        running = until_told(client, 2)
        fleet.told(client, "max node group size reached")
        fleet.all_at_work(client, "cpu")
        assert len(fleet.machines()) == 1
        size(fleet, 50)
        fleet.all_at_work(client, "cpu", "cpu")
        tell(client, running)


def test_p09_a_group_whose_types_are_all_out_of_stock_is_told(fleet: Fleet) -> None:
    fleet.cloud.stock_out("*/*/*")
    with fleet.client() as client:
        running = until_told(client, 1)
        # It looks at its groups once a minute.
        fleet.told(client, "backoff", LOOKS_S + TOLD_S)
        fleet.cloud.in_stock()
        fleet.cloud.restart_autoscaler()  # it would not try again for minutes
        fleet.all_at_work(client, "cpu")
        tell(client, running)


def test_an_autoscaler_that_starts_again_in_the_middle_makes_no_machine_too_many(fleet: Fleet) -> None:
    before = len(fleet.bill())
    with fleet.client() as client:
        running = until_told(client, 3)
        wait_until(fleet.machines, "machines are launched", DEADLINE_S, fleet.situation)
        fleet.cloud.restart_autoscaler()
        fleet.all_at_work(client, "cpu", "cpu", "cpu")
        tell(client, running)
        assert len(fleet.bill()) == before + 3
