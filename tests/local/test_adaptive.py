"""``cluster.adapt(Adaptive=TideAdaptive)`` over cluster classes that are not ours."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, Status, Worker
from distributed.deploy import Cluster
from distributed.deploy.spec import ProcessInterface
from distributed.deploy.subprocess import SubprocessScheduler, SubprocessWorker
from known import known
from marked import Marked, run
from served import Served
from waiting import until, wait_until

from dask_tide import TideAdaptive
from dask_tide.adaptive_service import AdaptiveService
from dask_tide.errors import ConfigError

QUICK = {"interval": "50ms", "release": {"keep": "200ms", "tail": "200ms"}}


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    return Marked(tmp_path / "marks")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


def submit(client: Client, marked: Marked, name: str, gate: str = "", **options: Any) -> Any:
    return client.submit(run, marked.folder, name, gate, key=name, pure=False, **options)


def registered(client: Client) -> list[Any]:
    return sorted(str(w["name"]) for w in known(client).values())


def explain(client: Any, **options: Any) -> Callable[[], str]:
    return lambda: client.sync(client.scheduler.tide_explain, **options)


def up_and_down(client: Client, marked: Marked, n: int, wave: str = "") -> None:
    """``n`` single-thread workers come for as many tasks, and go; each task starts once."""
    futures = [submit(client, marked, f"{wave}t{i}", f"{wave}end") for i in range(n)]
    names = {f"{wave}t{i}" for i in range(n)}
    wait_until(lambda: names <= set(marked.starts), f"{n} tasks run", detail=explain(client))
    assert len(registered(client)) == n
    marked.open(f"{wave}end")
    assert client.gather(futures) == [f"{wave}t{i}" for i in range(n)]
    del futures
    wait_until(lambda: not registered(client), "all go", detail=explain(client))
    assert all(marked.starts[name] == 1 for name in names)


# -- LocalCluster -------------------------------------------------------------------------------------


@contextmanager
def local(
    **options: Any,
) -> Iterator[tuple[Any, Client]]:  # the cluster as a user without a type checker has it
    common = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None, "memory_limit": "1 GiB"}
    with LocalCluster(**(common | options)) as cluster, Client(cluster, set_as_default=False) as client:
        yield cluster, client


def test_local_cluster_whose_names_are_integers(marked: Marked) -> None:
    with local() as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 2)
        # The cluster's own books agree, and it can begin anew.
        wait_until(lambda: not cluster.workers and not cluster.worker_spec, "no entry is left")
        up_and_down(client, marked, 1, "again-")


def test_results_are_kept_when_workers_go(marked: Marked) -> None:
    """SpecCluster's own scale-down retires names as if they were addresses, and loses what they hold."""
    with local(processes=False) as (cluster, client):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=3, maximum=3, **QUICK)
        client.wait_for_workers(3, timeout=60)
        addresses = sorted(known(client))
        futures = [submit(client, marked, f"t{i}", workers=[addresses[i % 3]]) for i in range(9)]
        client.gather(futures)
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=3, **QUICK)
        wait_until(lambda: len(registered(client)) == 1, "one holds everything", detail=explain(client))
        assert client.gather(futures) == [f"t{i}" for i in range(9)]
        assert adaptive.error is None
        wait_until(lambda: len(cluster.worker_spec) == 1, "the cluster knows")
    assert set(marked.starts.values()) == {1}


def test_a_client_that_waits_for_workers_is_no_reason(marked: Marked) -> None:
    with local(processes=False) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=1, maximum=2, **QUICK)
        client.wait_for_workers(1, timeout=60)
        assert registered(client) == ["0"]
        assert "its minimum is 1" in explain(client)()


# -- the contract of `adapt` ---------------------------------------------------------------------------


def test_stop_is_synchronous_and_repeatable(marked: Marked) -> None:
    with local(processes=False) as (cluster, client):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=1, maximum=2, **QUICK)
        client.wait_for_workers(1, timeout=60)
        assert adaptive.periodic_callback is not None
        adaptive.stop()
        assert adaptive.periodic_callback is None
        adaptive.stop()
        adaptive.stop("again")
        # The scheduler is told, and the worker stays.
        wait_until(lambda: "tide" not in cluster.scheduler.extensions, "no controller")
        assert registered(client) == ["0"]
        # Manual scaling works as ever.
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        adaptive.stop()


def test_adapt_again_takes_over(marked: Marked) -> None:
    with local(processes=False) as (cluster, client):
        first = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        second = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        assert first.periodic_callback is None
        up_and_down(client, marked, 2)
        assert (first.error, second.error) == (None, None)
        third = cluster.adapt(Adaptive=TideAdaptive, minimum=1, maximum=2, **QUICK)
        wait_until(lambda: len(registered(client)) == 1, "the new minimum", detail=explain(client))
        assert third.periodic_callback is not None


def test_stopped_while_it_registers_it_leaves_no_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler has been told by then, and nobody would tell it again."""
    start = AdaptiveService.start
    there, go_on = threading.Event(), threading.Event()

    async def slow(self: AdaptiveService, scheduler: Scheduler) -> None:
        await start(self, scheduler)
        there.set()
        await until(go_on.is_set, "the answer may go")

    monkeypatch.setattr(AdaptiveService, "start", slow)
    with local(processes=False) as (cluster, _):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        assert there.wait(60)
        adaptive.stop()
        cluster.sync(asyncio.sleep, 0)  # what `stop` has asked for has happened
        assert "tide" in cluster.scheduler.extensions
        go_on.set()
        wait_until(lambda: "tide" not in cluster.scheduler.extensions, "our controller has gone")


def test_the_widgets_own_adapt_afterwards_is_the_stock_one(marked: Marked) -> None:
    """Options accumulate from call to call; the button of the notebook calls ``adapt(minimum, maximum)``."""
    from distributed import Adaptive

    with local(processes=False) as (cluster, client):
        assert "Adaptive" not in repr(cluster)
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, interval="50ms", wait_count=2)
        assert isinstance(cluster._adaptive, TideAdaptive)
        assert repr(cluster)
        assert cluster._repr_html_()
        # Stock's options that were given with ours go on to it.
        stock = cluster.adapt(minimum=1, maximum=1)
        assert type(stock) is Adaptive
        client.wait_for_workers(1, timeout=60)
        wait_until(lambda: "tide" not in cluster.scheduler.extensions, "our controller has gone")
        # And back.
        ours: Any = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        wait_until(lambda: not registered(client), "idle, it goes", detail=explain(client))
        assert ours.error is None


def test_unknown_options_are_ignored_and_said_once(messages: list[str]) -> None:
    from dask_tide import adaptive

    adaptive._told.clear()
    with local(processes=False) as (cluster, _):
        for _ in range(2):
            cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, wait_count=3, target_duration="5s")
    said = [message for message in messages if "is ignored" in message]
    assert sorted(said) == [
        "adapt: option target_duration is not one of dask-tide's and is ignored",
        "adapt: option wait_count is not one of dask-tide's and is ignored",
    ]


def test_wrong_options_are_refused_at_once() -> None:
    with local(processes=False) as (cluster, client):
        with pytest.raises(ConfigError, match="minimum"):
            cluster.adapt(Adaptive=TideAdaptive, minimum=3, maximum=2)
        for wrong in ("x", -1, 1.5, True):
            with pytest.raises(ConfigError, match="maximum"):
                cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=wrong)
        with pytest.raises(ConfigError, match="minimum"):
            cluster.adapt(Adaptive=TideAdaptive, minimum="x", maximum=2)
        with pytest.raises(ConfigError, match="release"):
            cluster.adapt(Adaptive=TideAdaptive, release={"keep": "soon"})
        cluster._adaptive = None
        cluster._adaptive_options = {}
        cluster.scale(1)
        client.wait_for_workers(1, timeout=60)


def test_no_maximum_is_a_finite_one(messages: list[str]) -> None:
    with local(processes=False) as (cluster, _):
        adaptive = cluster.adapt(Adaptive=TideAdaptive)
        assert (adaptive.minimum, adaptive.maximum) == (0, 10)
        assert cluster.adapt(Adaptive=TideAdaptive, minimum=20).maximum == 20


def test_pools_of_the_configuration_are_not_this_clusters(marked: Marked) -> None:
    """They are another provider's, and stood beside the cluster's: half of the work was for them."""
    pools = {
        "cpu": {"maximum": 3, "minimum": 1},
        "workers": {"price": 9, "resources": {"GPU": 1}, "maximum": 100},
    }
    with dask.config.set({"tide.pools": pools}), local(processes=False) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, limits={"maximum": 2}, **QUICK)
        up_and_down(client, marked, 2)
        (pool,) = cluster.scheduler.extensions["tide"].pools.values()
        assert (pool.name, pool.maximum, pool.price, pool.resources) == ("workers", 2, 1.0, ())


def test_a_cluster_that_closes_ends_it_without_a_word(messages: list[str]) -> None:
    with local(processes=False) as (cluster, client):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=1, maximum=1, **QUICK)
        client.wait_for_workers(1, timeout=60)
    assert adaptive.periodic_callback is None
    adaptive.stop()
    assert adaptive.error is None
    assert not [message for message in messages if "does not answer" in message or "failed" in message]


# -- SpecCluster ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Worker, Nanny])
def test_spec_cluster(marked: Marked, kind: type) -> None:
    options = {"nthreads": 1, "dashboard": False, "host": "127.0.0.1"}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}}
    worker = {"cls": kind, "options": options}
    with (
        SpecCluster(scheduler=scheduler, worker=worker, silence_logs=logging.ERROR) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 2)


async def test_spec_cluster_asynchronous(marked: Marked) -> None:
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}}
    worker = {"cls": Worker, "options": {"nthreads": 1, "dashboard": False, "host": "127.0.0.1"}}
    async with (
        SpecCluster(scheduler=scheduler, worker=worker, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        futures = [submit(client, marked, f"t{i}", "end") for i in range(2)]
        await until(lambda: len(marked.starts) == 2, "both run")
        marked.open("end")
        assert await client.gather(futures) == ["t0", "t1"]
        del futures
        await until(lambda: not cluster.scheduler.workers, "both go")
        adaptive.stop()


class Pair(Nanny):
    """One entry of ``worker_spec`` that makes two workers, ``<name>-0`` and ``<name>-1``."""

    def __init__(self, scheduler: str, name: Any = None, **options: Any) -> None:
        self.status = Status.init
        self.parts = [Worker(scheduler, name=f"{name}-{i}", **options) for i in range(2)]

    def __await__(self) -> Any:
        async def start() -> Pair:
            await asyncio.gather(*self.parts)
            self.status = Status.running
            return self

        return start().__await__()

    async def close(self, **_: Any) -> None:  # type: ignore[override]
        self.status = Status.closed
        await asyncio.gather(*(part.close() for part in self.parts))

    def __del__(self) -> None:
        """Nanny's asks for what was never set up here."""


def test_grouped_specs_come_and_go_as_a_whole(marked: Marked) -> None:
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}}
    options = {"nthreads": 1, "dashboard": False, "host": "127.0.0.1"}
    worker = {"cls": Pair, "options": options, "group": ["-0", "-1"]}
    with (
        SpecCluster(scheduler=scheduler, worker=worker, silence_logs=logging.ERROR) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 4)
        wait_until(lambda: not cluster.worker_spec, "no entry")
        # A part that is busy keeps the whole.
        busy = submit(client, marked, "busy", "busy-end")
        wait_until(lambda: marked.starts["busy"], "it runs", detail=explain(client))
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        other = submit(client, marked, "other")
        assert other.result(timeout=60) == "other"
        assert len(registered(client)) == 2
        marked.open("busy-end")
        assert busy.result(timeout=60) == "busy"
    assert set(marked.starts.values()) == {1}


# -- workers that are not called by their keys ---------------------------------------------------------------

HERE = {"host": "127.0.0.1", "dashboard": False}


@contextmanager
def spec(kind: type, made: type = SpecCluster, **options: Any) -> Iterator[tuple[Any, Client]]:
    """A cluster of this class without workers, which makes workers of this kind."""
    scheduler = {"cls": Scheduler, "options": HERE | {"port": 0}}
    worker = {"cls": kind, "options": HERE | {"nthreads": 1} | options}
    with (
        made(scheduler=scheduler, worker=worker, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


class Machine(Worker):
    """Has a name of its own, as dask-cloudprovider's virtual machines do."""

    def __init__(self, scheduler: str, name: Any = None, **options: Any) -> None:
        super().__init__(scheduler, name=f"own-{name}-name", **options)


def test_a_worker_with_a_name_of_its_own_is_its_units(marked: Marked) -> None:
    """Its unit seemed to be one that has not started, and was given back under its task."""
    with spec(Machine) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 2)
        wait_until(lambda: not cluster.worker_spec, "no entry is left", detail=explain(client))
        # The keys come again.
        future = submit(client, marked, "busy", "busy-end")
        wait_until(lambda: "1 running; minimum 0" in explain(client)(), "it is seen", detail=explain(client))
        assert "boot time not measured" not in explain(client)()
        marked.open("busy-end")
        assert future.result(timeout=60) == "busy"
    assert marked.starts["busy"] == 1


class Started(ProcessInterface):
    """Starts a worker, and does not tell it what it is called, as Dask's own SubprocessWorker does."""

    def __init__(self, scheduler: str, name: Any = None, **options: Any) -> None:
        super().__init__()
        self.name = name
        self.worker = Worker(scheduler, **options)

    async def start(self) -> None:
        await self.worker
        await super().start()

    async def close(self) -> None:
        await self.worker.close()
        await super().close()


def test_a_unit_whose_worker_is_not_known_is_not_given_back(marked: Marked, warned: list[str]) -> None:
    with spec(Started) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        future = submit(client, marked, "busy", "busy-end")
        told = "which cannot be drained: worker tcp://"
        wait_until(
            lambda: told in str(explain(client)()) or future.done(), "it is told", detail=explain(client)
        )
        said = [message for message in warned if "are not given back: worker tcp://" in message]
        assert len(said) == 1
        marked.open("busy-end")
        assert future.result(timeout=60) == "busy"
        assert len(cluster.worker_spec) == 1
    assert marked.starts["busy"] == 1


# -- what goes wrong in the cluster object -------------------------------------------------------------------


class Refused(Started):
    """A batch job that is submitted at the third attempt."""

    tries = 0

    async def start(self) -> None:
        Refused.tries += 1
        if Refused.tries < 3:
            raise RuntimeError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        await super().start()


def test_a_start_that_raised_is_tried_again_after_a_pause(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster object keeps what has not started; it counted as on its way for ever."""
    monkeypatch.setattr(Refused, "tries", 0)
    with spec(Refused) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, start={"backoff": "100ms"}, **QUICK)
        assert submit(client, marked, "once").result(timeout=60) == "once"
        told = explain(client, lines=100)()
        assert "the cluster object's worker could not be started, and the log says why" in told
    assert Refused.tries == 3


class Unwilling(SpecCluster):
    """Raises where it is asked for a second worker, as dask_cuda's does, or to stop one."""

    raises = True

    def new_worker_spec(self) -> Any:
        if self.raises and self.worker_spec:
            raise ValueError("cannot scale beyond visible devices")
        return super().new_worker_spec()

    async def scale_down(self, workers: Any) -> None:
        if self.raises:
            raise RuntimeError("scancel: error: Socket timed out")
        await super().scale_down(workers)


def test_what_scale_raises_is_told_and_tried_again_after_a_pause(marked: Marked, warned: list[str]) -> None:
    """It was raised again with each report, and told nobody but the event loop."""
    with spec(Worker, Unwilling) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=2, maximum=2, start={"backoff": "100ms"}, **QUICK)
        refused = "cluster.scale: cannot scale beyond visible devices"
        told = explain(client, lines=100)
        wait_until(lambda: "2 starts in a row came to nothing" in str(told()), "it pauses", detail=told)
        assert refused in told()
        wait_until(lambda: registered(client) == ["0"], "the one that it may have starts", detail=told)
        cluster.raises = False
        wait_until(lambda: len(registered(client)) == 2, "another one after all", detail=told)
        assert warned.count(f"adapt: {refused}") == 1


def test_what_scale_down_raises_is_told_and_tried_again(marked: Marked, warned: list[str]) -> None:
    with spec(Worker, Unwilling) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        assert submit(client, marked, "once").result(timeout=60) == "once"
        stuck = "cluster.scale_down: scancel: error: Socket timed out"
        wait_until(
            lambda: f"0 (stopping): {stuck}" in explain(client)(), "it is told", detail=explain(client)
        )
        cluster.raises = False
        wait_until(lambda: not cluster.worker_spec, "it goes", detail=explain(client))
        assert warned.count(f"adapt: {stuck}") == 1


class Slow(Started):
    """Starts once it may."""

    may = threading.Event()

    async def start(self) -> None:
        await until(self.may.is_set, "it may start")
        await super().start()


def test_reports_go_on_while_the_cluster_object_is_busy(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``scale_down`` awaits all that start; meanwhile the provider counted as one that does not answer."""
    monkeypatch.setattr(Slow, "may", threading.Event())
    with spec(Slow) as (cluster, client):
        cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        first = submit(client, marked, "first")
        wait_until(lambda: cluster.worker_spec, "it is being started", detail=explain(client))
        first.cancel()
        try:
            wait_until(lambda: not cluster.worker_spec, "it is not wanted", detail=explain(client))
            delegate = cluster.scheduler.extensions["tide"].provider
            before_s = delegate._reported_s
            wait_until(lambda: delegate._reported_s > before_s, "another report", detail=explain(client))
        finally:
            Slow.may.set()
        assert submit(client, marked, "second").result(timeout=60) == "second"


# -- a scheduler in another process -------------------------------------------------------------------------


class NamedWorker(SubprocessWorker):
    """Dask's own takes a name and does not pass it on, so nobody could tell whose worker it is."""

    def __init__(self, scheduler: str, name: Any = None, **options: Any) -> None:
        super().__init__(scheduler, "distributed.Worker", name, options | {"name": name})


def test_spec_cluster_with_a_scheduler_in_another_process(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep
    )  # where the tasks are found
    here = {"host": "127.0.0.1", "dashboard": False}
    scheduler = {"cls": SubprocessScheduler, "options": {"scheduler_kwargs": here | {"port": 0}}}
    worker = {"cls": NamedWorker, "options": here | {"nthreads": 1}}
    with (
        SpecCluster(scheduler=scheduler, worker=worker, name="subprocesses") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 2)
        wait_until(lambda: not cluster.worker_spec, "no entry is left", detail=explain(client))
        assert adaptive.error is None


_NO_TIDE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dask_tide":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["dask", "scheduler", *sys.argv[1:]]
from dask.__main__ import main
main()
"""


class Remote(Cluster):
    """A class with no more than ``adapt`` needs, over a scheduler in another process: worker processes."""

    def __init__(self, address: str, served: Served) -> None:
        self.address = address
        self.served = served
        self.wanted: set[str] = set()
        self.asked: list[int] = []
        self.gone: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._count = 0
        super().__init__(asynchronous=False, quiet=True)
        self._loop_runner.start()
        self.sync(self._start)

    async def _start(self) -> None:
        from distributed.core import rpc

        self.scheduler_comm = rpc(self.address)
        await super()._start()

    @property
    def plan(self) -> set[str]:
        return self.wanted

    def scale(self, n: int) -> None:
        self.asked.append(n)
        while len(self.wanted) < n:
            name = f"remote-{self._count}"
            self._count += 1
            self.wanted.add(name)
            arguments = [
                "-m",
                "dask",
                "worker",
                self.address,
                "--name",
                name,
                "--no-nanny",
                "--nthreads",
                "1",
            ]
            arguments += [
                "--no-dashboard",
                "--host",
                "127.0.0.1",
                "--local-directory",
                str(self.served.folder),
            ]
            self.processes[name] = self.served.start(name, *arguments)

    async def scale_down(self, names: list[str]) -> None:
        for name in names:
            self.wanted.discard(name)
            self.gone.append(name)
            self.processes[name].terminate()


def test_a_minimal_cluster_class_over_a_remote_scheduler(served: Served, marked: Marked) -> None:
    scheduler = served.scheduler(preload=False)
    with Remote(scheduler.address, served) as cluster, Client(cluster, set_as_default=False) as client:
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
        up_and_down(client, marked, 2)
        wait_until(lambda: sorted(cluster.gone) == ["remote-0", "remote-1"], "both were told to stop")
        assert adaptive.error is None
        assert not cluster.wanted
        assert repr(cluster)
        assert max(cluster.asked) == 2


def test_a_scheduler_without_dask_tide(served: Served, messages: list[str]) -> None:
    file = served.folder / "bare.json"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    bare = served.start("bare", "-c", _NO_TIDE, *arguments)

    def address() -> Any:
        assert bare.poll() is None, served.log("bare")
        with suppress(OSError, ValueError):
            return json.loads(file.read_text())["address"]

    with Remote(wait_until(address, "it listens"), served) as cluster:
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        wait_until(lambda: adaptive.error is not None, "the error is known")
        assert adaptive.periodic_callback is None
        said = [
            message
            for message in messages
            if "dask-tide is not installed where the scheduler runs" in message
        ]
        assert len(said) == 1
        adaptive.stop()


def test_a_scheduler_that_has_a_controller_of_its_own(served: Served, messages: list[str]) -> None:
    scheduler = served.scheduler(environment={"DASK_TIDE__POOLS__DEFAULT__MAXIMUM": "1"})
    with Remote(scheduler.address, served) as cluster, Client(cluster, set_as_default=False) as client:
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        wait_until(lambda: adaptive.error is not None, "the error is known")
        assert "a dask-tide controller of its own" in str(adaptive.error)
        # That one goes on.
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_scheduler_that_ends(served: Served, messages: list[str]) -> None:
    scheduler = served.scheduler(preload=False)
    quickly = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quickly, Remote(scheduler.address, served) as cluster:
        adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=1, **QUICK)
        wait_until(lambda: adaptive._registered, "the controller is there")
        scheduler.kill()
        wait_until(lambda: any("does not answer" in message for message in messages), "it says so")
        adaptive.stop()


# -- dask-jobqueue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "jobs"),
    [
        ({"minimum_jobs": 2, "maximum_jobs": 3}, (2, 3)),
        ({"minimum": 5, "maximum": 12}, (2, 3)),
        ({"minimum": 1, "maximum": 2}, (1, 1)),
        ({"minimum": 5, "maximum": 7}, (1, 1)),
        ({"maximum": 0}, (0, 0)),
        ({}, (0, 10)),
        ({"minimum": 50}, (13, 13)),
    ],
)
def test_dask_jobqueue_counts_workers(limits: dict[str, int], jobs: tuple[int, int]) -> None:
    """``maximum_jobs=3`` were twelve jobs of four workers: dask-jobqueue passes workers on."""
    jobqueue = pytest.importorskip("dask_jobqueue.local")
    scheduler = {"dashboard": False, "host": "127.0.0.1", "port": 0}
    job = {"cores": 8, "processes": 4, "memory": "8 GiB", "interface": None, "log_directory": None}
    with jobqueue.LocalCluster(**job, scheduler_options=scheduler) as cluster:
        # The first report, and with it a job, is an hour away.
        adaptive = cluster.adapt(Adaptive=TideAdaptive, interval="1h", **limits)
        assert (adaptive.minimum, adaptive.maximum) == jobs


def test_dask_jobqueue_with_two_workers_a_job(marked: Marked, monkeypatch: pytest.MonkeyPatch) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue.local")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    job = {
        "cores": 2,
        "processes": 2,
        "memory": "2 GiB",
        "scheduler_options": {"dashboard": False, "host": "127.0.0.1", "port": 0},
        "interface": None,
        "local_directory": str(marked.path),
        "log_directory": None,
        "death_timeout": 60,
    }
    before = set(psutil.Process().children(recursive=True))
    try:
        with jobqueue.LocalCluster(**job) as cluster, Client(cluster, set_as_default=False) as client:
            adaptive = cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=2, **QUICK)
            # Two workers, one job. Its processes import Dask anew, which a busy machine needs a while for.
            futures = [submit(client, marked, f"t{i}", "end") for i in range(2)]
            wait_until(lambda: len(marked.starts) == 2, "both tasks run", 120, explain(client))
            assert len(cluster.worker_spec) == 1
            assert len(registered(client)) == 2
            marked.open("end")
            assert client.gather(futures) == ["t0", "t1"]
            del futures
            wait_until(lambda: not registered(client), "all go", detail=explain(client))
            wait_until(lambda: not cluster.worker_spec, "no job is left")
            assert adaptive.error is None
    finally:
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert set(marked.starts.values()) == {1}
