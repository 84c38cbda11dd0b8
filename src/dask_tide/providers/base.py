"""What a provider is: something that starts and stops units.

A provider is found by name: an entry point of the group ``dask_tide.providers``, or a
dotted name ``package.module:factory``. Either gives a callable that takes a
:class:`ProviderContext` and returns a :class:`Provider`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distributed.security import Security

from dask_tide.model import Phase, Pool

#: What names of units that were asked for and are not seen yet contain (``cpu?0``), and no platform's do.
NAMELESS = "?"


@dataclass(frozen=True)
class ObservedUnit:
    """A unit as the platform shows it.

    Attributes
    ----------
    name, pool
        Its name and the name of its pool.
    phase
        PENDING (no place yet), STARTING (it runs; the controller itself sees when its worker
        registers), STOPPING, FAILED, or UNKNOWN (its machine does not answer: what has no worker is no
        capacity).
    machine
        Where it runs; empty: nowhere yet, or unknown.
    message
        The platform's own words; of a failed unit, why, with the last lines of its log if that
        is where one would look.
    stale
        It was made from a template that is no longer its pool's: replaced when idle.
    doomed
        Its machine is about to be taken away, or a part of it has ended; ``message`` says so in the
        platform's words. It is emptied at once, and another one asked for.
    waits
        No machine has room for it, so one must come.
    unplaced
        None is coming either; ``message`` says so in the platform's words.
    price
        What it costs for one second, where that is known of its machine; None: what its pool says.
    pinned
        Why it may not be given back while it has no worker (one that works may be its, say); empty: it may.
    """

    name: str
    pool: str
    phase: Phase
    machine: str = ""
    message: str = ""
    stale: bool = False
    doomed: bool = False
    waits: bool = False
    unplaced: bool = False
    price: float | None = None
    pinned: str = ""


@dataclass(frozen=True)
class Limit:
    """The platform has no room for more than ``maximum`` units of ``pool`` just now."""

    pool: str
    maximum: int
    message: str


@dataclass(frozen=True)
class Observation:
    """All units of this cluster, those of an earlier controller's life too, and the limits met.

    Attributes
    ----------
    units, limits
        What their types say.
    requested
        By pool: how many units were asked for that the platform has not given a name yet. They are
        not among ``units``.
    frozen
        By pool: why nothing may be done about it (somebody else scales it, say).
    prices
        By pool: what a unit costs for one second at the most, before any has run; where it is not said, what
        its pool says.
    machines
        Names of the machines that units may be on, without those that are about to go; as a mapping, to what
        kind each is (those of one kind have room for as many units). None: the platform does not tell.
    """

    units: tuple[ObservedUnit, ...] = ()
    limits: tuple[Limit, ...] = ()
    requested: Mapping[str, int] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    machines: Collection[str] | None = None


@dataclass(frozen=True)
class Template:
    """A pool and the provider's own options for it (``tide.pools.<name>.options``)."""

    pool: Pool
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProviderContext:
    """What a provider is made from.

    Attributes
    ----------
    cluster
        The cluster's name, a DNS label. Units carry it, so that they can be found again.
    scheduler_address
        Where workers connect to.
    templates
        By pool name.
    options
        The provider's own options (``tide.options``).
    folder
        An existing folder for logs and the like, ours alone. With ``tide.folder`` it lies below that, where
        others may be able to rename it, and stays.
    security
        For TLS.
    wake
        Call it when something changed: the controller looks at once, not at its next tick.
    private
        An existing folder that nobody else can reach, on this machine's disk, and that goes with the
        scheduler: for what is executed or unpickled, and keys. None: ``folder`` is such a one.
    """

    cluster: str
    scheduler_address: str
    templates: Mapping[str, Template]
    options: Mapping[str, Any]
    folder: Path
    security: Security
    wake: Callable[[], None]
    private: Path | None = None

    @property
    def safe_folder(self) -> Path:
        """``private``, or ``folder`` if that is such a one."""
        return self.folder if self.private is None else self.private


class Provider(Protocol):
    """Starts and stops units. All errors it raises are :class:`~dask_tide.errors.ProviderError`.

    Attributes
    ----------
    boot_s
        Boot time of a unit before any was measured, seconds.
    closes_workers
        Whether a drained worker's process is closed by the controller (a process, a batch job), or
        is left alone until the platform ends it (a pod would be restarted).
    """

    boot_s: float
    closes_workers: bool

    async def observe(self) -> Observation:
        """All units of this cluster. Raises ``Unavailable``; never an empty guess."""

    async def scale_up(self, pool: str, n: int) -> None:
        """See to it that ``n`` units of ``pool`` exist, those that are stopping included.

        Does nothing if they do. Failed ones do not count.
        """

    async def scale_down(self, units: Sequence[str]) -> Collection[str] | None:
        """Stop exactly these units, whose workers were drained. Idempotent; unknown names are ignored.

        A platform that could not (the worker of one that had not started has meanwhile, or another one
        that had not went instead) returns the names of those that stay.
        """

    async def close(self) -> None:
        """Stop every unit, and what the provider itself has running. Idempotent."""


@runtime_checkable
class Marking(Protocol):
    """A provider that wants to know which units are in use, to tell the platform."""

    def mark(self, protected: Mapping[str, bool], doomed: Collection[str] = ()) -> None:
        """Called once a tick: of each unit with a worker, whether that has work or holds results.

        And the units whose machine is about to go, whoever has said so: those cannot be protected.
        """


@runtime_checkable
class Closing(Protocol):
    """A provider that gives workers which close by themselves more time than those that it has to end."""

    def let_close(self, units: Collection[str]) -> None:
        """Called before :meth:`Provider.scale_down` of units whose workers have been told to close."""


#: What an entry point of the group ``dask_tide.providers`` is. With an attribute ``alone`` that is true its
#: scheduler shares no file system with other users (a pod): who may write to ``tide.folder`` is not asked.
ProviderFactory = Callable[[ProviderContext], Provider]

_ALPHABET = "bcdfghjklmnpqrstvwxz"


def unit_name(cluster: str, pool: str) -> str:
    """A new name: cluster, pool and five random letters, like a ReplicaSet's pods.

    Never ends in digits, so that no unit's name is another one's with ``-<digits>``.
    """
    token = "".join(secrets.choice(_ALPHABET) for _ in range(5))
    return f"{cluster}-{pool}-{token}"
