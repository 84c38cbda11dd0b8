"""Work on real pods: what comes, what goes, what stays, and that nothing is lost meanwhile."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from distributed import Client, Event, Future, wait
from distributed.client import FutureCancelledError
from releases import DEADLINE_S, POOL, Release, ask, at_work, calls, computed_once, hold, nap, workers
from waiting import wait_until

from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release]) -> Release:
    release = install_once()
    release.settled(0, "at first: the chart's initial one is lowered")
    return release


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    """A client; there are no workers before the test nor after it."""
    with release.client() as client:
        yield client
        ask(client, "tide_adapt", minimum=0)
    release.settled(0)


def uids(release: Release) -> dict[str, str]:
    """Names of workers' pods, of those that are going, too; a pod of the same name would be another one."""
    return {pod["metadata"]["uid"]: name for name, pod in release.all_pods().items()}


def test_p28_from_nothing_to_many_to_the_one_with_the_answer_to_nothing(
    release: Release, client: Client
) -> None:
    futures = client.map(nap, [0.5] * 40, pure=False)
    total = client.submit(len, futures)
    seen = wait_until(
        lambda: len(workers(client)) > 2 and workers(client),
        "workers come",
        DEADLINE_S,
        release.situation,
    )
    assert total.result(timeout=DEADLINE_S) == 40
    machines = {pod["spec"]["nodeName"] for pod in release.pods().values()}
    assert len(machines) > 1, "on several nodes"
    assert set(seen) <= set(release.all_pods()), "workers are named by their pods"
    del futures
    (holder,) = release.settled(1, "when all but the answer is done")
    assert list(workers(client)) == [holder]
    assert total.result() == 40
    del total
    release.settled(0, "when the answer is fetched")
    computed_once(client)


def test_p16_p18_pods_that_somebody_deletes_are_drained_and_replaced_and_it_is_told(
    release: Release, client: Client
) -> None:
    ask(client, "tide_adapt", minimum=2)

    def two_without(deleted: str) -> bool:
        pods = release.all_pods()
        return len(pods) == 2 and deleted not in pods and set(workers(client)) == set(pods)

    wait_until(lambda: two_without(""), "two workers", DEADLINE_S, release.situation)
    results = client.map(nap, [0.1] * 12, pure=False)
    wait(results, timeout=DEADLINE_S)
    held = hold(client, 2)
    deleted = next(iter(held.placed(release)))
    release.delete(deleted)
    release.told(client, f"{deleted}: the platform takes the unit away")
    assert held.begun() == [1, 1]
    held.tell()
    assert client.gather(held.futures) == [0, 1]
    assert held.begun() == [1, 1], "its task was waited for"
    assert len(client.gather(results)) == 12
    computed_once(client)
    wait_until(lambda: two_without(deleted), "there are two again", DEADLINE_S, release.situation)
    del results
    held.forget()
    deleted = next(iter(release.pods()))
    release.destroy(deleted)
    wait_until(lambda: two_without(deleted), "and again", DEADLINE_S, release.situation)
    release.told(client, f"{deleted}: the platform takes the unit away")


@pytest.mark.timeout(900, func_only=True)  # twenty workers must start, one after the other
def test_p04_20_evictions_under_one_long_task_do_not_kill_it(install: Callable[..., Release]) -> None:
    """Each evicted worker may not wait for the task; the task begins anew elsewhere, and is not blamed."""
    hurry = [{"name": "DASK_TIDE__DEPARTURE__TIMEOUT", "value": "1s"}]
    pool = POOL | {"minimum": 3, "terminationGracePeriodSeconds": 10, "env": hurry}
    release = install({"pools": {"cpu": pool}})
    with release.client() as client:

        def until_told() -> str:
            from distributed import Event

            Event("told").wait()
            return "done"

        future = client.submit(until_told, pure=False)

        evicted: set[str] = set()

        def elsewhere() -> str:
            name = at_work(client, future)
            return "" if name in evicted else name

        for _ in range(20):
            name = wait_until(elsewhere, "it runs on another", DEADLINE_S, release.situation)
            release.evict(name)
            evicted.add(name)
            release.told(client, f"{name}: the platform takes the unit away: EvictionByEvictionAPI")
        Event("told", client=client).set()
        assert future.result(timeout=DEADLINE_S) == "done"


def test_p12_the_task_that_runs_on_a_drained_worker_starts_once(release: Release, client: Client) -> None:
    held = hold(client, 2)
    held.placed(release)
    ask(client, "tide_scale", n=1)
    wait_until(
        lambda: (
            {worker["status"] for worker in workers(client).values()} == {"running", "closing_gracefully"}
        ),
        "one is drained",
        DEADLINE_S,
        release.situation,
    )
    held.tell()
    assert client.gather(held.futures) == [0, 1]
    assert held.begun() == [1, 1]
    computed_once(client)
    release.settled(1, "as it was scaled by hand")


def test_p09_an_impossible_selector_is_explained_in_the_platforms_words(
    install: Callable[..., Release],
) -> None:
    release = install({"pools": {"cpu": POOL | {"nodeSelector": {"no": "such-label"}}}})
    with release.client() as client:
        future = client.submit(nap, 0.1)
        release.told(client, "didn't match Pod's node affinity/selector", 60)
        assert "didn't match Pod's node affinity/selector" in release.explain()
        del future
    release.settled(0, "when nobody wants it any more")


def test_an_image_that_does_not_exist_is_told_and_not_tried_in_a_loop(
    install: Callable[..., Release],
) -> None:
    release = install({"pools": {"cpu": POOL | {"image": "docker.io/dask-tide/none:never"}}})
    with release.client() as client:
        began_s = time.monotonic()
        future = client.submit(nap, 0.1)
        pods: set[str] = set()

        def told(words: str) -> bool:
            pods.update(pod["metadata"]["uid"] for pod in release.all_pods().values())
            return words in ask(client, "tide_explain", lines=200)

        for words in ("ErrImageNeverPull", "starts in a row came to nothing"):
            wait_until(lambda: told(words), words, DEADLINE_S, release.situation)  # noqa: B023
        # The pause after each is twice as long as the one before; the first is half a second.
        assert len(pods) <= 2 + math.log2(1 + (time.monotonic() - began_s) / 0.5)
        del future
    release.settled(0)


def test_p39_quota_10_ask_20(install: Callable[..., Release], nodes: Cluster) -> None:
    release = install({"pools": {"cpu": POOL | {"maximum": 20}}})
    release.settled(0)
    used = len(nodes.kubectl.json("--namespace", release.namespace, "get", "pods")["items"])
    release.kubectl("create", "quota", "ten", f"--hard=pods={used + 10}")

    def counts() -> tuple[int, int]:
        """How many pods there are, and are asked for."""
        (replicaset,) = release.objects("replicasets", "app.kubernetes.io/component=worker")
        return len(release.all_pods()), replicaset["spec"]["replicas"]

    with release.client() as client:
        began_s = time.monotonic()
        ask(client, "tide_scale", n=20)
        futures = client.map(nap, [0.4] * 60, pure=False)
        release.told(client, "exceeded quota", 60)
        wait_until(lambda: counts() == (10, 10), "as many as may be", DEADLINE_S, release.situation)
        asked = calls(client)["scale"]
        while not all(future.done() for future in futures):
            assert counts()[0] <= 10, release.situation()
            time.sleep(0.05)
        # It is believed for half a minute, and then tried: more are asked for, and then as many as before.
        tried = (time.monotonic() - began_s) // 30
        assert calls(client)["scale"] - asked <= 2 * tried, "it is not asked again and again"
        wait_until(lambda: counts() == (10, 10), "as many as may be", DEADLINE_S, release.situation)
        assert len(client.gather(futures)) == 60
        assert release.log().count("exceeded quota: ten") == 1, "one warning"
        ask(client, "tide_adapt", minimum=0)
        del futures
    release.settled(0)


@pytest.mark.timeout(500, func_only=True)
def test_p16_p28_after_a_soak_there_are_as_many_as_are_wanted(install: Callable[..., Release]) -> None:
    """Up and down to nothing, while somebody deletes and evicts pods at random moments."""
    chance = random.Random(28)
    release = install({"pools": {"cpu": POOL | {"maximum": 4}}, "tide": {"release": {"keep": "1s"}}})
    release.settled(0)
    with release.client() as client:
        for number in range(3):
            futures = client.map(nap, [chance.uniform(0.2, 2.0) for _ in range(16)], pure=False)

            def so_far(done: int, futures: list[Future] = futures) -> bool:
                return bool(workers(client)) and sum(future.done() for future in futures) >= done

            ways = chance.sample([release.evict, release.delete, release.destroy], 2)
            for disturb, done in zip(ways, sorted(chance.sample(range(14), 2)), strict=True):
                wait_until(partial(so_far, done), f"{done} are done", DEADLINE_S, release.situation)
                if there := sorted(release.pods()):
                    disturb(chance.choice(there))
            assert len(client.gather(futures)) == 16
            futures.clear()
            release.settled(0, f"after round {number}")
            assert not workers(client)
        ask(client, "tide_adapt", minimum=2)
        wait_until(
            lambda: len(workers(client)) == 2 and set(workers(client)) == set(release.all_pods()),
            "the minimum, and no pod without a worker",
            DEADLINE_S,
            release.situation,
        )
        status = ask(client, "tide_status")
        assert status["errors"] == 0
        assert {unit["name"] for unit in status["units"]} == set(release.all_pods())


def evicted(release: Release, client: Client, scheduler: str) -> None:
    """It has time to close, and tells its workers to do so, too."""
    release.evict(scheduler)


def killed(release: Release, client: Client, scheduler: str) -> None:
    """Its process ends first: to one that is deleted by force the kubelet gives two seconds all the same."""
    with suppress(OSError):
        client.run_on_scheduler(os._exit, 1)
    release.destroy(scheduler)


@pytest.mark.parametrize("end", [evicted, killed])
def test_p29_a_scheduler_that_ends_in_mid_job_finds_its_pods_again(
    install: Callable[..., Release], end: Callable[[Release, Client, str], None]
) -> None:
    release = install({"pools": {"cpu": POOL | {"minimum": 4, "maximum": 6}}})
    with release.client() as client:
        wait_until(lambda: len(workers(client)) == 4, "four workers", DEADLINE_S, release.situation)
        before = uids(release)
        ask(client, "tide_adapt", maximum=4)
        futures = client.map(nap, [1.0] * 60, pure=False)
        wait_until(futures[0].done, "it is in full swing", DEADLINE_S, release.situation)
        ended = release.scheduler_pod()
        end(release, client, ended)
        # Dask's usual answer; for what had been computed, too.
        for future in (futures[-1], futures[0]):
            with pytest.raises(FutureCancelledError, match="scheduler-connection-lost"):
                future.result(timeout=DEADLINE_S)
    release.close()
    seen: dict[str, str] = {}

    def served() -> bool:
        pods = uids(release)
        seen.update(pods)
        assert len(pods) <= 4, release.situation()
        return ended not in (names := release.schedulers()) and all(names.values()) and len(names) == 1

    wait_until(served, "there is another scheduler", DEADLINE_S, release.situation)
    with release.client() as client:
        wait_until(
            lambda: served() and set(workers(client)) == set(release.pods()),
            "all pods have workers, and all workers pods",
            DEADLINE_S,
            release.situation,
        )
        ask(client, "tide_adapt", maximum=4)
        futures = client.map(nap, [0.3] * 20, pure=False)
        assert set(client.gather(futures)) <= set(before.values())
        assert served()
        assert seen == before, "none went, and none came"


def test_p42_two_releases_in_one_namespace_do_not_touch_each_other(install: Callable[..., Release]) -> None:
    values = {"pools": {"cpu": POOL}, "tide": {"release": {"keep": "1s", "tail": "1s"}}}
    one, two = install(values, name="one"), install(values, name="two")
    with one.client() as first, two.client() as second:
        ask(second, "tide_scale", n=2)
        a = first.map(nap, [0.3] * 20, pure=False)
        b = second.map(nap, [0.3] * 20, pure=False)
        assert {name.startswith("one-cpu-") for name in first.gather(a)} == {True}
        assert {name.startswith("two-cpu-") for name in second.gather(b)} == {True}
        two.settled(2)
        before = uids(two)
        del a
        one.settled(0)
        assert uids(two) == before
        computed_once(second)
        ask(second, "tide_adapt", minimum=0)
        del b
        two.settled(0)


def test_p31_annotations_follow_the_work(release: Release, client: Client) -> None:
    safe = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    ask(client, "tide_adapt", minimum=1)
    (name,) = release.settled(1)

    def annotation() -> Any:
        return release.pods()[name]["metadata"]["annotations"].get(safe)

    wait_until(lambda: annotation() == "true", "an idle worker may be evicted", DEADLINE_S, release.situation)
    future = client.submit(nap, 3.0)
    wait_until(lambda: annotation() == "false", "a busy one may not", DEADLINE_S, release.situation)
    future.result()
    del future
    wait_until(lambda: annotation() == "true", "an idle one may again", DEADLINE_S, release.situation)
