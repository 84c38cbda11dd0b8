"""Parking and the readiness port: real worker processes, and the drains of a scheduler that parks them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from contextlib import suppress

import dask
import psutil
import pytest
from commands import Processes, ended, registered
from distributed import Client, Nanny, Scheduler, Worker
from distributed.core import Status
from distributed.protocol import pickle
from known import nanny_runs
from served import alive
from waiting import until

from dask_tide import parking, readiness
from dask_tide.controller import nannies
from dask_tide.controller.drain import Drains
from dask_tide.errors import ConfigError, DrainRefused
from dask_tide.model import Code

#: Longer than any wait of a test: whoever times out here hangs.
DRAIN_S = 120.0


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.kill_all()


@pytest.fixture
async def scheduler():
    stock = {"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.work-stealing": False}
    with dask.config.set(stock):
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            yield scheduler


@pytest.fixture
async def drains(scheduler):
    drains = Drains(scheduler, fill_ratio=0.7, timeout_s=DRAIN_S, close_workers=False, wake=lambda: None)
    yield drains
    await drains.close()


@pytest.fixture
def port():
    # Below those that the system gives out: until the worker listens, another test's process must not.
    while True:
        number = random.randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker(scheduler: Scheduler, name: str):
    return next(ws for ws in scheduler.workers.values() if str(ws.name) == name)


def children(process) -> list[int]:
    """Process ids of a nanny's workers (multiprocessing keeps another process there)."""
    return [
        child.pid
        for child in psutil.Process(process.pid).children()
        if "resource_tracker" not in " ".join(child.cmdline())
    ]


async def tell(scheduler: Scheduler, nanny: str, function, **kwargs) -> dict:
    return await scheduler.rpc(nanny).run(function=pickle.dumps(function), kwargs=pickle.dumps(kwargs))


def start(drains: Drains, scheduler: Scheduler, *names: str) -> None:
    drains.start("pool", "unit", [(name, worker(scheduler, name).address) for name in names])


async def ends(drains: Drains):
    return (await until(drains.take_ended, "the drain ends"))[0]


async def works(client: Client, scheduler: Scheduler, name: str) -> None:
    """A worker takes a task, and its nanny would start it again."""
    await until(lambda: worker(scheduler, name).status is Status.running, f"{name} is at work")
    task = client.submit(os.getppid, workers=[name], pure=False)
    assert await task
    key = task.key
    del task
    await until(lambda: key not in scheduler.tasks, "its result is forgotten")


def sigterm_ends_it(process):
    process.send_signal(signal.SIGTERM)
    return ended(process)


async def test_drained_worker_parks_until_sigterm(processes, scheduler, client, drains, tasks, port):
    leaver = processes.worker(scheduler.address, "leaver", port=port)
    futures = [client.submit(tasks.function(), f"result-{i}", key=f"result-{i}") for i in range(5)]
    await client.gather(futures)
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")
    await until(lambda: is_open(port), "it is ready")
    running = client.submit(tasks.function(gated=True), "running", key="running", workers=["leaver"])
    await until(lambda: tasks.starts["running"], "the task runs")
    (child,) = children(leaver)

    start(drains, scheduler, "leaver")
    await until(lambda: worker(scheduler, "leaver").status is Status.closing_gracefully, "it drains")
    assert is_open(port)
    tasks.open()
    end = await ends(drains)

    assert end.done, end
    assert not is_open(port)
    assert [str(ws.name) for ws in scheduler.workers.values()] == ["other"]
    await until(lambda: not alive(child), "its worker's memory is given back")
    await until(lambda: "Parked:" in processes.log("leaver"), "its nanny waits")
    await client.gather([*futures, running])
    assert set(tasks.starts.values()) == {1}
    assert leaver.poll() is None
    assert children(leaver) == []
    assert await sigterm_ends_it(leaver) == 0
    assert "leaves, within" not in processes.log("leaver")  # there was nothing to drain


async def test_worker_parks_without_being_told_that_it_has_left(processes, scheduler, client):
    """Struck off by somebody else's ``retire_workers``: it notices with its next heartbeat."""
    leaver = processes.worker(scheduler.address, "leaver")
    await registered(scheduler, "leaver")
    ws = worker(scheduler, "leaver")
    assert (await tell(scheduler, ws.nanny, parking.park))["status"] == "OK"
    await scheduler.retire_workers([ws.address], remove=True, close_workers=False)
    await until(lambda: "Parked:" in processes.log("leaver"), "its nanny waits")
    assert "worker-heartbeat-missing" in processes.log("leaver")
    assert not scheduler.workers
    assert await sigterm_ends_it(leaver) == 0


async def test_ready_while_a_task_holds_the_gil(processes, scheduler, client, port):
    processes.worker(scheduler.address, "busy", port=port)
    await until(lambda: is_open(port), "it is ready")
    before = worker(scheduler, "busy").last_seen

    def hold_the_gil(seconds: int) -> None:
        import ctypes

        ctypes.PyDLL(None).sleep(seconds)  # unlike CDLL it does not release the GIL

    held = client.submit(hold_the_gil, 4)
    answers = []
    while not held.done():
        answers.append(is_open(port))
        await asyncio.sleep(0.01)
    await held
    assert len(answers) > 20
    assert all(answers)
    assert before <= worker(scheduler, "busy").last_seen


async def test_not_ready_while_the_worker_starts_again(processes, scheduler, client, port):
    process = processes.worker(scheduler.address, "worker", port=port)
    await until(lambda: is_open(port), "it is ready")
    (child,) = children(process)
    os.kill(child, signal.SIGKILL)
    await until(lambda: not is_open(port), "it is not ready")
    await until(lambda: is_open(port), "it is ready again")
    await works(client, scheduler, "worker")
    await client.restart(timeout=60)
    await until(lambda: is_open(port), "it is ready again")
    process.send_signal(signal.SIGTERM)
    await until(lambda: not is_open(port), "it is not ready when it leaves")
    assert await ended(process) == 0


async def test_unparked_worker_is_as_before(processes, scheduler, client, port):
    process = processes.worker(scheduler.address, "worker", port=port)
    await until(lambda: is_open(port), "it is ready")
    nanny = worker(scheduler, "worker").nanny
    for _ in range(2):  # both are idempotent
        assert (await tell(scheduler, nanny, parking.park))["status"] == "OK"
    assert not is_open(port)
    for _ in range(2):
        assert (await tell(scheduler, nanny, parking.unpark))["status"] == "OK"
    assert is_open(port)
    await works(client, scheduler, "worker")
    # It is started again when it dies, and departs on SIGTERM.
    (child,) = children(process)
    address = worker(scheduler, "worker").address
    os.kill(child, signal.SIGKILL)
    await until(lambda: address not in scheduler.workers, "it has died")
    await registered(scheduler, "worker")
    await works(client, scheduler, "worker")
    assert await sigterm_ends_it(process) == 0
    assert "nothing is lost" in processes.log("worker")


async def test_refused_when_it_was_parked_already(processes, scheduler, client, drains, port, monkeypatch):
    """Its last results could not be copied: it is ready and at work again."""
    processes.worker(scheduler.address, "worker", port=port)
    await until(lambda: is_open(port), "it is ready")
    retire = drains._retire

    async def refused(ws) -> None:
        assert not is_open(port)
        raise DrainRefused("no room")

    monkeypatch.setattr(drains, "_retire", refused)
    start(drains, scheduler, "worker")
    end = await ends(drains)
    assert not end.done
    assert "no room" in str(end.why)
    await until(lambda: is_open(port), "it is ready again")
    await works(client, scheduler, "worker")
    # And can be drained later.
    monkeypatch.setattr(drains, "_retire", retire)
    start(drains, scheduler, "worker")
    assert (await ends(drains)).done
    await until(lambda: "Parked:" in processes.log("worker"), "its nanny waits")


async def test_cancelled_when_it_was_parked_already(processes, scheduler, client, drains, port, monkeypatch):
    processes.worker(scheduler.address, "worker", port=port)
    await until(lambda: is_open(port), "it is ready")
    leaving = asyncio.Event()

    async def stuck(ws) -> None:
        leaving.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(drains, "_retire", stuck)
    start(drains, scheduler, "worker")
    await asyncio.wait_for(leaving.wait(), 60)
    assert not is_open(port)
    await drains.close()
    assert is_open(port)  # close() has waited for it
    await works(client, scheduler, "worker")


async def test_refused_where_the_nanny_does_not_load_this_project(processes, scheduler, client, drains):
    process = processes.worker(scheduler.address, "stock", preload=False)
    await registered(scheduler, "stock")
    start(drains, scheduler, "stock")
    end = await ends(drains)
    assert not end.done
    assert "stock cannot park" in str(end.why)
    assert "--preload-nanny" in str(end.why)
    await works(client, scheduler, "stock")
    assert process.poll() is None


async def test_refused_where_this_project_is_not_installed(processes, scheduler, client, drains):
    processes.worker(scheduler.address, "stock", preload=False)
    await registered(scheduler, "stock")

    def forget() -> None:
        import sys

        sys.modules["dask_tide"] = None  # type: ignore[assignment]  # "not there" to the import system

    await tell(scheduler, worker(scheduler, "stock").nanny, forget)
    start(drains, scheduler, "stock")
    end = await ends(drains)
    assert not end.done
    assert "stock cannot park" in str(end.why)
    assert "dask_tide" in str(end.why)
    await works(client, scheduler, "stock")


async def test_refused_without_a_nanny(tmp_path, scheduler, client, drains):
    without = Processes(tmp_path, nanny=False)
    try:
        process = without.worker(scheduler.address, "bare")
        await registered(scheduler, "bare")
        start(drains, scheduler, "bare")
        end = await ends(drains)
        assert not end.done
        assert "has no nanny" in str(end.why)
        await works(client, scheduler, "bare")
        assert await sigterm_ends_it(process) == 0
    finally:
        without.kill_all()


async def test_nanny_that_does_not_answer_is_not_parked_later(
    processes, scheduler, client, drains, port, monkeypatch
):
    """It reads what it was told when all is over: to park, and then not to."""
    monkeypatch.setattr(nannies, "_ANSWER_S", 0.5)
    process = processes.worker(scheduler.address, "slow", port=port)
    await until(lambda: is_open(port), "it is ready")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        start(drains, scheduler, "slow")
        end = await ends(drains)
        assert not end.done
        assert "slow cannot park" in str(end.why)
        await works(client, scheduler, "slow")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    await until(lambda: not drains._nannies._unparking, "it has answered")
    await until(lambda: is_open(port), "it is ready")
    monkeypatch.undo()
    start(drains, scheduler, "slow")
    assert (await ends(drains)).done
    assert not is_open(port)


async def test_instructions_that_overtook_one_another(processes, scheduler, port):
    processes.worker(scheduler.address, "worker", port=port)
    await until(lambda: is_open(port), "it is ready")
    nanny = worker(scheduler, "worker").nanny
    await tell(scheduler, nanny, parking.unpark, order=2)
    await tell(scheduler, nanny, parking.park, order=1)
    assert is_open(port)
    await tell(scheduler, nanny, parking.park, order=3)
    assert not is_open(port)


async def test_client_restart_does_not_bring_a_parked_worker_back(processes, scheduler, client, port):
    process = processes.worker(scheduler.address, "parked", port=port)
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "parked", "other")
    await until(lambda: is_open(port), "it is ready")
    await tell(scheduler, worker(scheduler, "parked").nanny, parking.park)
    await client.restart(wait_for_workers=False)
    await registered(scheduler, "other")
    await until(lambda: "Parked:" in processes.log("parked"), "its nanny waits")
    await works(client, scheduler, "other")
    assert [str(ws.name) for ws in scheduler.workers.values()] == ["other"]
    assert children(process) == []
    assert not is_open(port)
    assert await sigterm_ends_it(process) == 0


async def test_crash_of_a_worker_that_is_to_be_parked(processes, scheduler):
    process = processes.worker(scheduler.address, "parked")
    await registered(scheduler, "parked")
    await tell(scheduler, worker(scheduler, "parked").nanny, parking.park)
    (child,) = children(process)
    os.kill(child, signal.SIGSEGV)
    await until(lambda: "Parked:" in processes.log("parked"), "its nanny waits")
    assert not scheduler.workers
    assert await sigterm_ends_it(process) == 0


async def test_killed_process_that_is_slow_to_die(scheduler, monkeypatch):
    """Older Dask looks for 0.4 s, then raises, and its nanny cannot be closed any more.

    On a busy machine the exit code was -15 (test_p04_evictions_do_not_kill).
    """
    async with Nanny(scheduler.address, nthreads=1) as nanny:
        worker_process = nanny.process
        exited = []

        async def never_seen(seconds: float) -> None:
            exited.append(seconds)
            raise TimeoutError

        monkeypatch.setattr(worker_process.process, "join", never_seen)
        nanny.close_gracefully()
        await parking.end_worker(nanny)
        assert exited
        assert worker_process.status is Status.stopped
        await nanny.close()
        assert nanny.status is Status.closed


async def scheduler_process(processes: Processes):
    """A scheduler that can die, and its address."""
    process = processes.start(
        "scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
    )
    await until(lambda: "Scheduler at:" in processes.log("scheduler"), "the scheduler is there")
    (line,) = [line for line in processes.log("scheduler").splitlines() if "Scheduler at:" in line]
    return process, line.split()[-1]


@pytest.mark.parametrize("struck_off", [True, False], ids=["left", "to-leave"])
async def test_lost_scheduler_ends_a_parked_process(processes, tasks, port, struck_off):
    """The next scheduler does not know what was parked: the platform must start it again."""
    scheduler, address = await scheduler_process(processes)
    process = processes.worker(address, "parked", port=port)
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        await client.wait_for_workers(1, timeout=60)
        (leaver,) = client.scheduler_info()["workers"]
        await client.run(parking.park, nanny=True)
        assert not is_open(port)
        if struck_off:
            await client.retire_workers([leaver], close_workers=False, remove=True)
            await until(lambda: "Parked:" in processes.log("parked"), "its nanny waits")
        assert process.poll() is None
        scheduler.kill()
        assert await ended(process, timeout_s=60) == 0
    assert not is_open(port)


async def test_lost_scheduler_parks_nobody(processes):
    scheduler, address = await scheduler_process(processes)
    process = processes.worker(address, "worker")
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        await client.wait_for_workers(1, timeout=60)
        await nanny_runs(client)
        scheduler.kill()
        assert await ended(process, timeout_s=60) == 0
    assert "Parked:" not in processes.log("worker")


@pytest.mark.parametrize("group", [True, False], ids=["group", "nanny"])
async def test_sigterm_during_a_drain(processes, scheduler, client, drains, tasks, group):
    """The platform took another pod than the scheduler meant: both drain it, and nothing is lost."""
    leaver = processes.worker(scheduler.address, "leaver")
    futures = [client.submit(tasks.function(), f"result-{i}", key=f"result-{i}") for i in range(5)]
    await client.gather(futures)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.starts["running"], "the task runs")
    waiting = client.submit(tasks.function(), "waiting", key="waiting")
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    start(drains, scheduler, "leaver")
    (os.killpg if group else os.kill)(leaver.pid, signal.SIGTERM)
    await waiting
    await until(lambda: "finishes 1 tasks first" in processes.log("leaver"), "the departure has begun")
    tasks.open()

    assert await ended(leaver) == 0
    end = await ends(drains)
    assert end.done or end.why.code == Code.LEFT.name, "one of the two has struck it off"
    await client.gather([*futures, running])
    assert set(tasks.starts.values()) == {1}
    assert not any(ts.suspicious for ts in scheduler.tasks.values())
    assert "nothing is lost" in processes.log("leaver")


async def test_sigterm_between_parking_and_leaving(processes, scheduler, client, tasks):
    """It is parked and still holds results: SIGTERM lets it give them away first."""
    leaver = processes.worker(scheduler.address, "leaver")
    futures = [client.submit(tasks.function(), f"result-{i}", key=f"result-{i}") for i in range(5)]
    await client.gather(futures)
    await tell(scheduler, worker(scheduler, "leaver").nanny, parking.park)
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")
    leaver.send_signal(signal.SIGTERM)
    assert await ended(leaver) == 0
    assert "nothing is lost" in processes.log("leaver")
    await client.gather(futures)
    assert set(tasks.starts.values()) == {1}


async def test_workers_of_one_process_park_together(processes, scheduler, client, drains, port):
    process = processes.worker(scheduler.address, "unit", "--nworkers", "2", port=port)
    await registered(scheduler, "unit-0", "unit-1")
    await until(lambda: is_open(port), "both run")
    start(drains, scheduler, "unit-0", "unit-1")
    assert (await ends(drains)).done
    assert not is_open(port)
    await until(lambda: processes.log("unit").count("Parked:") == 2, "both wait")
    assert children(process) == []
    assert await sigterm_ends_it(process) == 0


async def test_one_nanny_of_a_unit_cannot_park(processes, scheduler, client, drains, port):
    """Then none of them leaves: the other one could not come back."""
    processes.worker(scheduler.address, "unit-0", port=port)
    processes.worker(scheduler.address, "unit-1", preload=False)
    await registered(scheduler, "unit-0", "unit-1")
    await until(lambda: is_open(port), "the first one is ready")
    start(drains, scheduler, "unit-0", "unit-1")
    end = await ends(drains)
    assert not end.done
    assert "unit-1 cannot park" in str(end.why)
    await until(lambda: is_open(port), "the first one is ready again")
    for name in ("unit-0", "unit-1"):
        await works(client, scheduler, name)


async def test_port_that_is_taken_is_told_once(processes, scheduler, client):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        processes.worker(scheduler.address, "worker", port=port)
        await until(lambda: "No readiness port" in processes.log("worker"), "it is told")
        await works(client, scheduler, "worker")
    await until(lambda: f"Ready: port {port}" in processes.log("worker"), "it is free")
    assert processes.log("worker").count("No readiness port") == 1


@pytest.mark.parametrize("wrong", [0, 65536, "http", True, 80.5])
async def test_wrong_port_is_told(wrong):
    with (
        dask.config.set({"tide.readiness.port": wrong}),
        pytest.raises(ConfigError, match=r"readiness\.port"),
    ):
        readiness.join(Worker.__new__(Worker))


async def test_wrong_port_is_an_exit_code(processes, scheduler):
    process = processes.worker(scheduler.address, "wrong", port=70000)
    assert await ended(process) == 2
    assert "tide.readiness.port: got 70000, expected a port number" in processes.log("wrong")


async def test_bare_worker_has_the_port_too(tmp_path, scheduler, port):
    without = Processes(tmp_path, nanny=False)
    try:
        process = without.worker(scheduler.address, "bare", port=port)
        await until(lambda: is_open(port), "it is ready")
        assert await sigterm_ends_it(process) == 0
        assert not is_open(port)
    finally:
        without.kill_all()
