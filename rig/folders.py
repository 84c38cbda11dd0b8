"""Where the rig keeps what it built and what it runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: The checkout that this module belongs to.
CHECKOUT = Path(__file__).resolve().parent.parent


class RigError(Exception):
    """The test cluster cannot do what it was asked for; the message says why."""


def root() -> Path:
    """The folder of all caches and running clusters: ``DASK_TIDE_RIG``, else one in the user's cache."""
    if chosen := os.environ.get("DASK_TIDE_RIG"):
        return Path(chosen).resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).resolve() / "dask-tide" / "rig"


def runs() -> Path:
    """The folder with one folder for each running cluster."""
    folder = root() / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def default_name() -> str:
    """The name of this checkout's cluster: two checkouts do not share one."""
    return "by-hand-" + hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:6]


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None, *, wait: bool = True) -> Iterator[None]:
    """Hold a file's lock; the kernel lets it go when the process ends, however it ends.

    Parameters
    ----------
    path
        The lock's file, made if missing.
    waiting
        Called once if somebody else holds the lock.
    wait
        Whether to wait then.

    Raises
    ------
    BlockingIOError
        If somebody else holds it and we do not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_for(condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> None:
    """Wait until ``condition()`` is true; raise :exc:`RigError` with ``what`` if it stays false."""
    end_s = time.monotonic() + deadline_s
    pause_s = 0.01
    while not condition():
        if time.monotonic() > end_s:
            raise RigError(f"not within {deadline_s:g} s: {what}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, 0.2)  # what is slow is not made slower by asking
