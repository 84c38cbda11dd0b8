"""Folder: where a cluster's logs and journal lie.

A private one goes with its scheduler. What a killed one has left behind is removed when the same user's next
one starts on this machine: in a private folder lies a file that its scheduler has locked, until the kernel
ends that. Of other machines' locks a temporary folder that is shared may not tell.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

import dask

from dask_tide.errors import ConfigError

if sys.platform != "win32":
    import fcntl

__all__ = ["named_folder", "private_folder"]

logger = logging.getLogger("distributed.tide.attach")

_LOCK = "tide.lock"


def named_folder(configured: Path, cluster: str) -> Path:
    """The cluster's own in one that the user named, which stays.

    Raises
    ------
    ConfigError
        It cannot be made.
    """
    folder = configured / cluster
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        expected = f"a folder that can be written to ({error.strerror})"
        raise ConfigError("tide.folder", str(configured), expected) from error
    return folder


def private_folder(cluster: str) -> tuple[Path, Callable[[], None]]:
    """A new temporary one, in Dask's ``temporary-directory`` if that is set, and what removes it.

    Raises
    ------
    ConfigError
        It cannot be made.
    """
    configured = dask.config.get("temporary-directory", None)
    try:
        parent = Path(configured or tempfile.gettempdir()).absolute()
        parent.mkdir(parents=True, exist_ok=True)
        return _made(parent, cluster)
    except OSError as error:
        expected = f"a folder that can be written to ({error.strerror})"
        raise ConfigError("temporary-directory", configured, expected) from error


def _made(parent: Path, cluster: str) -> tuple[Path, Callable[[], None]]:
    _purge(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"dask-{cluster}-", dir=parent))
        if sys.platform == "win32":  # nothing there is removed while it is open
            return folder, partial(shutil.rmtree, folder, ignore_errors=True)
        stack = ExitStack()
        lock = stack.enter_context((folder / _LOCK).open("w"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # Another scheduler that starts may have taken it for a dead one's.
        if _lock(lock) and folder.exists():
            lock.write(socket.gethostname())
            lock.flush()
            return folder, stack.close
        stack.close()


def _lock(file: IO[str]) -> bool:
    """Lock a file, until it is closed; False: another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks in this file system, so nobody removes it either
        pass
    return True


def _purge(parent: Path) -> None:
    """Remove the private folders of schedulers that were killed."""
    if sys.platform == "win32":
        return
    for file in parent.glob(f"dask-*/{_LOCK}"):
        with suppress(OSError):  # locked, or removed in this moment
            if file.parent.lstat().st_uid != os.geteuid():
                continue
            with file.open("r+") as lock:
                if lock.read() != socket.gethostname():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent, ignore_errors=True)
            logger.info("Removed %s, which a scheduler that was killed had left behind.", file.parent)
