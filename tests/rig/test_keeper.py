"""The process that a cluster lives and dies with."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import alive
from waiting import wait_until

from rig import cgroups
from rig.folders import CHECKOUT, RigError, runs
from rig.keeper import Kept, clean
from rig.plane import own_name


@pytest.fixture
def begin() -> Iterator[Callable[[], Kept]]:
    """A factory of keepers that have nothing to keep yet."""
    with ExitStack() as stack:

        def begin() -> Kept:
            kept = Kept.begin(own_name(), bound=True)
            stack.callback(kept.quit)
            return kept

        yield begin


@pytest.mark.parametrize("asked", ['{"do": "status"}\n', '{"do": "nonsense"}\n', "", "{"])
def test_who_hangs_up_takes_no_cluster_down(begin: Callable[[], Kept], asked: str) -> None:
    """Ctrl-C in `rig status`, and a test whose time is up."""
    kept = begin()
    kept.start("server", ["sleep", "600"])
    keeper = psutil.Process(kept._ask(do="identify")["pid"])
    keeper.suspend()
    descriptor = os.open(kept.folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"/proc/self/fd/{descriptor}/keeper.sock")
        connection.sendall(asked.encode())
    os.close(descriptor)
    keeper.resume()
    assert kept.status()["server"][1] is None


def test_a_program_that_cannot_be_started_takes_no_cluster_down(begin: Callable[[], Kept]) -> None:
    kept = begin()
    with pytest.raises(RigError, match="No such file"):
        kept.start("server", ["/no/such/program"])
    assert kept.status() == {}


def test_who_waits_for_one_process_does_not_mind_that_another_has_ended(begin: Callable[[], Kept]) -> None:
    """A machine boots, where another one has died."""
    kept = begin()
    kept.start("dead", ["false"])
    kept.start("server", ["sleep", "600"])
    wait_until(lambda: kept.status()["dead"][1] == 1, "it has ended")
    looks = iter([False, True])
    kept.wait_for(lambda: next(looks), "the server serves", of=["server"])
    with pytest.raises(RigError, match="the server serves: dead ended"):
        kept.wait_for(lambda: False, "the server serves")


def test_a_cluster_that_begins_where_another_one_goes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path))
    folder = runs() / "mine"
    folder.mkdir()  # without its lock: it is about to go
    remove = shutil.rmtree

    def after_the_next_has_begun(path: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", after_the_next_has_begun)
    assert clean() == ["mine"]
    assert folder.exists()


def test_what_of_a_dead_cluster_lives_on_keeps_no_other_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(folder: Path) -> None:
        raise OSError(errno.EBUSY, "a process that the kernel has not ended yet", str(folder))

    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path))
    (runs() / "dead").mkdir()
    (runs() / "dead" / "keeper.lock").touch()
    with monkeypatch.context() as for_a_while:
        for_a_while.setattr(cgroups, "remove", busy)
        assert clean() == []
    assert clean() == ["dead"]


def test_what_the_user_has_set_for_aws_etcd_and_proxies_is_not_for_servers(
    begin: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "ETCD_NAME", "HTTPS_PROXY", "no_proxy", "OTHER", "AWSOME"):
        monkeypatch.setenv(name, "the user's")
    kept = begin()
    kept.start("told", ["env"], {"AWS_REGION": "ours"})
    log = kept.folder / "logs" / "told.log"
    wait_until(lambda: kept.status()["told"][1] == 0, "it has said what it was told", detail=log.read_text)
    told = dict(line.split("=", 1) for line in log.read_text().splitlines())
    names = {name for name in told if name.startswith(("AWS", "ETCD")) or name.lower().endswith("_proxy")}
    assert names == {"AWS_REGION", "AWSOME"}
    assert (told["AWS_REGION"], told["OTHER"]) == ("ours", "the user's")


#: As pytest-timeout does by its method "thread".
TIMED_OUT = """
import os, pathlib, sys
from served import Served

sleeper = Served(pathlib.Path(sys.argv[1])).start("sleeper", "-c", "import time; time.sleep(600)")
print(sleeper.pid, flush=True)
os._exit(1)
"""


def test_no_process_of_a_test_outlives_a_test_run_that_is_cut_off(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", TIMED_OUT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    wait_until(lambda: not alive(int(done.stdout)), "it has ended")
