"""The process that a cluster's processes live and die with.

One keeper for each running cluster, outside of the process that started it. It starts the servers as its own
children, which the kernel kills with it (``PR_SET_PDEATHSIG``), and it watches its starter: when that is
gone, even by ``kill -9``, the keeper takes everything down. If the keeper itself is killed, only files and
empty cgroups are left, and the next start removes them (:func:`clean`).

Requests are JSON, one line each way, over a Unix socket in the cluster's folder.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rig import cgroups
from rig.folders import CHECKOUT, RigError, locked, runs, wait_for

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
STOP_S = 20.0
#: Variables of the user's that would send servers elsewhere: to the real AWS, another etcd, a proxy.
_STRANGE = re.compile(r"(AWS|ETCD)_.*|.*_proxy", re.IGNORECASE)


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's address; by way of a descriptor, since a Unix socket's path has 107 bytes at most."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/keeper.sock"
    finally:
        os.close(descriptor)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends: for ``preexec_fn``, on Linux."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _STRANGE.fullmatch(name)}


class Keeper:
    """What runs in the keeper's process.

    Parameters
    ----------
    folder
        The cluster's folder; it goes with the cluster.
    lock
        The locked file ``keeper.lock``, as a descriptor.
    starter
        The process that the cluster must not outlive; none for a cluster that is used by hand.
    """

    def __init__(self, folder: Path, lock: int, starter: int | None) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.starter = None if starter is None else os.pidfd_open(starter)
        if starter is not None and os.getppid() != starter:
            raise SystemExit("the starter is gone already")
        # Held as long as this process lives, and not by its children: `clean` leaves the cluster alone.
        self.lock = lock
        os.set_inheritable(lock, False)
        self.listener = socket.socket(socket.AF_UNIX)
        with _address(folder) as address:
            self.listener.bind(address)
        self.listener.listen(32)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        watched: list[Any] = [self.listener, *([] if self.starter is None else [self.starter])]
        try:
            while True:
                ready, _, _ = select.select(watched, [], [], 1.0)
                if self.starter in ready:
                    return
                if self.listener in ready and self._serve():
                    return
                for process in self.processes.values():
                    process.poll()  # reaps
        finally:
            self._take_down()

    def _serve(self) -> bool:
        connection, _ = self.listener.accept()
        # Who asked may hang up at any moment, and then nothing can be written: neither now nor by `close`.
        with suppress(OSError), connection, connection.makefile("rw") as stream:
            connection.settimeout(30)
            try:
                request = json.loads(stream.readline())
                if request["do"] == "quit":
                    return True
                reply = getattr(self, f"_{request.pop('do')}")(**request)
            except (
                OSError,
                ValueError,
                TypeError,
                AttributeError,
                KeyError,
                subprocess.SubprocessError,
            ) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            _write(stream, reply)
        return False

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
        if (before := self.processes.get(name)) is not None and before.poll() is None:
            raise ValueError(f"{name} runs already")
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        return {"pid": self.processes[name].pid}

    def _stop(self, name: str, number: int, wait_s: float) -> dict[str, Any]:
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            return {"code": process.wait(wait_s)}
        except subprocess.TimeoutExpired:
            process.kill()
            return {"code": process.wait(STOP_S)}

    def _signal(self, name: str, number: int) -> dict[str, Any]:
        self.processes[name].send_signal(number)
        return {}

    def _identify(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def _status(self) -> dict[str, Any]:
        return {name: [process.pid, process.poll()] for name, process in self.processes.items()}

    def _take_down(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(STOP_S)
        _remove(self.folder)


def _write(stream: TextIO, message: Any) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _remove(folder: Path) -> None:
    cgroups.remove(folder)
    lock = folder / "keeper.lock"  # last: who finds it free goes on with the removal
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != lock:
            path.unlink()
    lock.unlink()
    with suppress(FileNotFoundError):  # who finds no lock removes the folder
        folder.rmdir()


def clean() -> list[str]:
    """Remove what clusters left whose keeper is gone; return their names."""
    folders = [path for path in sorted(runs().iterdir()) if path.is_dir() and not path.name.startswith(".")]
    cleaned = [folder.name for folder in folders if _clean_one(folder)]
    for gone in runs().glob(".gone-*"):
        shutil.rmtree(gone, ignore_errors=True)
    return cleaned


def _clean_one(folder: Path) -> bool:
    """Remove a cluster if it is dead: at once from its place, then from the disk, which may take a while."""
    gone = folder.with_name(f".gone-{folder.name}-{time.time_ns()}")
    with locked(runs() / ".lock"):
        try:
            with (folder / "keeper.lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                cgroups.remove(folder)
        except FileNotFoundError:  # its start or its end was cut off in the middle
            pass
        except OSError:  # it runs, or something of it lives on for a while
            return False
        # As long as we have the lock: the next one of this name may begin at once.
        with suppress(FileNotFoundError):  # it went this moment
            folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _gone(folder: Path) -> bool:
    return not folder.exists() or _clean_one(folder)


def _remembered(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-12:] if path.exists() else []
    return "".join(f"\n    {line[:300]}" for line in lines)


class Kept:
    """A running cluster's keeper as others see it.

    Parameters
    ----------
    folder
        The cluster's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, name: str, *, bound: bool) -> Kept:
        """Start the keeper of a new cluster, after cleaning up what dead ones left.

        Parameters
        ----------
        name
            The cluster's name; one of this name must not run.
        bound
            Whether the cluster ends with this process.
        """
        clean()
        folder = runs() / name
        with locked(runs() / ".lock"):
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                raise RigError(f"a cluster {name!r} runs already ({folder})") from None
            lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)  # the keeper inherits it
        (folder / "logs").mkdir()
        starter = [str(os.getpid())] if bound else []
        try:
            with (folder / "logs" / "keeper.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "rig.keeper", str(folder), str(lock), *starter],
                    cwd=CHECKOUT,  # where `-m` looks
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)
        kept = cls(folder)
        kept._process = process
        wait_for(lambda: kept.runs() or process.poll() is not None, "the keeper runs", 60)
        if process.poll() is not None:
            raise RigError("the keeper ended at once:" + _remembered(folder / "logs" / "keeper.log"))
        return kept

    _process: subprocess.Popen[bytes] | None = None

    def runs(self) -> bool:
        """Whether the cluster runs."""
        try:
            return isinstance(self._ask(do="status"), dict)
        except (OSError, ValueError):
            return False

    def start(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start a process that ends with the cluster; its output goes to ``logs/<name>.log``."""
        request = {
            "name": name,
            "command": [str(word) for word in command],
            "environment": dict(environment or {}),
        }
        return int(self._asked(do="start", **request)["pid"])

    def stop(self, name: str, number: int = signal.SIGTERM, wait_s: float = STOP_S) -> None:
        """End a process by a signal, and by SIGKILL if it is still there after ``wait_s``."""
        self._asked(do="stop", name=name, number=int(number), wait_s=wait_s)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process."""
        self._asked(do="signal", name=name, number=int(number))

    def status(self) -> dict[str, tuple[int, int | None]]:
        """Process id and exit code (None while it runs) of each process, by name."""
        return {name: (pid, code) for name, (pid, code) in self._asked(do="status").items()}

    def failed(self, *names: str) -> str:
        """What failed although nobody stopped it, with the end of its log; empty if nothing did.

        Parameters
        ----------
        names
            Whom to look at; all of them by default.
        """
        ended = [name for name, (_, code) in self.status().items() if code and name in (names or (name,))]
        return "\n".join(
            f"{name} ended:{_remembered(self.folder / 'logs' / f'{name}.log')}" for name in ended
        )

    def wait_for(
        self, condition: Any, what: str, deadline_s: float = 60.0, *, of: Sequence[str] = ()
    ) -> None:
        """Wait for a condition; a process that ends meanwhile, one of these or any, is an error at once."""

        def met() -> bool:
            if condition():
                return True
            if failed := self.failed(*of):
                raise RigError(f"while waiting for {what}: {failed}")
            return False

        wait_for(met, what, deadline_s)

    def quit(self) -> None:
        """End the cluster; everything of it is gone on return."""
        process = -1
        with suppress(OSError, ValueError):  # it is gone, or goes while we ask
            process = os.pidfd_open(self._ask(do="identify")["pid"])
            self._ask(do="quit")  # no answer
        wait_for(lambda: _gone(self.folder), f"{self.folder} is gone", 180)
        if process >= 0:
            select.select([process], [], [], STOP_S)
            os.close(process)
        if self._process is not None:
            self._process.wait(STOP_S)

    def _asked(self, **request: Any) -> dict[str, Any]:
        try:
            reply = self._ask(**request)
        except (OSError, ValueError) as error:
            raise RigError(f"the cluster in {self.folder} does not run: {error}") from error
        if "error" in reply:
            raise RigError(f"{request['do']} {request.get('name', '')}: {reply['error']}")
        return reply

    def _ask(self, **request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(STOP_S * 3)
            with _address(self.folder) as address:
                connection.connect(address)
            with connection.makefile("rw") as stream:
                _write(stream, request)
                reply: dict[str, Any] = json.loads(stream.readline())
                return reply


if __name__ == "__main__":
    os.chdir("/")
    Keeper(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None).run()
