"""``dask scheduler --preload dask_tide.preload``: the controller in a scheduler of its own process."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client
from marked import Marked, run
from served import Scheduler, Served
from waiting import wait_until

#: As long as the issue allows for workers to outlive their scheduler, and some for this machine's load.
GONE_S = 2.0
POOL = "DASK_TIDE__POOLS__DEFAULT__"
SMALL = {
    f"{POOL}MAXIMUM": "2",
    f"{POOL}MEMORY": "'1 GiB'",
    "DASK_TIDE__RELEASE__KEEP": "200ms",
    "DASK_TIDE__RELEASE__TAIL": "200ms",
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    return Marked(tmp_path / "marks")


def connect(scheduler: Scheduler) -> Client:
    return Client(scheduler.address, set_as_default=False)


def submit(client: Client, marked: Marked, name: str, gate: str = "") -> Any:
    return client.submit(run, marked.folder, name, gate, key=name, pure=False)


def units(client: Any) -> list[str]:
    status = client.sync(client.scheduler.tide_status)
    return sorted(unit["phase"] for unit in status["units"])


def unfinished(client: Any) -> int:
    return int(client.sync(client.scheduler.tide_status)["unfinished_tasks"])


def nobody(client: Client, scheduler: Scheduler) -> None:
    wait_until(lambda: not units(client), "no unit", detail=lambda: scheduler.log)


def test_workers_follow_the_work_and_clients_come_and_go(served: Served, marked: Marked) -> None:
    scheduler = served.scheduler(environment=SMALL)
    with connect(scheduler) as first, connect(scheduler) as second:
        assert units(first) == []
        ones = [submit(first, marked, f"first{i}", "end") for i in range(2)]
        two = submit(second, marked, "second", "end")
        wait_until(lambda: units(first) == ["running"] * 2, "two workers", detail=lambda: scheduler.log)
        marked.open("end")
        assert first.gather(ones) == ["first0", "first1"]
        assert two.result(timeout=30) == "second"
        first.publish_dataset(kept=two)
    # No client is there; one comes back for what it has published, and its holder is there still.
    with connect(scheduler) as again:
        wait_until(lambda: units(again) == ["running"], "its holder stays", detail=lambda: scheduler.log)
        assert again.get_dataset("kept").result(timeout=30) == "second"
        again.unpublish_dataset("kept")
        nobody(again, scheduler)
        assert submit(again, marked, "more").result(timeout=60) == "more"
        nobody(again, scheduler)
    assert scheduler.process.poll() is None
    assert set(marked.starts.values()) == {1}


def test_a_lost_clients_work_ends_and_its_workers_go(served: Served, marked: Marked) -> None:
    scheduler = served.scheduler(environment=SMALL)
    lost = served.start("lost", "-c", _LOST, scheduler.address, marked.folder)
    with connect(scheduler) as client:
        wait_until(lambda: "lost" in marked.starts, "its task runs", detail=lambda: served.log("lost"))
        lost.kill()
        lost.wait()
        marked.open("end")
        nobody(client, scheduler)


_LOST = """
import sys, time
from distributed import Client
from marked import run

client = Client(sys.argv[1])
future = client.submit(run, sys.argv[2], "lost", "end", key="lost")
waiting = [client.submit(run, sys.argv[2], f"waiting{i}", "", future, key=f"waiting{i}") for i in range(9)]
time.sleep(1000)
"""


def test_yaml_with_two_pools(served: Served, marked: Marked, tmp_path: Path) -> None:
    folder = tmp_path / "configuration"
    folder.mkdir()
    pools = {
        "cpu": {"memory": "1 GiB", "maximum": 1},
        "gpu": {"memory": "1 GiB", "maximum": 1, "resources": {"GPU": 1}},
    }
    (folder / "tide.yaml").write_text(
        yaml.safe_dump({"tide": {"pools": pools, "release": {"keep": "200ms"}}})
    )
    scheduler = served.scheduler(environment={"DASK_CONFIG": str(folder)})
    with connect(scheduler) as client:
        future = client.submit(run, marked.folder, "task", "end", key="task", resources={"GPU": 1})
        wait_until(lambda: marked.starts["task"], "it runs", detail=lambda: scheduler.log)
        status = client.sync(client.scheduler.tide_status)
        assert [unit["pool"] for unit in status["units"]] == ["gpu"]
        marked.open("end")
        assert future.result(timeout=30) == "task"


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_worker_outlives_a_killed_scheduler(served: Served, marked: Marked, state: str) -> None:
    scheduler = served.scheduler(environment=SMALL | {f"{POOL}MINIMUM": "2"})
    with connect(scheduler) as client:
        wait_until(lambda: units(client) == ["running"] * 2, "two workers", detail=lambda: scheduler.log)
        if state == "busy":
            futures = [submit(client, marked, f"t{i}", "never") for i in range(2)]
            wait_until(lambda: len(marked.starts) == len(futures), "both are busy")
        assert len(scheduler.descendants) >= 3
        scheduler.kill()
        wait_until(lambda: not scheduler.descendants, "all have ended", GONE_S, lambda: scheduler.descendants)


def test_sigterm_leaves_nothing_behind(served: Served, marked: Marked, tmp_path: Path) -> None:
    scheduler = served.scheduler(environment=SMALL | {"TMPDIR": str(tmp_path)})
    with connect(scheduler) as client:
        futures = [submit(client, marked, f"t{i}", "end" if i else "never") for i in range(2)]
        wait_until(lambda: len(marked.starts) == len(futures), "both run", detail=lambda: scheduler.log)
        assert scheduler.descendants
        assert list(tmp_path.glob("dask-tide-*"))
    scheduler.process.send_signal(signal.SIGTERM)
    wait_until(lambda: scheduler.process.poll() is not None, "it ends", detail=lambda: scheduler.log)
    wait_until(lambda: not scheduler.descendants, "its workers too", GONE_S, lambda: scheduler.descendants)
    assert not list(tmp_path.glob("dask-tide-*"))


@pytest.mark.parametrize("variable", ["TMPDIR", "DASK_TEMPORARY_DIRECTORY"])
def test_what_a_killed_scheduler_leaves_goes_with_the_next_one(
    served: Served, tmp_path: Path, variable: str
) -> None:
    environment = {variable: str(tmp_path)}
    schedulers = [served.scheduler(name, environment=environment) for name in ("lives", "dies")]
    kept, left = map(_folder, schedulers)
    # Its lock may not be seen here.
    elsewhere = tmp_path / "dask-on-another-machine"
    elsewhere.mkdir()
    (elsewhere / "tide.lock").write_text("another-machine")
    schedulers[1].kill()
    assert left.exists()
    new = _folder(served.scheduler("next", environment=environment))
    assert {*tmp_path.glob("dask-*")} - {tmp_path / "dask-scratch-space"} == {kept, new, elsewhere}


def _folder(scheduler: Scheduler) -> Path:
    said = re.compile("logs and journal in (.*)\n")
    return Path(
        wait_until(lambda: said.findall(scheduler.log), "it has a folder", detail=lambda: scheduler.log)[0]
    )


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"DASK_TIDE__POOLS__CPU__MAXIMUN": "3"}, "maximun"),
        ({f"{POOL}MINIMUM": "3", f"{POOL}MAXIMUM": "2"}, "tide.pools.default.minimum: got 3"),
        ({"DASK_TIDE__PROVIDER": "clouds"}, "tide.provider: got 'clouds'"),
        ({"DASK_TIDE__OPTIONS__COLOUR": "red"}, "tide.options.colour: got 'red'"),
        ({"DASK_TIDE__JOURNAL": "x.jsonl"}, "tide.journal: got 'x.jsonl'"),
        ({"DASK_TIDE": "foo"}, "tide: got 'foo'"),
        ({"DASK_TIDE__FOLDER": "~nobody-of-that-name/x"}, "tide.folder: got '~nobody-of-that-name/x'"),
    ],
)
def test_an_invalid_configuration_ends_the_scheduler(
    served: Served, environment: dict[str, str], named: str
) -> None:
    scheduler = served.scheduler(environment=environment)
    wait_until(lambda: scheduler.process.poll() is not None, "it ends", detail=lambda: scheduler.log)
    assert scheduler.process.returncode == 2, scheduler.log
    assert named in scheduler.log
    assert "Traceback" not in scheduler.log
    wait_until(lambda: not scheduler.descendants, "nothing is left", GONE_S)


def test_a_scheduler_that_can_have_no_controller_ends(served: Served, tmp_path: Path) -> None:
    """Whatever it is that went wrong: without one no worker would ever come, and nobody would say why."""
    (tmp_path / "broken.py").write_text("def factory(context):\n    raise ZeroDivisionError('by itself')\n")
    environment = {"DASK_TIDE__PROVIDER": "broken:factory", "PYTHONPATH": str(tmp_path)}
    scheduler = served.scheduler(environment=environment)
    wait_until(lambda: scheduler.process.poll() is not None, "it ends", detail=lambda: scheduler.log)
    assert scheduler.process.returncode == 2, scheduler.log
    assert "ZeroDivisionError: by itself" in scheduler.log


def test_p37_after_a_lost_client_everything_goes(served: Served, marked: Marked) -> None:
    """The client is killed with work running and queued and a result held: nobody will ask for it."""
    scheduler = served.scheduler(environment=SMALL | {"DASK_TIDE__IDLE_SHUTDOWN": "10s"})
    with connect(scheduler) as keeper:
        # Or there would be no scheduler any more by the time the other client has imported Dask.
        keeping = submit(keeper, marked, "keeping", "kept")
        client = served.start("lost", "-c", _LOST, scheduler.address, marked.folder)
        wait_until(lambda: unfinished(keeper) > 1, "it asks for something", detail=lambda: served.log("lost"))
        marked.open("kept")
        assert keeping.result(timeout=60) == "keeping"
    wait_until(lambda: "lost" in marked.starts, "its task runs", detail=lambda: scheduler.log)
    workers = scheduler.descendants
    assert workers
    client.kill()
    client.wait()
    marked.open("end")
    wait_until(lambda: scheduler.process.poll() is not None, "it ends", detail=lambda: scheduler.log)
    assert scheduler.process.returncode == 0, scheduler.log
    wait_until(lambda: not scheduler.descendants, "its workers too", GONE_S, lambda: scheduler.descendants)
