"""What must not go wrong when workers are told to go, die, freeze, hang or never start."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from click.testing import CliRunner
from distributed import Client
from distributed.core import Status
from known import known
from marked import Marked, run
from waiting import wait_until

from dask_tide import TideCluster
from dask_tide.cli import tide as command
from dask_tide.controller import journal as journals
from dask_tide.model import EXISTING, Hold, Launch, Phase

Make = Callable[..., TideCluster]


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    return Marked(tmp_path / "marks")


def names(cluster: TideCluster, *phases: Phase) -> set[str]:
    return {unit.name for unit in cluster.workers.values() if unit.phase in phases}


def running(cluster: TideCluster) -> set[str]:
    return names(cluster, Phase.RUNNING)


def pids(client: Client) -> dict[str, int]:
    """Process of each worker, by the worker's name."""
    workers = known(client)
    return {
        workers[address]["name"]: pid for address, pid in client.run(os.getpid).items() if address in workers
    }


def processes() -> set[int]:
    """The worker processes that live: children of this process's children, the forkservers."""
    found = set()
    for forkserver in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "rig.keeper" in forkserver.cmdline():
                continue  # other tests' Kubernetes
            found |= {process.pid for process in forkserver.children() if alive(process.pid)}
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reasons(cluster: TideCluster) -> list[str]:
    """Codes of the last decision's reasons; their sentences are for people, and may change."""
    line = cluster.controller.latest
    return [] if line is None else [action.why.code for action in line.actions]


def now_s(cluster: TideCluster) -> float:
    """The controller's clock at its last tick."""
    assert cluster.controller.snapshot is not None
    return cluster.controller.snapshot.now_s


def submit(client: Client, marked: Marked, name: str, gate: str = "", **options: Any) -> Any:
    return client.submit(run, marked.folder, name, gate, key=name, pure=False, **options)


def started(cluster: TideCluster, marked: Marked, name: str, n: int) -> None:
    wait_until(lambda: marked.starts[name] == n, f"start {n} of {name}", detail=cluster.explain)


def tick(cluster: TideCluster) -> None:
    """Let the controller decide once more."""
    last = cluster.controller.latest
    wait_until(lambda: cluster.controller.latest is not last, "another decision")


def ready(cluster: TideCluster, n: int) -> set[str]:
    wait_until(lambda: len(running(cluster)) == n, f"{n} running units", detail=cluster.explain)
    return running(cluster)


# -- p04 --------------------------------------------------------------------------------------------


def test_p04_scale_downs_under_one_long_task_end_no_task_as_killed(tide: Make, marked: Marked) -> None:
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = tide(maximum=2)
    with cluster.get_client() as client:
        cluster.scale(1)
        (first,) = ready(cluster, 1)
        long = submit(client, marked, "long", "end")
        wait_until(lambda: marked.starts["long"], "the long task has started")
        for _ in range(8):
            cluster.scale(2)
            assert first in ready(cluster, 2)
            cluster.scale(1)
            # Never the busy one while there is an idle one.
            wait_until(
                lambda: running(cluster) == {first}, "the idle worker has gone", detail=cluster.explain
            )
        marked.open("end")
        assert long.result(timeout=30) == "long"
    assert marked.starts == {"long": 1}


def test_p04_evictions_under_one_long_task_end_no_task_as_killed(tide: Make, marked: Marked) -> None:
    """Stock: the fourth eviction is the task's end."""
    quick = {"distributed.scheduler.allowed-failures": 0, "tide.departure.timeout": "100ms"}
    with dask.config.set(quick):
        cluster = tide(maximum=1)
    with cluster.get_client() as client:
        long = submit(client, marked, "long", "end")
        for n in range(1, 7):
            started(cluster, marked, "long", n)
            os.kill(marked.pids["long"], signal.SIGTERM)
        started(cluster, marked, "long", 7)
        marked.open("end")
        assert long.result(timeout=30) == "long"


# -- p10 --------------------------------------------------------------------------------------------


def test_p10_each_change_is_told_and_decides_the_same_again(
    tide: Make, marked: Marked, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    cluster = tide(maximum=3, journal={"path": str(journal)}, release={"keep": "200ms", "tail": "200ms"})
    with cluster.get_client() as client:
        futures = [submit(client, marked, f"t{i}", "go") for i in range(3)]
        wait_until(lambda: len(marked.starts) == 3, "three running tasks", detail=cluster.explain)
        os.kill(marked.pids["t0"], signal.SIGKILL)
        wait_until(lambda: marked.starts["t0"] + marked.starts["t1"] + marked.starts["t2"] > 3, "a new start")
        marked.open("go")
        client.gather(futures)
        del futures
        wait_until(lambda: not cluster.workers, "zero again", detail=cluster.explain)
        cluster.scale(2)
        ready(cluster, 2)
        cluster.scale(0)
        wait_until(lambda: not cluster.workers, "zero by hand", detail=cluster.explain)
    cluster.close()

    replayed = CliRunner().invoke(command, ["replay", str(journal)])
    assert replayed.exit_code == 0, replayed.output
    lines = list(journals.read(journal))
    assert replayed.output == f"{len(lines)} decisions, 0 differ\n"
    # Whatever changed the number of units stands in the journal, and is told with its reason.
    changes = [action for line in lines for action in line.actions if not isinstance(action, Hold)]
    assert {type(action).__name__ for action in changes} == {"Launch", "Drain", "Release"}
    explained = CliRunner().invoke(command, ["explain", "--journal", str(journal), "--lines", "1000"])
    assert explained.exit_code == 0
    for action in changes:
        assert str(action.why) in explained.output
    seen = [{unit.name for unit in line.snapshot.units if unit.phase in EXISTING} for line in lines]
    came = set().union(*seen)
    assert len(came) == sum(a.count for a in changes if isinstance(a, Launch))


# -- p12 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1, 0])
def test_p12_a_running_task_is_waited_for_and_starts_once(
    tide: Make, marked: Marked, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_tide.controller.loop._BELIEVE_S", 2.0)
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.worker-saturation": "inf"}
    ):
        cluster = tide(maximum=2)
    with cluster.get_client() as client:
        cluster.scale(2)
        ready(cluster, 2)
        held = [submit(client, marked, f"running{i}", "end") for i in range(2)]
        wait_until(lambda: len(marked.starts) == 2, "both workers are busy")
        # Given to the workers, and not begun.
        waiting = [submit(client, marked, f"waiting{i}") for i in range(4)]
        cluster.scale(target)
        wait_until(
            lambda: len(names(cluster, Phase.DRAINING)) == 2 - target, "draining", detail=cluster.explain
        )
        marked.open("end")
        if target == 0:
            # With nobody left to hold the results and run the rest, the last worker stays.
            wait_until(lambda: len(marked.starts) >= 2, "the running tasks end")
            cluster.scale(1)
        assert client.gather(held + waiting) == [
            *(f"running{i}" for i in range(2)),
            *(f"waiting{i}" for i in range(4)),
        ]
        ready(cluster, 1)
    assert set(marked.starts.values()) == {1}


# -- p16 --------------------------------------------------------------------------------------------


def test_p16_after_a_soak_live_processes_are_the_target(tide: Make, marked: Marked) -> None:
    chance = random.Random(16)
    cluster = tide(minimum=1, maximum=3, start={"backoff": "50ms", "backoff-maximum": "200ms"})
    with cluster.get_client() as client:
        futures = []
        for step in range(12):
            futures.append(submit(client, marked, f"t{step}"))
            if chance.random() < 0.5:
                cluster.scale(chance.randrange(4))
            else:
                cluster.adapt(minimum=1, maximum=3)
            units = sorted(cluster.workers)
            if units and chance.random() < 0.6:
                for pid in list(processes())[:1]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            tick(cluster)
        cluster.adapt(minimum=2, maximum=3)
        assert sorted(client.gather(futures)) == sorted(f"t{step}" for step in range(12))
        del futures
        wait_until(
            lambda: len(cluster.workers) == 2 and len(running(cluster)) == 2 and len(processes()) == 2,
            "as many processes as the minimum, and no other",
            detail=lambda: f"{cluster.explain()}\n{processes()}",
        )
        assert set(pids(client)) == running(cluster)
        assert set(pids(client).values()) == processes()


def test_p16_a_frozen_worker_counts_as_lost_and_its_process_goes(tide: Make, marked: Marked) -> None:
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}):
        cluster = tide(minimum=1, maximum=1, start={"timeout": "10s"})
    with cluster.get_client() as client:
        (first,) = ready(cluster, 1)
        task = submit(client, marked, "task", "end")
        pid = wait_until(lambda: marked.pids.get("task"), "the task runs")
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: running(cluster) - {first}, "another worker instead", detail=cluster.explain)
            marked.open("end")
            assert task.result(timeout=30) == "task"
            wait_until(lambda: not alive(pid), "the frozen process has been ended", detail=cluster.explain)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(cluster.workers) == 1, "one unit", detail=cluster.explain)
    assert marked.starts == {"task": 2}


# -- p17 --------------------------------------------------------------------------------------------

_BAD_START = """
import os, sys
from pathlib import Path

starts = Path({starts!r})
if os.environ.get("STARTED") != str(os.getpid()):  # Dask may load a preload twice
    os.environ["STARTED"] = str(os.getpid())
    with starts.open("ab", buffering=0) as file:
        file.write(b"start\\n")
        number = file.tell() // len(b"start\\n")  # with O_APPEND: the end of one's own line
    if number % {modulo} == {rest}:
        print("the licence server said no", file=sys.stderr, flush=True)
        os._exit(3)
"""


@pytest.fixture
def bad_start(tmp_path: Path) -> Callable[[int, int], tuple[dict[str, Any], Callable[[], int]]]:
    """Options for workers of which every so manieth dies before it registers, and their count."""

    def make(modulo: int, rest: int) -> tuple[dict[str, Any], Callable[[], int]]:
        starts, preload = tmp_path / "bad_starts", tmp_path / "bad_start.py"
        starts.touch()
        preload.write_text(_BAD_START.format(starts=str(starts), modulo=modulo, rest=rest))
        options = {"worker-options": ["--preload", str(preload)]}
        return options, lambda: len(starts.read_text().splitlines())

    return make


def test_p17_some_bad_starts_still_reach_the_number(tide: Make, bad_start: Any) -> None:
    options, starts = bad_start(5, 2)
    cluster = tide(maximum=4, options=options)
    with cluster.get_client() as client:
        cluster.scale(4)
        client.wait_for_workers(4, timeout=60)
        ready(cluster, 4)
    assert starts() in (5, 6, 7)  # each one that failed was replaced, by one


def test_p17_a_worker_that_always_dies_is_retried_ever_more_rarely(
    tide: Make, bad_start: Any, warned: list[str]
) -> None:
    options, starts = bad_start(1, 0)
    cluster = tide(maximum=2, options=options, start={"backoff": "100ms"})
    with cluster.get_client() as client:
        future = client.submit(sum, [1, 2])

        def failures() -> Any:
            (state,) = cluster.controller.snapshot.pools if cluster.controller.snapshot else (None,)
            return state and state.failed >= 5

        wait_until(failures, "five failed starts", detail=cluster.explain)

        def agreed() -> Any:
            journal = list(cluster.controller.journal.recent)
            found = [(line, a) for line in journal for a in line.actions if isinstance(a, Launch)]
            return (
                "BACKOFF" in reasons(cluster)
                and starts() == sum(action.count for _, action in found) >= 5
                and found
            )

        # One task, one unit at a time; each launch waits for twice as long as the one before.
        launches = wait_until(agreed, "a pause, after as many starts as launches", detail=cluster.explain)
        pauses = [b.at_s - a.at_s for (a, _), (b, _) in pairwise(launches)]
        for n, pause_s in enumerate(pauses):
            assert pause_s >= 0.1 * 2**n
        assert "the licence server said no" in cluster.explain()
        assert any("the licence server said no" in message for message in warned)
        assert future.status == "pending"


# -- p18 --------------------------------------------------------------------------------------------


def test_p18_a_killed_worker_is_replaced_and_the_work_completes(tide: Make, marked: Marked) -> None:
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        futures = [submit(client, marked, f"t{i}", "end") for i in range(2)]
        wait_until(lambda: len(marked.starts) == 2, "both run", detail=cluster.explain)
        before = ready(cluster, 2)
        os.kill(marked.pids["t0"], signal.SIGKILL)
        wait_until(lambda: running(cluster) - before, "a new unit", detail=cluster.explain)
        wait_until(lambda: marked.starts["t0"] == 2, "the task runs again", detail=cluster.explain)
        marked.open("end")
        assert client.gather(futures) == ["t0", "t1"]
    assert marked.starts == {"t0": 2, "t1": 1}


# -- p19 --------------------------------------------------------------------------------------------


def test_p19_a_hanging_drain_is_no_capacity(tide: Make, marked: Marked) -> None:
    cluster = tide(maximum=3)
    with cluster.get_client() as client:
        cluster.scale(1)
        (stuck,) = ready(cluster, 1)
        hangs = submit(client, marked, "hangs", "end")
        wait_until(lambda: marked.starts["hangs"], "it runs")
        cluster.scale(0)
        wait_until(lambda: names(cluster, Phase.DRAINING) == {stuck}, "it drains", detail=cluster.explain)
        cluster.adapt(minimum=0, maximum=2)
        others = [submit(client, marked, f"t{i}") for i in range(5)]
        # One may come beside the one that drains, and it does all of it.
        assert sorted(client.gather(others)) == [f"t{i}" for i in range(5)]
        assert names(cluster, Phase.DRAINING) == {stuck}
        assert all(marked.pids[f"t{i}"] != marked.pids["hangs"] for i in range(5))
        marked.open("end")
        assert hangs.result(timeout=30) == "hangs"
        wait_until(lambda: stuck not in cluster.workers, "the drain ends", detail=cluster.explain)
    assert set(marked.starts.values()) == {1}


# -- p34 --------------------------------------------------------------------------------------------


def test_p34_a_unit_of_four_processes_comes_and_goes_as_one(tide: Make, marked: Marked) -> None:
    pool = {"workers-per-unit": 4, "maximum": 2, "memory": "1 GiB"}
    cluster = tide(pools={"quad": pool}, release={"keep": "300ms", "tail": "300ms"})
    with cluster.get_client() as client:
        seen: Counter[int] = Counter()

        def registered() -> int:
            seen[n := len(known(client))] += 1
            return n

        futures = [submit(client, marked, f"t{i}", "end") for i in range(8)]
        wait_until(lambda: len(marked.starts) == 8, "eight tasks run", detail=cluster.explain)
        assert len(cluster.workers) == 2
        assert len(processes()) == 8
        cluster.scale(1)  # nobody may go before its tasks have ended
        wait_until(lambda: len(names(cluster, Phase.DRAINING)) == 1, "one drains", detail=cluster.explain)
        assert registered() == 8
        marked.open("end")
        client.gather(futures)
        (left,) = ready(cluster, 1)
        wait_until(lambda: len(cluster.workers) == 1, "one unit", detail=cluster.explain)
        assert {name.rpartition("-")[0] for name in pids(client)} == {left}
        assert len(processes()) == 4
        del futures
        cluster.adapt(minimum=0)
        wait_until(lambda: not cluster.workers, "none", detail=cluster.explain)
        wait_until(lambda: registered() == 0, "no worker", detail=cluster.explain)
        launched = sum(
            action.count
            for line in cluster.controller.journal.recent
            for action in line.actions
            if isinstance(action, Launch)
        )
    assert launched == 2  # no unit was thrown away and asked for again
    assert set(marked.starts.values()) == {1}


def test_p34_a_unit_that_has_lost_a_process_serves_on_and_goes_as_a_whole(tide: Make, marked: Marked) -> None:
    pool = {"workers-per-unit": 2, "maximum": 1, "memory": "1 GiB"}
    cluster = tide(pools={"pair": pool}, release={"keep": "300ms", "tail": "300ms"})
    with cluster.get_client() as client:
        futures = [submit(client, marked, f"t{i}", "end") for i in range(2)]
        wait_until(lambda: len(marked.starts) == 2, "both run", detail=cluster.explain)
        os.kill(marked.pids["t0"], signal.SIGKILL)
        marked.open("end")
        assert client.gather(futures) == ["t0", "t1"]
        del futures
        wait_until(lambda: not cluster.workers and not processes(), "none", detail=cluster.explain)


# -- p37 --------------------------------------------------------------------------------------------


def test_p37_never_while_work_is_queued(tide: Make) -> None:
    cluster = tide(maximum=1, idle_shutdown="300ms", limits={"maximum": 0})
    with cluster.get_client() as client:
        future = client.submit(sum, [1, 2])
        wait_until(lambda: cluster.tide_status()["unfinished_tasks"] == 1, "it is queued")
        queued_s = now_s(cluster)
        # Ten times the limit by the controller's own clock.
        wait_until(lambda: now_s(cluster) > queued_s + 3.0, "time goes by")
        assert cluster.status == Status.running
        assert not cluster.workers
        assert future.status == "pending"
        assert reasons(cluster) == ["AT_MAXIMUM"]
    # Its client has gone, and with it the work.
    wait_until(lambda: cluster.status == Status.closed, "it closes", detail=cluster.explain)
