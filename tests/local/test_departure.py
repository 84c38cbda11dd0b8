"""The drain on SIGTERM: real worker processes, and a stock scheduler that knows nothing of this project.

Stock Dask under the same tests: 5 of 5 results are computed again (p03), and the first eviction of a
running task is its KilledWorker (p04).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dask
import psutil
import pytest
from commands import Processes, ended, registered
from distributed import Client, Scheduler, Worker, get_client
from distributed.active_memory_manager import ActiveMemoryManagerExtension
from distributed.comm.core import FatalCommClosedError, connect
from distributed.core import Status, rpc
from distributed.security import Security
from known import nanny_runs
from records import Tasks
from tornado.ioloop import PeriodicCallback
from waiting import until

from dask_tide import departure, leaving, sigterm


@pytest.fixture(params=[True, False], ids=["nanny", "no-nanny"])
def processes(request, tmp_path):
    processes = Processes(tmp_path, nanny=request.param)
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


def caught(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def rounds(scheduler: Scheduler, key: str) -> list[set]:
    """Let Dask's memory manager look all the time; who held a result after each round."""
    manager: ActiveMemoryManagerExtension = scheduler.extensions["amm"]
    holders = []
    manager.stop()

    def look() -> None:
        manager.run_once()
        holders.append({ws.name for ws in scheduler.tasks[key].who_has or ()})

    scheduler.periodic_callbacks["rounds"] = callback = PeriodicCallback(look, 10)
    callback.start()
    return holders


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
    assert set(tasks.starts.values()) == {1}
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
        await until(lambda count=count: len(tasks.log) == count, f"start {count}")
        start()
        leaver = workers[tasks.log[-1][1]]
        leaver.send_signal(signal.SIGTERM)
        assert await ended(leaver) == 0

    await until(lambda: len(tasks.log) == evictions + 1, "the last start")
    assert scheduler.tasks["long"].suspicious == 0
    tasks.open()
    assert (await future).startswith("long")


async def test_p12_running_tasks_finish_and_waiting_ones_go_elsewhere(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", "--resources", "GPU=1")
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.log, "the task runs")
    others = {"first": {}, "second": {}, "third": {"resources": {"GPU": 1}}}
    waiting = [client.submit(tasks.function(), name, key=name, **needs) for name, needs in others.items()]
    await until(lambda: len(next(iter(scheduler.workers.values())).processing) == 4, "all are on the worker")
    processes.worker(scheduler.address, "other", "--resources", "GPU=1")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    await client.gather(waiting)
    assert leaver.poll() is None
    tasks.open()
    assert await ended(leaver) == 0
    assert (await running).startswith("running")
    assert sorted(tasks.log) == [
        ("first", "other"),
        ("running", "leaver"),
        ("second", "other"),
        ("third", "other"),
    ]
    assert not any(ts.suspicious for ts in scheduler.tasks.values())


async def test_worker_that_comes_during_the_departure_receives_all(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", timeout="10m")
    futures = await results(client, tasks)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.starts["running"], "the task runs")
    waiting = client.submit(tasks.function(), "waiting", key="waiting")
    await until(lambda: "waiting" in scheduler.tasks, "the scheduler has all tasks")

    leaver.send_signal(signal.SIGTERM)

    await until(lambda: "Nobody can take" in processes.log("leaver"), "the retirement is refused")
    await until(lambda: scheduler.tasks["waiting"].state == "no-worker", "the task is handed back")
    processes.worker(scheduler.address, "other")
    assert (await waiting).startswith("waiting")
    tasks.open()
    assert await ended(leaver) == 0
    await client.gather([*futures, running])
    assert set(tasks.starts.values()) == {1}


async def test_deadline_passes(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", timeout="1s")
    futures = await results(client, tasks)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.starts["running"], "the task runs")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    (sentence,) = [line for line in processes.log("leaver").splitlines() if "are lost with it" in line]
    assert "5 results" in sentence
    assert "1 tasks did not finish: running." in sentence
    assert all(future.key in sentence for future in futures)
    assert not any(ts.suspicious for ts in scheduler.tasks.values())
    tasks.open()
    processes.worker(scheduler.address, "other")
    await client.gather([*futures, running])
    assert set(tasks.starts.values()) == {2}


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_what_is_lost_at_the_deadline_is_told_once_though_the_worker_does_not_answer(
    processes, scheduler, client, tasks
):
    """That the scheduler did not say it was told, too, when only the worker had not said what it has."""

    def hang(dask_worker):
        dask_worker.loop.add_callback(signal.pause)

    leaver = processes.worker(scheduler.address, "leaver", timeout="1s")
    futures = await results(client, tasks)
    await client.run(hang)

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    log = processes.log("leaver")
    (sentence,) = [line for line in log.splitlines() if "are lost with it" in line]
    assert all(future.key in sentence for future in futures)
    assert "the scheduler does not say" not in log
    assert log.count("does not say whether tasks have left futures on it") == 1
    assert not scheduler.workers


@pytest.mark.parametrize("in_time", [True, False])
async def test_p26_a_shuffle_is_waited_for_as_long_as_there_is_time(
    processes, scheduler, client, tasks, in_time
):
    """Else it would begin again, with all that it was made of."""
    array = pytest.importorskip("dask.array")
    leaver = processes.worker(scheduler.address, "leaver", timeout="10m" if in_time else "2s", threads=4)
    processes.worker(scheduler.address, "other", threads=4)
    await registered(scheduler, "leaver", "other")
    at_once, late = tasks.function(), tasks.function(gated=True)

    def block(part, block_id):
        # Until the last one comes the shuffle runs.
        (late if block_id[0] == 7 else at_once)(f"block-{block_id[0]}")
        return part

    rows = array.ones((80, 80), chunks=(10, 80)).map_blocks(block, dtype=float, meta=array.ones(0)._meta)
    with dask.config.set({"array.rechunk.method": "p2p", "array.chunk-size": "1 kiB"}):
        total = client.compute(rows.rechunk((80, 10)).sum(axis=0))
    shuffle = scheduler.plugins["shuffle"]
    await until(
        lambda: len(tasks.starts) == 8 and any(len(known) == 2 for known in shuffle.heartbeats.values()),
        "all but one of its inputs are there, and both take part",
    )
    before = {s.run_id for s in shuffle.active_shuffles.values()}

    leaver.send_signal(signal.SIGTERM)

    await until(lambda: "waits for a P2P shuffle" in processes.log("leaver"), "it waits")
    if in_time:
        assert {s.run_id for s in shuffle.active_shuffles.values()} == before
    else:
        assert await ended(leaver) == 0
    tasks.open()
    assert list(await total) == [80.0] * 80
    assert await ended(leaver) == 0
    assert (max(tasks.starts.values()) == 1) == in_time


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


@pytest.mark.parametrize("ends", ["at once", "after a task", "at the deadline"])
async def test_what_tasks_have_left_futures_of_is_told(processes, scheduler, client, tasks, ends):
    """These are of the worker's own client, and go with it."""

    def leave():
        return get_client().submit(sum, [1, 2], key="left-behind")

    timeout = "5s" if ends == "at the deadline" else "10m"
    leaver = processes.worker(scheduler.address, "leaver", timeout=timeout)
    future = client.submit(leave, key="leave")
    await until(future.done, "it has asked for another one")
    running = None if ends == "at once" else client.submit(tasks.function(gated=True), "running")
    await until(lambda: tasks.starts or not running, "a task runs")
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")
    # What has been copied Dask removes in the next round, and the futures in it with it.
    holders = rounds(scheduler, "leave")

    leaver.send_signal(signal.SIGTERM)

    if ends == "after a task":
        await until(lambda: holders.count({"other"}) > 9, "Dask wants it removed", detail=lambda: holders)
        tasks.open()
    assert await ended(leaver) == 0
    assert {"other"} in holders
    assert "what nobody else wants of these is forgotten: left-behind." in processes.log("leaver")
    assert "nothing is lost" not in processes.log("leaver")


async def test_an_actor_keeps_no_other_result(processes, scheduler, client, tasks):
    """Of a worker that has one Dask moves nothing."""

    class Counter:
        pass

    leaver = processes.worker(scheduler.address, "leaver", timeout="6s")
    futures = await results(client, tasks)
    actor = client.submit(Counter, key="actor", actor=True)
    await actor
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")
    replicate, calls = scheduler.handlers["replicate"], []

    async def first_in_vain(**arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyError("released since")
        return await replicate(**arguments)

    scheduler.handlers["replicate"] = first_in_vain

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    assert len(calls) > 1
    await client.gather(futures)
    assert set(tasks.starts.values()) == {1}
    del actor


async def test_who_has_the_other_copy_may_leave_too(processes, scheduler, client, tasks):
    """The first one found it safe there, and still runs a task that needs it."""
    first, second = (processes.worker(scheduler.address, name) for name in ("first", "second"))
    await registered(scheduler, "first", "second")
    scheduler.extensions["amm"].policies.clear()  # which drops one of two copies every now and then
    on = {
        str(ws.name): {"workers": [ws.address], "allow_other_workers": True}
        for ws in scheduler.workers.values()
    }
    twice = client.submit(tasks.function(), "twice", key="twice", **on["second"])
    await twice
    long = client.submit(tasks.function(gated=True), "long", twice, **on["first"])
    await until(lambda: tasks.starts["long"], "the task runs")
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    first.send_signal(signal.SIGTERM)
    await until(lambda: "finishes 1 tasks first" in processes.log("first"), "it is safe")
    second.send_signal(signal.SIGTERM)
    assert await ended(second) == 0

    holders = scheduler.tasks["twice"].who_has
    await until(lambda: "other" in {str(ws.name) for ws in holders}, "it is copied after all")
    tasks.open()
    assert await ended(first) == 0
    await client.gather([twice, long])
    assert tasks.starts == {"twice": 1, "long": 1}


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_workers_of_one_process_depart_together(processes, scheduler, client, tasks):
    """Only nannies can be several in one process."""
    leaver = processes.worker(scheduler.address, "leaver", "--nworkers", "2")
    await registered(scheduler, "leaver-0", "leaver-1")
    futures = await results(client, tasks, count=8)
    assert {worker for _, worker in tasks.log} == {"leaver-0", "leaver-1"}
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    assert processes.log("leaver").count("nothing is lost") == 2
    await client.gather(futures)
    assert set(tasks.starts.values()) == {1}


async def test_second_sigterm_is_left_to_dask(processes, scheduler, client, tasks):
    leaver = processes.worker(scheduler.address, "leaver", timeout="10m")
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.log, "the task runs")

    leaver.send_signal(signal.SIGTERM)
    await until(lambda: "finishes 1 tasks first" in processes.log("leaver"), "the departure has begun")
    leaver.send_signal(signal.SIGTERM)

    # Dask's own handling, which takes as long as it takes: up to 30 s without a nanny.
    await until(lambda: "Received signal SIGTERM" in processes.log("leaver"), "Dask hears of it")
    tasks.open()
    await ended(leaver)
    del running


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_sigterm_to_all_processes_of_a_group(processes, scheduler, client, tasks):
    """As Slurm and some container runtimes send it: the worker's process must not die under its nanny."""
    leaver = processes.worker(scheduler.address, "leaver", threads=2)
    futures = await results(client, tasks)
    running = client.submit(tasks.function(gated=True), "running", key="running")
    await until(lambda: tasks.starts["running"], "the task runs")
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    os.killpg(leaver.pid, signal.SIGTERM)

    await until(lambda: "finishes 1 tasks first" in processes.log("leaver"), "the departure has begun")
    tasks.open()
    assert await ended(leaver) == 0
    await client.gather([*futures, running])
    assert set(tasks.starts.values()) == {1}
    assert "nothing is lost" in processes.log("leaver")


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_sigterm_to_a_group_whose_nanny_waits_for_a_shuffle(processes, scheduler, client, tasks):
    """For longer than the worker's process waits for a word of it."""

    def shuffles() -> None:
        from dask_tide import leaving, sigterm

        def shuffles(dask_worker):
            return True

        shuffles.__module__, shuffles.__qualname__ = leaving.__name__, "shuffles"
        leaving.shuffles = shuffles  # what the nanny asks for, by its name
        sigterm.DEFER_S, sigterm.READ_S = 0.2, 0.3

    leaver = processes.worker(scheduler.address, "leaver", timeout="6s")
    futures = await results(client, tasks)
    await client.run(shuffles)
    await nanny_runs(client)
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "other")

    os.killpg(leaver.pid, signal.SIGTERM)

    assert await ended(leaver) == 0
    assert "waits for a P2P shuffle" in processes.log("leaver")
    assert "nothing is lost" in processes.log("leaver")
    await client.gather(futures)
    assert set(tasks.starts.values()) == {1}


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_to_the_worker_process_alone_restarts_it(processes, scheduler, client, signals):
    processes.worker(scheduler.address, "leaver")
    await registered(scheduler, "leaver")
    (ws,) = scheduler.workers.values()
    worker = psutil.Process((await client.run(os.getpid))[ws.address])

    await nanny_runs(client)

    for count in range(signals):
        worker.send_signal(signal.SIGTERM)
        if count == 0 and signals == 2:
            # So that it gets both: a signal that is pending already is not sent twice.
            await until(lambda: not caught(worker.pid), "the first one was handled")

    await until(lambda: ws.address not in scheduler.workers, "it dies")
    await registered(scheduler, "leaver")


@pytest.mark.parametrize("processes", [True], indirect=True, ids=["nanny"])
async def test_sigterm_before_the_nanny_knows_its_new_worker(processes, scheduler, client, tasks):
    """It took the old one's address for the new one's: what that had computed was lost, 25 s later."""
    leaver = processes.worker(scheduler.address, "leaver")
    await registered(scheduler, "leaver")

    def listen_late(dask_worker):
        dask_worker.process._init_msg_interval = 3

    await client.run(listen_late, nanny=True)
    (old,) = scheduler.workers
    os.kill((await client.run(os.getpid))[old], signal.SIGKILL)
    await until(lambda: old not in scheduler.workers, "it has died")
    processes.worker(scheduler.address, "other")
    await registered(scheduler, "leaver", "other")
    futures = [client.submit(tasks.function(), f"r-{i}", key=f"r-{i}", workers=["leaver"]) for i in range(5)]
    await client.gather(futures)
    futures = [client.submit(tasks.function(), f"s-{i}", f, key=f"s-{i}") for i, f in enumerate(futures)]
    await client.gather(futures)

    leaver.send_signal(signal.SIGTERM)

    assert await ended(leaver) == 0
    assert "nothing is lost" in processes.log("leaver")
    await client.gather(futures)
    assert set(tasks.starts.values()) == {1}


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
        await until(lambda: tasks.log, "the task runs")
        del running

        scheduler.send_signal(fate)
        leaver.send_signal(signal.SIGTERM)

        # Stock Dask waits 30 s for the task.
        await ended(leaver, timeout_s=20)
        scheduler.kill()


async def test_a_scheduler_that_is_busy_is_not_gone(processes, tasks, tmp_path):
    """With TLS it has to answer before one can say anything."""
    security = Security.temporary()
    files = {
        "--tls-ca-file": security.tls_ca_file,
        "--tls-cert": security.tls_client_cert,
        "--tls-key": security.tls_client_key,
    }
    options = []
    for option, content in files.items():
        path = tmp_path / option.strip("-")
        path.write_text(content)
        options += [option, str(path)]
    scheduler = processes.start(
        "scheduler",
        "dask_scheduler",
        *("--host", "127.0.0.1", "--port", "0", "--protocol", "tls", "--no-dashboard", *options),
    )
    await until(lambda: "Scheduler at:" in processes.log("scheduler"), "the scheduler is there")
    address = re.findall(r"tls://[\w.:]+", processes.log("scheduler"))[0]
    leaver = processes.worker(address, "leaver", *options, timeout="60s")
    async with Client(address, security=security, asynchronous=True, set_as_default=False) as client:
        futures = await results(client, tasks)
        processes.worker(address, "other", *options)
        await client.wait_for_workers(2, timeout=30)

        scheduler.send_signal(signal.SIGSTOP)
        leaver.send_signal(signal.SIGTERM)
        await until(lambda: "does not answer" in processes.log("leaver"), "it has tried in vain")
        scheduler.send_signal(signal.SIGCONT)

        assert await ended(leaver) == 0
        assert "nothing is lost" in processes.log("leaver")
        await client.gather(futures)
        assert set(tasks.starts.values()) == {1}


async def test_a_scheduler_that_takes_no_such_certificate_is_not_asked_again():
    async with Scheduler(
        host="127.0.0.1", port=0, protocol="tls", security=Security.temporary(), dashboard=False
    ) as scheduler:
        stranger = Security.temporary().get_connection_args("worker")
        nanny = SimpleNamespace(scheduler=scheduler, connection_args=stranger)
        with pytest.raises(FatalCommClosedError):
            await asyncio.wait_for(departure._connect(cast("departure.Leaver", nanny)), 4 * departure.REACH_S)


async def test_who_has_been_struck_off_already_asks_for_nothing_of_its_own(scheduler, caplog):
    """The scheduler would log an error, at which whoever wrote an ordinary script looks."""
    logging.getLogger("distributed").addHandler(caplog.handler)
    gone = "tcp://127.0.0.1:1"
    async with rpc(scheduler.address) as asked:
        server = cast("Worker", SimpleNamespace(scheduler=asked))
        comm = await connect(scheduler.address)
        try:
            await departure._retire(server, comm, gone)
            await departure._report_lost(server, gone, 1.0)
        finally:
            comm.abort()
            logging.getLogger("distributed").removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_wrong_configuration_is_an_exit_code(processes, scheduler):
    process = processes.worker(scheduler.address, "wrong", timeout="soon")
    assert await ended(process) == 2
    assert "tide.departure.timeout: got 'soon', expected a duration" in processes.log("wrong")


async def test_handler_installed_after_ours_comes_after_ours():
    def later(*_: object) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    server = cast("Worker", object())
    sigterm.join(server)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        signal.signal(signal.SIGTERM, later)
        await until(lambda: signal.getsignal(signal.SIGTERM) == ours, "ours is the first again")
        sigterm.leave(server)
        assert signal.getsignal(signal.SIGTERM) is later
    finally:
        sigterm.leave(server)
        signal.signal(signal.SIGTERM, before)


async def test_elsewhere_than_in_the_main_thread_nothing_is_done(caplog):
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.INFO, logger="distributed.tide.departure"):
        await asyncio.to_thread(sigterm.join, cast("Worker", object()))
    assert signal.getsignal(signal.SIGTERM) == before
    assert "not in the main thread" in caplog.text


async def test_a_worker_that_departs_is_not_put_back_to_work(scheduler):
    """Whose drain is refused just then is sent back, by a scheduler that does not know."""
    async with Worker(scheduler.address, nthreads=1) as worker:
        leaving.turn_away(worker)
        for message in (
            {"op": "worker-status-change", "status": "running", "stimulus_id": "back"},
            {"op": "free-keys", "keys": ["none"], "stimulus_id": "read"},
        ):
            scheduler.worker_send(worker.address, message)
        await until(
            lambda: any(event.stimulus_id == "read" for event in worker.state.stimulus_log),
            "it has read both",
        )
        assert worker.status is Status.closing_gracefully


async def test_a_worker_that_closes_never_leaves_sigterm_to_dask(monkeypatch):
    """Which would cancel the close; the signal may come at any moment."""

    def dasks(_signum, _frame):
        raise AssertionError

    dasks.__module__ = "distributed._signals"
    installed, install = [], signal.signal

    def noted(number, handler):
        installed.append(handler)
        return install(number, handler)

    before = install(signal.SIGTERM, dasks)
    worker = Worker.__new__(Worker)
    try:
        assert sigterm.join(worker)
        monkeypatch.setattr(signal, "signal", noted)
        sigterm.leave(worker)
        assert installed == [signal.SIG_IGN]
    finally:
        install(signal.SIGTERM, before)
