"""Actions: what a decision asks for."""

from __future__ import annotations

import msgspec

from .reasons import Why


class Launch(msgspec.Struct, frozen=True, tag=True):
    """Ask the provider for ``count`` more units of ``pool``."""

    pool: str
    count: int
    why: Why


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Empty these units' workers, then release the units.

    ``workers`` are ``(name, address)`` pairs: a drain is bound to both, and ends when the
    address changes. ``busy`` says whether they may still run tasks: if not, a worker that was
    given a task between decision and act is left alone.
    """

    pool: str
    units: tuple[str, ...]
    workers: tuple[tuple[str, str], ...]
    why: Why
    busy: bool = False


class Release(msgspec.Struct, frozen=True, tag=True):
    """Give back these units, which have no worker."""

    pool: str
    units: tuple[str, ...]
    why: Why


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Do nothing in this pool, and say why."""

    pool: str
    why: Why


Action = Launch | Drain | Release | Hold
