"""``dask scheduler`` and its clients as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from waiting import wait_until

from rig.keeper import die_with_parent

SOURCES = Path(__file__).parents[1] / "src"


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to look does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Served:
    """The processes of one test; all have ended after :meth:`close`.

    Parameters
    ----------
    folder
        For their logs and files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._descendants: set[int] = set()

    def start(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``python *arguments`` with its output in ``<name>.log``."""
        paths = os.pathsep.join(map(str, (SOURCES, Path(__file__).parent)))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=inherited | {"PYTHONPATH": paths} | dict(environment or {}),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock
            )
        self._processes.append(process)
        return process

    def scheduler(
        self,
        name: str = "scheduler",
        *,
        preload: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Scheduler:
        """Start ``dask scheduler``, with the controller or without."""
        file = self.folder / f"{name}.json"
        arguments = ["-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0"]
        arguments += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        arguments += ["--scheduler-file", str(file)]
        arguments += ["--preload", "dask_tide.preload"] if preload else []
        return Scheduler(self, name, self.start(name, *arguments, environment=environment), file)

    def log(self, name: str = "scheduler") -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def descendants(self, process: subprocess.Popen[bytes]) -> set[int]:
        """All processes below ``process``; they are ended with the test, however it ends."""
        with suppress(psutil.NoSuchProcess):
            self._descendants |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        return {pid for pid in self._descendants if alive(pid)}

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                self.descendants(process)
                process.kill()
            process.wait()
        for pid in self._descendants:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


class Scheduler:
    """A scheduler process."""

    def __init__(self, served: Served, name: str, process: subprocess.Popen[bytes], file: Path) -> None:
        self._served = served
        self._name = name
        self.process = process
        self._file = file

    @property
    def address(self) -> str:
        """Where it listens; waits until it does."""

        def read() -> Any:
            if self.process.poll() is not None:
                raise RuntimeError(f"the scheduler has ended with {self.process.returncode}:\n{self.log}")
            with suppress(OSError, ValueError):
                return json.loads(self._file.read_text())["address"]
            return None

        return str(wait_until(read, "the scheduler listens", detail=lambda: self.log))

    @property
    def log(self) -> str:
        return self._served.log(self._name)

    @property
    def descendants(self) -> set[int]:
        """Processes below it that live, those that it has left behind included."""
        return self._served.descendants(self.process)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        _ = self.descendants
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
