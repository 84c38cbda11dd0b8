"""What a cluster is made of on this machine, for tests that want to see it gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_until

from rig import cgroups
from rig.folders import CHECKOUT, runs
from rig.keeper import die_with_parent


def _stat(pid: int) -> tuple[int, str, str]:
    """A process's parent, the time of its start, and its state."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), fields[19], fields[0]


def _processes() -> dict[int, tuple[int, str]]:
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent, start, state = _stat(int(path.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state not in "ZX":  # dead, but its parent has not asked yet
                found[int(path.name)] = (parent, start)
    return found


@dataclass
class Traces:
    """All that a running cluster is on this machine.

    Attributes
    ----------
    name
        The cluster's name.
    keeper
        The id of its keeper's process.
    processes
        Its processes: ids and the times of their starts.
    namespaces
        Their namespaces, without the machine's own.
    """

    name: str
    keeper: int = 0
    processes: set[tuple[int, str]] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)

    def take(self) -> Traces:
        """Look at the cluster as it runs."""
        everyone = _processes()
        marked = str(runs() / self.name).encode()
        self.keeper = next(pid for pid in everyone if _is_keeper(pid, marked))
        family = {self.keeper}
        while more := {pid for pid, (parent, _) in everyone.items() if parent in family} - family:
            family |= more
        self.processes = {(pid, everyone[pid][1]) for pid in family}
        self.namespaces = {name for pid in family for name in _namespaces(pid)} - set(
            _namespaces(os.getpid())
        )
        return self

    def left(self) -> list[str]:
        """What of it is still there."""
        everyone = _processes()
        left = [f"process {pid}" for pid, start in self.processes if everyone.get(pid, (0, ""))[1] == start]
        left += [
            f"{name} of {pid}" for pid in everyone for name in _namespaces(pid) if name in self.namespaces
        ]
        left += [str(path) for path in [runs() / self.name] if path.exists()]
        groups = (mount / cgroups.folder_name(runs() / self.name) for mount in cgroups.mounts())
        left += [str(path) for path in groups if path.exists()]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return left + [line for line in mounts if str(runs() / self.name) in line]

    def wait_gone(self) -> None:
        wait_until(
            lambda: not self.left(), f"nothing is left of {self.name}", detail=lambda: "\n".join(self.left())
        )


def _is_keeper(pid: int, marked: bytes) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"rig.keeper" in words and marked in words


def _namespaces(pid: int) -> list[str]:
    try:
        kinds = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
        return [str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds]
    except OSError:
        return []


def machine_state() -> dict[str, str]:
    """What of the machine itself a cluster must not change."""
    settings = (
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/ipv4/ip_forward",
    )
    state = {name: Path("/proc/sys", name).read_text() for name in settings}
    for command in ("ip -o link show", "ip route show table all", "nft -s list ruleset"):
        environment = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
        done = subprocess.run(
            command.split(), env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        state[command] = re.sub(r" expires \d+sec", "", done.stdout)
    return state


def by_hand(name: str, deadline_s: float) -> Callable[..., str]:
    """The rig's command line, for the cluster of that name: what it prints."""

    def rig(*words: str) -> str:
        command = [sys.executable, "-m", "rig", "--name", name, *words]
        done = subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, timeout=deadline_s, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return rig


def started(processes: list[subprocess.Popen[str]], script: str) -> str:
    """Run a script that starts a cluster in a process of its own; return the first line that it prints."""
    command = [sys.executable, "-c", script]
    processes.append(
        subprocess.Popen(
            command,
            cwd=CHECKOUT,
            text=True,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock
        )
    )
    stream = processes[-1].stdout
    assert stream is not None
    line = stream.readline().strip()
    assert line, "it did not start"
    return line
