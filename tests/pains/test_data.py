"""Results are never lost to a planned exit, and workers come when results need the room."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client
from known import known
from marked import Marked, run
from waiting import wait_until

from dask_tide import TideCluster
from dask_tide.model import Drain, Launch, Phase

Make = Callable[..., TideCluster]

MIB = 2**20
#: The test decides how full a worker is of results; what its process takes beside is left out.
BY_RESULTS = {
    f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")
}


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    return Marked(tmp_path / "marks")


def running(cluster: TideCluster) -> set[str]:
    return {unit.name for unit in cluster.workers.values() if unit.phase is Phase.RUNNING}


def ready(cluster: TideCluster, n: int) -> set[str]:
    wait_until(lambda: len(running(cluster)) == n, f"{n} running units", detail=cluster.explain)
    return running(cluster)


def settled(cluster: TideCluster, n: int) -> None:
    """Wait until there are ``n`` units, and none besides."""
    wait_until(
        lambda: len(cluster.workers) == len(running(cluster)) == n,
        f"exactly {n} units",
        detail=cluster.explain,
    )


def addresses(client: Client) -> list[str]:
    return sorted(known(client))


def reasons(cluster: TideCluster) -> list[str]:
    """Codes of the last decision's reasons; their sentences are for people, and may change."""
    line = cluster.controller.latest
    return [] if line is None else [action.why.code for action in line.actions]


def actions(cluster: TideCluster, kind: type) -> list[Any]:
    return [a for line in cluster.controller.journal.recent for a in line.actions if isinstance(a, kind)]


def finished(cluster: TideCluster, futures: list[Any]) -> None:
    wait_until(lambda: all(f.status == "finished" for f in futures), "all results", detail=cluster.explain)


def all_started(marked: Marked, n: int) -> bool:
    return len(marked.starts) == n


def tick(cluster: TideCluster) -> None:
    last = cluster.controller.latest
    wait_until(lambda: cluster.controller.latest is not last, "another decision")


def ticks(cluster: TideCluster, n: int) -> None:
    """Let the controller decide ``n`` more times."""
    for _ in range(n):
        tick(cluster)


# -- p15 --------------------------------------------------------------------------------------------


def fill(client: Client, marked: Marked, per_worker: int, size: int) -> list[Any]:
    return [
        client.submit(
            run, marked.folder, f"{w}-{i}", "", size=size, workers=[address], key=f"{w}-{i}", pure=False
        )
        for w, address in enumerate(addresses(client))
        for i in range(per_worker)
    ]


def test_p15_from_many_full_workers_to_one_loses_and_recomputes_nothing(tide: Make, marked: Marked) -> None:
    """Six workers, each 60 % full; together the ones that stay are never to be fuller than 70 %.

    Nor is any one of them filled up, whatever the processes take as of their last heartbeats.
    """
    with dask.config.set(BY_RESULTS):
        cluster = tide(maximum=6, memory_limit="20 MiB")
    with cluster.get_client() as client:
        cluster.scale(6)
        ready(cluster, 6)
        futures = fill(client, marked, per_worker=12, size=MIB)
        finished(cluster, futures)
        assert sum(marked.starts.values()) == 72
        fullest = 0

        def shrunk() -> bool:
            nonlocal fullest
            snapshot = cluster.controller.snapshot
            assert snapshot is not None
            live = running(cluster)
            fullest = max([fullest, *(w.held_bytes for w in snapshot.workers if w.unit in live)])
            return not any(u.phase is not Phase.RUNNING for u in snapshot.units) and (
                reasons(cluster) == ["KEPT_FOR_RESULT"]
            )

        cluster.scale(1)
        # 72 of 84 MiB that six may hold: none can go without another becoming too full.
        wait_until(shrunk, "it says why it stays", detail=cluster.explain)
        assert fullest < 20 * MIB
        # Half of it is no longer wanted: now three workers have room for the rest, and one has for a third.
        keep = futures[::2]
        del futures
        wait_until(lambda: len(running(cluster)) <= 4 and shrunk(), "some go", detail=cluster.explain)
        assert fullest < 20 * MIB
        some = keep[::4]
        del keep
        wait_until(lambda: len(cluster.workers) == 1, "one is left", detail=cluster.explain)
        assert client.gather(some) == [b"x" * MIB] * len(some)
    assert set(marked.starts.values()) == {1}


# -- p24 --------------------------------------------------------------------------------------------


def test_p24_full_workers_get_company_in_proportion_to_the_bytes(tide: Make, marked: Marked) -> None:
    with dask.config.set(BY_RESULTS):
        cluster = tide(maximum=8, memory_limit="300 MiB")
    with cluster.get_client() as client:
        # One slot's worth of work, so that only the results can be a reason for more.
        chain = [client.submit(run, marked.folder, "r0", "", size=24 * MIB, key="r0", pure=False)]
        for i in range(1, 12):
            chain.append(
                client.submit(after, chain[-1], marked.folder, f"r{i}", 24 * MIB, key=f"r{i}", pure=False)
            )
        last = client.submit(after, chain[-1], marked.folder, "last", 0, "end", key="last", pure=False)
        wait_until(lambda: marked.starts["last"], "all results are there", detail=cluster.explain)
        asked = [a for a in actions(cluster, Launch) if a.why.code == "MEMORY"]
        wait_until(
            lambda: any(a.why.code == "MEMORY" for a in actions(cluster, Launch)),
            "units for the results",
            detail=cluster.explain,
        )
        # 288 MiB of results; 300 MiB less the process itself are about 200, of which 60 % are to be used.
        wait_until(
            lambda: len(running(cluster)) == len(cluster.workers) >= 3, "they come", detail=cluster.explain
        )
        ticks(cluster, 8)
        units = len(cluster.workers)
        ticks(cluster, 8)
        assert len(cluster.workers) == units <= 4
        asked = [a for a in actions(cluster, Launch) if a.why.code == "MEMORY"]
        assert sum(a.count for a in asked) == units - 1
        marked.open("end")
        assert last.result(timeout=30) == "last"
    assert set(marked.starts.values()) == {1}


def after(_: Any, folder: str, name: str, size: int, gate: str = "") -> Any:
    return run(folder, name, gate, size=size)


def test_p24_with_dasks_own_limits_the_work_completes(tide: Make, marked: Marked) -> None:
    """Workers spill and pause as Dask has it; only that they are killed is left out, since what their
    processes take beside the results is a large part of so small a limit.
    """
    with dask.config.set({"distributed.worker.memory.terminate": False}):
        cluster = tide(maximum=6, memory_limit="300 MiB")
    with cluster.get_client() as client:
        futures = [
            client.submit(run, marked.folder, f"r{i}", "", size=32 * MIB, key=f"r{i}", pure=False)
            for i in range(12)
        ]
        finished(cluster, futures)
        assert 2 <= len(cluster.workers) <= 6
        assert [len(result) for result in client.gather(futures)] == [32 * MIB] * 12
    assert set(marked.starts.values()) == {1}


# -- p26 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [True, False])
def test_p26_shrinking_restarts_no_shuffle(tide: Make, marked: Marked, by_hand: bool) -> None:
    array = pytest.importorskip("dask.array")
    import numpy as np

    cluster = tide(maximum=3, release={"keep": "100ms", "tail": "50ms"})
    with (
        cluster.get_client() as client,
        dask.config.set({"array.rechunk.method": "p2p", "array.chunk-size": "1 kiB"}),
    ):
        cluster.scale(3)
        ready(cluster, 3)
        values = np.arange(90 * 90).reshape(90, 90)
        folder = marked.folder

        def block(part: Any, block_id: Any) -> Any:
            # The last input comes late: until then the shuffle runs and most workers idle.
            run(folder, str(block_id[0]), "end" if block_id[0] == 8 else "")
            return part

        rows = array.from_array(values, chunks=(10, 90)).map_blocks(
            block, dtype=values.dtype, meta=values[:0]
        )
        result = rows.rechunk((90, 10)).persist()
        plugin: Any = cluster.scheduler.plugins["shuffle"]
        wait_until(lambda: plugin.active_shuffles, "the shuffle runs", detail=cluster.explain)
        wait_until(lambda: marked.starts["8"], "the last input is being made")
        runs: set[tuple[str, int]] = set()

        def note() -> bool:
            runs.update((s.id, s.run_id) for s in list(plugin.active_shuffles.values()))
            return True

        before = len(actions(cluster, Drain))
        if by_hand:
            cluster.scale(1)
        else:  # a short while ago the work could use three; the shuffle's last input keeps but one busy
            cluster.adapt(minimum=0, maximum=3)
        ticks(cluster, 6)
        note()
        participants = {ws for s in plugin.active_shuffles.values() for ws in s.participating_workers}
        assert participants <= set(cluster.scheduler.workers)
        if not by_hand:
            assert len(actions(cluster, Drain)) == before
            assert "shuffle relies on it" in cluster.explain()
        marked.open("end")
        computed = client.compute(result).result(timeout=60)
        note()
        np.testing.assert_array_equal(computed, values)
        del result, computed
        settled(cluster, 1 if by_hand else 0)
        assert len({shuffle for shuffle, _ in runs}) == len(runs) == 1
        restarts = [
            event
            for _, event in cluster.scheduler.get_events(topic=next(iter(runs))[0])
            if isinstance(event, dict) and event.get("action") == "p2p-failed"
        ]
        assert not restarts
    assert set(marked.starts.values()) == {1}


def test_p26_a_shuffle_that_begins_while_a_worker_drains_waits_for_nothing(
    tide: Make, marked: Marked
) -> None:
    """A shuffle binds its outputs to any worker, also to one that drains and would never run them."""
    array = pytest.importorskip("dask.array")
    cluster = tide(maximum=2)
    with (
        cluster.get_client() as client,
        dask.config.set({"array.rechunk.method": "p2p", "array.chunk-size": "1 kiB"}),
    ):
        cluster.scale(2)
        both = ready(cluster, 2)
        busy = [client.submit(run, marked.folder, f"busy{i}", f"end{i}", key=f"busy{i}") for i in range(2)]
        wait_until(lambda: len(marked.starts) == 2, "both are busy")
        cluster.scale(1)
        wait_until(lambda: len(running(cluster)) == 1, "one drains", detail=cluster.explain)
        names = {
            str(ws.name): str(ts.key) for ws in cluster.scheduler.workers.values() for ts in ws.processing
        }
        (draining,) = both - running(cluster)
        (other,) = running(cluster)
        marked.open(f"end{names[other][-1]}")
        result = array.ones((60, 60), chunks=(10, 60)).rechunk((60, 10)).persist()
        # The drain's own task still runs, for as long as it likes; the drain has given way.
        wait_until(lambda: draining in running(cluster), "back to work", detail=cluster.explain)
        assert f"a P2P shuffle relies on worker {draining}" in cluster.explain()
        marked.open(f"end{names[draining][-1]}")
        assert client.compute(result.sum()).result(timeout=60) == 3600
        assert client.gather(busy) == ["busy0", "busy1"]
    assert set(marked.starts.values()) == {1}


# -- p27 --------------------------------------------------------------------------------------------


def test_p27_scattered_data_survives_every_planned_exit(tide: Make) -> None:
    cluster = tide(maximum=3, release={"keep": "100ms", "tail": "100ms"})
    with cluster.get_client() as client:
        cluster.scale(3)
        ready(cluster, 3)
        data = {f"k{i}": {"value": i, "pid": os.getpid()} for i in range(9)}
        futures = client.scatter(data)
        cluster.scale(2)
        settled(cluster, 2)
        cluster.scale(1)
        settled(cluster, 1)
        cluster.adapt(minimum=0, maximum=3)
        ticks(cluster, 8)
        # Nobody could make them again: their last holder stays, and says why.
        settled(cluster, 1)
        wait_until(lambda: reasons(cluster) == ["KEPT_FOR_RESULT"], "it says why")
        cluster.scale(0)
        ticks(cluster, 4)
        settled(cluster, 1)
        assert client.gather(futures) == data
        assert (
            client.submit(lambda parts: sum(p["value"] for p in parts), list(futures.values())).result() == 36
        )
        cluster.adapt()
        del futures
        wait_until(lambda: not cluster.workers, "no longer wanted, no longer kept", detail=cluster.explain)


def test_p27_data_can_be_scattered_when_there_is_no_worker(tide: Make) -> None:
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        future = client.scatter({"a": 1})["a"]
        assert client.submit(lambda a: a + 1, future).result() == 2


def test_p27_scattered_data_survives_while_the_work_comes_and_goes(tide: Make, marked: Marked) -> None:
    cluster = tide(minimum=1, maximum=3, release={"keep": "100ms", "tail": "100ms"})
    with cluster.get_client() as client:
        ready(cluster, 1)
        data = client.scatter({"data": 7})["data"]
        for wave in range(2):
            futures = [
                client.submit(
                    after, data, marked.folder, f"{wave}-{i}", 0, f"end{wave}", key=f"{wave}-{i}", pure=False
                )
                for i in range(3)
            ]
            wait_until(partial(all_started, marked, 3 * (wave + 1)), "all run", detail=cluster.explain)
            marked.open(f"end{wave}")
            client.gather(futures)
            del futures
            settled(cluster, 1)
        assert data.result(timeout=30) == 7
    assert set(marked.starts.values()) == {1}
