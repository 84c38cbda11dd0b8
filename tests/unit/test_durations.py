"""What tasks took: what is assumed of others, and what the next scheduler knows."""

from __future__ import annotations

import logging
import stat
import threading

import pytest
from waiting import until

from dask_tide.controller import durations as module
from dask_tide.controller import threads
from dask_tide.controller.durations import Durations, DurationsFile


def measured(**means):
    durations = Durations()
    for name, duration_s in means.items():
        durations.add(name, duration_s)
    return durations


async def kept(path, durations):
    file = DurationsFile(path, durations)
    file.read()
    await file.close()


def test_of_a_function_of_which_nothing_is_known_what_others_took_is_assumed():
    assert Durations().typical_s(0.5) == 0.5
    assert measured(a=8.0).typical_s(0.5) == pytest.approx(2.0)
    assert measured(a=4.0, b=4.0).typical_s(0.5) == pytest.approx(2.0)
    assert measured(a=1e-5, b=0.0).typical_s(0.5) == 0.5, "never less than without them"


def test_a_function_counts_once_however_often_it_ran():
    durations = measured(a=8.0)
    for _ in range(1000):
        durations.add("a", 8.0)
    assert durations.typical_s(0.5) == pytest.approx(2.0)


def test_names_that_have_not_run_for_long_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_NAMES", 2)
    durations = measured(a=1.0, b=4.0)
    durations.add("a", 1.0)
    durations.add("c", 4.0)
    assert (durations.get("a"), durations.get("b"), durations.get("c")) == (1.0, None, 4.0)
    assert durations.typical_s(1.0) == pytest.approx(4 ** (1 / 3))
    assert durations.take_changed().keys() == {"a", "c"}


async def test_the_next_scheduler_knows_them(tmp_path):
    path = tmp_path / "durations.json"
    await kept(path, measured(load=7200.0, add=0.001))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = Durations()
    DurationsFile(path, found).read()
    assert (found.get("load"), found.get("add"), found.get("other")) == (7200.0, 0.001, None)


async def test_what_another_one_has_measured_stays(tmp_path):
    path = tmp_path / "durations.json"
    mine, yours = Durations(), Durations()
    files = [DurationsFile(path, mine), DurationsFile(path, yours)]
    for file in files:
        file.read()
    mine.add("mine", 1.0)
    mine.add("both", 1.0)
    yours.add("yours", 2.0)
    yours.add("both", 2.0)
    for file in files:
        await file.close()
    found = Durations()
    DurationsFile(path, found).read()
    assert [found.get(name) for name in ("mine", "yours", "both")] == [1.0, 2.0, 2.0]


async def test_what_was_true_once_is_soon_outweighed(tmp_path):
    path = tmp_path / "durations.json"
    before = Durations()
    for _ in range(50):
        before.add("load", 100.0)
    await kept(path, before)
    now = Durations()
    DurationsFile(path, now).read()
    for _ in range(20):
        now.add("load", 1.0)
    assert now.get("load") == pytest.approx((5 * 100 + 20 * 1) / 25)


async def test_it_is_written_while_it_runs_but_not_at_every_tick(tmp_path):
    path = tmp_path / "durations.json"
    durations = measured(a=1.0)
    file = DurationsFile(path, durations)
    file.write(1000.0)
    await until(path.exists, "it is written")
    durations.add("a", 2.0)
    file.write(1059.0)
    assert durations.take_changed() == {"a": (2, 1.5)}, "too early to be written"
    await file.close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"durations": {"a": 1.0}}',
        '{"durations": {"a": [1, "long"]}}',
        b'{"durations": {"\xff": [1, 1.0]}}',
        "[" * 100_000,
    ],
)
async def test_what_is_no_such_file_is_told_and_written_anew(tmp_path, caplog, content):
    path = tmp_path / "durations.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    durations = Durations()
    file = DurationsFile(path, durations)
    file.read()
    assert durations.get("a") is None
    assert str(path) in caplog.text
    durations.add("b", 1.0)
    await file.close()
    found = Durations()
    DurationsFile(path, found).read()
    assert found.get("b") == 1.0


async def test_what_cannot_be_read_or_is_of_another_version_is_told_once_and_left_alone(tmp_path, caplog):
    newer, folder = tmp_path / "newer.json", tmp_path / "folder"
    newer.write_text('{"durations": {"a": [1, 1.0]}, "version": 2}')
    before = newer.read_bytes()
    folder.mkdir()
    for path in (newer, folder):
        durations = Durations()
        file = DurationsFile(path, durations)
        file.read()
        durations.add("b", 1.0)
        await file.close()
        assert durations.take_changed() == {"b": (1, 1.0)}, "it would be written another time"
        assert caplog.text.count(f"is not kept in {path}") == 1
    assert newer.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "newer.json"]


async def test_numbers_that_are_none_are_left_out(tmp_path):
    path = tmp_path / "durations.json"
    path.write_text('{"durations": {"a": [0, 1.0], "b": [1, -1.0], "c": [3, 2.0], "d": [1, 1e300]}}')
    found = Durations()
    DurationsFile(path, found).read()
    assert [found.get(name) for name in "abcd"] == [None, None, 2.0, None]


async def test_a_folder_that_cannot_be_written_to_is_told_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = tmp_path / "gone" / "durations.json"
    durations = Durations()
    file = DurationsFile(path, durations)
    for _ in range(2):
        durations.add("a", 1.0)
        await file.close()
    assert caplog.text.count("is not kept in") == 1


async def test_a_name_that_cannot_be_written_is_told_and_keeps_nobody_from_closing(tmp_path, caplog):
    await kept(tmp_path / "durations.json", measured(**{"J\udcf6rg": 1.0}))
    assert caplog.text.count("is not kept in") == 1
    assert not list(tmp_path.iterdir())


async def test_they_are_written_where_there_are_no_more_threads(tmp_path, monkeypatch):
    path = tmp_path / "durations.json"

    def refuse(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    durations = measured(a=1.0)
    file = DurationsFile(path, durations)
    file.write(1000.0)
    durations.add("b", 2.0)
    await file.close()
    found = Durations()
    DurationsFile(path, found).read()
    assert (found.get("a"), found.get("b")) == (1.0, 2.0)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_disk_that_hangs_keeps_nobody_from_closing(tmp_path, caplog, monkeypatch, begun):
    go_on = threading.Event()

    def hang(_path):
        go_on.wait(20)
        return {}

    monkeypatch.setattr(module, "_read", hang)
    monkeypatch.setattr(threads, "_FINISH_S", 0.1)
    path = tmp_path / "durations.json"
    durations = measured(a=1.0)
    file = DurationsFile(path, durations)
    if begun:
        file.write(1000.0)
        durations.add("b", 1.0)
    try:
        await file.close()
        assert not path.exists()
        assert caplog.text.count("is not kept in") == 1
    finally:
        go_on.set()
