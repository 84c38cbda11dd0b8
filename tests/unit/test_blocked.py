"""Which workers are taken to run what was cancelled, by what heartbeats tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dask_tide.controller.blocked import Blocked


def worker(
    address: str = "a", *, cancelled: int = 1, executing: int = 0, threads: int = 1, tasks: int = 1
) -> Any:
    """As the scheduler has it, as far as that counts."""
    counts = {"cancelled": cancelled, "executing": executing}
    return SimpleNamespace(
        address=address, nthreads=threads, processing=[None] * tasks, metrics={"task_counts": counts}
    )


def units(blocked: Blocked, now_s: float, *workers: Any, boot_s: float = 0.0) -> list[str]:
    blocked.look(now_s, workers)
    owners = [f"unit-{ws.address}" for ws in workers]
    return list(blocked.units(now_s, workers, owners, dict.fromkeys(owners, boot_s)))


def test_it_must_have_been_so_for_a_while():
    blocked = Blocked()
    assert units(blocked, 0.0, worker()) == []
    assert units(blocked, 2.9, worker()) == []
    assert blocked.threads == {}
    assert units(blocked, 3.1, worker()) == ["unit-a"]
    assert blocked.threads == {"a": 1}


def test_of_many_workers_heartbeats_are_rare():
    """One that is old is no proof for all of them."""
    many = [worker(str(number)) for number in range(1000)]
    blocked = Blocked()
    assert units(blocked, 0.0, *many) == []
    assert units(blocked, 6.0, *many) == []
    assert len(units(blocked, 13.0, *many)) == 1000


def test_it_waits_for_as_long_as_another_one_would_take():
    blocked = Blocked()
    units(blocked, 0.0, worker(), boot_s=60.0)
    assert units(blocked, 59.0, worker(), boot_s=60.0) == []
    assert units(blocked, 61.0, worker(), boot_s=60.0) == ["unit-a"]


@pytest.mark.parametrize(
    "other",
    [
        worker(tasks=0),  # nobody waits
        worker(executing=1),  # seceded, or a transfer
        worker(threads=2),
        worker(cancelled=0),
    ],
)
def test_others_are_not(other):
    blocked = Blocked()
    units(blocked, 0.0, other)
    assert units(blocked, 100.0, other) == []


def test_another_time_is_counted_anew():
    blocked = Blocked()
    units(blocked, 0.0, worker())
    units(blocked, 2.0, worker(cancelled=0))
    assert units(blocked, 4.0, worker()) == []
