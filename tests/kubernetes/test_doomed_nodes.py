"""Nodes that Karpenter is about to take away: what runs there leaves while there is time, and loses nothing.

Karpenter needs a cloud. What it does to a node was measured with Karpenter 1.14 and is done here by hand: a
taint, then an eviction of every pod that is not annotated ``karpenter.sh/do-not-disrupt``, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from distributed import Client, Future, wait
from releases import DEADLINE_S, POOL, Held, Release, ask, computed_once, hold, nap, workers
from waiting import wait_until

from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

HERE = {"machines": "karpenters"}
CPU = POOL | {"maximum": 4, "nodeSelector": HERE}
DISRUPTED, DO_NOT_DISRUPT = "karpenter.sh/disrupted", "karpenter.sh/do-not-disrupt"


@pytest.fixture
def machines(nodes: Cluster) -> Iterator[tuple[str, str]]:
    """Two nodes of the test's own; workers with ``nodeSelector: HERE`` run on no other."""
    names = ("taken", "left")
    nodes.nodes_up(*names, labels=HERE)
    yield names
    for name in set(names) & set(nodes.nodes()):
        nodes.node_down(name, forget=True)


def on(release: Release, machine: str) -> dict[str, dict[str, str]]:
    """The annotations of the workers' pods there that are not about to go, by name."""
    return {
        name: pod["metadata"]["annotations"]
        for name, pod in release.pods().items()
        if pod["spec"].get("nodeName") == machine
    }


def disrupt(release: Release, machine: str) -> list[str]:
    """Evict whoever may be evicted; their names."""
    evicted = [name for name, kept in on(release, machine).items() if kept.get(DO_NOT_DISRUPT) != "true"]
    for name in evicted:
        release.evict(name)
    return evicted


def two_busy_workers(
    client: Client, release: Release, machines: tuple[str, str]
) -> tuple[list[Future], Held]:
    """One on each machine; the results that they hold, and a task on each."""
    release.settled(0, "at first: the chart's initial one is lowered")
    ask(client, "tide_scale", n=2)
    wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
    assert all(len(on(release, machine)) == 1 for machine in machines)
    done = client.map(nap, [0.1] * 16, pure=False)
    wait(done, timeout=DEADLINE_S)
    assert len(set(client.gather(done))) == 2, "both hold results"
    held = hold(client, 2)
    held.placed(release)
    return done, held


def leaves_and_is_replaced(
    client: Client, release: Release, machines: tuple[str, str], done: list[Future], held: Held
) -> None:
    """The busy worker on the first machine is evicted, and nothing is lost."""
    taken, left = machines
    (leaver,) = disrupt(release, taken)
    wait_until(lambda: len(on(release, left)) == 2, "there is another", DEADLINE_S, release.situation)
    assert leaver in release.all_pods(), "which was asked for while the first one still had work"
    held.tell()
    assert client.gather(held.futures) == [0, 1]
    assert held.begun() == [1, 1], "no task was started again"
    wait_until(lambda: leaver not in release.all_pods(), "it is gone", DEADLINE_S, release.situation)
    assert len(client.gather(done)) == 16
    computed_once(client)


def test_p31_a_busy_worker_leaves_a_node_that_is_taken_away(
    install: Callable[..., Release], nodes: Cluster, machines: tuple[str, str]
) -> None:
    release = install({"pools": {"cpu": CPU | {"spot": True}}, "nodes": {"read": True}})
    taken, left = machines
    with release.client() as client:
        done, held = two_busy_workers(client, release, machines)
        wait_until(
            lambda: all(kept.get(DO_NOT_DISRUPT) == "true" for kept in on(release, taken).values()),
            "it is marked as busy",
            DEADLINE_S,
            release.situation,
        )
        assert not disrupt(release, taken), "busy workers are protected"
        nodes.kubectl("taint", "node", taken, f"{DISRUPTED}:NoSchedule")
        wait_until(
            lambda: all(DO_NOT_DISRUPT not in kept for kept in on(release, taken).values()),
            "until their node is about to go",
            DEADLINE_S,
            release.situation,
        )
        assert all(kept[DO_NOT_DISRUPT] == "true" for kept in on(release, left).values())
        assert f"its node is about to go ({DISRUPTED})" in release.explain()
        leaves_and_is_replaced(client, release, machines, done, held)


def test_p31_without_the_right_to_read_nodes_a_busy_worker_on_spot_is_never_kept_there(
    install: Callable[..., Release], nodes: Cluster, machines: tuple[str, str]
) -> None:
    release = install({"pools": {"cpu": CPU | {"spot": True}}})
    taken, _ = machines
    with release.client() as client:
        done, held = two_busy_workers(client, release, machines)
        nodes.kubectl("taint", "node", taken, f"{DISRUPTED}:NoSchedule")
        leaves_and_is_replaced(client, release, machines, done, held)
        # Protected from cluster-autoscaler, as ever: it takes nodes that are not needed, with no hurry.
        for name, kept in release.pods().items():
            assert DO_NOT_DISRUPT not in kept["metadata"]["annotations"], name
