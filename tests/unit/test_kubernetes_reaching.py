"""How a scheduler in a namespace is reached from elsewhere, and what is said when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from distributed import Scheduler

from dask_tide.errors import LaunchRejected, ProviderError, Unauthorized, Unavailable
from dask_tide.providers.kubernetes import cluster as kubernetes
from dask_tide.providers.kubernetes.cluster import KubernetesHost, _runs
from dask_tide.providers.kubernetes.manifests import manifests
from dask_tide.providers.kubernetes.startup import Trouble

KUBECONFIG = """
current-context: here
clusters: [{{name: here, cluster: {{server: "{server}"}}}}]
users: [{{name: me, user: {{token: secret}}}}]
contexts: [{{name: here, context: {{cluster: here, user: me, namespace: science}}}}]
"""
WAITS = {"waiting": {"reason": "ContainerCreating"}}
RUNS: dict[str, Any] = {"running": {}}
PLAIN = {"image": {"repository": "example.org/dask-tide"}, "security": {"tls": {"enabled": False}}}
#: More than any test waits for a scheduler, unless it fails.
LONG_S = 20.0


def pod(**states: dict[str, Any]) -> dict[str, Any]:
    """A pod whose containers are in these states."""
    statuses = [{"name": name, "state": state} for name, state in states.items()]
    return {"metadata": {"name": "dask-scheduler-x"}, "status": {"containerStatuses": statuses}}


def test_it_runs_when_the_scheduler_does() -> None:
    assert _runs(pod(scheduler=RUNS))
    assert _runs(pod(proxy=WAITS, scheduler=RUNS))
    assert not _runs(pod(proxy=RUNS, scheduler=WAITS)), "a container that somebody has injected"
    assert not _runs(pod(proxy=RUNS))
    assert not _runs({"metadata": {"name": "x"}})


def test_its_container_is_called_so_in_the_manifests() -> None:
    [deployment] = [
        one
        for one in manifests("r", "science", PLAIN)
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "r-scheduler"
    ]
    assert [one["name"] for one in deployment["spec"]["template"]["spec"]["containers"]] == ["scheduler"]


class ApiServer:
    """Answers all requests with one status."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode().partition("\r\n")[0])
        writer.write(f"HTTP/1.1 {self.status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()


@pytest_asyncio.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """A factory of hosts whose pod is in the states that are given; with the API server at an address."""
    hosts: list[KubernetesHost] = []

    def make(
        server: str = "http://127.0.0.1:1", trouble: Trouble | None = None, **states: Any
    ) -> KubernetesHost:
        path = tmp_path / "kubeconfig"
        path.write_text(KUBECONFIG.format(server=server))
        host = KubernetesHost(
            "dask", pool={}, pools=None, settings={}, dashboard=None, kubeconfig=path, values=PLAIN
        )

        async def scheduler() -> Any:
            return pod(**states) if states else None

        async def find_trouble(_: Any) -> Trouble:
            return trouble or Trouble("", None)

        monkeypatch.setattr(host, "_scheduler", scheduler)
        monkeypatch.setattr(host, "_trouble", find_trouble)
        hosts.append(host)
        return host

    monkeypatch.setattr(kubernetes, "_LOOK_S", 0.01)
    yield make
    for host in hosts:
        await host.close()


async def refusal(host: KubernetesHost, within_s: float) -> ProviderError:
    with pytest.raises(ProviderError) as error:
        await host._reach(time.monotonic() + within_s)
    return error.value


@pytest.mark.parametrize("status", [401, 403])
async def test_a_missing_right_to_forward_ports_is_told_long_before_the_time_limit(
    made: Callable[..., KubernetesHost], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(kubernetes, "_PATIENCE_S", 0.5)
    api = ApiServer(status)
    async with await asyncio.start_server(api.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        host = made(f"http://127.0.0.1:{port}", scheduler=RUNS)
        async with asyncio.timeout(LONG_S):
            error = await refusal(host, 10 * LONG_S)
    assert isinstance(error, Unauthorized)
    assert "its scheduler did not come up and will not" in str(error)
    assert f"you may not create pods/portforward (the API server answered {status})" in str(error)
    assert all("/api/v1/namespaces/science/pods/dask-scheduler-x/portforward?" in line for line in api.asked)


async def test_another_refusal_is_told_at_the_time_limit(made: Callable[..., KubernetesHost]) -> None:
    api = ApiServer(502)
    async with await asyncio.start_server(api.answer, "127.0.0.1", 0) as server:
        host = made(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", scheduler=RUNS)
        error = await refusal(host, 0)
    assert isinstance(error, Unavailable), "it runs; asking again may help"
    assert "it runs, but cannot be reached from here: the API server answered 502" in str(error)


async def test_in_a_pod_the_network_is_what_keeps_it_away(
    made: Callable[..., KubernetesHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(address: str, **_: Any) -> Any:
        raise OSError(f"{address} does not answer")

    monkeypatch.setattr(kubernetes, "connect", connect)
    host = made(scheduler=RUNS)
    host._inside = True
    error = await refusal(host, 0)
    assert isinstance(error, Unavailable)
    reason = "it runs, but cannot be reached from here: tcp://dask-scheduler.science.svc:8786 does not answer"
    assert reason in str(error)


async def test_a_scheduler_that_does_not_run_is_not_said_to(made: Callable[..., KubernetesHost]) -> None:
    image = Trouble("ErrImagePull: no such image", 0.0)
    error = await refusal(made(scheduler=WAITS, proxy=RUNS, trouble=image), LONG_S)
    assert isinstance(error, LaunchRejected)
    assert "ErrImagePull: no such image" in str(error)
    error = await refusal(made(), 0)
    assert isinstance(error, Unavailable)
    assert "nothing is known why" in str(error)


async def test_an_api_server_that_is_away_is_no_refusal(made: Callable[..., KubernetesHost]) -> None:
    host = made()
    del host._scheduler
    error = await refusal(host, 0)
    assert isinstance(error, Unavailable)
    assert "reading Pods: " in str(error)


async def test_what_answered_late_is_reached(
    made: Callable[..., KubernetesHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> dict[str, Any]:
        return {}

    address = "127.0.0.1:0"
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address=address) as scheduler:
        scheduler.handlers["tide_status"] = status
        tries: list[int] = []
        host = made(scheduler=RUNS)
        serves = host._serves

        async def late(_: str) -> bool:
            tries.append(1)
            host._no_answer = "not yet"
            return len(tries) > 2 and await serves(scheduler.address)

        monkeypatch.setattr(host, "_serves", late)
        assert (await host._reach(time.monotonic() + LONG_S)).startswith("tcp://127.0.0.1:")
    assert len(tries) == 3
