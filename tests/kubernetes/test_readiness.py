"""A kubelet does not take a busy worker for a dead one; and what becomes of those that eat too much."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client
from distributed.scheduler import KilledWorker
from kernel import killed_for_memory
from releases import DEADLINE_S, POOL, Release, workers
from waiting import wait_until

from dask_tide.providers.kubernetes.pods import SAFE_TO_EVICT

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

#: A failed probe makes a pod unready after a second.
HELD_S = 8


def ready(pod: dict[str, Any]) -> tuple[str, str]:
    """Whether a pod is ready, and since when: it cannot have been otherwise in between."""
    (condition,) = (c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    return condition["status"], condition["lastTransitionTime"]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (status,) = pod["status"]["containerStatuses"]
    return dict(status)


def death(pod: dict[str, Any]) -> str:
    """Kubernetes' words on how its container ended before; empty: it did not."""
    statuses = pod["status"].get("containerStatuses", ())  # none: it has no node yet
    ended = next((status["lastState"].get("terminated") for status in statuses), None)
    if ended is None:
        return ""
    assert ended["exitCode"] == 128 + signal.SIGKILL
    assert ended["reason"] == "OOMKilled"
    return f"{ended['reason']}, exit code {ended['exitCode']}"


def one_worker(release: Release, client: Client) -> str:
    """The name of the one worker, when its pod is ready."""
    name = wait_until(
        lambda: next(iter(workers(client)), ""), "a worker has come", DEADLINE_S, release.situation
    )
    wait_until(lambda: ready(release.pods()[name])[0] == "True", "its pod is ready", DEADLINE_S)
    return str(name)


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release]) -> Release:
    """With one worker, and tasks that may kill two of them until they are given up."""
    once = [{"name": "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "value": "1"}]
    pool = POOL | {"minimum": 1, "maximum": 1}
    return install_once({"pools": {"cpu": pool}, "scheduler": {"env": once}})


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        yield client


def test_there_is_no_liveness_probe_and_readiness_does_not_ask_the_worker(release: Release) -> None:
    (replicaset,) = release.objects("replicasets", "app.kubernetes.io/component=worker")
    (template,) = replicaset["spec"]["template"]["spec"]["containers"]
    assert not {"livenessProbe", "startupProbe"} & template.keys()
    assert template["readinessProbe"]["tcpSocket"], "no HTTP, which needs the worker's interpreter"


def test_c_code_that_holds_the_gil_neither_makes_the_pod_unready_nor_restarts_it(
    release: Release, client: Client
) -> None:
    def hold(seconds: int) -> int:
        import ctypes

        return int(ctypes.PyDLL(None).sleep(seconds))

    name = one_worker(release, client)
    idle = wait_until(
        lambda: (pod := release.pods()[name])["metadata"]["annotations"][SAFE_TO_EVICT] == "true" and pod,
        "the idle worker may be evicted",
        DEADLINE_S,
        release.situation,
    )
    future = client.submit(hold, HELD_S, pure=False)
    seen = []
    while not future.done():
        pod = release.pods()[name]
        seen.append(pod["metadata"]["annotations"][SAFE_TO_EVICT])
        assert ready(pod) == ready(idle)
        time.sleep(0.05)
    assert future.result() == 0, "it was not interrupted"
    assert "false" in seen, "the busy worker may not be evicted"
    assert "true" not in seen[seen.index("false") :]
    pod = release.pods()[name]
    assert ready(pod) == ready(idle)
    assert container(pod)["restartCount"] == container(idle)["restartCount"]
    assert list(workers(client)) == [name]


def test_a_container_that_is_killed_for_its_memory_starts_again_and_explain_says_why(
    release: Release, client: Client
) -> None:
    """The first one on this pod: the kubelet would wait before it starts a second one again."""
    name = one_worker(release, client)
    before, killed = container(release.pods()[name])["restartCount"], killed_for_memory()

    def eat_soon() -> None:
        import asyncio

        asyncio.get_running_loop().call_later(0.1, lambda: b"x" * 2**30)

    # The nanny's process is the container's main one: with it the container ends.
    client.run(eat_soon, nanny=True)
    wait_until(
        lambda: container(release.pods()[name])["restartCount"] > before,
        "the kubelet starts it again",
        DEADLINE_S,
        release.situation,
    )
    words = death(release.pods()[name])
    assert words
    assert killed_for_memory() > killed
    assert client.submit(sum, [20, 22], pure=False).result(timeout=DEADLINE_S) == 42
    assert list(workers(client)) == [name]
    release.told(client, words)


def eat(mebibytes: int) -> Callable[[], int]:
    # A function in a function, so that it is sent by value: no pod can import tests.
    def task() -> int:
        return len(b"x" * (mebibytes * 2**20))

    return task


def test_a_task_that_eats_too_much_fails_and_the_cluster_goes_on(release: Release, client: Client) -> None:
    """Either Dask's nanny is faster or the kernel is, which kills the process or the whole container."""
    one_worker(release, client)
    killed = killed_for_memory()
    future = client.submit(eat(1024), pure=False)
    assert isinstance(future.exception(timeout=DEADLINE_S), KilledWorker)
    numbers = client.map(lambda x: x + 1, range(20), pure=False)
    assert sum(client.gather(numbers)) == 210
    for words in {death(pod) for pod in release.pods().values()} - {""}:
        assert killed_for_memory() > killed
        release.told(client, words)
