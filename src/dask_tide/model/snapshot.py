"""Snapshot: all that a decision may know; Memory: all that it remembers."""

from __future__ import annotations

import msgspec

from .pools import Pool
from .units import Unit
from .work import Work
from .workers import Worker


class Settings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the operator may say about the policy.

    Attributes
    ----------
    keep_s
        How long idle units are kept when there is no work; None: as long as starting them
        again would take (their boot time).
    idle_timeout_s
        Upper bound of that.
    machine_idle_s
        How long the platform keeps a machine that has become empty; None: as long as another one takes to
        come.
    tail_s
        How long idle units are kept that the work at hand cannot use any more.
    memory_ratio
        How full of results workers should be at the most before more units are asked for.
    fill_ratio
        How full of results a drain may make the workers that receive.
    prior_s
        What a task is taken to last whose like was never measured; 0: nothing is assumed, the first unit
        finds out.
    worth
        How many seconds of a unit it is worth to be done one second sooner.
    start_timeout_s
        How long a unit may take from being asked for to its worker's registration, once it
        has a place to run.
    backoff_s, backoff_max_s
        Pause after a failed start, doubled with each further one, and its upper bound.
    maximum
        Upper bound of units over all pools; None: only the pools' own.
    budget_per_hour
        Upper bound of price × units × 3600; None: none.
    budget_total
        What the cluster may spend in its life; None: no bound.
    """

    keep_s: float | None = None
    idle_timeout_s: float = 300.0
    machine_idle_s: float | None = None
    tail_s: float = 3.0
    memory_ratio: float = 0.6
    fill_ratio: float = 0.7
    prior_s: float = 0.0
    worth: float = 0.0
    start_timeout_s: float = 120.0
    backoff_s: float = 0.5
    backoff_max_s: float = 60.0
    maximum: int | None = None
    budget_per_hour: float | None = None
    budget_total: float | None = None


class PoolState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pool and what is known about it at this moment.

    Attributes
    ----------
    pool
        The pool, with its limits as they are now.
    blind
        Why the platform could not be asked; empty: it answered.
    frozen
        Why nothing may be done about the pool; empty: something may.
    manual
        Number of units somebody asked for by hand; None: the policy decides.
    floor
        Temporary minimum, for somebody who waits for workers.
    boot_s
        Learned boot time where a machine has room, seconds; None where none was measured.
    cold_boot_s
        Learned boot time where a machine must come, seconds; None where none was measured.
    room
        Units for which the machines that are there have room; None: that is not known.
    price
        What a unit costs for one second, on the average, as seen of machines within the last minutes; None:
        none was.
    dearest
        What the dearest of the last ones cost, however long ago; None: none was ever seen.
    bound
        What one can cost at the most, a whole machine; None: the platform does not say, and the pool's own
        price counts.
    capacity
        Units that the platform has room for; None: no limit was met.
    capacity_message
        The platform's words for that.
    started, failed
        Units that ever registered a worker, and that ended before they did.
    failure
        The last failure's message.
    baseline_bytes
        Memory of a worker process that holds nothing.
    """

    pool: Pool
    blind: str = ""
    frozen: str = ""
    manual: int | None = None
    floor: int = 0
    boot_s: float | None = None
    cold_boot_s: float | None = None
    room: int | None = None
    price: float | None = None
    dearest: float | None = None
    bound: float | None = None
    capacity: int | None = None
    capacity_message: str = ""
    started: int = 0
    failed: int = 0
    failure: str = ""
    baseline_bytes: int = 0

    @property
    def unit_price(self) -> float:
        """What one more unit costs for one second, as far as that is known."""
        known = self.bound if self.price is None else self.price
        return self.pool.price if known is None else known

    @property
    def unit_boot_s(self) -> float:
        """How long one more unit takes to start where a machine has room."""
        return self.pool.boot_s if self.boot_s is None else self.boot_s


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """The world at one moment.

    Attributes
    ----------
    now_s
        The moment, on the controller's clock, seconds.
    settings, pools, units, workers, work
        What their types say. Work is in no particular order that a decision may rely on.
    spent
        Price × seconds of all units so far.
    """

    now_s: float
    settings: Settings
    pools: tuple[PoolState, ...]
    units: tuple[Unit, ...] = ()
    workers: tuple[Worker, ...] = ()
    work: tuple[Work, ...] = ()
    spent: float = 0.0


class PoolMemory(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the policy remembers of one pool.

    Attributes
    ----------
    needed
        ``(when_s, units)``: the need over the last while, decreasing, so that the first one is
        the largest need of the window (Kubernetes' autoscaler calls it stabilization window).
    used
        The same of those that there was a use for at once, and not only soon.
    started, failed
        The pool's counters when they were last looked at.
    failures
        Starts that failed in a row.
    retry_s
        When the next attempt may be made.
    """

    needed: tuple[tuple[float, int], ...] = ()
    used: tuple[tuple[float, int], ...] = ()
    started: int = 0
    failed: int = 0
    failures: int = 0
    retry_s: float = 0.0


class Memory(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the policy remembers from tick to tick."""

    pools: dict[str, PoolMemory] = {}
