"""Durations: what the tasks of a function took, and a file that tells the next scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from .threads import aside, finished

__all__ = ["LONGEST_S", "Durations", "DurationsFile"]

logger = logging.getLogger("distributed.tide.durations")

#: A mean over about this many of the last durations of a function.
_COUNTED = 50
#: How many of those another scheduler's mean is worth: what the function does may have changed since.
_BELIEVED = 5
#: Of so many names, those that ran last.
_NAMES = 20_000
#: Shorter ones are alike, and nothing takes longer (300 years).
_SHORTEST_S, LONGEST_S = 1e-3, 1e10
#: Time between two writes.
_WRITE_S = 60.0
#: Of the file's format.
_VERSION = 1


class Durations:
    """By name, what the tasks took: a mean that follows slowly, seconds."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[int, float]] = {}
        #: Sum of the means' logarithms.
        self._logs = 0.0
        self._changed: set[str] = set()

    def add(self, name: str, duration_s: float) -> None:
        """A task of this name took so long."""
        count, mean_s = self._means.get(name, (0, 0.0))
        count = min(count + 1, _COUNTED)
        self._set(name, count, mean_s + (duration_s - mean_s) / count)
        self._changed.add(name)

    def get(self, name: str) -> float | None:
        """What its tasks take; None: that was never measured."""
        known = self._means.get(name)
        return known[1] if known else None

    def typical_s(self, assumed_s: float) -> float:
        """What a function takes of which nothing is known: ``assumed_s``, or more where others took more.

        The geometric mean over all functions and the assumption, which counts as one of them.
        """
        assumed_s = max(assumed_s, _SHORTEST_S)
        return max(assumed_s, math.exp((math.log(assumed_s) + self._logs) / (1 + len(self._means))))

    def learn(self, means: Mapping[str, tuple[int, float]]) -> None:
        """Take over what another scheduler has measured, where nothing is known."""
        for name, (count, mean_s) in means.items():
            if name not in self._means:
                self._set(name, min(count, _BELIEVED), mean_s)

    def put_back(self, names: Iterable[str]) -> None:
        """These are to be taken again."""
        self._changed.update(name for name in names if name in self._means)

    def take_changed(self) -> dict[str, tuple[int, float]]:
        """Number of durations and mean of each name that was measured since the last call."""
        changed, self._changed = self._changed, set()
        return {name: self._means[name] for name in changed}

    def _set(self, name: str, count: int, mean_s: float) -> None:
        # The newest is the last one.
        before = self._means.pop(name, None)
        self._means[name] = (count, mean_s)
        self._logs += _log(mean_s) - (_log(before[1]) if before else 0.0)
        if len(self._means) > _NAMES:
            oldest = next(iter(self._means))
            self._logs -= _log(self._means.pop(oldest)[1])
            self._changed.discard(oldest)


class _Content(msgspec.Struct):
    """Of the file: for each name the number of durations and their mean, seconds."""

    durations: dict[str, tuple[int, float]]
    version: int = _VERSION


class DurationsFile:
    """Keeps durations over restarts.

    Several schedulers may share it: each writes what it has measured itself, and leaves the rest as it is. Of
    two that write at the same moment the last one wins.

    Parameters
    ----------
    path
        The file, made with mode 0600; None: nothing is kept.
    durations
        What is kept.
    """

    def __init__(self, path: Path | None, durations: Durations) -> None:
        self._path = path
        self._durations = durations
        self._written_s = -math.inf
        self._writing: asyncio.Task[None] | None = None
        self._failing = False

    def read(self) -> None:
        """Learn what is there. What cannot be read is told, and does without."""
        if self._path is not None:
            try:
                self._durations.learn(_read(self._path))
            except (OSError, _OtherVersionError) as error:
                self._failed(self._path, error)

    def write(self, now_s: float) -> None:
        """Write what has changed, if the last time is long enough ago; in a thread, as disks may be slow."""
        if self._path is None or now_s - self._written_s < _WRITE_S:
            return
        if self._writing is not None and not self._writing.done():
            return
        if changed := self._durations.take_changed():
            self._written_s = now_s
            self._writing = asyncio.create_task(aside(self._write, self._path, changed))

    async def close(self) -> None:
        """Write what has changed now, if that does not take too long."""
        done = await finished(self._writing)
        if done:
            self.write(math.inf)
            done = await finished(self._writing)
        if not done and self._path is not None:
            self._failed(self._path, TimeoutError("the disk does not answer"))

    def _write(self, path: Path, changed: dict[str, tuple[int, float]]) -> None:
        try:
            known = {name: mean for name, mean in _read(path).items() if name not in changed} | changed
            data = msgspec.json.encode(_Content(dict(list(known.items())[-_NAMES:])))
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            new = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data + b"\n")
                new.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    new.unlink()
                raise
        except Exception as error:  # noqa: BLE001 -- a name that is not UTF-8, say
            self._durations.put_back(changed)
            self._failed(path, error)
        else:
            self._failing = False

    def _failed(self, path: Path, error: Exception) -> None:
        if not self._failing:
            logger.warning("What tasks took is not kept in %s, the cluster goes on: %s", path, error)
        self._failing = True


class _OtherVersionError(Exception):
    """The file is of a version that is not ours to overwrite."""


def _read(path: Path) -> dict[str, tuple[int, float]]:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("%s does not tell what tasks took, and is written anew: %s", path, error)
        return {}
    if content.version != _VERSION:
        raise _OtherVersionError(f"format version {content.version}, this is {_VERSION}")
    return {
        name: (count, mean_s)
        for name, (count, mean_s) in content.durations.items()
        if count > 0 and 0 <= mean_s <= LONGEST_S
    }


def _log(mean_s: float) -> float:
    return math.log(max(mean_s, _SHORTEST_S))
