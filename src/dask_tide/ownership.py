"""Ownership: who else on this machine could put something into a folder of ours."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from pathlib import Path

__all__ = ["intruders", "make", "make_own"]

_ROOT = 0


def make(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, if it is not there; what is missing above it, too, which no umask leaves to others.

    Raises
    ------
    OSError
        It cannot be made.
    """
    missing = [*itertools.takewhile(lambda above: not above.exists(), folder.parents)]
    for above in reversed(missing):
        above.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=mode, exist_ok=True)


def make_own(folder: Path) -> None:
    """Make a folder into which only we can put something, if it is not there.

    Raises
    ------
    OSError
        It cannot be made, or somebody else has made it.
    """
    make(folder)
    if reason := intruders(folder):
        raise PermissionError(errno.EPERM, reason, str(folder))


def intruders(folder: Path, *, shared: bool = False) -> str:
    """Who else could put something into it, or something else in its place, in words; empty: nobody.

    Of root nobody is safe, and of those above the folder nothing is said.

    Parameters
    ----------
    shared
        Folders of our own are to lie in it. It may be root's and a link's end; everybody may write to it
        if it is sticky, as then only its owner can rename what belongs to others; and a group may.
    """
    if sys.platform == "win32":
        return ""
    ours = (os.geteuid(), _ROOT) if shared else (os.geteuid(),)
    link, found = folder.lstat(), folder.stat()
    if not shared and not stat.S_ISDIR(link.st_mode):
        return "it is a link"
    for status in (link, found):
        if status.st_uid not in ours:
            return f"it belongs to user {status.st_uid}"
    if shared and found.st_mode & stat.S_ISVTX:
        return ""
    if found.st_mode & (stat.S_IWOTH if shared else stat.S_IWOTH | stat.S_IWGRP):
        return f"others may write to it, its mode is {stat.S_IMODE(found.st_mode):04o}"
    return ""
