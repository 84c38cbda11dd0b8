"""Tasks that write down each of their starts and wait for a gate, so that tests need no clock."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

#: A task ends by itself after this long: a failed test leaves no worker busy for ever.
_LONGEST_S = 120.0


def run(folder: str, name: str, gate: str = "", *needs: Any, size: int = 0) -> Any:
    """Note the start of ``name`` in ``folder``, wait until the file ``gate`` is there, return.

    Returns its name, or ``size`` bytes.
    """
    with (Path(folder) / "starts").open("a") as starts:
        starts.write(f"{name} {os.getpid()}\n")
    end_s = time.monotonic() + _LONGEST_S
    while gate and not (Path(folder) / gate).exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    return b"x" * size if size else name


class Marked:
    """The test's side of :func:`run`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder
        self.folder = str(folder)

    def open(self, *gates: str) -> None:
        """Let the tasks behind these gates end."""
        for gate in gates:
            (self.path / gate).touch()

    def _lines(self) -> list[list[str]]:
        try:
            return [line.split() for line in (self.path / "starts").read_text().splitlines()]
        except FileNotFoundError:
            return []

    @property
    def starts(self) -> Counter[str]:
        """How often each task has started."""
        return Counter(name for name, _ in self._lines())

    @property
    def pids(self) -> dict[str, int]:
        """The process in which each task has started last."""
        return {name: int(pid) for name, pid in self._lines()}
