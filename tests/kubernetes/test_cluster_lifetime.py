"""When the scheduler of an ephemeral cluster ends, and with which exit code."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from distributed import Client, Scheduler, fire_and_forget
from distributed.core import rpc
from waiting import until, wait_until

from dask_tide.providers.kubernetes.lifetime import ARRIVAL_S, Lifetime
from rig.keeper import die_with_parent

IDLE_S = 5.0

PROGRAM = ("-m", "dask_tide.providers.kubernetes.lifetime")
#: The same, told to go before any preload was asked.
TOLD_WHILE_IT_STARTS = """
import os, signal
from distributed import Scheduler
from dask_tide.providers.kubernetes.lifetime import main

start = Scheduler.start_unsafe

async def told(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return await start(self)

Scheduler.start_unsafe = told
main()
"""


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_over_when_nobody_is_connected_and_nothing_is_queued_p37(clock: Clock) -> None:
    async with Scheduler(dashboard=False, host="127.0.0.1", port=0) as scheduler:
        lifetime = Lifetime(scheduler, IDLE_S, now_s=clock)
        clock.s = ARRIVAL_S - 1
        assert not lifetime.over(), "whoever asked for it is on the way"
        async with Client(scheduler.address, asynchronous=True) as client:
            clock.s += 1000
            assert not lifetime.over(), "a client"
            future = client.submit(int, 1)
            fire_and_forget(future)
            # Nobody can take it, and it is queued all the same.
            await until(lambda: scheduler.queued or scheduler.unrunnable, "it is queued")
            del future
        await until(lambda: len(scheduler.client_comms) == 0, "the client is gone")
        for _ in range(3):
            clock.s += 1000
            assert not lifetime.over(), "queued work"
        scheduler.client_releases_keys(list(scheduler.tasks), "fire-and-forget", "test")
        await until(lambda: not scheduler.tasks, "it is forgotten")
        clock.s += IDLE_S
        assert not lifetime.over(), "not yet for so long"
        clock.s += 0.1
        assert lifetime.over()
        lifetime.stay(10)
        clock.s += 9
        assert not lifetime.over(), "somebody has said that they stay"
        clock.s += 1 + IDLE_S
        assert lifetime.over()


async def test_nobody_comes(clock: Clock) -> None:
    async with Scheduler(dashboard=False, host="127.0.0.1", port=0) as scheduler:
        lifetime = Lifetime(scheduler, IDLE_S, now_s=clock)
        clock.s = ARRIVAL_S + 0.1
        assert lifetime.over()


async def test_a_client_that_is_silent_is_not_there(clock: Clock) -> None:
    wall = Clock()
    async with (
        Scheduler(dashboard=False, host="127.0.0.1", port=0) as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        lifetime = Lifetime(scheduler, IDLE_S, now_s=clock, wall_s=wall)
        scheduler.clients[client.id].last_seen = 0.0
        clock.s = ARRIVAL_S + 1000
        assert not lifetime.over()
        wall.s = 1000
        clock.s += IDLE_S + 1
        assert lifetime.over()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """A factory of schedulers as the Job runs them, which listen."""
    running: list[subprocess.Popen] = []

    def start(
        *arguments: str, ready: str = "Scheduler at:", program: tuple[str, str] = PROGRAM
    ) -> subprocess.Popen:
        options = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", *arguments)
        log = tmp_path / "log"
        with log.open("w") as file:
            command = [sys.executable, *program, *options]
            running.append(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock
                )
            )
        wait_until(lambda: ready in log.read_text(), ready, detail=log.read_text)
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def address(tmp_path: Path) -> str:
    [found] = re.findall(r"Scheduler at: +(tcp://\S+)", (tmp_path / "log").read_text())
    return str(found)


def test_sigterm_is_not_the_end_of_the_cluster(program: Callable[..., subprocess.Popen]) -> None:
    """Or a drained node would end it: the Job would be complete."""
    process = program("--idle-timeout", "1h", ready="Scheduler at:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_neither_is_a_sigterm_while_it_starts(program: Callable[..., subprocess.Popen]) -> None:
    process = program(ready="Received signal SIGTERM", program=("-c", TOLD_WHILE_IT_STARTS))
    assert process.wait(60) == 128 + signal.SIGTERM


async def test_who_shuts_it_down_ends_it(program: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    process = await asyncio.to_thread(program)
    async with rpc(address(tmp_path)) as scheduler:
        with suppress(OSError):
            await scheduler.terminate()
    assert await asyncio.to_thread(process.wait, 60) == 0


async def test_the_idle_timeout_ends_it(program: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    process = await asyncio.to_thread(program, "--idle-timeout", "200ms")
    async with rpc(address(tmp_path)) as scheduler:
        await scheduler.tide_stay(seconds=0.1)
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert "nobody was connected" in (tmp_path / "log").read_text()


def test_a_wrong_argument_is_said_and_is_no_end(program: Callable[..., subprocess.Popen]) -> None:
    process = program("--no-such-option", ready="Unknown argument")
    assert process.wait(60) == 2
