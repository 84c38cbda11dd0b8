"""A worker that asks its machine for a notice. The metadata service is a stand-in: the real one is EC2's."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import dask
import pytest
from commands import Processes
from distributed import Client, Nanny, Scheduler
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from waiting import until

from dask_tide import interruption
from dask_tide.errors import ConfigError

NOTICE = {"action": "terminate", "time": "2026-11-23T20:02:00Z"}


class Metadata:
    """IMDSv2: a token first, then 404 until there is a notice."""

    def __init__(self) -> None:
        self.notice: object = None
        self.tokens: list[str] = []
        self.asked = 0
        outer = self

        class Token(RequestHandler):
            def put(self) -> None:
                assert int(self.request.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
                outer.tokens.append(f"token-{len(outer.tokens)}")
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


@pytest.mark.parametrize(
    ("notice", "words"),
    [
        (NOTICE, "EC2 will terminate its spot instance at 2026-11-23T20:02:00Z"),
        ("soon", "announces for its spot instance: soon"),
    ],
)
async def test_p11_a_notice_is_told_to_the_scheduler_that_is_there(
    metadata, scheduler, caplog, notice, words
):
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
            metadata.notice = notice
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
    metadata.notice = NOTICE
    with watching(metadata):
        async with Nanny(scheduler.address, name="pod-1", nthreads=1) as nanny:
            interruption.join(nanny)
            await until(lambda: signals, "it has waited long enough")
            interruption.leave(nanny)
    assert signals == [signal.SIGTERM]
    assert len(told) > 2, "one that has just started might have known it soon"


async def test_who_does_not_answer_is_complained_of_once(metadata, scheduler, caplog):
    metadata.server.stop()
    with watching(metadata):
        async with Nanny(scheduler.address, nthreads=1) as nanny:
            interruption.join(nanny)
            await until(lambda: "cannot be read" in caplog.text, "it says so")
            await asyncio.sleep(0.1)
            interruption.leave(nanny)
    assert caplog.text.count("cannot be read") == 1


async def test_a_scheduler_without_the_controller_keeps_the_results_all_the_same(
    metadata, scheduler, tmp_path
):
    """As after SIGTERM: the worker hands over what it holds, and exits."""
    processes = Processes(tmp_path)
    variables = {
        "DASK_TIDE__INTERRUPTION__WATCH": "aws",
        "DASK_TIDE__INTERRUPTION__URL": metadata.url,
        "DASK_TIDE__INTERRUPTION__INTERVAL": "50ms",
    }
    try:
        async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
            process = processes.start(
                "goes",
                "dask_worker",
                *(
                    scheduler.address,
                    "--name",
                    "goes",
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                    "--memory-limit",
                    "0",
                ),
                *("--host", "127.0.0.1", "--preload-nanny", "dask_tide.preload"),
                environment=variables,
            )
            await until(lambda: len(scheduler.workers) == 1, "it is there")
            future = client.submit(lambda: 42)
            await future
            processes.worker(scheduler.address, "stays")
            await until(lambda: len(scheduler.workers) == 2, "both are there")
            metadata.notice = NOTICE
            await until(lambda: process.poll() is not None, "it has left")
            assert process.returncode == 0
            assert await future == 42
            assert [str(ws.name) for ws in scheduler.workers.values()] == ["stays"]
    finally:
        processes.kill_all()


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
