"""Folder: where a cluster's logs and journal lie, and where what nobody else may touch.

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
from dask_tide.ownership import intruders, make

if sys.platform != "win32":
    import fcntl

__all__ = ["check_shared", "named_folder", "private_folder"]

logger = logging.getLogger("distributed.tide.attach")

_LOCK = "tide.lock"


def named_folder(configured: Path, cluster: str, *, alone: bool = False) -> Path:
    """The cluster's own in one that the user named, which stays.

    Whoever may write to the named one can rename ours away and put one of his own there. So nothing of this
    project's lies in it that is unpickled or executed, nor a key: that is in a private folder. It is data
    alone (logs, the journal, what tasks took), and what is refused is what nobody has by chance: a folder of
    another user's, or of everybody's. One of a group's is not: where each user has a group of his own,
    ``mkdir`` makes it so (umask 002), and so are the folders of a project. The cluster's own, which is
    made here with mode 0700, must be ours alone; a provider of the user's own may have more in it.

    Parameters
    ----------
    alone
        The scheduler shares its file system with nobody (a pod): who may write is not asked. Volumes are
        mounted with mode 0777 there.

    Raises
    ------
    ConfigError
        It cannot be made, or others could put something into it.
    """
    folder = configured / cluster
    try:
        make(configured, 0o755)
        if not alone:
            check_shared(configured)
        make(folder)
        if not alone and (reason := intruders(folder)):
            raise ConfigError("tide.folder", str(configured), f"one with a {cluster} of your own: {reason}")
    except OSError as error:
        expected = f"a folder that can be written to ({error.strerror})"
        raise ConfigError("tide.folder", str(configured), expected) from error
    return folder


def check_shared(configured: Path) -> None:
    """Refuse a named folder, which exists, if it is another user's or everybody's.

    Raises
    ------
    ConfigError
        It is.
    OSError
        It cannot be looked at.
    """
    if reason := intruders(configured, shared=True):
        expected = f"a folder of yours or root's, to which not everybody may write: {reason}"
        raise ConfigError("tide.folder", str(configured), expected)


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
        make(parent, 0o755)
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
