"""TideCluster as any Dask cluster class."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client
from distributed.comm import CommClosedError
from distributed.core import Status
from distributed.security import Security
from distributed.utils import get_ip
from distributed.versions import get_versions
from records import busy, reasons, running, units, workers
from waiting import wait_until

from dask_tide import TideAdaptive, TideCluster
from dask_tide.errors import ConfigError


def of_this_module(x):
    return x + 1


# -- life -----------------------------------------------------------------------------------------


def test_a_context_and_its_client(tmp_path):
    before = set(psutil.Process().children(recursive=True))
    with TideCluster(maximum=1, dashboard_address=None, folder=str(tmp_path)) as cluster:
        assert cluster.status is Status.running
        with cluster.get_client() as client:
            # Workers import it from the test's module: they have this process's path.
            assert client.submit(of_this_module, 1).result() == 2
            assert client.get_versions()["scheduler"]
        # What tasks took is kept in a file beside it.
        (folder,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
        assert folder.name == cluster.name == cluster.tide_status()["cluster"]
        assert all(name.startswith(f"{cluster.name}-default-") for name in cluster.workers)
    assert cluster.status is Status.closed
    assert cluster.workers == {}
    assert set(psutil.Process().children(recursive=True)) <= before


def test_one_scheduler_is_started_and_one_closed(monkeypatch):
    """`with` starts nothing a second time."""
    started = []
    start = TideCluster._start

    async def counted(self):
        started.append(self)
        await start(self)

    monkeypatch.setattr(TideCluster, "_start", counted)
    with TideCluster(maximum=1, dashboard_address=None) as cluster:
        assert started == [cluster]


async def test_an_asynchronous_context():
    async with TideCluster(maximum=1, dashboard_address=None, asynchronous=True) as cluster:
        assert await cluster is cluster
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(of_this_module, 1) == 2
            await cluster.scale(0)
            cluster.adapt(minimum=1)
            await cluster.wait_for_workers(1)
            logs = await cluster.get_logs()
            assert "asked for 1 more unit" in logs["Cluster"]
    assert cluster.status is Status.closed


def test_close_is_idempotent_and_closes_from_zero(tide):
    cluster = tide()
    cluster.close()
    cluster.close()
    assert cluster.status is Status.closed


async def test_closing_twice_at_once_and_before_the_start():
    never = TideCluster(maximum=1, dashboard_address=None, asynchronous=True)
    await never.close()
    assert never.status is Status.closed
    cluster = await TideCluster(maximum=1, dashboard_address=None, asynchronous=True)
    await asyncio.gather(cluster.close(), cluster.close())
    assert cluster.status is Status.closed
    assert cluster.scheduler.status is Status.closed


async def test_closing_while_it_starts_closes_what_the_start_makes():
    cluster = TideCluster(maximum=1, dashboard_address=None, asynchronous=True)
    start = asyncio.ensure_future(asyncio.wait_for(cluster, 60))
    while cluster.status is Status.created:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert cluster.status is Status.starting
    await cluster.close()
    await start
    assert cluster.status is Status.closed
    assert cluster.scheduler.status is Status.closed
    assert cluster.controller.provider is None


def test_closing_while_busy_and_while_units_start(tide, tasks):
    before = set(psutil.Process().children(recursive=True))
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(4))
        wait_until(lambda: busy(cluster), "a busy worker", detail=cluster.explain)
        cluster.scale(4)
        wait_until(lambda: units(cluster) == 4, "units that start", detail=cluster.explain)
        cluster.close()
        assert not any(future.status == "finished" for future in futures)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_several_clusters_in_one_process(tide):
    one, other = tide(maximum=1), tide(maximum=1)
    assert one.name != other.name
    assert one.scheduler_address != other.scheduler_address
    with one.get_client() as first, other.get_client() as second:
        futures = [first.submit(of_this_module, 1), second.submit(of_this_module, 2)]
        assert [future.result() for future in futures] == [2, 3]
        one.close()
        assert second.submit(of_this_module, 3).result() == 4


# -- size -----------------------------------------------------------------------------------------


def test_manual_mode_and_back(tide, tasks):
    cluster = tide(release={"keep": "100ms"})
    assert cluster.tide_status()["mode"] == "automatic"
    cluster.scale(2)
    assert cluster.tide_status()["mode"] == "manual"
    wait_until(lambda: len(workers(cluster)) == 2, "two", detail=cluster.explain)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(6))
        wait_until(lambda: len(busy(cluster)) == 2, "both busy", detail=cluster.explain)
        assert units(cluster) == 2, "by hand is by hand"
        cluster.adapt(maximum=3)
        wait_until(lambda: running(cluster) == 3, "the third", detail=cluster.explain)
        assert cluster.tide_status()["mode"] == "automatic"
        cluster.scale(1)
        wait_until(lambda: running(cluster) == 1, "one that does not drain", detail=cluster.explain)
        tasks.open()
        assert client.gather(futures) == list(range(6))
        del futures
        wait_until(lambda: len(workers(cluster)) == 1, "one by hand, without work", detail=cluster.explain)
        cluster.adapt()
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
    assert set(tasks.starts.values()) == {1}


def test_adapt_as_other_classes_have_it(tide):
    cluster = tide()
    adapting = cluster.adapt(Adaptive=TideAdaptive, minimum=1, maximum=float("inf"), interval="1s")
    wait_until(lambda: running(cluster) == 1, "the minimum", detail=cluster.explain)
    assert cluster.tide_status()["pools"]["default"]["maximum"] == 4, "infinity is no limit to set"
    assert adapting.periodic_callback is not None
    adapting.stop()
    adapting.stop()
    assert adapting.periodic_callback is None
    assert cluster.tide_status()["mode"] == "manual"


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda cluster: cluster.scale(-1), "n"),
        (lambda cluster: cluster.scale(1.5), "n"),
        (lambda cluster: cluster.scale(1, pool="gpu"), "pool"),
        (lambda cluster: cluster.adapt(minimum=5, maximum=4), "minimum"),
        (lambda cluster: cluster.adapt(maximum=-1), "maximum"),
        (lambda cluster: cluster.adapt(maximum=1.5), "maximum"),
        (lambda cluster: cluster.adapt(dict), "Adaptive"),
        (lambda cluster: cluster.wait_for_workers(9), "n_workers"),
    ],
)
def test_a_wrong_call_names_the_argument_and_changes_nothing(tide, call, key):
    cluster = tide()
    before = cluster.tide_status()["pools"], cluster.tide_status()["mode"]
    with pytest.raises(ConfigError) as error:
        call(cluster)
    assert error.value.key == key
    assert (cluster.tide_status()["pools"], cluster.tide_status()["mode"]) == before


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"maximum": -1}, "tide.pools.default.maximum"),
        ({"minimum": 3, "maximum": 2}, "tide.pools.default.minimum"),
        ({"threads_per_worker": 0}, "tide.pools.default.threads"),
        ({"memory_limit": "much"}, "tide.pools.default.memory"),
        ({"resources": {"GPU": 0}}, "tide.pools.default.resources.GPU"),
        ({"release": {"kep": "3s"}}, "tide.release.kep"),
        ({"release": {"keep": "3 bananas"}}, "tide.release.keep"),
        ({"n_workers": 4}, "n_workers"),
        ({"name": "Not A Label"}, "tide.name"),
        ({"provider": "cloud-nine"}, "tide.provider"),
        ({"pools": {"cpu": {"maximum": 1}}, "maximum": 2}, "pools"),
        ({"pools": {"cpu": {"maxmum": 1}}}, "tide.pools.cpu.maxmum"),
        ({"options": {"environ": {}}}, "tide.options.environ"),
        ({"resources": ["GPU"]}, "tide.pools.default.resources"),
        ({"pools": {"cpu": 1}}, "tide.pools.cpu"),
        ({"pools": {1: {}}}, "tide.pools"),
        ({"scheduler_port": -1}, "scheduler_port"),
        ({"scheduler_port": "abc"}, "scheduler_port"),
        ({"scheduler_port": 99_999}, "scheduler_port"),
        ({"host": 5}, "host"),
        ({"host": "192.0.2.1"}, "host"),
        ({"protocol": 5}, "protocol"),
        ({"protocol": "foo"}, "protocol"),
        ({"protocol": "tls"}, "protocol"),
        ({"protocol": "ws"}, "protocol"),
        ({"provider": ["local"]}, "provider"),
        ({"folder": "~nobody-of-that-name/x"}, "tide.folder"),
        ({"folder": "a\0b"}, "tide.folder"),
        ({"dashboard_address": "192.0.2.1:0"}, "dashboard_address"),
        ({"dashboard_address": ":99999"}, "dashboard_address"),
        ({"dashboard_address": "a:b:c"}, "dashboard_address"),
        ({"dashboard_address": {}}, "dashboard_address"),
        ({"security": "x"}, "security"),
        ({"security": Security(require_encryption=True)}, "security"),
        (
            {"security": Security(tls_ca_file="/no/such", tls_scheduler_cert="/no", tls_scheduler_key="/no")},
            "security",
        ),
        ({"silence_logs": "foo"}, "silence_logs"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_started(arguments, key, monkeypatch):
    get_versions()  # runs `uname`, once
    monkeypatch.setattr("subprocess.Popen", None)
    before = len(psutil.Process().children(recursive=True))
    with pytest.raises(ConfigError) as error:
        TideCluster(**({"dashboard_address": None} | arguments))
    assert error.value.key == key
    assert len(psutil.Process().children(recursive=True)) == before


def test_a_port_that_is_taken_is_named_and_so_is_the_cause():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"scheduler_port: got {port}, .*Address already in use"):
            TideCluster(scheduler_port=port, dashboard_address=None)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("dashboard_adress", "did you mean 'dashboard_address'?"),
        ("schedulr_port", "did you mean 'scheduler_port'?"),
        ("asynchronus", "did you mean 'asynchronous'?"),
        ("idle_shutdwn", "did you mean 'idle_shutdown'?"),
        ("n_workers", "did you mean 'minimum', or cluster.scale(n)?"),
        ("namespace", "provider='kubernetes'"),
        ("image", "provider='kubernetes'"),
    ],
)
def test_an_argument_that_does_not_exist_gets_a_hint(argument, hint):
    wrong: Any = {argument: 2}
    with pytest.raises(ConfigError, match=f"{argument}: got 2") as error:
        TideCluster(**wrong)
    assert hint in error.value.expected


def test_credentials_as_local_cluster_makes_them(tide):
    cluster = tide(maximum=1, security=True)
    assert cluster.scheduler_address.startswith("tls://")
    with cluster.get_client() as client:
        assert client.submit(of_this_module, 1).result(timeout=60) == 2
        assert all(address.startswith("tls://") for address in workers(cluster))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"host": get_ip()}, 1),
        ({"host": "0.0.0.0"}, 1),
        ({"host": get_ip(), "security": True}, 0),
        ({"host": "localhost"}, 0),
        ({}, 0),
    ],
    ids=["address", "wildcard", "tls", "localhost", "default"],
)
def test_who_lets_other_machines_in_is_told_that_they_may_run_code(tide, warned, arguments, said):
    cluster = tide(maximum=1, **arguments)
    warnings = [warning for warning in warned if "without TLS" in warning]
    assert len(warnings) == said
    for warning in warnings:
        assert f":{cluster.scheduler_address.rpartition(':')[2]} without TLS" in warning
        assert "security=True" in warning


def test_keys_and_spilled_results_lie_where_nobody_else_can_put_others(tide, tmp_path):
    """Who may write to `folder` could rename the cluster's, and have its workers unpickle what he likes."""
    pytest.importorskip("cryptography")
    directory, folder = tmp_path / "fast", tmp_path / "ours"
    folder.mkdir()
    folder.chmod(0o775)
    with dask.config.set({"temporary-directory": str(directory)}):
        cluster = tide(minimum=1, security=True, folder=str(folder), name="mine")
    with cluster.get_client() as client:
        client.wait_for_workers(1)
        (spilled,) = client.run(lambda dask_worker: dask_worker.local_directory).values()
    (private,) = directory.glob("dask-mine-*")
    assert Path(spilled).is_relative_to(private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {*folder.rglob("*.pem")} == set()
    assert len([*private.rglob("*.pem")]) > 1
    assert [*(folder / "mine" / "logs").glob("*.log")]
    cluster.close()
    assert not private.exists()
    assert {path.name for path in (folder / "mine").iterdir()} == {"logs", "journal.jsonl"}


def test_credentials_need_cryptography(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"security: got True, .*cryptography"):
        TideCluster(security=True)


def test_nobody_gets_more_than_the_limit_over_all_pools(tide):
    cluster = tide(maximum=4, limits={"maximum": 2})
    with pytest.raises(ConfigError, match=r"n_workers: got 3, .* 2, .*tide\.limits\.maximum"):
        cluster.wait_for_workers(3)
    with pytest.raises(ConfigError, match=r"n: got 3, .* 2, .*tide\.limits\.maximum"):
        cluster.scale(3)
    assert cluster.tide_status()["mode"] == "automatic"


@pytest.mark.parametrize(
    "call",
    [
        lambda cluster: cluster.scale(1),
        lambda cluster: cluster.adapt(),
        lambda cluster: cluster.tide_status(),
        lambda cluster: cluster.wait_for_workers(1),
    ],
)
def test_a_closed_cluster_says_so(tide, call):
    cluster = tide(name="gone")
    cluster.close()
    with pytest.raises(RuntimeError, match="cluster gone is closed"):
        call(cluster)


def test_a_closed_cluster_still_says_why(tide):
    cluster = tide(minimum=1)
    cluster.wait_for_workers(1)
    cluster.close()
    assert "asked for 1 more unit, because" in cluster.explain()


# -- what it tells --------------------------------------------------------------------------------


def test_logs_info_and_representations(tide):
    cluster = tide(dashboard_address="127.0.0.1:0", maximum=1, name="my-cluster")
    cluster.wait_for_workers(1)
    with cluster.get_client() as client:
        client.submit(print, "printed").result()
        logs = cluster.get_logs()
    (address,) = workers(cluster)
    assert set(logs) == {"Cluster", "Scheduler", address}
    assert "asked for 1 more unit" in logs["Cluster"]
    assert address in logs["Scheduler"]
    assert "printed" in logs[address].splitlines()
    assert set(cluster.get_logs(cluster=False, workers=False)) == {"Scheduler"}
    wait_until(lambda: address in cluster.scheduler_info["workers"], "its arrival here")
    assert cluster.scheduler_info["address"] == cluster.scheduler_address
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    assert repr(cluster).startswith("TideCluster(my-cluster, 'tcp://127.0.0.1:")
    assert "workers=1, threads=1" in repr(cluster)
    html = cluster._repr_html_()
    assert "TideCluster" in html
    assert cluster.dashboard_link in html
    assert cluster.observed == cluster.requested == cluster.plan


def test_logs_of_those_that_stay_when_one_leaves_meanwhile(tide, monkeypatch):
    cluster = tide(minimum=2)
    cluster.wait_for_workers(2)
    leaves, stays = workers(cluster)
    ask = cluster.scheduler.rpc.connect

    async def connect(address, **arguments):
        if address == leaves:
            raise CommClosedError("it has left")
        return await ask(address, **arguments)

    monkeypatch.setattr(cluster.scheduler.rpc, "connect", connect)
    assert set(cluster.get_logs(cluster=False, scheduler=False)) == {stays}


def test_a_unit_that_has_lost_a_worker_is_replaced(tide, monkeypatch):
    monkeypatch.setattr("dask_tide.providers.local.provider.YOUNG_S", 0.0)
    cluster = tide(pools={"cpu": {"minimum": 1, "maximum": 2, "workers-per-unit": 2, "memory": "1 GiB"}})
    cluster.wait_for_workers(2)
    (halved,) = cluster.workers
    with cluster.get_client() as client:
        psutil.Process(min(client.run(os.getpid).values())).kill()
    wait_until(lambda: halved not in cluster.workers, "it goes", detail=cluster.explain)
    wait_until(lambda: len(workers(cluster)) == 2, "another one is there", detail=cluster.explain)
    assert "the unit has to go: worker" in cluster.explain(100)


def test_no_dashboard_takes_no_port_that_others_like(tide):
    one, other = tide(), tide()
    ports = {cluster.scheduler.http_server.port for cluster in (one, other)}
    assert len(ports) == 2
    assert 8787 not in ports
    assert one.dashboard_link == ""
    for cluster in (one, other):
        assert cluster.scheduler.http_server.address == "127.0.0.1"


def test_the_notebook_widget_acts_with_our_policy(tide, tasks):
    widgets = pytest.importorskip("ipywidgets")
    cluster = tide(release={"keep": "100ms"})

    def find(widget, kind):
        found = [widget] if isinstance(widget, kind) else []
        return found + [x for child in getattr(widget, "children", ()) for x in find(child, kind)]

    widget = cluster._widget()
    buttons = {button.description: button for button in find(widget, widgets.Button)}
    numbers = {number.description: number for number in find(widget, widgets.IntText)}

    def shown():
        return " ".join(html.value for html in find(widget, widgets.HTML))

    assert "Scaling mode: Adaptive" in shown()
    numbers["Workers"].value = 1
    buttons["Scale"].click()
    wait_until(lambda: running(cluster) == 1, "one by hand", detail=cluster.explain)
    assert "Scaling mode: Manual" in shown()
    numbers["Minimum"].value, numbers["Maximum"].value = 2, 3
    buttons["Adapt"].click()
    wait_until(lambda: running(cluster) == 2, "the minimum", detail=cluster.explain)
    assert "Scaling mode: Adaptive" in shown()
    assert cluster.tide_status()["pools"]["default"]["maximum"] == 3
    numbers["Minimum"].value = 0
    buttons["Adapt"].click()
    wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
    with cluster.get_client() as client:
        assert client.submit(of_this_module, 1).result() == 2
    wait_until(lambda: "Workers: 0" in shown(), "an update by itself", detail=shown)


# -- clients --------------------------------------------------------------------------------------


def test_restart_waits_and_workers_come_back(tide):
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        cluster.scale(2)
        client.wait_for_workers(2)
        before = set(workers(cluster))
        future = client.submit(of_this_module, 1)
        future.result()
        generation = client.generation
        client.restart(timeout=60)
        assert len(workers(cluster)) == 2
        assert not before & set(workers(cluster))
        # Dask tells the client on another connection, and that cancels what was submitted before.
        wait_until(lambda: client.generation > generation, "its news")
        assert future.cancelled()
        assert client.submit(of_this_module, 2).result() == 3


def test_restart_in_automatic_mode_while_busy(tide, tasks):
    cluster = tide(maximum=2)
    with cluster.get_client() as client:
        with dask.annotate(duration="1h"):
            futures = client.map(tasks.function(gated=True), range(2))
        wait_until(lambda: len(tasks.starts) == 2, "two busy", detail=cluster.explain)
        generation = client.generation
        client.restart(timeout=60)
        # Dask tells the client on another connection, and that cancels what was submitted before.
        wait_until(lambda: client.generation > generation, "its news")
        assert all(future.cancelled() for future in futures)
        assert client.submit(of_this_module, 1).result() == 2


def test_restart_from_zero(tide):
    cluster = tide()
    with cluster.get_client() as client:
        generation = client.generation
        client.restart(timeout=60)
        # Dask tells the client on another connection, and that cancels what was submitted before.
        wait_until(lambda: client.generation > generation, "its news")
        assert client.submit(of_this_module, 1).result() == 2


def test_an_uploaded_file_reaches_workers_that_come_later(tide, tmp_path):
    module = tmp_path / "uploaded_with_the_client.py"
    module.write_text("ANSWER = 42\n")
    cluster = tide(maximum=1, release={"keep": "100ms"})

    def answer():
        import uploaded_with_the_client  # type: ignore[import-not-found]

        return uploaded_with_the_client.ANSWER

    with cluster.get_client() as client:
        client.upload_file(str(module))
        assert client.submit(answer, pure=False).result() == 42
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
        assert client.submit(answer, pure=False).result() == 42


def test_workers_follow_the_work_not_the_client(tide, tasks):
    cluster = tide(maximum=2, release={"keep": "100ms"})
    with Client(cluster.scheduler_address, set_as_default=False) as gone:
        forgotten = gone.submit(tasks.function(gated=True), 0)
        published = gone.submit(of_this_module, 1)
        published.result()
        gone.publish_dataset(answer=published)
        wait_until(lambda: busy(cluster), "work", detail=cluster.explain)
        del forgotten, published
    tasks.open()
    # The dataset's holder stays for it, the other one goes.
    wait_until(lambda: units(cluster) == 1, "the last holder", detail=cluster.explain)
    with Client(cluster.scheduler_address, set_as_default=False) as back:
        assert back.get_dataset("answer").result() == 2
        back.unpublish_dataset("answer")
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
        assert back.submit(of_this_module, 2).result() == 3


def test_several_clients_share_it(tide, tasks):
    cluster = tide(maximum=2)
    with (
        Client(cluster.scheduler_address, set_as_default=False) as one,
        Client(cluster.scheduler_address, set_as_default=False) as other,
    ):
        futures = one.map(tasks.function(0.05), range(8))
        assert other.gather(other.map(tasks.function(0.05), range(10, 18))) == list(range(10, 18))
        assert one.gather(futures) == list(range(8))
    assert set(tasks.starts.values()) == {1}


def test_a_result_is_gathered_from_the_last_worker_which_then_goes(tide):
    cluster = tide(release={"keep": "100ms"})
    with cluster.get_client() as client:
        future = client.submit(of_this_module, 1)
        wait_until(lambda: "KEPT_FOR_RESULT" in reasons(cluster), "why it stays", detail=cluster.explain)
        assert len(workers(cluster)) == 1
        assert future.result() == 2
        del future
        wait_until(lambda: not workers(cluster), "none", detail=cluster.explain)
