"""Which workers are taken to run what was cancelled, by what heartbeats tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dask_tide.controller.blocked import Blocked
from dask_tide.controller.ledger import PoolRecord


def worker(
    address: str = "a",
    *,
    cancelled: int = 1,
    executing: int = 0,
    ready: int = 1,
    constrained: int = 0,
    threads: int = 1,
    tasks: int = 1,
    seceded: int = 0,
) -> Any:
    """As the scheduler has it, as far as that counts."""
    counts = {"cancelled": cancelled, "executing": executing, "ready": ready, "constrained": constrained}
    return SimpleNamespace(
        address=address,
        nthreads=threads,
        processing=[None] * tasks,
        long_running=[None] * seceded,
        metrics={"task_counts": counts},
    )


def stuck(blocked: Blocked, now_s: float, *workers: Any, boot_s: float = 0.0) -> list[str]:
    for ws in workers:
        ws.last_seen = now_s
    blocked.look(now_s, workers, [PoolRecord(boot_s=boot_s)] * len(workers))
    return sorted(blocked.stuck)


def test_it_must_have_been_so_for_a_while():
    blocked = Blocked()
    assert stuck(blocked, 0.0, worker()) == []
    assert stuck(blocked, 2.9, worker()) == []
    assert blocked.threads == {}
    assert stuck(blocked, 3.1, worker()) == ["a"]
    assert blocked.threads == {"a": 1}


def test_of_many_workers_heartbeats_are_rare():
    """One that is old is no proof for all of them."""
    many = [worker(str(number)) for number in range(1000)]
    blocked = Blocked()
    assert stuck(blocked, 0.0, *many) == []
    assert stuck(blocked, 6.0, *many) == []
    assert len(stuck(blocked, 13.0, *many)) == 1000


def test_it_waits_for_as_long_as_another_one_would_take():
    blocked = Blocked()
    stuck(blocked, 0.0, worker(), boot_s=60.0)
    assert stuck(blocked, 59.0, worker(), boot_s=60.0) == []
    assert stuck(blocked, 61.0, worker(), boot_s=60.0) == ["a"]


@pytest.mark.parametrize(
    "other",
    [
        worker(tasks=0),  # nobody waits
        worker(ready=0),  # what was given to it waits for data, or has seceded
        worker(executing=1),  # seceded, or a transfer
        worker(seceded=1),
        worker(threads=2),
        worker(cancelled=0),
    ],
)
def test_others_are_not(other):
    blocked = Blocked()
    stuck(blocked, 0.0, other)
    assert stuck(blocked, 100.0, other) == []


def test_who_waits_for_what_a_cancelled_task_has_waits_for_its_thread():
    blocked = Blocked()
    stuck(blocked, 0.0, worker(ready=0, constrained=1))
    assert stuck(blocked, 100.0, worker(ready=0, constrained=1)) == ["a"]


def test_who_is_nobodys_stays():
    blocked = Blocked()
    for now_s in (0.0, 100.0):
        ws = worker()
        ws.last_seen = now_s
        blocked.look(now_s, [ws], [None])
    assert blocked.threads == {"a": 1}
    assert blocked.stuck == set()


def test_another_time_is_counted_anew():
    blocked = Blocked()
    stuck(blocked, 0.0, worker())
    stuck(blocked, 2.0, worker(cancelled=0))
    assert stuck(blocked, 4.0, worker()) == []
