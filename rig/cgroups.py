"""The cgroups of a cluster's nodes: one folder for the cluster in each hierarchy, one in it for each node."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

REMOVAL_S = 20.0
_WANTED = ("cpu", "cpuset", "io", "memory", "pids")


def mounts() -> list[Path]:
    """Where this machine's cgroup hierarchies are mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [
        Path(mount)
        for _, mount, kind, *_ in lines
        if kind in ("cgroup", "cgroup2") and mount.startswith("/sys/fs/cgroup")
    ]


def folder_name(run: Path) -> str:
    """The name of a cluster's cgroups: its folder decides, so that no two clusters share one."""
    return "dask-tide-rig-" + hashlib.sha256(os.fsencode(run)).hexdigest()[:10]


def make(run: Path, node: str) -> list[Path]:
    """Make a node's cgroup in each hierarchy, with one in it for the node's daemons."""
    made = []
    for mount in mounts():
        folder = mount / folder_name(run) / node
        for path in (folder.parent, folder, folder / "system"):
            path.mkdir(exist_ok=True)
            _prepare(path)
        made.append(folder)
    return made


def _prepare(folder: Path) -> None:
    parent = folder.parent
    if not (folder / "cgroup.controllers").exists():  # version 1
        for name in ("cpuset.cpus", "cpuset.mems"):  # empty at first, and nothing can live in it then
            if (folder / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((parent / name).read_text())
    elif folder.name != "system" and (parent / "cgroup.subtree_control").exists():
        available = (parent / "cgroup.controllers").read_text().split()
        enabled = (parent / "cgroup.subtree_control").read_text().split()
        for controller in _WANTED:
            if controller in available and controller not in enabled:
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def remove(run: Path, node: str | None = None) -> None:
    """Remove a node's cgroups, or all of a cluster's; what was in them is dead or about to be.

    Raises
    ------
    OSError
        If something in them still lives after a while.
    """
    end_s = time.monotonic() + REMOVAL_S
    for mount in mounts():
        folder = mount / folder_name(run)
        if node is not None:
            folder = folder / node
        while folder.exists():
            try:
                for path, _, _ in os.walk(folder, topdown=False):
                    Path(path).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.02)
