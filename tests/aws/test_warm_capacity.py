"""Placeholders keep a machine warm; workers push them out, and another machine comes for the next ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fleet import DEADLINE_S, PER_MACHINE, POOL, Fleet, tell, until_told
from releases import ask
from waiting import wait_until

from rig.images import PAUSE

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]


def placeholders(fleet: Fleet) -> list[str]:
    """The nodes of those that run, one for each."""
    pods = fleet.objects("pods", "app.kubernetes.io/component=buffer")
    there = (pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
    return sorted(pod["spec"]["nodeName"] for pod in there if pod["status"]["phase"] == "Running")


def kept(fleet: Fleet, machine: str) -> bool:
    """Whether Karpenter has looked at a machine and found that it is needed."""
    about = f"--field-selector=involvedObject.name={machine},reason=Unconsolidatable"
    return bool(fleet.cloud.kubectl("get", "events", "--all-namespaces", about, "--output=name"))


def test_p32_workers_start_on_a_warm_machine_and_another_one_comes_for_the_next(
    install: Callable[..., Fleet],
) -> None:
    fleet = install(
        more={
            "buffer": {"image": PAUSE, "pools": {"cpu": {"units": PER_MACHINE}}},
            "tide": {"forecast": {"prior": "2m"}, "release": {"keep": "3s"}},
        }
    )

    def wait(condition, what):
        return wait_until(condition, what, DEADLINE_S, fleet.situation)

    wait(lambda: len(placeholders(fleet)) == PER_MACHINE, "placeholders have a machine")
    [warm] = fleet.machines()
    assert not fleet.pods(), "and nobody else"
    with fleet.client() as client:
        running = until_told(client, PER_MACHINE * POOL["threads"])
        fleet.all_at_work(client, *["cpu"] * PER_MACHINE)
        assert set(fleet.where().values()) == {warm}
        learned = ask(client, "tide_status")["pools"]["cpu"]
        assert learned["cold_boot_s"] is None, "no worker has waited for a machine"
        assert learned["boot_s"] is not None
        wait(lambda: len(placeholders(fleet)) == PER_MACHINE, "placeholders have another machine")
        [other] = set(placeholders(fleet))
        wait(lambda: kept(fleet, other), "Karpenter has looked, and does not count them away")
        assert set(fleet.machines()) == {warm, other}
        assert set(placeholders(fleet)) == {other}
        tell(client, running)
