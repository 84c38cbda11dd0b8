"""Sizing: how many units are worth having for the work at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from dask_tide.model import Code, Why, why

from .demand import Demand
from .stock import Stock

#: For what part of the boot time tasks must have been running without an end to count as evidence.
_PROVEN = 0.1


@dataclass(frozen=True)
class Size:
    """How many units are worth having, and why not more."""

    units: int
    why: Why | None = None


def worthwhile(
    demand: Demand,
    stock: Stock,
    *,
    boot_s: float,
    cold_boot_s: float | None = None,
    room: int | None = None,
    worth: float = 0.0,
    patience_s: float = 0.0,
) -> Size:
    """Units worth having, as far as the tasks' durations are known.

    Those for which the machines that are there have room take another time to start than those for
    which a machine must come: the rule of :func:`_paying` holds for each with its own boot time. Until a
    machine has come, those that need none will have worked for a while.

    Parameters
    ----------
    demand
        What the work asks of the pool.
    stock
        What there is of it.
    boot_s
        How long a new unit takes.
    cold_boot_s
        How long one takes for which a machine must come; None: that was never seen.
    room
        For how many more there are machines; None: that is not known.
    worth
        How many seconds of a unit it is worth to be done one second sooner.
    patience_s
        For how long idle units would be kept for what waits.
    """
    pays = partial(_paying, demand, stock, worth=worth, patience_s=patience_s)
    near = pays(boot_s)
    if cold_boot_s is None or room is None or near.units <= stock.taking + room:
        return near
    sooner = (stock.coming + room) * max(0.0, cold_boot_s - boot_s)
    far = pays(cold_boot_s, sooner=sooner)
    return far if far.units >= stock.taking + room else Size(stock.taking + room, far.why)


def _paying(
    demand: Demand, stock: Stock, boot_s: float, *, worth: float, patience_s: float, sooner: float = 0.0
) -> Size:
    """Units that pay for their start.

    A unit that would arrive after the work is done is never asked for, but for the first where
    nobody else could run it. With ``W`` slot-seconds of work left when new units arrive and ``s`` slots
    each, ``x = W / (s · boot_s)`` units find as much work each as their start has cost: then the work is
    done after at most twice the shortest time at no more than twice the lowest cost. Where ``x`` is small,
    more pay if time is worth it: ``n`` units take ``n · boot_s + W / s`` unit-seconds and are done
    ``W / (s · n)`` after they have come; the one plus ``worth`` times the other is least with
    ``sqrt(worth · x)`` of them, in whole numbers. Tasks that wait for others are work, too, for as many
    units as the graph is wide there. No task is divided: of those that take long each has one unit at the
    most to itself, and what is left is all that others find.

    Tasks never measured count with the time for which they have been seen running; beside that,
    units double once tasks have been seen running for a part of the boot time with none of them
    ending. This ramps from one unit to as many as the tasks can use within about two boot times
    when tasks turn out to be long. One more unit comes where all that are there stay busy for so much longer
    than a start takes that it pays by time alone, however little the work is that waits.

    ``sooner`` are unit-seconds that others will have worked until then which are not ready yet. What units of
    other pools will have done of the same work is none for new ones either.
    """
    have = stock.taking
    if demand.usable <= have:
        return Size(demand.usable)
    if not have:
        smallest = int(demand.stranded)
    elif demand.unmeasured and not stock.booting and demand.seen_s >= _PROVEN * boot_s * demand.runnable:
        smallest = 2 * stock.ready
    else:
        # What is short must not wait for what is long, which may be waiting for it.
        beyond_s = demand.free_in_s(have) - boot_s
        smallest = have + (beyond_s > 0 and beyond_s * max(1.0, worth) >= boot_s)
    paying = demand.usable
    if boot_s > 0:
        paying = 0
        tails = demand.tails()
        sooner += demand.done_elsewhere(boot_s)
        for limit, work_s in demand.steps(patience_s):
            later_s = work_s - tails[0][1] - sooner
            enough = (
                longer + _worthwhile(left_s + later_s - max(0, stock.ready - longer) * boot_s, boot_s, worth)
                for longer, left_s in tails
            )
            paying = max(paying, min(limit, *enough))
    units = max(paying, smallest)
    if units > have:
        return Size(min(demand.usable, units))
    if demand.unmeasured:
        return Size(units, why(Code.RAMP, have=have))
    return Size(units, why(Code.TOO_LATE, runnable=demand.runnable, boot_s=boot_s, work_s=demand.work_s))


def _worthwhile(work_s: float, boot_s: float, worth: float) -> int:
    """Units that find enough of so much work, unit-seconds."""
    finding = max(0.0, work_s) / boot_s
    return max(math.floor(finding + 1e-9), _nearest_root(worth * finding))


def _nearest_root(square: float) -> int:
    """The whole number ``n`` with the least ``n + square / n``; 0 where not even one pays."""
    root = math.floor(math.sqrt(square))
    return root + (0 < root * (root + 1) < square)


def for_results(*, held_bytes: int, capacity_bytes: int, ratio: float) -> int:
    """Units that hold ``held_bytes`` of results without being fuller than ``ratio``.

    Sized from bytes, not by doubling what is there: the need does not grow because units come.
    """
    if held_bytes <= 0 or capacity_bytes <= 0:
        return 0
    return math.ceil(held_bytes / (ratio * capacity_bytes))
