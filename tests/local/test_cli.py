"""``dask tide …``: what it says, and with which exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from distributed import Client, LocalCluster
from waiting import wait_until

from dask_tide import TideCluster, cli
from dask_tide.cli import tide as command
from dask_tide.controller import journal as journals
from dask_tide.model import Launch


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


@pytest.fixture
def journal(tide: Callable[..., TideCluster], tmp_path: Path) -> Path:
    """A journal of a real run: one unit came, worked and went."""
    path = tmp_path / "journal.jsonl"
    cluster = tide(maximum=1, journal={"path": str(path)}, release={"keep": "100ms"})
    with cluster.get_client() as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        wait_until(lambda: not cluster.workers, "zero", detail=cluster.explain)
    cluster.close()
    return path


def test_explain_and_status_of_a_running_cluster(tide: Callable[..., TideCluster]) -> None:
    cluster = tide(minimum=1, maximum=3, name="shown")
    with cluster.get_client() as client:
        client.wait_for_workers(1, timeout=60)
        explained = ask("explain", "--scheduler", cluster.scheduler_address)
        assert explained.exit_code == 0, explained.output
        assert "asked for 1 more unit, because the pool has 0 units and its minimum is 1" in explained.output
        assert "minimum 1, maximum 3" in explained.output

        def status() -> dict[str, Any]:
            with dask.config.set({"scheduler-address": cluster.scheduler_address}):
                told = ask("status")
            assert told.exit_code == 0, told.output
            shown: dict[str, Any] = yaml.safe_load(told.output)
            return shown

        # A worker that has registered is one that runs with the next look.
        wait_until(
            lambda: [unit["phase"] for unit in status()["units"]] == ["running"], "it runs", detail=status
        )
        shown = status()
        assert shown["cluster"] == "shown"
        assert shown["pools"]["default"]["maximum"] == 3
        assert shown["mode"] == "automatic"


@pytest.mark.parametrize("subcommand", ["explain", "status"])
def test_without_an_address_it_asks_for_one(subcommand: str) -> None:
    with dask.config.set({"scheduler-address": None}):
        result = ask(subcommand)
    assert result.exit_code == 2
    assert "--scheduler ADDRESS" in result.output


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense", "ftp://127.0.0.1:1"])
def test_no_scheduler(address: str) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        result = ask("status", "--scheduler", address)
    assert result.exit_code == 1
    assert f"no scheduler answers at {address}" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n"], ids=["silent", "other"])
def test_who_listens_there_is_no_scheduler(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard's port, as likely as not."""
    monkeypatch.setattr(cli, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # the end
                while True:
                    connection, _ = server.accept()
                    taken.append(connection)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        result = ask("status", "--scheduler", address)
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert f"no scheduler answers at {address}: " in result.output


@pytest.mark.parametrize(
    ("address", "configured"),
    [("tls://127.0.0.1:1", {}), ("tcp://127.0.0.1:1", {"distributed.comm.require-encryption": True})],
    ids=["no certificate", "no encryption"],
)
def test_what_tls_takes_is_told(address: str, configured: dict[str, Any]) -> None:
    with dask.config.set(configured):
        result = ask("status", "--scheduler", address)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert f"{address} cannot be asked: " in result.output
    assert "distributed.comm.tls: ca-file" in result.output


@pytest.mark.parametrize("subcommand", ["explain", "status"])
def test_a_scheduler_without_tide(subcommand: str) -> None:
    with LocalCluster(n_workers=0, dashboard_address=None) as stock:
        result = ask(subcommand, "--scheduler", stock.scheduler_address)
    assert result.exit_code == 1
    assert "runs no dask-tide: start it with --preload dask_tide.preload" in result.output


def test_explain_and_replay_a_journal(journal: Path) -> None:
    explained = ask("explain", "--journal", str(journal))
    assert explained.exit_code == 0, explained.output
    for told in ("asked for 1 more unit", "drained in", "no unfinished task"):
        assert told in explained.output
    assert len(ask("explain", "--journal", str(journal), "--lines", "1").output) < len(explained.output)
    replayed = ask("replay", str(journal))
    assert (replayed.exit_code, replayed.output.endswith("decisions, 0 differ\n")) == (0, True), (
        replayed.output
    )


def test_replay_shows_what_would_be_decided_differently(journal: Path) -> None:
    lines = list(journals.read(journal))
    changed = []
    for line in lines:
        actions = tuple(
            Launch(a.pool, a.count + 1, a.why) if isinstance(a, Launch) else a for a in line.actions
        )
        changed.append(msgspec.structs.replace(line, actions=actions))
    journal.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in changed))
    result = ask("replay", str(journal))
    assert result.exit_code == 1
    assert "- Pool default: asked for 2 more units" in result.output
    assert "+ Pool default: asked for 1 more unit" in result.output
    assert result.output.endswith(f"{len(lines)} decisions, 1 differ\n")


@pytest.mark.parametrize("arguments", [("replay",), ("explain", "--journal")])
def test_a_journal_that_cannot_be_read(arguments: tuple[str, ...], tmp_path: Path, journal: Path) -> None:
    missing = ask(*arguments, str(tmp_path / "missing"))
    assert missing.exit_code == 1
    assert "missing: No such file or directory" in missing.output

    good = journal.read_bytes()
    for bad, said in (
        (good + b"{\n", f"line {good.count(10) + 1}"),
        (good[: len(good) // 2] + b"\n" + good, "line"),
        (b"\xff\xfe\x00 no journal\n", "line 1"),
        (b"[]\n", "line 1"),
        (good.replace(b'"at_s"', b'"version":99,"at_s"', 1), "format version 99, this is 1"),
    ):
        journal.write_bytes(bad)
        result = ask(*arguments, str(journal))
        assert result.exit_code == 1, bad
        assert str(journal) in result.output
        assert said in result.output
        assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("arguments", [("replay",), ("explain", "--journal")])
def test_a_journal_whose_last_line_was_cut_off(arguments: tuple[str, ...], journal: Path) -> None:
    good = journal.read_bytes()
    whole = ask(*arguments, str(journal))
    journal.write_bytes(good + good[: good.index(b"\n") // 2])
    result = ask(*arguments, str(journal))
    assert (result.exit_code, result.stdout) == (0, whole.stdout), result.output
    assert result.stderr == f"{journal}, line {good.count(10) + 1} is cut off, and left out\n"


def test_an_empty_journal(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert "is empty" in ask("explain", "--journal", str(empty)).output
    replayed = ask("replay", str(empty))
    assert (replayed.exit_code, "is empty" in replayed.output) == (1, True)


def test_fewer_lines_than_none_cannot_be_told() -> None:
    assert ask("explain", "--lines", "-1").exit_code == 2


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def untouched() -> Any:
    """``validate FILE`` merges the file into Dask's configuration of its process: this one's, here."""
    import copy

    before = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.mark.usefixtures("untouched")
def test_validate_what_is_right(tmp_path: Path) -> None:
    assert ask("validate").exit_code == 0
    good = {
        "tide": {
            "pools": {"cpu": {"threads": 4, "maximum": 7}, "gpu": {"resources": {"GPU": 1}, "maximum": 2}}
        }
    }
    result = ask("validate", write(tmp_path / "good.yaml", good))
    assert result.exit_code == 0, result.output
    assert "pool cpu: units 0 to 7, workers in each: 1, threads of each: 4" in result.output
    assert "pool gpu: units 0 to 2, " in result.output
    assert "provider local: the configuration is valid" in result.output


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"pools": {"cpu": {"maximun": 7}}}, ["tide.pools.cpu", "maximun", "maximum"]),
        ({"pools": {"cpu": {"maximum": -1}}}, ["tide.pools.cpu.maximum", "-1"]),
        ({"pools": {"cpu": {"minimum": 3, "maximum": 2}}}, ["tide.pools.cpu.minimum", "3"]),
        ({"interval": "7 parsecs"}, ["tide.interval", "7 parsecs"]),
        ({"idle_shutdwn": "1h"}, ["idle_shutdwn"]),
        ({"provider": "clouds"}, ["tide.provider", "clouds"]),
        ({"memory": {"want-below": 60}}, ["tide.memory.want-below", "60"]),
        ("nothing", ["tide", "nothing"]),
        ({"options": {"foo": 1}}, ["tide.options.foo"]),
        ({"pools": {"cpu": {"options": {"foo": 1}}}}, ["tide.pools.cpu.options.foo"]),
        ({"provider": "kubernetes", "options": {"foo": 1}}, ["tide.options.foo"]),
        (
            {"provider": "kubernetes", "pools": {"cpu": {"options": {"foo": 1}}}},
            ["tide.pools.cpu.options.foo"],
        ),
        ({"folder": "/proc/x"}, ["tide.folder", "/proc/x"]),
        ({"pools": {1: {"maximum": 3}}}, ["Error: tide.pools: got 1"]),
        ({"options": {1: 2}}, ["Error: tide.options: got 1"]),
    ],
)
def test_validate_what_is_wrong(tmp_path: Path, section: Any, named: list[str]) -> None:
    result = ask("validate", write(tmp_path / "bad.yaml", {"tide": section}))
    assert result.exit_code == 2, result.output
    for word in named:
        assert word in result.output
    assert "expected" in result.output


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "content",
    [b"tide: [", b"- tide\n", b"\xff\xfe\xfa".decode("latin1").encode(), b"\x7fELF\xff", b"a/b " * 1000],
)
def test_validate_what_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(content)
    result = ask("validate", str(bad))
    assert result.exit_code in (1, 2), result.output
    assert "bad.yaml" in result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.output) < 1000
    assert bad.read_bytes() == content


@pytest.mark.usefixtures("untouched")
def test_validate_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    good = write(tmp_path / "good.yaml", {"tide": {"folder": str(tmp_path / "new" / "folder")}})
    assert ask("validate", good).exit_code == 0
    assert list(tmp_path.iterdir()) == [Path(good)]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("provider", "code"), [("local", 2), ("kubernetes", 0)])
def test_validate_tells_of_a_folder_that_everybody_may_write_to(
    tmp_path: Path, provider: str, code: int
) -> None:
    """A pod's volume may be so: nobody else is there."""
    folder = tmp_path / "everybody's"
    folder.mkdir()
    folder.chmod(0o777)
    bad = write(tmp_path / "bad.yaml", {"tide": {"folder": str(folder), "provider": provider}})
    result = ask("validate", bad)
    assert result.exit_code == code, result.output
    assert ("its mode is 0777" in result.output) == bool(code)


def test_it_is_a_subcommand_of_dask(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.yaml", {"tide": {"interval": "soon"}})
    result = subprocess.run(
        [sys.executable, "-m", "dask", "tide", "validate", bad],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "tide.interval: got 'soon'" in result.stderr


def test_a_client_reads_the_same(tide: Callable[..., TideCluster]) -> None:
    cluster = tide(maximum=1)
    with Client(cluster.scheduler_address) as client:
        status = client.sync(client.scheduler.tide_status)
        assert status["pools"]["default"]["maximum"] == 1
        assert "minimum 0, maximum 1" in client.sync(client.scheduler.tide_explain)
