"""What the benchmark on AWS counts: no cloud is needed for that."""

from __future__ import annotations

from fleet import most_at_once

from benchmarks.aws import reckoning
from benchmarks.aws.watch import Seen
from rig.aws.instances import Instance


def instance(launched_s: float, ended_s: float | None = None) -> Instance:
    name = f"i-{launched_s:g}"
    return Instance(name, "m5.xlarge", "eu-west-1b", "spot", "ours", name, "10.0.0.1", launched_s, ended_s)


def run(worker: str, from_s: float, to_s: float, end: str = "memory", key: str = "x") -> dict[str, object]:
    return {"key": key, "worker": worker, "from_s": from_s, "to_s": to_s, "end": end}


def evicted(worker: str, at_s: float) -> Seen:
    return Seen(worker, worker, 0.0, evicted_s=at_s)


def test_only_who_has_a_task_is_evicted_busy() -> None:
    pods = [evicted("a", 15.0), evicted("b", 15.0), Seen("c", "c", 0.0)]
    runs = [run("a", 10.0, 20.0), run("b", 10.0, 14.5), run("c", 10.0, 20.0)]
    assert reckoning.evicted_busy(pods, runs) == ["a"]


def test_a_task_that_ended_with_its_worker_was_being_run_then() -> None:
    runs = [run("a", 10.0, 14.8, "released")]
    assert reckoning.evicted_busy([evicted("a", 15.0)], runs) == ["a"]
    assert reckoning.evicted_busy([evicted("a", 17.0)], runs) == []


def test_tasks_that_were_begun_and_finished_twice() -> None:
    runs = [
        run("a", 0, 1, "released", "lost"),
        run("b", 1, 2, key="lost"),
        run("a", 0, 1, key="twice"),
        run("b", 3, 4, key="twice"),
        run("b", 4, 5, key="once"),
    ]
    assert reckoning.run_twice(runs) == {"begun_again": ["lost", "twice"], "recomputed": ["twice"]}


def test_each_submission_waits_for_its_own_first_task() -> None:
    spans = [{"submitted_s": 10.0, "answered_s": 20.0}, {"submitted_s": 30.0, "answered_s": 40.0}]
    runs = [
        run("a", 5.0, 6.0),
        run("a", 12.0, 13.0, "released"),  # in vain
        run("a", 14.0, 15.0),
        run("b", 13.5, 16.0),
        run("b", 30.0, 31.0),
    ]
    assert reckoning.first_task_s(spans, runs) == [3.5, 0.0]


def test_of_few_waits_the_highest_counts() -> None:
    percentile_95 = reckoning.WAITS["95th percentile"]
    assert percentile_95([3.0]) == 3.0
    assert percentile_95([*range(10)]) == 9
    assert percentile_95([*range(100)]) == 94


def test_workers_are_paid_from_registration_to_end_within_the_workload() -> None:
    stays: list[dict[str, float | None]] = [
        {"from_s": 0.0, "to_s": 15.0},  # was there before
        {"from_s": 12.0, "to_s": 14.0},
        {"from_s": 18.0, "to_s": None},  # is there still
        {"from_s": 1.0, "to_s": 2.0},
    ]
    assert reckoning.worker_s(stays, 10.0, 20.0) == 5.0 + 2.0 + 2.0


def test_the_first_machines_call_is_found_among_others() -> None:
    calls = [
        {"operation": "CreateFleet", "at_s": 4.0, "took_s": 0.5},
        {"operation": "DescribeInstances", "at_s": 6.9, "took_s": 0.2},
        {"operation": "CreateFleet", "at_s": 6.8, "took_s": 0.5},
    ]
    assert reckoning.requested_s(calls, [instance(9.0), instance(7.0)]) == 6.8
    assert reckoning.requested_s(calls, []) is None


def test_machines_at_one_time() -> None:
    bill = [instance(0.0, 10.0), instance(5.0, 8.0), instance(8.0, 9.0), instance(9.5)]
    assert most_at_once(bill) == 2
    assert most_at_once([]) == 0
    paid = reckoning.machines(bill[:3])
    assert paid["machine_s"] == 14.0
    assert paid["launched"] == 3
