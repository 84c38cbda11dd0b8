"""A worker that asks its machine for a notice. The metadata service is a stand-in: the real one is EC2's."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
import pytest
from commands import Processes, ended, registered
from distributed import Client, Nanny, Scheduler
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from waiting import DEADLINE_S, until

from dask_tide import interruption, sigterm
from dask_tide.errors import ConfigError

#: The longest that one is given before.
NOTICE_S = 120.0


def notice(left_s: float = NOTICE_S) -> dict[str, str]:
    """What EC2 says so long before."""
    end = datetime.now(UTC) + timedelta(seconds=left_s)
    return {"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}


class Metadata:
    """IMDSv2: a token first, then 404 until there is a notice."""

    def __init__(self) -> None:
        self.notice: object = None
        self.token = "token-{}"
        self.tokens: list[str] = []
        self.asked = 0
        outer = self

        class Token(RequestHandler):
            def put(self) -> None:
                assert int(self.request.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
                outer.tokens.append(outer.token.format(len(outer.tokens)))
                self.write(outer.tokens[-1])

        class Action(RequestHandler):
            def get(self) -> None:
                outer.asked += 1
                if self.request.headers.get("X-aws-ec2-metadata-token") not in outer.tokens[-1:]:
                    self.send_error(401)
                elif outer.notice is None:
                    self.send_error(404)
                else:
                    self.write(outer.notice if isinstance(outer.notice, str) else json.dumps(outer.notice))

        socket, port = bind_unused_port()
        self.url = f"http://127.0.0.1:{port}"
        application = Application(
            [("/latest/api/token", Token), ("/latest/meta-data/spot/instance-action", Action)]
        )
        self.server = HTTPServer(application)
        self.server.add_socket(socket)


@pytest.fixture
async def metadata() -> AsyncIterator[Metadata]:
    metadata = Metadata()
    yield metadata
    metadata.server.stop()
    await metadata.server.close_all_connections()


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        yield scheduler


def watching(metadata: Metadata, **more: object):
    keys = {"watch": "aws", "url": metadata.url, "interval": "20ms"} | more
    return dask.config.set({f"tide.interruption.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("readable", [True, False])
async def test_p11_a_notice_is_told_to_the_scheduler_that_is_there(metadata, scheduler, caplog, readable):
    announced = notice()
    words = "announces for its spot instance: soon"
    if readable:
        words = f"EC2 will terminate its spot instance at {announced['time']}"
    told = []

    async def tide_notice(worker: str, message: str) -> bool:
        told.append((worker, message))
        return len(told) > 1  # it has just started, and does not know the worker yet

    scheduler.handlers["tide_notice"] = tide_notice
    with watching(metadata):
        async with Nanny(scheduler.address, name="pod-1", nthreads=1) as nanny:
            interruption.join(nanny)
            await until(lambda: metadata.asked > 2, "it asks")
            assert not told
            metadata.tokens.append("another one")  # the old one has expired
            metadata.notice = announced if readable else "soon"
            await until(lambda: len(told) > 3, "it tells, again and again: another one may have started")
            assert {worker for worker, _ in told} == {"pod-1"}
            assert all(words in message for _, message in told)
            interruption.leave(nanny)
    assert caplog.text.count("Worker pod-1: ") == 1, "but it says so once"


async def test_a_worker_that_is_not_the_controllers_leaves_by_itself(metadata, scheduler, monkeypatch):
    told: list[str] = []
    signals: list[int] = []

    async def tide_notice(worker: str, message: str) -> bool:
        told.append(worker)
        return False

    scheduler.handlers["tide_notice"] = tide_notice
    monkeypatch.setattr(interruption, "_UNKNOWN_S", 0.3)
    monkeypatch.setattr(signal, "raise_signal", signals.append)
    metadata.notice = notice()
    with watching(metadata):
        async with Nanny(scheduler.address, name="pod-1", nthreads=1) as nanny:
            interruption.join(nanny)
            await until(lambda: signals, "it has waited long enough")
            interruption.leave(nanny)
    assert signals == [signal.SIGTERM]
    assert len(told) > 2, "one that has just started might have known it soon"


@pytest.mark.parametrize(
    "end",
    [-60.0, 3600.0, "2026-11-23T20:02:00", "soon", 5],
    ids=["past", "far", "anywhere", "soon", "number"],
)
def test_p11_when_the_end_is_not_known_a_notice_is_of_two_minutes(end):
    """The clock is wrong, or it is not said when."""
    announced = notice(end) if isinstance(end, float) else {"action": "stop", "time": end}
    assert interruption._Notice.read(json.dumps(announced)).left_s == NOTICE_S


def test_p11_when_the_end_is_known_it_is_heeded():
    left_s = interruption._Notice.read(json.dumps(notice(60.0))).left_s
    assert 50.0 < left_s <= 60.0


@pytest.mark.parametrize("departs", [False, True])
async def test_p11_what_departs_already_is_not_told_twice(metadata, scheduler, monkeypatch, departs):
    """A second SIGTERM ends a process at once."""
    signals: list[int] = []

    async def tide_notice(worker: str, message: str) -> bool:
        return True

    scheduler.handlers["tide_notice"] = tide_notice
    monkeypatch.setattr(signal, "raise_signal", signals.append)
    with watching(metadata):
        async with Nanny(scheduler.address, name="pod-1", nthreads=1) as nanny:
            metadata.notice = notice(10.0)  # a departure may take 20 s
            if departs:
                nanny.close_gracefully(reason="SIGTERM")
            interruption.join(nanny)
            await until(interruption._watching[nanny].done, "no more time is left")
            interruption.leave(nanny)
    assert signals == ([] if departs else [signal.SIGTERM])


async def test_p11_a_process_of_several_nannies_is_told_once_and_leaves_before_the_machine(
    metadata, scheduler, monkeypatch
):
    """A signal is the process's, and 90 s for a departure would be more than there are."""
    signals: list[float] = []

    async def tide_notice(worker: str, message: str) -> bool:
        return True

    scheduler.handlers["tide_notice"] = tide_notice
    monkeypatch.setattr(sigterm._sigterm, "timeout_s", 90.0)
    monkeypatch.setattr(signal, "raise_signal", lambda _: signals.append(sigterm._sigterm.timeout_s))
    with watching(metadata), dask.config.set({"tide.departure.timeout": "90s"}):
        async with (
            Nanny(scheduler.address, name="pod-1", nthreads=1) as one,
            Nanny(scheduler.address, name="pod-2", nthreads=1) as two,
        ):
            metadata.notice = notice(10.0)
            for nanny in (one, two):
                interruption.join(nanny)
            watchers = [interruption._watching[nanny] for nanny in (one, two)]
            await until(lambda: all(task.done() for task in watchers), "no more time is left")
            for nanny in (one, two):
                interruption.leave(nanny)
    assert len(signals) == 1
    assert 0 <= signals[0] <= 5.0


async def test_who_does_not_answer_is_complained_of_once(metadata, scheduler, caplog, monkeypatch):
    attempts: list[object] = []
    fetch = AsyncHTTPClient.fetch

    def counted(client: AsyncHTTPClient, *arguments: Any, **options: Any):
        attempts.append(arguments)
        return fetch(client, *arguments, **options)

    monkeypatch.setattr(AsyncHTTPClient, "fetch", counted)
    metadata.server.stop()
    with watching(metadata):
        async with Nanny(scheduler.address, nthreads=1) as nanny:
            interruption.join(nanny)
            await until(lambda: len(attempts) >= 3, "it asks again and again")
            interruption.leave(nanny)
    assert caplog.text.count("cannot be read") == 1


@pytest.mark.parametrize(
    ("field", "said"),
    [("token", "Log in.\nYour proxy"), ("notice", "<html>Log in.</html>"), ("notice", "")],
    ids=["token", "page", "nothing"],
)
async def test_p11_what_is_no_answer_of_ec2s_is_no_notice_and_does_not_end_the_watch(
    metadata, caplog, field, said
):
    """A proxy in between answers 200 to anything, and may be gone a minute later."""
    right = getattr(metadata, field)
    setattr(metadata, field, said)
    watch = asyncio.create_task(interruption._noticed(interruption._Metadata(metadata.url), 0.02))
    await until(lambda: len(metadata.tokens) >= 3, "it asks again and again, for a token, too")
    assert caplog.text.count("cannot be read") == 1
    assert not watch.done()
    setattr(metadata, field, right)
    metadata.notice = notice()
    async with asyncio.timeout(10):
        assert "EC2 will terminate" in (await watch).words


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.kill_all()


async def watcher(
    processes: Processes, scheduler: Scheduler, metadata: Metadata, departure: str
) -> subprocess.Popen[bytes]:
    """A worker, `goes`, that asks; once it is there."""
    variables = {
        "DASK_TIDE__INTERRUPTION__WATCH": "aws",
        "DASK_TIDE__INTERRUPTION__URL": metadata.url,
        "DASK_TIDE__INTERRUPTION__INTERVAL": "50ms",
        "DASK_TIDE__DEPARTURE__TIMEOUT": departure,
    }
    arguments = ["--name", "goes", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
    arguments += ["--host", "127.0.0.1", "--preload-nanny", "dask_tide.preload"]
    process = processes.start("goes", "dask_worker", scheduler.address, *arguments, environment=variables)
    await registered(scheduler, "goes")
    return process


async def test_a_scheduler_without_the_controller_keeps_the_results_all_the_same(
    metadata, scheduler, processes
):
    """As after SIGTERM: the worker hands over what it holds, and exits."""
    process = await watcher(processes, scheduler, metadata, "20s")
    async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
        future = client.submit(lambda: 42)
        await future
        processes.worker(scheduler.address, "stays")
        await registered(scheduler, "goes", "stays")
        metadata.notice = notice()
        assert await ended(process, DEADLINE_S) == 0
        assert await future == 42
        assert [str(ws.name) for ws in scheduler.workers.values()] == ["stays"]


async def test_p11_a_task_that_outlasts_the_machine_has_not_killed_its_worker(
    metadata, scheduler, processes, tmp_path
):
    """Here the controller knows the worker, and would wait for the task until the power is cut."""
    begun = tmp_path / "begun"

    async def tide_notice(worker: str, message: str) -> bool:
        return True

    def endless() -> None:
        begun.touch()
        time.sleep(600)

    scheduler.handlers["tide_notice"] = tide_notice
    scheduler.allowed_failures = 0
    process = await watcher(processes, scheduler, metadata, "3s")
    async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
        future = client.submit(endless)
        await until(begun.exists, "it runs")
        metadata.notice = notice(12.0)
        end = datetime.fromisoformat(metadata.notice["time"])
        left_s = (end - datetime.now(UTC)).total_seconds()
        await until(
            lambda: not scheduler.workers, "it has left in time", left_s, lambda: processes.log("goes")
        )
        assert scheduler.tasks[future.key].suspicious == 0
        assert future.status == "pending"
        assert await ended(process) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("watch", "gcp"), ("watch", True), ("url", "metadata"), ("interval", "0s"), ("interval", "x")],
)
async def test_what_makes_no_sense_is_said(metadata, scheduler, key, value):
    with watching(metadata, **{key: value}):
        async with Nanny(scheduler.address, nthreads=1) as nanny:
            with pytest.raises(ConfigError, match=rf"tide\.interruption\.{key}"):
                interruption.join(nanny)


async def test_nobody_is_asked_by_default(metadata, scheduler):
    async with Nanny(scheduler.address, nthreads=1) as nanny:
        interruption.join(nanny)
        assert not interruption._watching
    assert metadata.asked == 0
