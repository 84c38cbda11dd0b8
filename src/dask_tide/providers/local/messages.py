"""Messages between the provider and its forkserver: JSON, one a line."""

from __future__ import annotations

import json

import msgspec

__all__ = ["Exited", "Request", "Start", "Stop", "WorkerProcess", "encode", "read_exited", "read_request"]


class WorkerProcess(msgspec.Struct, frozen=True):
    """One process to fork.

    Attributes
    ----------
    name
        The Dask worker's name.
    arguments
        Those of ``dask worker``.
    environment
        Variables to set beside those of the forkserver.
    log
        Path of the file that takes its output.
    limit_bytes
        Resident memory above which it is killed; 0: never.
    """

    name: str
    arguments: list[str]
    environment: dict[str, str]
    log: str
    limit_bytes: int


class Start(msgspec.Struct, frozen=True, tag=True):
    """Start the processes of ``unit``, with ``path`` as their ``sys.path``."""

    unit: str
    workers: list[WorkerProcess]
    path: list[str]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Ask the processes of ``unit`` to end, unless they do by themselves; kill them after ``grace_s``."""

    unit: str
    grace_s: float
    ask: bool = True


Request = Start | Stop


class Exited(msgspec.Struct, frozen=True):
    """A process of ``unit`` has ended; what a forkserver reports.

    Attributes
    ----------
    unit, worker
        Which.
    code
        Its exit code, or a negative signal number as in :mod:`subprocess`.
    reason
        Why it ended, where the forkserver killed it of its own accord or could not start it.
    """

    unit: str
    worker: str
    code: int
    reason: str = ""


def encode(message: Request | Exited) -> bytes:
    """A message as a line.

    Not in msgspec's own JSON, which is UTF-8: paths may hold other bytes, and the surrogates that stand for
    them (:func:`os.fsdecode`) go as escapes only.
    """
    return json.dumps(msgspec.to_builtins(message)).encode() + b"\n"


def read_request(line: bytes) -> Request:
    """Undo :func:`encode`."""
    request: Request = msgspec.convert(json.loads(line), Request)
    return request


def read_exited(line: bytes) -> Exited:
    """Undo :func:`encode`."""
    return msgspec.convert(json.loads(line), Exited)
