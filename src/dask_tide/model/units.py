"""Units: what a provider starts and stops; and the phases they go through."""

from __future__ import annotations

import enum
from collections.abc import Container

import msgspec


class Phase(enum.Enum):
    """Where a unit is in its life."""

    REQUESTED = "requested"  # asked for; the platform has not shown it yet
    PENDING = "pending"  # the platform knows it and has no place for it yet
    STARTING = "starting"  # it runs, its workers have not registered
    RUNNING = "running"  # at least one of its workers is registered
    DRAINING = "draining"  # its workers get no new tasks and hand over what they hold
    STOPPING = "stopping"  # the platform was told to stop it
    GONE = "gone"  # the platform no longer shows it
    FAILED = "failed"  # it ended, or cannot start, without having been asked to stop
    EXPIRED = "expired"  # it was given its time to start and did not
    UNKNOWN = "unknown"  # the platform did not answer when asked, or the unit's machine does not

    # Enum's own is written in Python, and one tick asks thousands of times in which phases a unit is.
    __hash__ = object.__hash__


P = Phase

#: Every edge that a unit may take, and why.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # A platform may show a unit at once as running, or refuse it.
    P.REQUESTED: frozenset(
        {P.PENDING, P.STARTING, P.RUNNING, P.DRAINING, P.STOPPING, P.FAILED, P.EXPIRED, P.GONE, P.UNKNOWN}
    ),
    # Cancelled before it got a place (STOPPING), evicted from the queue (GONE).
    # DRAINING at once: told to leave (SIGTERM) right after it had registered.
    P.PENDING: frozenset(
        {P.STARTING, P.RUNNING, P.DRAINING, P.STOPPING, P.FAILED, P.EXPIRED, P.GONE, P.UNKNOWN}
    ),
    # Back to PENDING: a batch job was requeued, a pod was rescheduled.
    P.STARTING: frozenset(
        {P.PENDING, P.RUNNING, P.DRAINING, P.STOPPING, P.FAILED, P.EXPIRED, P.GONE, P.UNKNOWN}
    ),
    # Back to STARTING: its worker left the scheduler while the unit lives (a restart). EXPIRED: it did so
    # while the platform did not answer.
    P.RUNNING: frozenset(
        {P.PENDING, P.STARTING, P.DRAINING, P.EXPIRED, P.STOPPING, P.FAILED, P.GONE, P.UNKNOWN}
    ),
    # Back to RUNNING: the drain was refused or timed out, the worker is at work again. Back to PENDING or
    # STARTING: its worker left by itself, and the platform keeps the unit.
    P.DRAINING: frozenset({P.RUNNING, P.PENDING, P.STARTING, P.STOPPING, P.FAILED, P.GONE, P.UNKNOWN}),
    # A unit that was told to stop never comes back.
    P.STOPPING: frozenset({P.GONE, P.FAILED, P.UNKNOWN}),
    # Ended units are cleaned away; their worker may register late (EXPIRED only).
    P.FAILED: frozenset({P.STOPPING, P.GONE, P.UNKNOWN}),
    P.EXPIRED: frozenset({P.RUNNING, P.STOPPING, P.FAILED, P.GONE, P.UNKNOWN}),
    # When the platform answers again, a unit may turn out to be anything.
    P.UNKNOWN: frozenset(set(P) - {P.UNKNOWN, P.REQUESTED}),
    P.GONE: frozenset(),
}

#: Phases in which a unit will give, or gives, workers.
LIVE = frozenset({P.REQUESTED, P.PENDING, P.STARTING, P.RUNNING})
#: Phases of live units without a worker yet.
BOOTING = frozenset({P.REQUESTED, P.PENDING, P.STARTING})
#: Phases in which a unit exists for the platform: it counts against every limit.
EXISTING = LIVE | {P.DRAINING, P.STOPPING, P.EXPIRED, P.UNKNOWN}


class Unit(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One unit, as the platform and the scheduler show it together.

    Attributes
    ----------
    name
        Unique among all units of all clusters in a namespace or on a machine.
    pool
        Name of its pool.
    phase
        Where it is in its life.
    age_s
        Seconds since it was asked for, or since it was first seen.
    machine
        Name of the machine it runs on; empty where it has none yet.
    message
        The platform's own words, where it has any.
    stale
        It was made from a template that is no longer its pool's.
    doomed
        Its machine is about to be taken away, or it itself: what it holds must go, and another one must come.
    unplaced
        The platform has no place for it, and says that none is coming.
    waits
        A machine must come for it.
    price
        What it costs for one second, where that is known of its machine; None: what its pool says.
    pinned
        Why it may not be given back while it has no worker; empty: it may.
    lingers
        It was given back, and the platform has not begun to stop it.
    """

    name: str
    pool: str
    phase: Phase
    age_s: float = 0.0
    machine: str = ""
    message: str = ""
    stale: bool = False
    doomed: bool = False
    unplaced: bool = False
    waits: bool = False
    price: float | None = None
    pinned: str = ""
    lingers: bool = False


def owner_of(worker_name: object, units: Container[str]) -> str:
    """Name of the unit that runs the worker ``worker_name``; empty if none does.

    A worker's name, as a string, is its unit's name, or that and ``-<digits>``
    (several workers in one unit). Dask's names may be integers (``LocalCluster``'s are).
    Addresses are never compared: a restarted worker keeps its name and changes its address.
    """
    name = str(worker_name)
    if name in units:
        return name
    head, dash, tail = name.rpartition("-")
    return head if dash and tail.isdigit() and head in units else ""
