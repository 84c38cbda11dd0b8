"""Coiled's two scenarios of a workload that changes, on one machine.

After ``test_adapt_to_changing_workload`` and ``test_adapt_to_memory_intensive_workload`` of
``tests/stability/test_adaptive_scaling.py`` in github.com/coiled/benchmarks. The second one is skipped
there: "The test behavior is unreliable and may lead to very long runtime" (coiled-runtime#211). Both go
from many workers to one and back, and both must compute nothing twice.
"""

from __future__ import annotations

import dask
import pytest
from records import WorkersSeen, units, workers
from waiting import wait_until

MAXIMUM = 3
FAN_OUT = 12


def count(cluster):
    """Workers, once units and workers agree."""
    return len(workers(cluster)) if units(cluster) == len(workers(cluster)) else -1


@pytest.mark.parametrize("minimum", [0, 1])
def test_p02_fan_out_barrier_fan_out(tide, tasks, minimum):
    """Many tasks, then one that all others wait for, then many again."""
    cluster = tide(minimum=minimum, maximum=MAXIMUM, release={"tail": "1s"})
    seen = WorkersSeen(cluster)
    with cluster.get_client() as client:
        fan_out = client.map(tasks.function(gated=True, gate="fan-out"), range(FAN_OUT))
        total = client.submit(sum, fan_out)
        barrier = client.submit(tasks.function(gated=True, gate="barrier"), 100, total)
        final = client.map(
            tasks.function(gated=True, gate="final"), range(200, 200 + FAN_OUT), [barrier] * FAN_OUT
        )
        del fan_out, total, barrier

        wait_until(lambda: count(cluster) == MAXIMUM, "up", detail=cluster.explain)
        tasks.open("fan-out")
        wait_until(lambda: count(cluster) == 1, "down to the one with the barrier", detail=cluster.explain)
        tasks.open("barrier")
        wait_until(lambda: count(cluster) == MAXIMUM, "up again", detail=cluster.explain)
        tasks.open("final")
        assert client.gather(final) == list(range(200, 200 + FAN_OUT))
        del final
        wait_until(lambda: count(cluster) == minimum, "down to the minimum", detail=cluster.explain)
    assert set(tasks.starts.values()) == {1}, "computed twice"
    assert len(tasks.starts) == 2 * FAN_OUT + 1
    # Each time up at once, with nobody bought in vain.
    assert len(seen.names) <= 2 * MAXIMUM, cluster.explain(200)


@pytest.mark.parametrize(("minimum", "method"), [(0, "p2p"), (1, "p2p"), (0, "tasks"), (1, "tasks")])
def test_p02_memory_intensive_barrier_memory_intensive(tide, tasks, tmp_path, minimum, method):
    """A transposition, in which each worker needs something of every other; a barrier; and again."""
    da = pytest.importorskip("dask.array")
    cluster = tide(minimum=minimum, maximum=MAXIMUM)
    seen = WorkersSeen(cluster)

    def transposed_sum(gate):
        # 2 × 61 MiB at the most, in blocks of 7 MiB; long enough to be worth more than one worker.
        opened = str(tmp_path / gate)

        def load(block):
            import time
            from pathlib import Path

            while not Path(opened).exists():
                time.sleep(0.02)
            return block + 1

        with dask.config.set({"array.rechunk.method": method}):
            zeros = da.zeros((2400, 3200), chunks=(2400, 356))
            # With `meta`, as Dask would else call it here, to see what it makes.
            matrix = zeros.map_blocks(load, dtype=float, meta=zeros._meta)
            return matrix.rechunk((200, 3200)).sum()

    with cluster.get_client() as client:
        total = client.compute(transposed_sum("first"))
        barrier = client.submit(tasks.function(gated=True, gate="barrier"), 100, total)
        wait_until(lambda: count(cluster) == MAXIMUM, "up", detail=cluster.explain)
        (tmp_path / "first").touch()
        wait_until(lambda: tasks.starts, "the barrier", detail=cluster.explain)
        wait_until(lambda: count(cluster) == 1, "down to the one with the barrier", detail=cluster.explain)
        tasks.open("barrier")
        assert barrier.result() == 100
        assert total.result() == 2400 * 3200
        again = client.compute(transposed_sum("second"))
        wait_until(lambda: count(cluster) == MAXIMUM, "up again", detail=cluster.explain)
        (tmp_path / "second").touch()
        assert again.result() == 2400 * 3200
        del total, barrier, again
        wait_until(lambda: count(cluster) == minimum, "down to the minimum", detail=cluster.explain)
    assert set(tasks.starts.values()) == {1}, "computed twice"
    # Twice up; on a machine that stalls, one may go between two stages of a transposition and come back.
    assert len(seen.names) < 3 * MAXIMUM, cluster.explain(200)
