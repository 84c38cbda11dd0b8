"""The local provider: real processes, a real scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import waiting
from distributed import Client, Scheduler, WorkerPlugin
from distributed.security import Security
from distributed.utils import get_ip

from dask_tide.errors import ConfigError, LaunchRejected, Unavailable
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import ObservedUnit, ProviderContext, Template
from dask_tide.providers.local import LocalProvider
from dask_tide.providers.local.command import forkserver_environment, terminate_bytes, worker_arguments

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

DEADLINE_S = 60.0
PARENT_GONE_S = 2.0


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Wait for what the line that calls this says."""
    await waiting.until(condition, "the condition comes true", deadline_s)


def descendants(pid: int | None = None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    # A killed process whose parent is gone too stays a zombie where process 1 does not reap.
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    before = set(descendants())
    yield
    left = [process for process in descendants() if process not in before]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left, left


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with Scheduler(
        host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0"
    ) as scheduler:
        yield scheduler


class Woken:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make_context(
    folder: Path, address: str = "tcp://127.0.0.1:1", *pools: Pool, **fields: Any
) -> ProviderContext:
    folder.mkdir(mode=0o700, exist_ok=True)
    fields.setdefault("templates", {pool.name: Template(pool) for pool in pools or (Pool("cpu", maximum=9),)})
    others: dict[str, Any] = {"cluster": "tide", "options": {}, "security": Security(), "wake": Woken()}
    return ProviderContext(scheduler_address=address, folder=folder, **others | fields)


@pytest.fixture
async def make(scheduler: Scheduler, tmp_path: Path) -> AsyncIterator[Callable[..., LocalProvider]]:
    """A factory of providers, which are closed at the end."""
    made: list[LocalProvider] = []

    def factory(
        *pools: Pool, folder: str = "folder", clock: Callable[[], float] = time.monotonic, **fields: Any
    ) -> LocalProvider:
        context = make_context(tmp_path / folder, scheduler.address, *pools, **fields)
        made.append(LocalProvider(context, clock))
        return made[-1]

    yield factory
    for provider in made:
        await provider.close()


async def units_of(provider: LocalProvider) -> tuple[ObservedUnit, ...]:
    return (await provider.observe()).units


async def only_unit(provider: LocalProvider) -> ObservedUnit:
    (unit,) = await units_of(provider)
    return unit


def is_failed(provider: LocalProvider, count: int = 1) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return [unit.phase for unit in await units_of(provider)] == [Phase.FAILED] * count

    return look


def is_empty(provider: LocalProvider) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not await units_of(provider)

    return look


def forkserver_of(provider: LocalProvider) -> psutil.Process:
    return psutil.Process(provider._launcher.pid)


async def test_starts_one_then_six_and_stops_exactly_those(scheduler, make, tmp_path):
    provider = make()
    await provider.scale_up("cpu", 1)
    first = await only_unit(provider)
    assert (first.pool, first.phase) == ("cpu", Phase.STARTING)
    await until(lambda: len(scheduler.workers) == 1)
    await provider.scale_up("cpu", 6)
    await provider.scale_up("cpu", 6)
    await provider.scale_up("cpu", 2)
    await until(lambda: len(scheduler.workers) == 6)
    units = await units_of(provider)
    assert {unit.name for unit in units} == {worker.name for worker in scheduler.workers.values()}
    assert len(units) == 6

    # Each of them says so in a log of its own, which nobody else can read.
    logs = [tmp_path / "folder" / "logs" / f"{unit.name}.log" for unit in units]
    await until(lambda: all("Registered to:" in log.read_text() for log in logs))
    for log in logs:
        assert stat.S_IMODE(log.stat().st_mode) == 0o600

    # Nothing listens on other interfaces than the scheduler does.
    for process in descendants(forkserver_of(provider).pid):
        listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}

    await provider.scale_down([first.name, "tide-cpu-xxxxx"])
    await provider.scale_down([first.name])
    await until(lambda: len(scheduler.workers) == 5)

    async def first_is_gone() -> bool:
        return first.name not in {unit.name for unit in await units_of(provider)}

    await until(first_is_gone)
    assert len(await units_of(provider)) == 5
    await provider.scale_down([first.name])
    assert provider._context.wake.count >= 3


async def test_unit_of_several_workers(scheduler, make):
    provider = make(Pool("cpu", threads=2, workers_per_unit=3, resources=(("GPU", 1.0), ("MEM", 2.5))))
    await provider.scale_up("cpu", 1)
    await until(lambda: len(scheduler.workers) == 3)
    name = (await only_unit(provider)).name
    assert {worker.name for worker in scheduler.workers.values()} == {f"{name}-{i}" for i in range(3)}
    assert {worker.nthreads for worker in scheduler.workers.values()} == {2}
    assert [worker.resources for worker in scheduler.workers.values()] == [{"GPU": 1.0, "MEM": 2.5}] * 3

    # It lives as long as one of its workers does, and then says what happened.
    processes = descendants(forkserver_of(provider).pid)
    for process in processes[:2]:
        process.kill()
    await until(lambda: len(scheduler.workers) == 1)
    assert (await only_unit(provider)).phase is Phase.STARTING
    processes[2].kill()
    await until(is_failed(provider))
    assert (await only_unit(provider)).message.count("signal 9 (SIGKILL)") == 3


@pytest.mark.parametrize(("after_s", "doomed"), [(1.0, False), (60.0, True)])
async def test_a_unit_that_has_lost_a_worker_is_replaced_unless_the_next_one_would_too(
    scheduler, make, after_s, doomed
):
    now_s = 0.0
    provider = make(Pool("cpu", workers_per_unit=2), clock=lambda: now_s)
    await provider.scale_up("cpu", 1)
    await until(lambda: len(scheduler.workers) == 2)
    now_s = after_s
    woken = provider._context.wake.count
    descendants(forkserver_of(provider).pid)[0].kill()
    await until(lambda: provider._context.wake.count > woken)
    unit = await only_unit(provider)
    assert (unit.phase, unit.doomed) == (Phase.STARTING, doomed)
    assert "signal 9 (SIGKILL)" in unit.message
    await provider.scale_down([unit.name])
    await until(is_empty(provider))


async def test_logs_of_the_last_ones_that_have_ended_stay(scheduler, make, monkeypatch):
    monkeypatch.setattr("dask_tide.providers.local.provider.KEPT_LOGS", 1)
    provider = make()
    await provider.scale_up("cpu", 3)
    await until(lambda: len(scheduler.workers) == 3)
    names = [unit.name for unit in await units_of(provider)]
    for name in names[:2]:
        await provider.scale_down([name])
        await until(lambda name=name: name not in provider._units)
    assert [provider._log(name).exists() for name in names] == [False, True, True]


async def test_closed_by_the_scheduler_is_gone_not_failed(scheduler, make):
    provider = make()
    await provider.scale_up("cpu", 2)
    await until(lambda: len(scheduler.workers) == 2)
    await scheduler.retire_workers(list(scheduler.workers), close_workers=True, remove=True)
    await until(is_empty(provider))


async def test_stop_does_not_disturb_a_worker_that_is_closing(scheduler, make, tmp_path):
    # Dask's command line cancels the close that is under way when SIGTERM comes, and then hangs.
    provider = make()
    await provider.scale_up("cpu", 4)
    await until(lambda: len(scheduler.workers) == 4)
    units = [unit.name for unit in await units_of(provider)]
    await scheduler.retire_workers(list(scheduler.workers), close_workers=True, remove=True)
    await provider.scale_down(units)
    await until(is_empty(provider))
    for unit in units:
        assert "CancelledError" not in (tmp_path / "folder" / "logs" / f"{unit}.log").read_text()


async def test_wrong_option_fails_with_the_end_of_the_log(make):
    provider = make(options={"worker-options": ["--nthreads", "many"]})
    await provider.scale_up("cpu", 1)
    await until(is_failed(provider))
    message = (await only_unit(provider)).message
    assert "exit code 1" in message
    assert "'many' is not a valid integer" in message
    # It does not count, and can be cleared away.
    await provider.scale_up("cpu", 1)
    assert len(await units_of(provider)) == 2
    await until(is_failed(provider, 2))
    await provider.scale_down([unit.name for unit in await units_of(provider)])
    assert not await units_of(provider)


async def test_exit_before_there_was_a_worker_is_a_failure(make):
    provider = make(options={"worker-options": ["--version"]})
    await provider.scale_up("cpu", 1)
    await until(is_failed(provider))
    assert "ended before there was a worker" in (await only_unit(provider)).message


async def test_failed_units_are_shown_for_a_while(make):
    now_s = 0.0
    provider = make(options={"worker-options": ["--version"]}, clock=lambda: now_s)
    await provider.scale_up("cpu", 1)
    await until(is_failed(provider))
    now_s = 59.0
    assert await units_of(provider)
    now_s = 61.0
    assert not await units_of(provider)


async def test_killed_worker_fails_and_is_replaced(scheduler, make):
    provider = make()
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)
    (process,) = descendants(forkserver_of(provider).pid)
    log = provider._log((await only_unit(provider)).name)
    await until(lambda: "Registered to" in log.read_text())  # the scheduler knows it before
    process.kill()
    await until(is_failed(provider))
    unit = await only_unit(provider)
    # One line: of what has killed it its log knows nothing.
    assert unit.message == f"worker {unit.name} ended: signal 9 (SIGKILL)"
    await until(lambda: not scheduler.workers)
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)
    # The forkserver has reaped what ended.
    assert [p for p in descendants(forkserver_of(provider).pid) if p.status() == psutil.STATUS_ZOMBIE] == []


async def test_killed_forkserver_takes_its_workers_along_and_is_replaced(scheduler, make):
    provider = make()
    await provider.scale_up("cpu", 2)
    await until(lambda: len(scheduler.workers) == 2)
    first = forkserver_of(provider)
    assert first.num_threads() == 1
    workers = first.children()
    first.kill()
    await until(lambda: not alive(workers))
    await until(is_failed(provider, 2))
    assert "forkserver of local workers ended: signal 9" in (await units_of(provider))[0].message
    await until(lambda: not scheduler.workers)
    await provider.scale_up("cpu", 1)
    await until(lambda: len(scheduler.workers) == 1)
    assert forkserver_of(provider) != first


async def test_idle_forkserver_that_was_killed_is_replaced(scheduler, make):
    provider = make()
    forkserver_of(provider).kill()
    await until(lambda: provider._launcher.ended)
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)


async def test_forkserver_that_cannot_start_says_why(make):
    # Not importable there: what the interpreter cannot start without.
    provider = make(options={"environment": {"PYTHONHOME": "/nowhere"}})
    await provider.scale_up("cpu", 1)
    await until(is_failed(provider))
    message = (await only_unit(provider)).message
    assert "forkserver of local workers ended: exit code 1" in message
    assert "encodings" in message


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_the_working_directory_has_gone(scheduler, make, tmp_path, monkeypatch, moment):
    """As in a notebook whose folder another branch does not have; the pool was blocked for ever."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.syspath_prepend("")
    if moment == "before":
        gone.rmdir()
        provider = make()
    else:
        provider = make()
        gone.rmdir()
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)


class Text(str):
    """What may stand in ``sys.path``, too."""

    __slots__ = ()


async def test_the_working_directory_has_a_name_that_is_not_utf_8(scheduler, make, tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (odd / "only_there.py").write_text("WHERE = 'there'")
    monkeypatch.chdir(odd)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "path", [*sys.path, Text("/nowhere")])
    provider = make()
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)

    def look():
        import only_there  # type: ignore[import-not-found]

        return only_there.WHERE

    async with Client(scheduler.address, asynchronous=True) as client:
        assert [*(await client.run(look)).values()] == ["there"]


async def test_what_cannot_be_sent_leaves_no_unit(make, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("no way")

    provider = make()
    monkeypatch.setattr(provider._launcher, "send", fail)
    with pytest.raises(OSError, match="no way"):
        await provider.scale_up("cpu", 1)
    assert not await units_of(provider)


@pytest.mark.parametrize("killed", [False, True], ids=["forkserver runs", "forkserver was killed"])
@pytest.mark.parametrize("removed", ["folder", "folder/logs"])
async def test_a_folder_that_somebody_has_removed_is_made_again(scheduler, make, tmp_path, removed, killed):
    """As those who clean up /tmp do; no worker started any more."""
    provider = make()
    shutil.rmtree(tmp_path / removed)
    if killed:
        forkserver_of(provider).kill()
        await until(lambda: provider._launcher.ended)
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)
    assert stat.S_IMODE((tmp_path / removed).stat().st_mode) == 0o700
    log = tmp_path / "folder" / "logs" / f"{(await only_unit(provider)).name}.log"
    await until(lambda: "Registered to" in log.read_text())


async def test_a_folder_that_cannot_be_made_again_is_said(make, tmp_path):
    provider = make()
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").touch()
    with pytest.raises(LaunchRejected, match=rf"{tmp_path}.* cannot be written"):
        await provider.scale_up("cpu", 1)
    assert not await units_of(provider)


async def test_a_log_that_cannot_be_opened_is_said(make, tmp_path, monkeypatch):
    provider = make()
    monkeypatch.setattr(provider, "_log", lambda _: tmp_path)
    await provider.scale_up("cpu", 1)
    await until(is_failed(provider))
    message = (await only_unit(provider)).message
    assert "Is a directory" in message
    assert str(tmp_path) in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_tasks_may_print_where_the_disk_is_full(scheduler, make):
    """Those that did failed, after all their work."""
    provider = make()
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)

    def fill() -> None:
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, 1)
        os.dup2(full, 2)
        os.close(full)

    def chatty() -> int:
        for stream in (sys.stdout, sys.stderr):
            print("x" * 2**17, file=stream)
            stream.buffer.write(b"x\n")
            stream.flush()
        return sys.stdout.fileno() + sys.stderr.fileno()

    async with Client(scheduler.address, asynchronous=True) as client:
        await client.run(fill)
        assert await client.submit(chatty) == 3


async def test_memory_limit(scheduler, make):
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        provider = make(Pool("cpu", memory_bytes=400 * 2**20))
        await provider.scale_up("cpu", 1)
        await until(lambda: scheduler.workers)
        assert [worker.memory_limit for worker in scheduler.workers.values()] == [400 * 2**20]

        def hoard(size_bytes: int) -> int:
            kept = b"1" * size_bytes
            time.sleep(600)
            return len(kept)

        async with Client(scheduler.address, asynchronous=True) as client:
            future = client.submit(hoard, 500 * 2**20)
            await until(is_failed(provider))
            del future
    message = (await only_unit(provider)).message
    assert "killed because it used" in message
    assert "\n" not in message
    assert "more than 380.00 MiB" in message


async def test_environment_path_and_configuration(scheduler, make, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("WHERE = 'here'")
    with dask.config.set({"tests.local.value": 17}):
        provider = make(
            options={
                "environment": {"TIDE_A": "common", "TIDE_B": 2},
                "worker-options": ["--lifetime", "1h"],
            },
            templates={
                "one": Template(Pool("one")),
                "two": Template(Pool("two"), {"environment": {"TIDE_A": "own"}, "worker_options": []}),
            },
        )
    # As in a notebook: after the cluster was made.
    monkeypatch.syspath_prepend(str(tmp_path))
    await provider.scale_up("one", 1)
    await provider.scale_up("two", 1)
    await until(lambda: len(scheduler.workers) == 2)

    def look(dask_worker):
        import os
        import sys

        import dask
        import distributed.client
        import only_here  # type: ignore[import-not-found]

        names = ("TIDE_A", "TIDE_B", "OMP_NUM_THREADS", "PYTHONHASHSEED")
        return (
            [os.environ.get(name) for name in names],
            dask_worker.lifetime,
            dask.config.get("tests.local.value"),
            only_here.WHERE,
            distributed.client._get_global_client() is None,
            sys.stdin.read(),
        )

    async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
        seen = await client.run(look)
    by_pool = {scheduler.workers[address].name.split("-")[1]: value for address, value in seen.items()}
    common = (17, "here", True, "")
    assert by_pool["one"] == (["common", "2", "1", "6640"], 3600, *common)
    assert by_pool["two"] == (["own", "2", "1", "6640"], None, *common)


async def test_workers_draw_different_random_numbers(scheduler, make):
    pytest.importorskip("numpy")
    provider = make()
    await provider.scale_up("cpu", 2)
    await until(lambda: len(scheduler.workers) == 2)

    def draw():
        import random

        import numpy as np

        return random.random(), float(np.random.random())

    async with Client(scheduler.address, asynchronous=True) as client:
        first, second = (await client.run(draw)).values()
    assert first[0] != second[0]
    assert first[1] != second[1]


async def test_two_providers_side_by_side(scheduler, make):
    one, two = make(folder="one"), make(folder="two")
    await asyncio.gather(one.scale_up("cpu", 2), two.scale_up("cpu", 2))
    await until(lambda: len(scheduler.workers) == 4)
    await one.close()
    await until(lambda: len(scheduler.workers) == 2)
    assert {worker.name for worker in scheduler.workers.values()} == {
        unit.name for unit in await units_of(two)
    }


async def test_close_leaves_no_process_and_is_idempotent(scheduler, make):
    provider = make()
    await provider.scale_up("cpu", 3)
    await until(lambda: len(scheduler.workers) == 3)
    forkserver = psutil.Process(forkserver_of(provider).pid)
    processes = [forkserver, *descendants(forkserver.pid)]
    assert len(processes) >= 4
    await asyncio.gather(provider.close(), provider.close())
    assert not alive(processes)
    assert not await units_of(provider)
    await provider.close()
    with pytest.raises(LaunchRejected, match="closed"):
        await provider.scale_up("cpu", 1)
    await provider.scale_down(["tide-cpu-xxxxx"])


@pytest.mark.parametrize("moment", ["never used", "importing", "forking"])
async def test_close_of_what_has_half_started(make, moment):
    before = set(descendants())
    provider = make()
    if moment == "forking":
        forkserver = forkserver_of(provider)
        await provider.scale_up("cpu", 3)
        await until(forkserver.children)
    elif moment == "importing":
        await provider.scale_up("cpu", 3)
    await provider.close()
    assert set(descendants()) <= before
    assert not await units_of(provider)


async def test_close_before_the_forkserver_has_been_listened_to(make, monkeypatch):
    """It has ended before asyncio has made a connection of the socket."""
    ended = asyncio.Event()
    connect = asyncio.open_connection

    async def slowly(**arguments: Any) -> Any:
        await ended.wait()
        return await connect(**arguments)

    monkeypatch.setattr("dask_tide.providers.local.launcher.asyncio.open_connection", slowly)
    provider = make()
    await provider.scale_up("cpu", 1)
    closing = asyncio.create_task(provider.close())
    await until(lambda: provider._launcher._disconnected)
    ended.set()
    await closing
    assert not await units_of(provider)


async def test_busy_worker_is_killed_after_its_grace(scheduler, make, monkeypatch):
    monkeypatch.setattr("dask_tide.providers.local.provider.STOP_GRACE_S", 0.2)
    provider = make()
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.workers)
    async with Client(scheduler.address, asynchronous=True) as client:
        future = client.submit(sum, range(10**12))  # never lets go of the GIL
        await until(lambda: any(worker.processing for worker in scheduler.workers.values()))
        unit = await only_unit(provider)
        await provider.scale_down([unit.name])
        assert (await only_unit(provider)).phase is Phase.STOPPING
        await until(is_empty(provider))
        del future


class SlowTeardown(WorkerPlugin):
    """Takes its time to put away what tasks have used."""

    def __init__(self, begun: Path, took_s: float) -> None:
        self.begun = begun
        self.took_s = took_s

    async def teardown(self, worker: Any) -> None:
        self.begun.touch()
        await asyncio.sleep(self.took_s)
        self.begun.with_suffix(".ended").touch()


async def close_drained(scheduler: Scheduler, provider: LocalProvider, plugin: SlowTeardown) -> None:
    """As at the end of a drain."""
    await provider.scale_up("cpu", 1)
    await until(lambda: scheduler.running)
    async with Client(scheduler.address, asynchronous=True) as client:
        await client.register_plugin(plugin)
    await scheduler.retire_workers(list(scheduler.workers), close_workers=True, remove=True)
    units = [(await only_unit(provider)).name]
    provider.let_close(units)
    await provider.scale_down(units)


async def test_a_drained_worker_is_not_killed_while_its_plugins_tear_down(
    scheduler, make, tmp_path, monkeypatch, caplog
):
    """Each ordinary scale-down cut off what took longer than the grace of those that are asked to end."""
    monkeypatch.setattr("dask_tide.providers.local.provider.STOP_GRACE_S", 0.1)
    provider = make()
    await close_drained(scheduler, provider, SlowTeardown(tmp_path / "begun", 1.0))
    await until(is_empty(provider))
    assert (tmp_path / "begun.ended").exists()
    (log,) = (tmp_path / "folder" / "logs").glob("tide-cpu-*.log")
    assert "SIGTERM" not in log.read_text()
    assert "had not ended" not in caplog.text


async def test_a_drained_worker_that_does_not_end_is_killed_and_it_is_said(
    scheduler, make, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("dask_tide.providers.local.provider.CLOSE_GRACE_S", 0.5)
    provider = make()
    await close_drained(scheduler, provider, SlowTeardown(tmp_path / "begun", 600.0))
    await until(is_empty(provider))
    assert not (tmp_path / "begun.ended").exists()
    assert "killed because it had not ended after 0.5 s" in caplog.text


PARENT = """
    import asyncio, os, sys, time
    from pathlib import Path
    import psutil
    from distributed import Client, Scheduler
    from distributed.security import Security
    from dask_tide.model import Pool
    from dask_tide.providers.base import ProviderContext, Template
    from dask_tide.providers.local import LocalProvider

    async def main(state, folder):
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as s:
            templates = {"cpu": Template(Pool("cpu"))}
            context = ProviderContext("tide", s.address, templates, {}, folder, Security(), lambda: None)
            provider = LocalProvider(context)
            if state == "importing":
                print(flush=True)
                await asyncio.sleep(600)
            await provider.scale_up("cpu", 2)
            if state == "starting":
                while not psutil.Process(provider._launcher.pid).children():
                    await asyncio.sleep(0.001)
                print(flush=True)
                await asyncio.sleep(600)
            while len(s.running) < 2:  # one that has just registered gets no task yet
                await asyncio.sleep(0.01)
            if state == "inherited":
                pid = os.fork()  # as a user's multiprocessing would: it has our ends of all pipes
                if pid:
                    (folder / "forked").write_text(str(pid))
                else:
                    os.setsid()
                    time.sleep(15)
                    os._exit(0)
            async with Client(s.address, asynchronous=True) as client:
                if state == "busy":
                    futures = [client.submit(sum, range(10**12 + i)) for i in range(2)]
                    while not all(w.processing for w in s.workers.values()):
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.2)
                print(flush=True)
                await asyncio.sleep(600)

    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.parametrize("state", ["importing", "starting", "idle", "busy", "inherited"])
async def test_nothing_outlives_the_process_that_made_it(tmp_path, state):
    (tmp_path / "forked").touch()
    program = [sys.executable, "-c", textwrap.dedent(PARENT), state, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    parent = subprocess.Popen(program, stdout=subprocess.PIPE, env=environment)  # noqa: ASYNC220
    try:
        assert parent.stdout is not None
        assert await asyncio.wait_for(asyncio.to_thread(parent.stdout.readline), DEADLINE_S) == b"\n"
        processes = descendants(parent.pid)
        if state != "importing":
            assert len(processes) >= 2
    finally:
        parent.kill()
    # What the user's program itself has forked is none of ours.
    forked = [process for process in processes if str(process.pid) == (tmp_path / "forked").read_text()]
    ours = [process for process in processes if process not in forked]
    await until(lambda: not alive(ours), PARENT_GONE_S)
    assert len(forked) == (state == "inherited")
    assert alive(forked) == forked
    for process in forked:
        process.kill()
    parent.wait()
    parent.stdout.close()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"environ": {}}, "tide.options.environ"),
        ({"environment": ["A=1"]}, "tide.options.environment"),
        ({"environment": {"A": True}}, "tide.options.environment.A"),
        ({"worker-options": "--lifetime 1h"}, "tide.options.worker-options"),
        ({"worker-options": [1]}, "tide.options.worker-options"),
        # A name, and values, that no environment can have.
        ({"environment": {"A=B": "1"}}, "tide.options.environment"),
        ({"environment": {"": "1"}}, "tide.options.environment"),
        ({"environment": {"A\0": "1"}}, "tide.options.environment"),
        ({"environment": {"A": "1\0"}}, "tide.options.environment.A"),
        ({"environment": {"A": "\ud800"}}, "tide.options.environment.A"),
        # With these no worker could be told to be a unit's.
        ({"worker-options": ["--name", "x"]}, "tide.options.worker-options"),
        ({"worker-options": ["--lifetime", "1h", "--name=x"]}, "tide.options.worker-options"),
        ({"worker-options": ["--nworkers", "2"]}, "tide.options.worker-options"),
        ({"worker-options": ["--scheduler-file", "x.json"]}, "tide.options.worker-options"),
    ],
)
async def test_wrong_options(tmp_path, options, key):
    with pytest.raises(ConfigError) as caught:
        LocalProvider(make_context(tmp_path, options=options))
    assert caught.value.key == key
    with pytest.raises(ConfigError) as caught:
        LocalProvider(make_context(tmp_path, templates={"cpu": Template(Pool("cpu"), options)}))
    assert caught.value.key == key.replace("tide.options", "tide.pools.cpu.options")


async def test_unknown_pool(make):
    with pytest.raises(LaunchRejected, match="gpu"):
        await make().scale_up("gpu", 1)


async def test_no_fork_no_provider(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ConfigError, match=r"tide\.provider"):
        LocalProvider(make_context(tmp_path))


def test_listens_where_the_scheduler_does(tmp_path):
    def host(address: str, *own: str) -> str | None:
        arguments = worker_arguments(make_context(tmp_path, address), Pool("cpu"), own)
        return arguments[arguments.index("--host") + 1] if "--host" in arguments else None

    assert host("tcp://127.0.0.1:1") == "127.0.0.1"
    assert host("tls://127.0.0.2:1") == "127.0.0.2"
    assert host("tcp://localhost:1") == "127.0.0.1"
    assert host("tcp://[::1]:1") == "::1"
    assert host(f"tcp://{get_ip()}:1") == get_ip()
    # What `dask worker` refuses beside it.
    assert host("tcp://127.0.0.1:1", "--lifetime", "1h", "--interface", "lo") is None
    assert host("tcp://127.0.0.1:1", "--listen-address=tcp://127.0.0.1:0") is None
    # A balancer's or a gateway's: no interface of this machine has it.
    assert host("tcp://192.0.2.199:1") is None
    assert host("tcp://scheduler:1") is None
    assert host("tcp://0.0.0.0:1") is None


async def test_workers_listen_on_the_one_interface_that_the_scheduler_does(tmp_path):
    """Where that was not loopback they listened on all of them; those of LocalCluster do not."""
    if (address := get_ip()).startswith("127."):
        pytest.skip("this machine has loopback alone")
    async with Scheduler(host=address, port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler:
        provider = LocalProvider(make_context(tmp_path / "folder", scheduler.address))
        try:
            await provider.scale_up("cpu", 1)
            await until(lambda: len(scheduler.workers) == 1)
            (process,) = descendants(forkserver_of(provider).pid)
            listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            # The second one is the HTTP server's.
            assert sorted(connection.laddr.ip for connection in listening) == sorted([address, "127.0.0.1"])
        finally:
            await provider.close()


def test_workers_spill_into_the_private_folder(tmp_path):
    """In one that is named somebody else could put pickles of his own in their place."""
    arguments = worker_arguments(make_context(tmp_path / "folder", private=tmp_path / "private"), Pool("cpu"))
    assert arguments[arguments.index("--local-directory") + 1] == str(tmp_path / "private" / "scratch")


@pytest.mark.parametrize("whose", ["link", "everybody", "another"])
async def test_a_private_folder_that_somebody_else_has_made_again_is_not_used(
    scheduler, make, tmp_path, whose
):
    """After a cleaner of /tmp has removed it: workers unpickle what lies there."""
    private = tmp_path / "private"
    provider = make(private=private)
    shutil.rmtree(private)
    if whose == "link":
        (tmp_path / "elsewhere").mkdir()
        private.symlink_to(tmp_path / "elsewhere")
    else:
        private.mkdir()
        private.chmod(0o777 if whose == "everybody" else 0o755)
    if whose == "another":
        if os.geteuid() != 0:
            pytest.skip("only root can give it to another user")
        os.chown(private, 4002, 4002)
    with pytest.raises(LaunchRejected, match=r"link|others may write|belongs to user 4002"):
        await provider.scale_up("cpu", 1)
    assert not [*private.iterdir()]


@pytest.mark.parametrize("log", ["tide-forkserver.log", "tide-cpu-mine.log"])
async def test_logs_are_not_written_through_links(scheduler, make, tmp_path, monkeypatch, log):
    """To a file that is not the writer's to choose."""
    monkeypatch.setattr("dask_tide.providers.local.provider.unit_name", lambda *_: "tide-cpu-mine")
    logs, other = tmp_path / "folder" / "logs", tmp_path / "other"
    logs.mkdir(parents=True)
    other.write_text("mine")
    (logs / log).symlink_to(other)
    if "forkserver" in log:
        with pytest.raises(Unavailable, match="symbolic links"):
            make()
    else:
        provider = make()
        await provider.scale_up("cpu", 1)
        await until(is_failed(provider))
        assert "its log could not be opened" in (await only_unit(provider)).message
    assert other.read_text() == "mine"


def test_configured_preloads_are_kept(tmp_path):
    with dask.config.set({"distributed.worker.preload": ["mine"]}):
        arguments = worker_arguments(make_context(tmp_path), Pool("cpu"))
    assert [arguments[i + 1] for i, word in enumerate(arguments) if word == "--preload"] == [
        "mine",
        "dask_tide.preload",
        "dask_tide.providers.local.output",
    ]


def test_memory_limit_is_off_without_one():
    assert terminate_bytes(Pool("cpu")) == 0
    with dask.config.set({"distributed.worker.memory.terminate": False}):
        assert terminate_bytes(Pool("cpu", memory_bytes=2**20)) == 0
    with dask.config.set({"distributed.worker.memory.terminate": 0.5}):
        assert terminate_bytes(Pool("cpu", memory_bytes=2**20)) == 2**19


def test_keys_that_exist_in_memory_become_private_files(tmp_path):
    pem = "-----BEGIN CERTIFICATE-----\nxyz\n"
    context = make_context(
        tmp_path,
        security=Security(
            tls_ca_file=pem, tls_worker_cert=pem, tls_worker_key="key\n", require_encryption=True
        ),
    )
    environment = forkserver_environment(context, {})
    config = dask.config.deserialize(environment["DASK_INTERNAL_INHERIT_CONFIG"])
    comm = config["distributed"]["comm"]
    assert comm["require-encryption"] is True
    key = Path(comm["tls"]["worker"]["key"])
    assert key.read_text() == "key\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert comm["tls"]["min-version"] == 1.2


async def test_keys_that_exist_in_memory_go_with_the_provider(tmp_path):
    """In a folder that the user has named they stayed."""
    security = Security(tls_ca_file="ca\n", tls_worker_cert="cert\n", tls_worker_key="key\n")
    provider = LocalProvider(make_context(tmp_path / "folder", security=security))
    try:
        key = tmp_path / "folder" / "tls" / "tide-tls_worker_key.pem"
        assert key.read_text() == "key\n"
        # Somebody who cleans up /tmp takes them before.
        shutil.rmtree(tmp_path / "folder")
        await provider.scale_up("cpu", 1)
        assert key.read_text() == "key\n"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.parent.stat().st_mode) == 0o700
    finally:
        await provider.close()
    assert not [*tmp_path.rglob("*.pem")]


async def test_tls(tmp_path):
    pytest.importorskip("cryptography")
    security = Security.temporary()
    async with Scheduler(
        host="127.0.0.1",
        port=0,
        protocol="tls",
        security=security,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
    ) as scheduler:
        provider = LocalProvider(make_context(tmp_path, scheduler.address, security=security))
        try:
            await provider.scale_up("cpu", 1)
            await until(lambda: scheduler.workers)

            def nested():
                from distributed import get_client

                return get_client().submit(sum, [1, 2]).key

            async with Client(scheduler.address, security=security, asynchronous=True) as client:
                assert "sum" in await client.submit(nested)
        finally:
            await provider.close()
