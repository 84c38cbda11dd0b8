"""Which workers go and when: none that is busy, none too early, all of them in the end."""

from __future__ import annotations

import time

import dask
import psutil
import pytest
from distributed import Client
from records import WorkersSeen, actions, busy, reasons, running, turns, units, workers
from waiting import wait_until

from dask_tide.model import Drain, Hold, Release


def slow_start(**environment: object) -> dict[str, object]:
    """Options of the local provider that make its workers' start slow, see slow_start.py."""
    return {"environment": environment, "worker-options": ["--preload", "slow_start"]}


# -- 1: pending units first ---------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [True, False], ids=["scale", "maximum"])
def test_p01_five_busy_and_fifteen_pending_shrink_by_ten(tide, tasks, by_hand):
    cluster = tide(maximum=20, provider="crowded:CrowdedProvider", options={"places": 5})
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(20))
        wait_until(
            lambda: units(cluster) == 20 and len(tasks.starts) == 5,
            "5 busy, 15 pending",
            detail=cluster.explain,
        )
        at_work = busy(cluster)
        if by_hand:
            cluster.scale(10)
        else:
            cluster.adapt(maximum=10)
        wait_until(lambda: units(cluster) == 10, "10 units", detail=cluster.explain)
        assert busy(cluster) == at_work
        assert not actions(cluster, Drain), cluster.explain()
        (release,) = actions(cluster, Release)
        assert len(release.units) == 10
        assert not set(release.units) & set(at_work)
        tasks.open()
        client.gather(futures)
    assert set(tasks.starts.values()) == {1}


def test_p01_starting_units_go_before_busy_ones(tide, tasks, tmp_path):
    gate = tmp_path / "may-start"
    gate.touch()
    cluster = tide(maximum=6, options=slow_start(SLOW_START_GATE=str(gate)))
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(2))
            wait_until(lambda: len(tasks.starts) == 2, "two busy", detail=cluster.explain)
            gate.unlink()
            futures += client.map(tasks.function(gated=True), range(2, 6))
        wait_until(lambda: units(cluster) == 6, "four that start", detail=cluster.explain)
        at_work = busy(cluster)
        cluster.scale(2)
        wait_until(lambda: units(cluster) == 2, "two units", detail=cluster.explain)
        assert busy(cluster) == at_work
        assert not actions(cluster, Drain), cluster.explain()
        tasks.open()
        client.gather(futures)
    assert set(tasks.starts.values()) == {1}


# -- 2: flapping --------------------------------------------------------------------------------


def test_p02_a_square_wave_with_short_gaps_turns_once(tide, tasks):
    """Bursts closer together than what idle units are kept for: up once, down once."""
    # Far from the gaps, so that a machine that stalls for a while does not make them longer than it.
    cluster = tide(maximum=3, release={"keep": "15s", "tail": "15s"})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        for burst in range(4):
            client.gather(client.map(tasks.function(0.3), range(6 * burst, 6 * burst + 6)))
            time.sleep(0.7)  # the load's low phase
        wait_until(lambda: not units(cluster), "the end", detail=cluster.explain)
    assert turns(cluster) == 1, cluster.explain()
    assert len(seen.names) <= 3


def test_p02_a_square_wave_with_long_gaps_turns_once_a_phase(tide, tasks):
    cluster = tide(maximum=3, release={"keep": "200ms", "tail": "200ms"})
    seen = WorkersSeen(cluster)
    bursts = 3
    with cluster.get_client() as client:
        for burst in range(bursts):
            client.gather(client.map(tasks.function(0.4), range(6 * burst, 6 * burst + 6)))
            wait_until(lambda: not units(cluster), "the low phase", detail=cluster.explain)
    assert turns(cluster) == 2 * bursts - 1, cluster.explain()
    assert len(seen.names) <= 3 * bursts


def test_p02_a_long_tail_goes_up_once_and_down_once(tide, tasks):
    cluster = tide(maximum=3, release={"keep": "500ms", "tail": "500ms"})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="1s"):
            short = client.map(tasks.function(0.3), range(9))
            long = client.submit(tasks.function(3.0), 9, priority=10)
        client.gather([*short, long])
        del short, long
        wait_until(lambda: not units(cluster), "the end", detail=cluster.explain)
    assert turns(cluster) == 1, cluster.explain()
    assert len(seen.names) <= 3
    assert set(tasks.starts.values()) == {1}


# -- 13: gaps -------------------------------------------------------------------------------------


def test_p13_gaps_shorter_than_keep_cause_no_churn(tide, tasks):
    # Far from the gaps, so that a machine that stalls for a while does not make them longer than it.
    cluster = tide(maximum=2, release={"keep": "20s", "tail": "20s"})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            client.gather(client.map(tasks.function(0.3), range(4)))
        before = wait_until(
            lambda: len(found := workers(cluster)) == 2 and found, "both", detail=cluster.explain
        )
        for x in range(10, 16, 2):
            wait_until(lambda: cluster.controller.latest.actions[-1].why.code == "KEPT_BREAK_EVEN", "a gap")
            time.sleep(1.0)  # the gap's length
            client.gather(client.map(tasks.function(0.1), range(x, x + 2)))
            assert workers(cluster) == before, cluster.explain()
    assert seen.left == []
    assert len(seen.names) == 2


def test_p13_units_that_are_slow_to_start_are_kept_for_as_long_as_that_takes(tide, tasks):
    """No setting: what was measured decides."""
    cluster = tide(maximum=2, options=slow_start(SLOW_START_S=6))
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            client.gather(client.map(tasks.function(0.3), range(4)))
        before = wait_until(
            lambda: len(found := workers(cluster)) == 2 and found, "both", detail=cluster.explain
        )
        boot_s = cluster.tide_status()["pools"]["default"]["boot_s"]
        assert boot_s >= 6
        for x in range(10, 14, 2):
            wait_until(lambda: "KEPT_BREAK_EVEN" in reasons(cluster), "a gap", detail=cluster.explain)
            time.sleep(1.0)  # the gap's length
            client.gather(client.map(tasks.function(0.1), range(x, x + 2)))
            assert workers(cluster) == before, cluster.explain()
    assert seen.left == []
    holds = [a.why for a in actions(cluster, Hold) if a.why.code == "KEPT_BREAK_EVEN"]
    assert min(reason.numbers["keep_s"] for reason in holds) >= 6, cluster.explain()


# -- 14: all changeable while it runs ---------------------------------------------------------------


def test_p14_limits_change_while_it_runs_and_nothing_is_lost(tide, tasks):
    cluster = tide(maximum=1)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            first = client.map(tasks.function(gated=True), range(4))
        wait_until(lambda: running(cluster) == 1, "one unit", detail=cluster.explain)
        cluster.adapt(maximum=3)
        wait_until(lambda: len(busy(cluster)) == 3 == running(cluster), "three units", detail=cluster.explain)
        cluster.adapt(maximum=1)
        wait_until(lambda: running(cluster) == 1, "two that drain", detail=cluster.explain)
        # They drain, and end once their tasks have ended.
        assert len(workers(cluster)) == 3
        tasks.open()
        assert client.gather(first) == [0, 1, 2, 3]
        wait_until(lambda: len(workers(cluster)) == 1, "one unit again", detail=cluster.explain)
        del first
        cluster.adapt(minimum=2, maximum=2)
        wait_until(lambda: running(cluster) == 2, "the new minimum", detail=cluster.explain)
        cluster.adapt(minimum=0)
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
        cluster.adapt(maximum=0)
        waits = client.submit(tasks.function(), 4)
        wait_until(lambda: "IMPOSSIBLE" in reasons(cluster), "why", detail=cluster.explain)
        cluster.adapt(maximum=1)
        assert waits.result() == 4
    assert set(tasks.starts.values()) == {1}


def test_p14_limits_change_many_times_while_busy_and_every_task_runs_once(tide, tasks):
    cluster = tide(maximum=3)
    with cluster.get_client() as client:
        futures = client.map(tasks.function(0.1), range(120))
        for maximum in (1, 3, 2, 3, 1, 2):
            target = min(sum(future.done() for future in futures) + 8, len(futures))
            cluster.adapt(maximum=maximum)
            wait_until(
                lambda target=target: sum(future.done() for future in futures) >= target, "some progress"
            )
        assert client.gather(futures) == list(range(120))
    assert set(tasks.starts.values()) == {1}
    assert len(tasks.starts) == 120


def test_p14_a_client_changes_limits_over_the_wire(tide):
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        client.sync(client.scheduler.tide_adapt, minimum=1)
        wait_until(lambda: running(cluster) == 1, "the minimum", detail=cluster.explain)
        client.sync(client.scheduler.tide_scale, n=2)
        wait_until(lambda: running(cluster) == 2, "the number", detail=cluster.explain)
        client.sync(client.scheduler.tide_adapt, minimum=0)
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)


# -- 28: from zero and to zero --------------------------------------------------------------------


def test_p28_from_zero_to_n_to_zero_again_and_again(tide, tasks, tmp_path):
    before = set(psutil.Process().children(recursive=True))
    cluster = tide(maximum=2, release={"keep": "100ms", "tail": "100ms"})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        for x in range(0, 50, 10):
            with dask.annotate(duration="1h"):
                futures = client.map(tasks.function(gated=True, gate=f"gate-{x}"), range(x, x + 4))
            wait_until(lambda: len(workers(cluster)) == 2, "both", detail=cluster.explain)
            tasks.open(f"gate-{x}")
            assert client.gather(futures) == list(range(x, x + 4))
            del futures
            wait_until(lambda: not units(cluster) and not workers(cluster), "zero", detail=cluster.explain)
    (forkserver,) = (p for p in set(psutil.Process().children(recursive=True)) - before)
    assert forkserver.children() == []  # not even zombies
    assert list(tmp_path.rglob("worker-*")) == []  # scratch folders
    assert len(seen.names) == len(seen.left) == 10
    assert set(tasks.starts.values()) == {1}
    cluster.close()
    assert not forkserver.is_running()


# -- 45: a temporary floor ---------------------------------------------------------------------------


def test_p45_waiting_for_workers_from_zero_returns_and_they_go_again(tide, monkeypatch):
    monkeypatch.setattr("dask_tide.cluster._FLOOR_S", 2.0)
    cluster = tide(maximum=2, release={"keep": "100ms"})
    seen = WorkersSeen(cluster)
    cluster.wait_for_workers(2, timeout=60)
    assert max(seen.counts) == 2
    assert "FLOOR" in reasons(cluster)
    wait_until(lambda: not workers(cluster), "their end", detail=cluster.explain)
    with cluster.get_client() as client:
        client.wait_for_workers(1, timeout=60)
    wait_until(lambda: not workers(cluster), "their end", detail=cluster.explain)


def test_p45_a_client_that_knows_only_the_address_sets_a_floor(tide):
    cluster = tide(maximum=2, release={"keep": "100ms"})
    with Client(cluster.scheduler_address) as client:
        client.sync(client.scheduler.tide_floor, n=2, seconds=60)
        client.wait_for_workers(2, timeout=60)
        client.sync(client.scheduler.tide_floor, n=0, seconds=0)
        wait_until(lambda: not workers(cluster), "their end", detail=cluster.explain)
        reply = client.sync(client.scheduler.tide_floor, n=3)
        assert reply["error"][0] == "n_workers"
