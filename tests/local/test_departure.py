"""The drain on SIGTERM: real worker processes, and a stock scheduler that knows nothing of this project.

Stock Dask under the same tests: 5 of 5 results are computed again (p03), and the first eviction of a
running task is its KilledWorker (p04).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import dask
import psutil
import pytest
from distributed import Client, Scheduler, Worker

import dask_tide
from dask_tide import departure

SOURCE = Path(dask_tide.__file__).parents[1]


async def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


class Processes:
    """Processes of Dask's command line, and their logs."""

    def __init__(self, folder: Path, nanny: bool) -> None:
        self.folder = folder
        self.nanny = nanny
        self.running: list[subprocess.Popen] = []

    def start(self, name: str, module: str, *arguments: str, timeout: str = "25s") -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "DASK_TIDE__DEPARTURE__TIMEOUT": timeout}
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append(process)
        return process

    def worker(
        self, scheduler: str, name: str, *arguments: str, timeout: str = "25s", threads: int = 1
    ) -> subprocess.Popen:
        preload = ["--preload-nanny"] if self.nanny else ["--no-nanny", "--preload"]
        return self.start(
            name,
            "dask_worker",
            *(scheduler, "--name", name, "--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard"),
            *("--host", "127.0.0.1", "--local-directory", str(self.folder)),
            *(*preload, "dask_tide.preload", *arguments),
            timeout=timeout,
        )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill_all(self) -> None:
        for process in self.running:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()


@pytest.fixture(params=[True, False], ids=["nanny", "no-nanny"])
def processes(request, tmp_path):
    processes = Processes(tmp_path, request.param)
    yield processes
    processes.kill_all()


@pytest.fixture
async def scheduler():
    stock = {
        "distributed.scheduler.allowed-failures": 0,
        # Tasks go to the worker at once and stay there, so that there is something to hand back.
        "distributed.scheduler.worker-saturation": "inf",
        "distributed.scheduler.work-stealing": False,
    }
    with dask.config.set(stock):
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            yield scheduler


@pytest.fixture
async def client(scheduler):
    async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
        yield client


class Tasks:
    """Functions for tasks that write down each start, and may wait for a gate to open."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "starts"
        self.record.touch()
        self.gate = folder / "gate"

    def function(self, gated: bool = False) -> Callable[..., str]:
        record, gate = str(self.record), str(self.gate) if gated else ""

        # Here, not in the module, so that it is sent by value: workers cannot import tests.
        def task(name: str, *_: object) -> str:
            import os
            import time

            from distributed import get_worker

            with open(record, "a") as file:  # noqa: PTH123
                file.write(f"{name} {get_worker().name}\n")
            while gate and not os.path.exists(gate):  # noqa: PTH110
                time.sleep(0.01)
            return name * 1000

        return task

    def starts(self) -> list[tuple[str, str]]:
        return [(name, worker) for name, worker in map(str.split, self.record.read_text().splitlines())]

    def counts(self) -> Counter:
        return Counter(name for name, _ in self.starts())


@pytest.fixture
def tasks(tmp_path):
    tasks = Tasks(tmp_path)
    yield tasks
    tasks.gate.touch()


async def ended(process: subprocess.Popen, timeout_s: float = 25) -> int:
    await until(lambda: process.poll() is not None, "the process ends", timeout_s)
    return process.returncode


async def registered(scheduler: Scheduler, *names: str) -> None:
    await until(
        lambda: set(names) <= {str(ws.name) for ws in scheduler.workers.values()}, f"{names} are there"
    )


async def results(client: Client, tasks: Tasks, count: int = 5) -> list:
    names = [f"result-{i}" for i in range(count)]
    futures = [client.submit(tasks.function(), name, key=name) for name in names]
    await client.gather(futures)
    return futures


async def test_p03_sigterm_keeps_results(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver")
    futures = await results(client, tasks)
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    assert [value[:8] for value in await client.gather(futures)] == [future.key for future in futures]
    assert set(tasks.counts().values()) == {1}
    assert "nothing is lost" in processes.log("leaver")


@pytest.mark.timeout(300)  # 21 workers are started; on a busy machine that takes its time
async def test_p04_evictions_do_not_kill(processes, scheduler, client, tasks):
    # With a nanny each worker is two processes to start, and the scheduler sees the same.
    evictions = 5 if processes.nanny else 20
    names = (f"worker-{i}" for i in range(evictions + 1))
    workers = {}

    def start() -> None:
        for name in itertools.islice(names, 1):
            workers[name] = processes.worker(scheduler.address, name, timeout="500ms")

    for _ in range(3):  # so many are ahead, for the next one to be there in time
        start()
    future = client.submit(tasks.function(gated=True), "long", key="long")

    for count in range(1, evictions + 1):
        await until(lambda count=count: len(tasks.starts()) == count, f"start {count}")
        start()
        leaver = workers[tasks.starts()[-1][1]]
        leaver.send_signal(signal.SIGTERM)
        # By the signal itself where closing took too long (its task does not end): what counts here is
        # how the scheduler takes it.
        assert await ended(leaver) in (0, -signal.SIGTERM)

    await until(lambda: len(tasks.starts()) == evictions + 1, "the last start")
    assert scheduler.tasks["long"].suspicious == 0
    tasks.gate.touch()
    assert (await future).startswith("long")


async def test_p12_running_tasks_finish_and_waiting_ones_go_elsewhere(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", "--resources", "GPU=1")
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(tasks.starts, "the task runs")
    others = {"first": {}, "second": {}, "third": {"resources": {"GPU": 1}}}
    waiting = [client.submit(tasks.function(), name, key=name, **needs) for name, needs in others.items()]
    await until(lambda: len(next(iter(scheduler.workers.values())).processing) == 4, "all are on the worker")
    processes.worker(scheduler.address, "other", "--resources", "GPU=1")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    await client.gather(waiting)
    assert leaver.poll() is None
    tasks.gate.touch()
    assert await ended(leaver) == 0
    assert (await running).startswith("running")
    assert sorted(tasks.starts()) == [
        ("first", "other"),
        ("running", "leaver"),
        ("second", "other"),
        ("third", "other"),
    ]
    assert not any(ts.suspicious for ts in scheduler.tasks.values())


async def test_worker_that_comes_during_the_departure_receives_all(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver")
    futures = await results(client, tasks)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.counts()["running"], "the task runs")
    waiting = client.submit(tasks.function(), "waiting", key="waiting")
    await until(lambda: "waiting" in scheduler.tasks, "the scheduler has all tasks")

    leaver.send_signal(signal.SIGTERM)

    await until(lambda: "Nobody can take" in processes.log("leaver"), "the retirement is refused")
    await until(lambda: scheduler.tasks["waiting"].state == "no-worker", "the task is handed back")
    processes.worker(scheduler.address, "other")
    assert (await waiting).startswith("waiting")
    tasks.gate.touch()
    assert await ended(leaver) == 0
    await client.gather([*futures, running])
    assert set(tasks.counts().values()) == {1}


async def test_deadline_passes(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", timeout="1s")
    futures = await results(client, tasks)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.counts()["running"], "the task runs")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    (sentence,) = [line for line in processes.log("leaver").splitlines() if "are lost with it" in line]
    assert "5 results" in sentence
    assert "1 tasks did not finish: running." in sentence
    assert all(future.key in sentence for future in futures)
    assert not any(ts.suspicious for ts in scheduler.tasks.values())
    tasks.gate.touch()
    processes.worker(scheduler.address, "other")
    await client.gather([*futures, running])
    assert set(tasks.counts().values()) == {2}


async def test_actor_is_waited_for(processes, scheduler, client):
    class Counter:
        pass

    leaver = processes.worker(scheduler.address, "leaver")
    actor = client.submit(Counter, key="actor", actor=True)
    await actor
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    await until(lambda: "Nobody can take" in processes.log("leaver"), "the retirement is refused")
    assert leaver.poll() is None
    actor.release()
    assert await ended(leaver) == 0
    assert "nothing is lost" in processes.log("leaver")


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_workers_of_one_process_depart_together(processes, scheduler, client, tasks):
    """Only nannies can be several in one process."""
    leaver = processes.worker(scheduler.address, "leaver", "--nworkers", "2")
    await registered(scheduler, "leaver-0", "leaver-1")
    futures = await results(client, tasks, count=8)
    assert {worker for _, worker in tasks.starts()} == {"leaver-0", "leaver-1"}
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    assert processes.log("leaver").count("nothing is lost") == 2
    await client.gather(futures)
    assert set(tasks.counts().values()) == {1}


async def test_second_sigterm_is_left_to_dask(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", timeout="10m")
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(tasks.starts, "the task runs")

    leaver.send_signal(signal.SIGTERM)
    await until(lambda: "finishes 1 tasks first" in processes.log("leaver"), "the departure has begun")
    leaver.send_signal(signal.SIGTERM)

    # Dask's own handling, which takes as long as it takes: up to 30 s without a nanny.
    await until(lambda: "Received signal SIGTERM" in processes.log("leaver"), "Dask hears of it")
    tasks.gate.touch()
    await ended(leaver)
    del running


async def test_sigterm_while_the_worker_starts(processes, scheduler):
    leaver = processes.worker(scheduler.address, "leaver")
    await until(lambda: "Run preload setup" in processes.log("leaver"), "the handler is there")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    await until(lambda: not scheduler.workers, "the scheduler has no worker")


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
async def test_scheduler_does_not_answer(processes, tasks, fate):
    scheduler = processes.start(
        "scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
    )
    await until(lambda: "Scheduler at:" in processes.log("scheduler"), "the scheduler is there")
    address = next(
        word for line in processes.log("scheduler").splitlines() if "Scheduler at:" in line
        for word in line.split() if word.startswith("tcp://")
    )  # fmt: skip
    # Only the hung one may use up the deadline.
    leaver = processes.worker(address, "leaver", timeout="1s" if fate == signal.SIGSTOP else "10m")
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        running = client.submit(tasks.function(gated=True), "running", key="running")
        await until(tasks.starts, "the task runs")
        del running

        scheduler.send_signal(fate)
        leaver.send_signal(signal.SIGTERM)

        # Stock Dask waits 30 s for the task.
        await ended(leaver, timeout_s=20)
        scheduler.kill()


async def test_wrong_configuration_is_an_exit_code(processes, scheduler):
    process = processes.worker(scheduler.address, "wrong", timeout="soon")
    assert await ended(process) == 2
    assert "tide.departure.timeout: got 'soon', expected a duration" in processes.log("wrong")


async def test_handler_installed_after_ours_comes_after_ours():
    def later(*_: object) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    server = cast("Worker", object())
    departure.join(server)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        signal.signal(signal.SIGTERM, later)
        await until(lambda: signal.getsignal(signal.SIGTERM) == ours, "ours is the first again")
        departure.leave(server)
        assert signal.getsignal(signal.SIGTERM) is later
    finally:
        departure.leave(server)
        signal.signal(signal.SIGTERM, before)


async def test_elsewhere_than_in_the_main_thread_nothing_is_done(caplog):
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.INFO, logger="distributed.tide.departure"):
        await asyncio.to_thread(departure.join, cast("Worker", object()))
    assert signal.getsignal(signal.SIGTERM) == before
    assert "not in the main thread" in caplog.text
