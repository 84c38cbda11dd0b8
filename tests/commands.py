"""``dask worker`` and its like as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from distributed import Scheduler
from waiting import until

from rig.keeper import die_with_parent

SOURCES = Path(__file__).parents[1] / "src"


class Processes:
    """Processes of Dask's command line, each with a process group of its own, and their logs."""

    def __init__(self, folder: Path, *, nanny: bool = True) -> None:
        self.folder = folder
        self.nanny = nanny
        self.running: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(SOURCES)} | dict(environment or {})
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock
            )
        self.running.append(process)
        return process

    def worker(
        self,
        scheduler: str,
        name: str,
        *arguments: str,
        timeout: str = "25s",
        threads: int = 1,
        port: int | None = None,
        preload: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a worker that departs within ``timeout`` and whose readiness port is ``port``."""
        options = [] if self.nanny else ["--no-nanny"]
        if preload:
            options += ["--preload-nanny" if self.nanny else "--preload", "dask_tide.preload"]
        environment = {"DASK_TIDE__DEPARTURE__TIMEOUT": timeout}
        if port is not None:
            environment |= {
                "DASK_TIDE__READINESS__PORT": str(port),
                "DASK_TIDE__READINESS__HOST": "127.0.0.1",
            }
        return self.start(
            name,
            "dask_worker",
            *(scheduler, "--name", name, "--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard"),
            *("--host", "127.0.0.1", "--local-directory", str(self.folder)),
            *(*options, *arguments),
            environment=environment,
        )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill_all(self) -> None:
        for process in self.running:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()


async def ended(process: subprocess.Popen[bytes], timeout_s: float = 25) -> int:
    await until(lambda: process.poll() is not None, "the process ends", timeout_s)
    return process.returncode


async def registered(scheduler: Scheduler, *names: str) -> None:
    """Wait until workers run; for a moment the scheduler knows one that does not yet."""
    await until(lambda: set(names) <= {str(ws.name) for ws in scheduler.running}, f"{names} are there")
