"""Talking to the simulated AWS's process from outside of the cluster's network: by a socket in its folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rig.folders import RigError

DEADLINE_S = 60.0


@contextmanager
def at_socket(folder: Path) -> Iterator[str]:
    """The socket's address; by way of a descriptor, since a Unix socket's path has 107 bytes at most."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/aws.sock"
    finally:
        os.close(descriptor)


def ask(folder: Path, do: str, **arguments: Any) -> Any:
    """Ask the simulated AWS of the cluster in this folder for something.

    Raises
    ------
    RigError
        If it refuses; with its words.
    OSError
        If it does not run.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        with at_socket(folder) as address:
            connection.connect(address)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps({"do": do} | arguments) + "\n")
            stream.flush()
            reply = json.loads(stream.readline())
    if "error" in reply:
        raise RigError(reply["error"])
    return reply["value"]
