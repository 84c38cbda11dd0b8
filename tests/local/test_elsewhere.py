"""A cluster whose scheduler a host makes, as its user sees it when that goes or fails."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import dask
import pytest
from distributed import Scheduler
from distributed.core import Status
from distributed.security import Security
from waiting import until

from dask_tide import TideCluster, arguments

#: What a host's module says: the arguments that it has beside the common ones.
ARGUMENTS = ("fails", "waits", "looks_up")


class Host:
    """Runs the scheduler in this process, as if it were elsewhere."""

    dashboard_link = ""
    idle_timeout_s = 60.0

    def __init__(
        self,
        name: str,
        *,
        fails: type[Exception] | None = None,
        waits: bool = False,
        looks_up: bool = False,
        **_: Any,
    ) -> None:
        self.name = name
        #: Closing ends with an error; starting waits for `go`; closing needs the API server's address.
        self.fails, self.waits, self.looks_up = fails, waits, looks_up
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.closed = 0
        self.security = Security()
        self.said: list[str] = []
        self.gone = False
        self.scheduler: Scheduler | None = None

    async def start(self) -> str:
        self.begun.set()
        if self.waits:
            await self.go.wait()
        self.scheduler = await Scheduler(
            host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0"
        )
        return str(self.scheduler.address)

    async def vanish(self) -> None:
        self.gone = True
        assert self.scheduler is not None
        await self.scheduler.close()

    async def close(self) -> None:
        self.closed += 1
        if self.scheduler is not None:
            await self.scheduler.close()
        if self.looks_up:
            await asyncio.get_running_loop().getaddrinfo("localhost", 443)
        if self.fails is not None:
            raise self.fails("cannot be closed")
        print(f"{self.name} is closed", flush=True)

    async def ended(self) -> bool:
        return self.gone


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(arguments._HOSTS, "local", (__name__, "Host", ARGUMENTS))
    # Or a test waits for 30 s where a scheduler that has gone is called, not heard to hang up.
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        yield


def host_of(cluster: TideCluster) -> Host:
    host: Any = cluster._site
    return host._host


async def test_that_it_has_ended_is_told_once(warned: list[str]) -> None:
    async with TideCluster(asynchronous=True) as cluster:
        await host_of(cluster).vanish()
        await until(lambda: any("has ended" in line for line in warned), "it is told", detail=lambda: warned)
        assert cluster._watch_worker_status_task is not None
        await cluster._watch_worker_status_task
        staying: Any = cluster._site
        await until(staying._staying.cancelled, "nobody asks a scheduler any more that is gone")
    assert sum("has ended" in line for line in warned) == 1
    assert cluster.status is Status.closed


async def test_a_host_that_cannot_close_leaves_no_half_closed_cluster() -> None:
    cluster = await TideCluster(asynchronous=True, fails=RuntimeError)
    with pytest.raises(RuntimeError, match="cannot be closed"):
        await cluster.close()
    assert cluster.status is Status.closed


async def test_a_controller_that_cannot_close_does_not_keep_the_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(arguments._HOSTS, "local")
    cluster = await TideCluster(asynchronous=True, maximum=1, dashboard_address=None)
    scheduler, close = cluster.scheduler, cluster.controller.close

    async def fail() -> None:
        await close()
        raise RuntimeError("cannot be closed")

    monkeypatch.setattr(cluster.controller, "close", fail)
    with pytest.raises(RuntimeError, match="cannot be closed"):
        await cluster.close()
    assert scheduler.status is Status.closed
    assert cluster.status is Status.closed


# -- a start that nobody waits for any more ---------------------------------------------------------


async def enter(cluster: TideCluster) -> None:
    async with cluster:
        pass


async def cancelled(task: asyncio.Task[Any]) -> bool:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


async def test_who_gives_up_waiting_for_the_start_leaves_no_cluster() -> None:
    """`async with asyncio.timeout(...)` around it: nobody has the cluster who could close it."""
    cluster = TideCluster(asynchronous=True, waits=True)
    host = host_of(cluster)
    task = asyncio.create_task(enter(cluster))
    await host.begun.wait()
    assert await cancelled(task)
    assert cluster.status is Status.closed
    assert host.closed == 1
    assert host.scheduler is None, "nothing is made any more"


async def test_as_long_as_another_one_waits_it_goes_on() -> None:
    async def wait() -> TideCluster:
        return await cluster

    cluster = TideCluster(asynchronous=True, waits=True)
    host = host_of(cluster)
    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await host.begun.wait()
    assert await cancelled(first)
    assert (cluster.status, host.closed) == (Status.starting, 0)
    host.go.set()
    assert await second is cluster
    assert cluster.status is Status.running
    await cluster.close()
    assert host.closed == 1


async def test_who_gives_up_when_it_has_just_started_leaves_no_cluster() -> None:
    cluster = TideCluster(asynchronous=True, waits=True)
    host = host_of(cluster)
    task = asyncio.create_task(enter(cluster))
    await host.begun.wait()
    assert cluster._starting is not None
    cluster._starting.add_done_callback(lambda _: task.cancel())  # before the one who waits hears of it
    host.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.scheduler is not None
    assert (cluster.status, host.closed) == (Status.closed, 1)


async def test_who_has_it_keeps_it_when_another_one_gives_up_at_that_moment() -> None:
    async def wait() -> TideCluster:
        return await cluster

    cluster = TideCluster(asynchronous=True, waits=True)
    host = host_of(cluster)
    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await host.begun.wait()
    assert cluster._starting is not None
    cluster._starting.add_done_callback(lambda _: second.cancel())
    host.go.set()
    assert await first is cluster
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (cluster.status, host.closed) == (Status.running, 0)
    await cluster.close()


# -- the interpreter's end --------------------------------------------------------------------------

PROGRAM = """
import asyncio
import test_elsewhere
from dask_tide import TideCluster, arguments

arguments._HOSTS["local"] = ("test_elsewhere", "Host", ("fails", "waits", "looks_up"))
"""


def run(program: str) -> str:
    """What a program says that ends with clusters which nobody has closed."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_at_the_interpreters_end_an_api_server_with_a_name_is_found() -> None:
    """Names are looked up in threads, of which there are none any more: nothing was deleted, or said."""
    said = run("cluster = TideCluster(name='one', looks_up=True)")
    assert "one is closed" in said
    assert "could not be closed" not in said


def test_what_could_not_be_closed_at_the_end_is_told_and_the_others_are_closed() -> None:
    said = run("""
bad = TideCluster(name="bad", fails=RuntimeError)
worse = [TideCluster(name=f"worse-{number}", fails=OSError) for number in range(2)]
good = TideCluster(name="good")
""")
    for name, error in (("bad", "RuntimeError"), ("worse-0", "OSError"), ("worse-1", "OSError")):
        assert f"Cluster {name} could not be closed at the end: {error}('cannot be closed')" in said
    assert "good is closed" in said


@pytest.mark.parametrize("runner", ["asyncio.run", "asyncio.new_event_loop().run_until_complete"])
def test_a_cluster_whose_event_loop_has_ended_is_told(runner: str) -> None:
    said = run(f"""
async def main():
    return await TideCluster(asynchronous=True, name="one")
cluster = {runner}(main())
""")
    assert "Cluster one could not be closed at the end: RuntimeError('its event loop has ended')" in said
