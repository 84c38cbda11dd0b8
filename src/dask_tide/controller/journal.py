"""Journal: every decision with all that led to it, as one JSON line.

``explain``, ``replay`` and a bug report read this one format. A line holds what ``decide`` was
given, so deciding again must give the same actions, byte for byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from dask_tide.errors import JournalError
from dask_tide.model import Action, Hold, Memory, Snapshot, Why
from dask_tide.ownership import make

from .threads import aside, finished

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


class _Version(msgspec.Struct):
    """All that is known of a line of another version."""

    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_version_decoder = msgspec.json.Decoder(_Version)


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
        #: Lines that are not written yet.
        self._waiting: deque[Line] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._late = False
        self._begun = False
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
        if len(self._waiting) >= len(self.recent):  # no more memory than these take
            if not self._late:
                logger.warning("Journal %s is not written in time, lines are left out", self._path)
            self._late = True
            return
        self._waiting.append(line)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_on())

    async def close(self) -> None:
        """Wait until the last line is on disk, if that does not take too long."""
        if not await finished(self._writing):
            late = len(self._waiting) + 1  # the one that is being written
            logger.warning("Journal %s, lines that are not written yet: %d", self._path, late)

    async def _write_on(self) -> None:
        while self._waiting:
            await aside(self._write_waiting)
        self._late = False

    def _write_waiting(self) -> None:
        while self._waiting:
            self._write(self._waiting.popleft())

    def _write(self, line: Line) -> None:
        assert self._path is not None
        try:
            data = _encoder.encode(line) + b"\n"
            if not self._begun:
                _end_last_line(self._path)
                self._remove_beyond()
            self._rotate(len(data))
            descriptor = self._open(self._path)
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)
        except Exception as error:  # noqa: BLE001 -- text that is not UTF-8, say
            if not self._failing:
                logger.warning("Journal %s cannot be written, the cluster goes on: %s", self._path, error)
            self._failing = True
        else:
            self._begun = True
            self._failing = False

    def _open(self, path: Path) -> int:
        try:
            return _append_to(path)
        except FileNotFoundError:
            if not self._begun:
                raise
            # The folder was there; a cleaner of /tmp, say, has removed it.
            make(path.parent)
            return _append_to(path)

    def _remove_beyond(self) -> None:
        """Remove files that are too many since fewer are kept: a journal with them would have a gap."""
        for n in itertools.count(self._files):
            try:
                Path(f"{self._path}.{n}").unlink()
            except OSError:  # mostly as there is none
                return

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


def _append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _end_last_line(path: Path) -> None:
    """Take back half a line of a scheduler that was killed: the next one would become a part of it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        for last in deque(file, 1):
            if last.endswith(b"\n"):
                return
            if last.startswith(b"{") and _is_cut(last):
                file.truncate(file.tell() - len(last))
            else:
                file.write(b"\n")


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


def read(path: Path, say: Callable[[str], object] = logger.warning) -> Iterator[Line]:
    """Read a journal's lines, oldest first, including its rotated files; it may be written to meanwhile.

    Parameters
    ----------
    path
        Of its newest file.
    say
        Is told of a last line that was cut off and is left out: its scheduler was killed, or is about to
        write the rest.

    Raises
    ------
    JournalError
        A line is not one of ours, or the file cannot be read; says which line.
    """
    with contextlib.ExitStack() as stack:
        try:
            files = _open_all(path, stack)
            for file in files:
                for number, data in enumerate(file, 1):
                    unended = file is files[-1] and not data.endswith(b"\n")
                    try:
                        line = _decode(data)
                    except (msgspec.MsgspecError, JournalError) as error:
                        if unended and _is_cut(data):
                            say(f"{file.name}, line {number} is cut off, and left out")
                            return
                        raise JournalError(f"{file.name}, line {number}: {error}") from error
                    yield line
                    if unended:  # what follows by now belongs to it
                        return
        except OSError as error:
            raise JournalError(f"{error.filename or path}: {error.strerror}") from error


def _open_all(path: Path, stack: contextlib.ExitStack) -> list[BinaryIO]:
    """All files of a journal, oldest first; rotated while they are read, they stay what they were."""
    files: dict[tuple[int, int], BinaryIO] = {}
    # Newest first: one that is rotated at this moment is met twice, and none is missed.
    for name in itertools.chain((path,), _older(path)):
        with contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(name.open("rb"))
            found = os.fstat(file.fileno())
            files.setdefault((found.st_dev, found.st_ino), file)
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return [*reversed(files.values())]


def _older(path: Path) -> Iterator[Path]:
    """A journal's rotated files, newest first."""
    rotated = path.parent.glob(f"{glob.escape(path.name)}.*")
    yield from sorted((p for p in rotated if p.suffix[1:].isdigit()), key=lambda p: int(p.suffix[1:]))


def _decode(data: bytes) -> Line:
    """One line.

    Raises
    ------
    msgspec.MsgspecError
        It is not one.
    JournalError
        It is one of another version.
    """
    try:
        line = _decoder.decode(data)
    except msgspec.MsgspecError:
        # Of another version, more may be different than that.
        _check(_version_decoder.decode(data).version)
        raise
    _check(line.version)
    return line


def _check(version: int) -> None:
    if version != VERSION:
        raise JournalError(f"format version {version}, this is {VERSION}")


def _is_cut(data: bytes) -> bool:
    """Whether this is no whole JSON value, whatever it tells of."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return True
    return False
