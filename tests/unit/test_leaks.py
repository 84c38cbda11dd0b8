"""Which paused workers are taken to be full of what is no result, by what heartbeats tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed.core import Status

from dask_tide.controller.leaks import Leaks
from dask_tide.controller.ledger import PoolRecord

MB = 10**6


def worker(
    *,
    status: Status = Status.paused,
    tasks: int = 0,
    nbytes: int = 0,
    spilled: int = 0,
    limit: int = 500 * MB,
) -> Any:
    """As the scheduler has it, as far as that counts."""
    return SimpleNamespace(
        address="a",
        status=status,
        executing=[None] * tasks,
        nbytes=nbytes,
        memory_limit=limit,
        metrics={"memory": 436 * MB, "spilled_bytes": {"memory": spilled, "disk": spilled}},
    )


def full(leaks: Leaks, now_s: float, ws: Any, *, silent: bool = False, **record: Any) -> set[str]:
    ws.last_seen = 0.0 if silent else now_s
    leaks.look(now_s, [ws], [PoolRecord(**{"baseline_bytes": 100 * MB} | record)])
    return leaks.full


def test_it_must_have_been_so_for_a_while_and_for_as_long_as_another_one_would_take():
    leaks = Leaks()
    assert full(leaks, 0.0, worker()) == set()
    assert full(leaks, 2.9, worker()) == set()
    assert full(leaks, 3.1, worker()) == {"a"}
    assert full(leaks, 59.0, worker(), boot_s=60.0) == set()
    assert full(leaks, 61.0, worker(), boot_s=60.0) == {"a"}


def test_who_says_nothing_may_have_begun_a_task_since():
    """One that holds the interpreter's lock."""
    leaks = Leaks()
    for now_s in (0.0, 4.0, 60.0):
        assert full(leaks, now_s, worker(), silent=True) == set()
    assert full(leaks, 61.0, worker()) == {"a"}


def test_another_time_is_counted_anew():
    leaks = Leaks()
    full(leaks, 0.0, worker())
    full(leaks, 2.0, worker(status=Status.running))
    assert full(leaks, 4.0, worker()) == set()


def test_results_that_were_spilled_fill_no_memory():
    leaks = Leaks()
    full(leaks, 0.0, worker(nbytes=30 * MB, spilled=30 * MB))
    assert full(leaks, 4.0, worker(nbytes=30 * MB, spilled=30 * MB)) == {"a"}


@pytest.mark.parametrize(
    ("other", "record"),
    [
        (worker(status=Status.running), {}),
        (worker(tasks=1), {}),  # busy
        (worker(nbytes=300 * MB), {}),  # its results fill it
        (worker(nbytes=48), {}),  # an object that Dask does not know may be of any size
        (worker(limit=0), {}),  # somebody has paused it
        (worker(), {"baseline_bytes": 420 * MB}),  # the next one would be no better
    ],
)
def test_others_are_not(other, record):
    leaks = Leaks()
    full(leaks, 0.0, other, **record)
    assert full(leaks, 100.0, other, **record) == set()


def test_nor_is_somebodys_own():
    leaks = Leaks()
    for now_s in (0.0, 100.0):
        ws = worker()
        ws.last_seen = now_s
        leaks.look(now_s, [ws], [None])
        assert leaks.full == set()


def test_where_workers_never_pause_by_themselves():
    with dask.config.set({"distributed.worker.memory.pause": False}):
        leaks = Leaks()
        full(leaks, 0.0, worker())
        assert full(leaks, 4.0, worker()) == {"a"}
