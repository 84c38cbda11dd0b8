"""Journal: every decision with all that led to it, as one JSON line.

``explain``, ``replay`` and a bug report read this one format. A line holds what ``decide`` was
given, so deciding again must give the same actions, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dask_tide.errors import JournalError
from dask_tide.model import Action, Hold, Memory, Snapshot, Why

logger = logging.getLogger("distributed.tide.journal")

VERSION = 1
#: A line is written after this long even if nothing has changed.
_QUIET_S = 60.0
#: Lines kept in memory, for ``explain`` without a file; fewer, once they tell of more units, workers and
#: kinds of work than that (some hundred bytes each).
_RECENT, _TOLD = 500, 250_000


class Event(msgspec.Struct, frozen=True):
    """Something that happened outside of a decision: a drain's end, a veto, a provider's error."""

    pool: str
    unit: str
    why: Why


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tick.

    Attributes
    ----------
    at_s
        When, seconds since 1970.
    snapshot, memory, actions
        What ``decide`` was given and what it answered, before anything was vetoed.
    events
        What has happened since the line before.
    version
        Of this format.
    """

    at_s: float
    snapshot: Snapshot
    memory: Memory
    actions: tuple[Action, ...]
    events: tuple[Event, ...] = ()
    version: int = 1


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Journal:
    """Keeps the last lines in memory and writes them to a file where one is configured.

    Parameters
    ----------
    path
        The file; None: memory only. It is created with mode 0600.
    max_bytes
        Size of one file, at the most.
    files
        How many files are kept: the one at ``path``, then ``path.1`` (older), and so on.
    """

    def __init__(self, path: Path | None, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self.recent: deque[Line] = deque()
        self._told = 0
        self._shape: object = None
        self._written_s = -_QUIET_S
        self._writing: asyncio.Task[None] | None = None
        self._failing = False

    def record(self, line: Line) -> None:
        """Take a tick down, if it changed something or the last line is a minute old."""
        shape = _shape(line)
        if shape == self._shape and not line.events and line.at_s - self._written_s < _QUIET_S:
            return
        self._shape = shape
        self._written_s = line.at_s
        self.recent.append(line)
        self._told += _told(line)
        while len(self.recent) > _RECENT or (self._told > _TOLD and len(self.recent) > 1):
            self._told -= _told(self.recent.popleft())
        if self._path is None:
            return
        previous = self._writing
        # In a thread: a slow disk must not hold up the scheduler.
        self._writing = asyncio.create_task(self._write_after(previous, line))

    async def close(self) -> None:
        """Wait until the last line is on disk."""
        if self._writing is not None:
            await self._writing

    async def _write_after(self, previous: asyncio.Task[None] | None, line: Line) -> None:
        if previous is not None:
            await previous
        await asyncio.to_thread(self._write, line)

    def _write(self, line: Line) -> None:
        assert self._path is not None
        data = _encoder.encode(line) + b"\n"
        try:
            self._rotate(len(data))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failing:
                logger.warning("Journal %s cannot be written, the cluster goes on: %s", self._path, error)
            self._failing = True
        else:
            self._failing = False

    def _rotate(self, more: int) -> None:
        assert self._path is not None
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size + more <= self._max_bytes:
            return
        names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, self._files))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        if self._files == 1:
            self._path.unlink()


def _write_all(descriptor: int, data: bytes) -> None:
    """Write a whole line or nothing: a half one would make the next one unreadable too."""
    start = os.fstat(descriptor).st_size
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, start)
        raise


def _told(line: Line) -> int:
    """Of how much a line tells."""
    return len(line.snapshot.units) + len(line.snapshot.workers) + len(line.snapshot.work)


def _shape(line: Line) -> object:
    """What must change for a tick to be worth a line."""
    return (
        tuple((type(action).__name__, action.pool, action.why.code) for action in line.actions),
        any(not isinstance(action, Hold) for action in line.actions) and line.at_s,
        tuple((unit.name, unit.phase) for unit in line.snapshot.units),
        tuple(state.pool for state in line.snapshot.pools),
    )


def encode_actions(actions: tuple[Action, ...]) -> bytes:
    """Actions as they stand in a line; two decisions are the same if these bytes are."""
    return _encoder.encode(actions)


def read(path: Path) -> Iterator[Line]:
    """Read a journal's lines, oldest first, including its rotated files.

    Raises
    ------
    JournalError
        A line is not one of ours, or the file cannot be read; says which line.
    """
    older = sorted(
        (p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()),
        key=lambda p: int(p.suffix[1:]),
        reverse=True,
    )
    for file in (*older, path):
        try:
            with file.open("rb") as lines:
                for number, data in enumerate(lines, 1):
                    try:
                        line = _decoder.decode(data)
                    except msgspec.MsgspecError as error:
                        raise JournalError(f"{file}, line {number}: {error}") from error
                    if line.version != VERSION:
                        raise JournalError(
                            f"{file}, line {number}: format version {line.version}, this is {VERSION}"
                        )
                    yield line
        except OSError as error:
            raise JournalError(f"{file}: {error.strerror}") from error
