"""The Debian packages that the level *nodes* and the image's build need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rig.folders import RigError, locked, root

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
#: What a node runs, and the package it comes from.
NODE = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ipset": "ipset",
}
#: What it takes to make namespaces, mounts and network cards, and the bits of it (capabilities(7)).
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
#: What builds the project's image.
IMAGE = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
#: What the tests look at the status page with.
BROWSER = {"chromium": "chromium"}


def _there(program: str) -> bool:
    path = os.environ.get("PATH", os.defpath)
    return (
        Path(program).exists()
        if program.startswith("/")
        else bool(shutil.which(program, path=f"{path}:{_SBIN}"))
    )


def missing(programs: dict[str, str] = NODE) -> list[str]:
    """The packages to install before these programs can run."""
    return sorted({package for program, package in programs.items() if not _there(program)})


def impossible() -> str:
    """Why this machine and user cannot run nodes, however many packages are installed; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "nodes are Linux namespaces"
    if os.geteuid() != 0:
        return "nodes need root (own namespaces, mounts and cgroups)"
    if lacks := denied():
        return f"nodes need {' and '.join(lacks)} (own namespaces, mounts and cgroups)"
    return ""


def denied() -> list[str]:
    """What this process may not do although nodes need it; in a container root may not, either."""
    found = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def lacking() -> str:
    """Why nodes cannot run here as it is now; empty if they can."""
    if reason := impossible():
        return reason
    absent = " ".join(missing())
    return f"packages are missing: apt-get install --no-install-recommends {absent}" if absent else ""


def install(programs: dict[str, str] = NODE | IMAGE) -> None:
    """Install what is missing, as root on Debian or Ubuntu.

    Parameters
    ----------
    programs
        What is to be there, and the packages it comes from.

    Raises
    ------
    RigError
        If that is not possible; with the command to run.
    """
    with locked(root() / "packages.lock"):
        wanted = missing(programs)
        if not wanted:
            return
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise RigError(f"packages are missing: sudo {' '.join(command)}")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for step in (["apt-get", "update", "-qq"], command):
            done = subprocess.run(
                step, env=environment, capture_output=True, text=True, timeout=900, check=False
            )
            if done.returncode != 0:
                raise RigError(f"{' '.join(step)} failed:\n{done.stderr[-2000:]}")
