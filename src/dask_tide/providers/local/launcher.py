"""Launcher: the provider's side of a forkserver."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from dask_tide.errors import Unavailable

from .messages import Exited, Request, encode, read_exited

__all__ = ["Launcher", "describe_exit", "last_lines", "search_path"]

#: How long a forkserver may take to end its workers and itself until it is killed.
END_S = 3.0
_POLL_S = 0.01
#: How often the forkserver looks whether we are still there, beside the end of file on the connection.
WATCH_S = 0.5

# -c instead of -m: a fresh interpreter need not know where dask_tide is. Importing takes a second or more, in
# which we may end: there is no worker yet, so the forkserver may just exit. Collecting garbage slows it down.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
import gc, os, signal

def look(*_):
    if os.getppid() != {parent}:
        os._exit(1)

signal.signal(signal.SIGALRM, look)
signal.setitimer(signal.ITIMER_REAL, {watch_s}, {watch_s})
gc.disable()
from dask_tide.providers.local.forkserver import main
main({parent})
"""


class Launcher:
    """A forkserver that has been started, and the connection to it.

    The constructor returns at once, while the forkserver imports what it needs; what is sent to
    it meanwhile waits.

    Parameters
    ----------
    environment
        All its environment variables, which its workers inherit.
    log
        The file for its own output.

    Raises
    ------
    Unavailable
        If the process cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._unsent = b""
        self._writer: asyncio.StreamWriter | None = None
        self._connecting = self._disconnected = False
        program = _PROGRAM.format(path=search_path(), parent=os.getpid(), watch_s=WATCH_S)
        self._socket, theirs = socket.socketpair()
        try:
            with theirs, open(log, "ab", opener=_private) as output:
                # Its own session: Ctrl-C in a terminal is for the user's program, not for the workers.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=output,
                    env=dict(environment),
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"the forkserver of local workers cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, request: Request) -> None:
        """Send a request; lost if the forkserver has ended, which ends :meth:`events`."""
        line = encode(request)
        if self._writer is None:
            self._unsent += line
        else:
            self._writer.write(line)

    async def events(self) -> AsyncIterator[Exited]:
        """What the forkserver reports, until it has ended. To be iterated over once."""
        self._connecting = True
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        if self._disconnected:
            self._writer.close()
        else:
            self._writer.write(self._unsent)
        try:
            async for line in reader:
                if line.endswith(b"\n"):  # else it was killed while it wrote
                    yield read_exited(line)
        except ConnectionError:
            pass  # it was killed before it read what was sent
        await self.end()

    async def end(self) -> None:
        """End the forkserver and its workers, and wait for that. Idempotent."""
        deadline_s = time.monotonic() + END_S
        if not self.ended:
            self._process.terminate()
        while not self.ended:
            if time.monotonic() > deadline_s:
                self._process.kill()  # the kernel kills its workers
            await asyncio.sleep(_POLL_S)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection, which ends a forkserver that still runs."""
        self._disconnected = True
        if self._writer is not None:
            self._writer.close()
        elif not self._connecting:
            self._socket.close()
        # Else asyncio is about to use the socket, and it is closed then.

    def obituary(self) -> str:
        """How it ended, and its last words."""
        how = describe_exit(self._process.returncode)
        return f"the forkserver of local workers ended: {how}\n{last_lines(self.log)}".rstrip()


def search_path() -> list[str]:
    """``sys.path`` as another process needs it: what can be imported here can be there."""
    try:
        here = str(Path.cwd())
    except OSError:  # somebody has removed it: nothing can be imported from there
        here = ""
    # Some put a subclass of str there, which is no str to others.
    return [str(entry or here) for entry in sys.path if isinstance(entry, str) and (entry or here)]


def describe_exit(code: int) -> str:
    """Exit code, or signal, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"  # a real-time signal


def last_lines(path: Path, count: int = 10, limit_bytes: int = 4096) -> str:
    """The end of a log; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-count:])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
