"""A cluster whose scheduler a host makes, as its user sees it when that goes or fails."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import Scheduler
from distributed.core import Status
from distributed.security import Security
from waiting import until

from dask_tide import TideCluster, arguments

#: What a host's module says: the arguments that it has beside the common ones.
ARGUMENTS = ("fails",)


class Host:
    """Runs the scheduler in this process, as if it were elsewhere."""

    dashboard_link = ""
    idle_timeout_s = 60.0

    def __init__(self, name: str, *, fails: bool = False, **_: Any) -> None:
        self.name = name
        self.fails = fails
        self.security = Security()
        self.said: list[str] = []
        self.gone = False
        self.scheduler: Scheduler | None = None

    async def start(self) -> str:
        self.scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False)
        return str(self.scheduler.address)

    async def vanish(self) -> None:
        self.gone = True
        assert self.scheduler is not None
        await self.scheduler.close()

    async def close(self) -> None:
        assert self.scheduler is not None
        await self.scheduler.close()
        if self.fails:
            raise RuntimeError("cannot be closed")

    async def ended(self) -> bool:
        return self.gone


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arguments._HOSTS, "local", (__name__, "Host"))


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
    cluster = await TideCluster(asynchronous=True, fails=True)
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
