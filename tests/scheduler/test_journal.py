"""The journal: small, private, never in the way, and enough to decide again."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import gates
import msgspec
import pytest
from msgspec.structs import replace
from waiting import until

from dask_tide.controller import journal as module
from dask_tide.controller import threads
from dask_tide.controller.journal import Event, Journal, Line, encode_actions, read
from dask_tide.errors import JournalError
from dask_tide.model import Hold, Launch, Memory, Phase, Pool, PoolState, Settings, Snapshot, Unit, why
from dask_tide.model.reasons import Code
from dask_tide.policy import decide

_HOLD = (Hold("default", why(Code.NO_WORK)),)
_LAUNCH = (Launch("default", 1, why(Code.MINIMUM, have=0, want=1)),)


def line(at_s, actions=_HOLD, events=()):
    snapshot = Snapshot(at_s, Settings(), (PoolState(Pool("default")),))
    return Line(at_s, snapshot, Memory(), actions, events)


async def test_a_line_for_each_change_and_one_a_minute(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    for at_s in (1000.0, 1001.0, 1059.9, 1060.0, 1061.0):
        journal.record(line(at_s))
    journal.record(line(1062.0, _LAUNCH))
    journal.record(line(1063.0, _LAUNCH))
    journal.record(line(1064.0))
    journal.record(line(1065.0, events=(Event("default", "u", why(Code.LEFT)),)))
    journal.record(line(1066.0))
    await journal.close()
    times = [entry.at_s for entry in read(path)]
    assert times == [1000.0, 1060.0, 1062.0, 1063.0, 1064.0, 1065.0]
    assert [entry.at_s for entry in journal.recent] == times


@pytest.mark.parametrize("files", [1, 2, 4])
async def test_rotation_keeps_the_size_and_the_order(tmp_path, files):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 8000, files)
    for at_s in range(400):
        journal.record(line(float(at_s), _LAUNCH))
        await journal.close()
    written = sorted(tmp_path.iterdir())
    assert len(written) == files
    assert sum(file.stat().st_size for file in written) <= 8000 * files
    times = [entry.at_s for entry in read(path)]
    assert times == sorted(times)
    assert times[-1] == 399.0
    assert times == [float(t) for t in range(400 - len(times), 400)], "the newest, without a gap"
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in written)


async def test_is_private_whatever_the_umask(tmp_path):
    path = tmp_path / "journal.jsonl"
    before = os.umask(0)
    try:
        journal = Journal(path, 8000, 2)
        journal.record(line(1.0))
        await journal.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_full_disk_is_told_once_and_survived(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    path.symlink_to("/dev/full")
    journal = Journal(path, 2**20, 2)
    for at_s in range(5):
        journal.record(line(float(at_s), _LAUNCH))
    await journal.close()
    assert caplog.text.count("the cluster goes on") == 1
    assert "No space left" in caplog.text
    assert len(journal.recent) == 5
    path.unlink()
    journal.record(line(9.0, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [9.0]


async def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    """A disk that becomes full in the middle of a line."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    journal.record(line(1.0, _LAUNCH))
    await journal.close()
    write, calls = os.write, []

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr("dask_tide.controller.journal.os.write", full)
    journal.record(line(2.0, _LAUNCH))
    await journal.close()
    monkeypatch.undo()
    assert len(calls) == 2
    journal.record(line(3.0, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [1.0, 3.0]


async def test_a_line_that_cannot_be_written_is_told_once_and_keeps_no_other_away(tmp_path, caplog):
    """An error that names a path which is not UTF-8: no line was written any more, and closing failed."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    for at_s, text in enumerate(("first", "/home/J\udcf6rg", "/home/J\udcf6rg", "last")):
        journal.record(line(float(at_s), events=(Event("default", "", why(Code.PROVIDER, message=text)),)))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [0.0, 3.0]
    assert caplog.text.count("the cluster goes on") == 1


async def test_the_controller_cleans_up_whatever_the_journal_could_not_write(harbour, tmp_path):
    h = await harbour(journal={"path": str(tmp_path / "journal.jsonl")})
    cleaned: list[str] = []
    h.controller._clean_up = lambda: cleaned.append("up")
    h.controller._tell("default", "", why(Code.PROVIDER, message="/home/J\udcf6rg"))
    await h.tick()
    await h.controller.close()
    assert cleaned == ["up"]


async def test_lines_are_written_where_there_are_no_more_threads(tmp_path, monkeypatch):
    """At the interpreter's end; the controller did not clean up then."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)

    def refuse(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for at_s in (1.0, 2.0):
        journal.record(line(at_s, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [1.0, 2.0]


async def test_a_disk_that_hangs_holds_up_nobody_and_takes_no_memory(tmp_path, caplog, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    go_on = threading.Event()
    monkeypatch.setattr(module, "_end_last_line", lambda _: go_on.wait())
    monkeypatch.setattr(threads, "_FINISH_S", 0.1)
    try:
        for at_s in range(2000):
            journal.record(line(float(at_s), _LAUNCH))
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2, "this one, and one that writes"
        await journal.close()
        assert caplog.text.count("lines are left out") == 1
        assert "lines that are not written yet: 501" in caplog.text
    finally:
        go_on.set()
    await until(lambda: path.exists() and len([*read(path)]) > 500, "those that wait are written")
    await journal.close()
    journal.record(line(3000.0, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [*range(501), 3000.0]
    assert caplog.text.count("Journal") == 2


def test_a_disk_that_hangs_keeps_no_process_from_ending(tmp_path):
    path = tmp_path / "journal.jsonl"
    os.mkfifo(path)  # nobody reads it
    script = f"""
import asyncio
from pathlib import Path
from dask_tide.controller import threads
from dask_tide.controller.journal import Journal, Line
from dask_tide.model import Memory, Settings, Snapshot

async def main():
    journal = Journal(Path({str(path)!r}), 2**20, 2)
    journal.record(Line(1.0, Snapshot(1.0, Settings(), ()), Memory(), ()))
    await journal.close()

threads._FINISH_S = 0.1
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert "lines that are not written yet: 1" in ended.stderr


async def test_missing_folder(tmp_path, caplog):
    journal = Journal(tmp_path / "nowhere" / "journal.jsonl", 2**20, 2)
    journal.record(line(1.0))
    await journal.close()
    assert "the cluster goes on" in caplog.text


async def test_folder_that_a_cleaner_removes_is_made_again(tmp_path, caplog):
    path = tmp_path / "cleaned" / "journal.jsonl"
    path.parent.mkdir()
    journal = Journal(path, 2**20, 2)
    for at_s in (1.0, 2.0):
        journal.record(line(at_s, _LAUNCH))
        await journal.close()
        shutil.rmtree(path.parent)
    journal.record(line(3.0, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [3.0]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not caplog.text


async def test_deciding_again_gives_the_same_bytes(harbour, tmp_path):
    path = tmp_path / "journal.jsonl"
    h = await harbour(journal={"path": str(path)}, release={"keep": "0s", "tail": "0s"})
    futures = h.client.map(gates.quick, [f"t{i}" for i in range(20)])
    await h.client.gather(futures)
    del futures
    h.controller.scale(2)
    await h.running(2)
    h.controller.adapt()
    await h.running(0)
    await until(lambda: h.told("DRAIN_DONE"), "the ends of the drains are in it too")
    await h.controller.close()
    lines = list(read(path))
    assert {type(action).__name__ for entry in lines for action in entry.actions} >= {
        "Launch",
        "Drain",
        "Hold",
    }
    assert any(entry.events for entry in lines)
    for entry in lines:
        actions, _ = decide(entry.snapshot, entry.memory)
        assert encode_actions(actions) == encode_actions(entry.actions)


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"at_s": 1}', b"\xff\xfe", b""])
async def test_corrupt_line_is_named(tmp_path, bad):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    journal.record(line(1.0, _LAUNCH))
    await journal.close()
    with path.open("ab") as file:
        file.write(bad + b"\n")
    lines = read(path)
    assert next(lines).at_s == 1.0
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 2"):
        next(lines)


async def written(path, *times_s, files=2):
    """A journal with these lines, of a scheduler that has ended."""
    journal = Journal(path, 8000, files)
    for at_s in times_s:
        journal.record(line(at_s, _LAUNCH))
        await journal.close()
    return journal


async def test_last_line_that_was_cut_off_is_left_out(tmp_path):
    """``kill -9``, ``head -c``, a copy of a live journal: of no use was all of it."""
    path = tmp_path / "journal.jsonl"
    await written(path, 1.0, 2.0)
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    said: list[str] = []
    for end in range(start + 1, len(data) - 1):
        path.write_bytes(data[:end])
        said.clear()
        assert [entry.at_s for entry in read(path, said.append)] == [1.0], data[start:end]
        assert said == [f"{path}, line 2 is cut off, and left out"]
    path.write_bytes(data[:-1])
    said.clear()
    assert [entry.at_s for entry in read(path, said.append)] == [1.0, 2.0], "it lacks no more than its end"
    assert not said


async def test_last_line_of_an_older_file_that_was_cut_off_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    await written(path, 1.0)
    (tmp_path / "journal.jsonl.1").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(JournalError, match=r"journal\.jsonl\.1, line 1: "):
        list(read(path))


@pytest.mark.parametrize("bad", [b"[]", b'{"at_s": 1}', b'{"version":2}'])
async def test_last_line_that_is_whole_and_not_ours_is_named(tmp_path, bad):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(bad)
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 1: "):
        list(read(path))


@pytest.mark.parametrize("lost", [1, 2, 200])
async def test_scheduler_of_the_same_name_after_one_that_was_killed(tmp_path, lost):
    """In the middle of a line: the next one became a part of it, and all was lost."""
    path = tmp_path / "journal.jsonl"
    await written(path, 1.0, 2.0)
    path.write_bytes(path.read_bytes()[:-lost])
    await written(path, 3.0, 4.0)
    assert [entry.at_s for entry in read(path)] == [1.0, *([2.0] if lost == 1 else []), 3.0, 4.0]


async def test_half_a_line_is_not_rotated(tmp_path):
    path = tmp_path / "journal.jsonl"
    await written(path, *range(100), files=9)
    path.write_bytes(path.read_bytes()[:-9])
    journal = Journal(path, path.stat().st_size, 9)
    journal.record(line(100.0, _LAUNCH))
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [*range(99), 100.0]


@pytest.mark.parametrize("version", [0, 2, 99])
def test_line_of_another_version_is_named_as_such(tmp_path, version):
    path = tmp_path / "journal.jsonl"
    ours = msgspec.json.encode(replace(line(1.0), version=version))
    for data in (ours, ours.replace(b'"at_s"', b'"at"'), f'{{"version":{version}}}'.encode()):
        path.write_bytes(data + b"\n")
        with pytest.raises(JournalError, match=rf"line 1: format version {version}, this is 1$"):
            list(read(path))


async def test_rotation_while_it_is_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = await written(path, *map(float, range(40)))
    lines = read(path)
    times = [next(lines).at_s]
    for at_s in range(40, 200):
        journal.record(line(float(at_s), _LAUNCH))
        await journal.close()
    times += [entry.at_s for entry in lines]
    assert times == [times[0] + n for n in range(len(times))], "without a gap"
    assert times[-1] >= 39.0


@pytest.mark.parametrize("files", [1, 2, 3, 5])
@pytest.mark.parametrize("written_s", [(), (900.0,)])
@pytest.mark.parametrize("moment", [1, 2, 3, 4])
async def test_rotation_while_it_is_opened(tmp_path, monkeypatch, files, written_s, moment):
    """After that many files were opened, and whether or not there is a new one yet."""
    path = tmp_path / "journal.jsonl"
    journal = await written(path, *map(float, range(200)), files=files)
    assert len(list(tmp_path.iterdir())) == files
    before = [entry.at_s for entry in read(path)]
    plain, opened = Path.open, []

    def rotated(self, *arguments, **options):
        file = plain(self, *arguments, **options)
        opened.append(self)
        if len(opened) == moment:
            journal._rotate(8000)
            for at_s in written_s:
                journal._write(line(at_s, _LAUNCH))
        return file

    monkeypatch.setattr(Path, "open", rotated)
    times = [entry.at_s for entry in read(path)]
    assert times == before[-len(times) :], "without a gap"
    in_a_file = 8000 // len(msgspec.json.encode(line(0.0, _LAUNCH)))
    assert len(before) - len(times) <= in_a_file, "but for the oldest file"
    if moment >= files:
        assert times == before


async def test_between_two_files(tmp_path):
    """Killed in the middle of a rotation: there is no newest one."""
    path = tmp_path / "journal.jsonl"
    journal = await written(path, 1.0, 2.0)
    journal._rotate(8000)
    assert not path.exists()
    assert [entry.at_s for entry in read(path)] == [1.0, 2.0]


async def test_line_that_is_being_written_while_it_is_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    await written(path, 1.0, 2.0)
    data = path.read_bytes()
    for end in (len(data) - 9, len(data) - 1):
        path.write_bytes(data[:end])
        lines = read(path, lambda _: path.write_bytes(data))
        assert next(lines).at_s == 1.0
        if end == len(data) - 1:
            assert next(lines).at_s == 2.0
            path.write_bytes(data)
        assert [*lines] == []


@pytest.mark.parametrize("files", [1, 2, 3])
async def test_fewer_files_than_before(tmp_path, files):
    """The older ones stayed, and were read before those that came much later."""
    path = tmp_path / "journal.jsonl"
    await written(path, *map(float, range(400)), files=5)
    assert len(list(tmp_path.iterdir())) == 5
    not_ours = tmp_path / "journal.jsonl.20261130"
    shutil.copy(path, not_ours)
    await written(path, 400.0, files=files)
    not_ours.unlink()
    assert len(list(tmp_path.iterdir())) == files
    await written(path, *map(float, range(401, 500)), files=files)
    times = [entry.at_s for entry in read(path)]
    assert times == [float(t) for t in range(500 - len(times), 500)], "the newest, without a gap"


async def test_name_with_characters_of_patterns(tmp_path):
    path = tmp_path / "[1]*.jsonl"
    await written(path, *map(float, range(40)), files=9)
    assert len(list(tmp_path.iterdir())) > 1
    assert [entry.at_s for entry in read(path)] == [float(t) for t in range(40)]


def test_no_journal(tmp_path):
    with pytest.raises(JournalError, match="No such file"):
        list(read(tmp_path / "nothing"))


async def test_slow_disk_keeps_the_order_and_nobody_waiting(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, 2**20, 2)
    for at_s in range(20):
        journal.record(line(float(at_s), _LAUNCH))
    await asyncio.sleep(0)
    await journal.close()
    assert [entry.at_s for entry in read(path)] == [float(t) for t in range(20)]


async def test_what_is_kept_in_memory_is_bounded_whatever_a_line_tells_of():
    journal = Journal(None, 2**20, 2)
    units = tuple(Unit(f"u{i}", "default", Phase.RUNNING) for i in range(100_000))
    for at_s in range(10):
        few = line(float(at_s), _LAUNCH)
        journal.record(few if at_s < 5 else replace(few, snapshot=replace(few.snapshot, units=units)))
    assert [entry.at_s for entry in journal.recent] == [8.0, 9.0]
    for at_s in range(10, 700):
        journal.record(line(float(at_s), _LAUNCH))
    assert len(journal.recent) == 500
