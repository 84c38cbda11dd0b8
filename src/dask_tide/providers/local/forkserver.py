"""Forkserver: a process that has imported all that a Dask worker needs, and forks workers.

Starting Python and importing distributed takes a second or two of CPU time for each worker; a
fork of a process that has done so takes milliseconds. The standard library's forkserver imports
the user's ``__main__``, is one for the whole program with the environment of its first use, and
leaves its children behind when it dies; so this is one of our own.

It does not outlive the process that started it, however that ends: the end of file on the
connection says so at once, and where a forked child of that process has inherited the other end,
``getppid`` says so, at which a timer makes it look. Its workers do not outlive it: the kernel sees to that
(``PR_SET_PDEATHSIG``), whatever a worker is doing. The forkserver cannot use that for itself: it
is bound to the *thread* that started the process, and a notebook's threads come and go.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import io
import os
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import dask
import psutil
from dask.utils import format_bytes, parse_timedelta
from distributed.cli.dask_worker import main as dask_worker

from .command import PRELOADS
from .messages import Exited, Stop, WorkerProcess, encode, read_request

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["main"]

#: How long workers may take to end when the forkserver is told to (SIGTERM).
END_GRACE_S = 1.0

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_THREADS = Path("/proc/self/task")
_HANDLED = {signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM}


def main(parent: int) -> None:
    """Fork workers as the other end of standard input, a socket, asks for.

    Returns at the end of the forkserver, and in each worker at the worker's end.

    Parameters
    ----------
    parent
        Process id of whoever started this process.
    """
    # What is imported may print or read: the connection must not be where it does.
    connection = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    _import_ahead()
    forkserver = _Forkserver(connection, parent)
    job = forkserver.serve()
    if job is not None:
        forkserver.leave()
        _work(*job)


def _import_ahead() -> None:
    """Import what a worker imports until it has registered, so that no child has to."""
    routes = dask.config.get("distributed.worker.http.routes", [])
    for module in ["dask.distributed", "tornado.platform.asyncio", *PRELOADS, *routes]:
        # The worker says what is wrong with a module that cannot be imported.
        with suppress(ImportError):
            importlib.import_module(module)
    # So that the children's collections do not write to, and thereby copy, the pages that they share.
    gc.collect()
    gc.freeze()
    # A fork copies only the thread that calls it: a lock that another one holds would stay locked for ever.
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        sys.exit(
            f"Workers cannot be forked safely: importing distributed starts threads: {', '.join(others)}"
        )
    if _THREADS.exists() and len(list(_THREADS.iterdir())) > 1:
        # numpy's OpenBLAS when OPENBLAS_NUM_THREADS is not 1: it provides for forks itself.
        print("Note: workers are forked while threads of a native library run.", file=sys.stderr)  # noqa: T201


@dataclass
class _Child:
    unit: str
    name: str
    limit_bytes: int
    kill_at_s: float | None = None
    grace_s: float = 0.0
    killed: bool = False
    reason: str = ""


#: What a freshly forked child shall be, and its ``sys.path``.
_Job = tuple[WorkerProcess, list[str]]


class _Forkserver:
    """The loop of the forkserver. It has one thread, and waits in ``select`` only."""

    def __init__(self, connection: socket.socket, parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._pid = os.getpid()
        self._received = b""
        self._children: dict[int, _Child] = {}
        self._told_to_end = False
        interval = dask.config.get("distributed.worker.memory.monitor-interval") or "500 ms"
        self._memory_interval_s = float(parse_timedelta(interval))
        # Each signal that has a handler puts a byte here, which ends select.
        self._signals, self._wakeup = socket.socketpair()
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        self._told_to_end = True

    def serve(self) -> _Job | None:
        """Serve until told to end or nobody is there any more; then return None.

        Also returns in each child, with its job: unwinding the stack gives it an ordinary life
        with an ordinary interpreter exit at its end.
        """
        try:
            while self._wait() and not (self._told_to_end and not self._children):
                job = self._answer()
                if job is not None:
                    return job
                if self._told_to_end:
                    for unit in {child.unit for child in self._children.values()}:
                        self._stop(unit, END_GRACE_S)
                self._reap()
                self._kill()
        except ConnectionError:
            pass  # nobody is there to be told what happened
        for pid in self._children:
            os.killpg(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        return None

    def leave(self) -> None:
        """In a child: be nothing but a child of the forkserver."""
        _die_with(self._pid)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for end in (self._connection, self._signals, self._wakeup):
            end.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _wait(self) -> bool:
        """Wait for something to do; False if there is nobody left to do it for."""
        for key, _ in self._selector.select(self._timeout_s()):
            if key.fileobj is self._signals:
                self._signals.recv(1 << 10)
                continue
            data = self._connection.recv(1 << 16)
            if not data:
                return False
            self._received += data
        return os.getppid() == self._parent

    def _timeout_s(self) -> float | None:
        if self._told_to_end and not self._children:
            return 0.0
        now_s = time.monotonic()
        children = [child for child in self._children.values() if not child.killed]
        waits = [max(0.0, child.kill_at_s - now_s) for child in children if child.kill_at_s is not None]
        if any(child.limit_bytes for child in children):
            waits.append(self._memory_interval_s)
        return min(waits, default=None)

    def _answer(self) -> _Job | None:
        """Do what was asked for; in a child, return its job."""
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            request = read_request(line)
            if isinstance(request, Stop):
                self._stop(request.unit, request.grace_s, ask=request.ask)
                continue
            for worker in request.workers:
                if self._fork(request.unit, worker):
                    return worker, request.path
        return None

    def _fork(self, unit: str, worker: WorkerProcess) -> bool:
        """Fork; True in the child, whose output goes to its log."""
        try:
            # Here, where it can be said why that fails. Read, too: it is part of the worker's logs.
            log = os.open(worker.log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._report(Exited(unit, worker.name, 1, f"its log could not be opened: {error}"))
            return False
        # A signal that reaches the child before it is rid of our handlers must wait, not be lost in them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
        except OSError as error:
            self._report(Exited(unit, worker.name, 1, f"it could not be forked: {error}"))
        else:
            if pid == 0:
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.close(log)
                return True
            # The child does the same; whoever comes first. The group must exist before it may be killed.
            with suppress(PermissionError):
                os.setpgid(pid, pid)
            self._children[pid] = _Child(unit, worker.name, worker.limit_bytes)
        os.close(log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        return False

    def _stop(self, unit: str, grace_s: float, *, ask: bool = True) -> None:
        kill_at_s = time.monotonic() + grace_s
        for pid, child in self._children.items():
            if child.unit != unit:
                continue
            if child.kill_at_s is None:
                if ask:
                    # Once only: at a second SIGTERM a worker that gives away its results would exit at once.
                    os.kill(pid, signal.SIGTERM)
                child.kill_at_s = kill_at_s
                child.grace_s = grace_s
            child.kill_at_s = min(child.kill_at_s, kill_at_s)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            self._report(Exited(child.unit, child.name, os.waitstatus_to_exitcode(status), child.reason))

    def _kill(self) -> None:
        """Kill what has not stopped in time, and, as a nanny would, what takes too much memory."""
        now_s = time.monotonic()
        for pid, child in self._children.items():
            if child.killed:
                continue  # it may take a while to end, and uses no memory any more: the reason stands
            overdue = child.kill_at_s is not None and child.kill_at_s <= now_s
            if not overdue and child.limit_bytes:
                child.reason = _excess(pid, child.limit_bytes)
            if overdue:
                child.reason = f"killed because it had not ended after {child.grace_s:g} s"
            if child.reason:
                # With the subprocesses of its tasks, which would go on taking memory and cores.
                os.killpg(pid, signal.SIGKILL)
                child.killed = True

    def _report(self, event: Exited) -> None:
        self._connection.sendall(encode(event))


def _excess(pid: int, limit_bytes: int) -> str:
    """Say by how much a process exceeds its memory limit; empty: it does not."""
    used_bytes = psutil.Process(pid).memory_info().rss
    if used_bytes <= limit_bytes:
        return ""
    return (
        f"killed because it used {format_bytes(used_bytes)} of memory, more than {format_bytes(limit_bytes)}"
    )


def _die_with(forkserver: int) -> None:
    """Have this process killed when its parent, the forkserver, dies."""
    if not sys.platform.startswith("linux"):
        return  # a forkserver kills its children, unless it is itself killed
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != forkserver:  # it died before
        os._exit(1)


class _Log(io.FileIO):
    """What does not fit on the disk any more is lost: no task is to fail because it has printed something."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return memoryview(data).nbytes


def _to_log(stream: TextIO) -> TextIO:
    """The same stream on a :class:`_Log`, of which each line can be read at once."""
    if not isinstance(stream, io.TextIOWrapper):  # what was imported has put its own there
        return stream
    raw = _Log(stream.fileno(), "w", closefd=False)
    # Without a buffer where PYTHONUNBUFFERED says so.
    buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=True, write_through=stream.write_through
    )


def _work(worker: WorkerProcess, path: list[str]) -> None:
    """Be a Dask worker: from here on all is as in a process of its own."""
    sys.stdout, sys.stderr = _to_log(sys.stdout), _to_log(sys.stderr)
    os.environ.update(worker.environment)
    if any(name.startswith("DASK_") for name in worker.environment):
        dask.config.refresh()
    sys.path[:] = path
    sys.argv = ["dask worker", *worker.arguments]
    if "numpy" in sys.modules:
        # Else all workers would draw the same numbers. (Python's own `random` sees to that itself.)
        sys.modules["numpy"].random.seed()
    gc.enable()

    outcome = dask_worker.main(args=worker.arguments, prog_name="dask worker", standalone_mode=False)
    # None once a worker has run; 0 after options such as --help: nobody would learn why there is no worker.
    if outcome is not None:
        sys.exit("`dask worker` ended before there was a worker")
