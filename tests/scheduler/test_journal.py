"""The journal: small, private, never in the way, and enough to decide again."""

from __future__ import annotations

import asyncio
import os
import stat

import gates
import pytest
from msgspec.structs import replace
from waiting import until

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


async def test_missing_folder(tmp_path, caplog):
    journal = Journal(tmp_path / "nowhere" / "journal.jsonl", 2**20, 2)
    journal.record(line(1.0))
    await journal.close()
    assert "the cluster goes on" in caplog.text


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
