"""Why: every decision's reason, a code and the numbers that led to it."""

from __future__ import annotations

import enum

import msgspec


class Code(enum.Enum):
    """What led to a decision. The value is the sentence; the numbers fill it."""

    # more
    DEMAND = "{runnable} tasks could run now on {slots} slots per unit, {have} units are there or on their way, {want} can be used"
    MINIMUM = "the pool has {have} units and its minimum is {want}"
    FLOOR = "somebody waits for {want} units and {have} are there"
    MANUAL = "the pool was set to {want} units by hand and has {have}"
    MEMORY = "the results take {used_bytes} bytes, more than {have} units should hold; {want} units have room"
    # fewer
    SURPLUS = "{surplus} of {have} units are more than the work has been able to use for the last {window_s:.1f} s ({want} needed)"
    ABOVE_MAXIMUM = "the pool has {have} units and its maximum is {want}"
    UNNEEDED_START = "{surplus} units that have not started yet are no longer needed ({want} needed)"
    EXPIRED = "the unit did not start within {limit_s:.0f} s: {message}"
    LOST_WORKER = "the unit's worker left the scheduler {age_s:.0f} s ago and did not come back"
    # neither
    NO_WORK = "there is no work and no unit"
    ENOUGH = "{have} units are what the work can use"
    KEPT_FOR_RESULT = (
        "the unit holds {keys} results that somebody still wants, and no other has room for them"
    )
    KEPT_BREAK_EVEN = "{surplus} idle units are kept: starting them again would cost {keep_s:.1f} s, their last use is {idle_s:.1f} s ago"
    KEPT_FOR_LATER = "{surplus} idle units are kept: {later} tasks that wait for others can use them"
    TOO_LATE = "{runnable} tasks wait, but a new unit takes {boot_s:.1f} s to start and would find too little of the {work_s:.1f} s of work left"
    RAMP = "the tasks' durations are not known yet: {have} units until one finishes or proves long"
    AT_MAXIMUM = "the work could use {want} units, the maximum is {limit}"
    BUDGET = "the work could use {want} units, the budget allows {limit} ({spent:.1f} spent)"
    NO_CAPACITY = "the platform has no room for more than {limit} units: {message}"
    BACKOFF = "the last {failures} starts failed, the next attempt is in {wait_s:.1f} s: {message}"
    BLIND = "the platform did not answer, so nothing is known and nothing is done: {message}"
    PINNED = "{surplus} units are more than needed and cannot be drained: {message}"
    DRAINING = "{count} units are being drained"
    IMPOSSIBLE = "{tasks} tasks such as {example} can never run here: {missing}"
    # vetoes between decision and act
    BECAME_BUSY = "the worker was given {tasks} tasks after the decision"
    LEFT = "the worker left after the decision"
    NEW_ADDRESS = "the worker was restarted after the decision"
    # ends of a drain
    DRAIN_DONE = "drained in {took_s:.1f} s"
    DRAIN_REFUSED = "the drain was refused, the worker is back at work: {message}"
    DRAIN_TIMED_OUT = "the drain took longer than {limit_s:.0f} s, the worker is back at work with {tasks} tasks and {keys} results"


class Why(msgspec.Struct, frozen=True, omit_defaults=True):
    """A reason.

    Attributes
    ----------
    code
        Name of a :class:`Code`.
    numbers
        What fills its sentence.
    """

    code: str
    numbers: dict[str, int | float | str] = {}

    def __str__(self) -> str:
        return Code[self.code].value.format(**self.numbers)


def why(code: Code, /, **numbers: int | float | str) -> Why:
    """Make a reason; the numbers must be those of the code's sentence."""
    return Why(code.name, numbers)
