"""Why: every decision's reason, a code and the numbers that led to it."""

from __future__ import annotations

import enum

import msgspec


class Code(enum.Enum):
    """What led to a decision. The value is the sentence; the numbers fill it."""

    # more
    DEMAND = "{runnable:tasks} could run now with {slots:slots} a unit, so {want:units} can be used; {have:units} there or on the way"
    DEMAND_BESIDE = "{runnable:tasks} could run now with {slots:slots} a unit, so {want:units} can be used; of {have:units} there or on the way {full} take no more"
    MINIMUM = "the pool has {have:units} and its minimum is {want}"
    FLOOR = "somebody waits for {want:units} and the pool has {have}"
    MANUAL = "the pool was set to {want:units} by hand and has {have}"
    SAFE_COPY = (
        "{keys:results} that somebody still wants are only on machines that may be taken away at short notice"
    )
    RESCUE = "{keys:results} that somebody still wants are only on units that are about to go"
    MEMORY = "the results take {used_bytes} bytes, more than {have:units} should hold; it takes {want:units}"
    # fewer
    SURPLUS = (
        "for the last {window_s:.1f} s the work could use no more than {want:units}, and the pool has {have}"
    )
    ABOVE_MAXIMUM = "the pool has {have:units} and its maximum is {want}"
    OVER_BUDGET = "{have:units} cost more than the budget allows, which is for {want}"
    ABOVE_SHARED = "all pools have more units than `limits.maximum`; of {have:units} here it leaves {want}"
    STALE = "the unit was made from an older template and is idle: {message}"
    STALE_WAITING = "the unit was made from an older template and waits in vain: {message}"
    FULL = "the unit's memory is full of what is no result, so it takes no more tasks"
    BLOCKED = "the unit's threads run tasks that were cancelled, and others wait for them"
    DOOMED = "the unit has to go: {message}"
    EXPIRED = "the unit did not start within {limit_s:.0f} s: {message}"
    FAILED = "the unit ended without having been asked to: {message}"
    # neither
    NO_WORK = "there is no work and no unit"
    ENOUGH = "{have:units} can be used by the work, and that many there are"
    KEPT_MINIMUM = "the pool has {have:units}, and its minimum is {minimum}"
    KEPT_FLOOR = "{have:units} kept for somebody who waits, or has just waited, for {floor}"
    KEPT_FOR_RESULT = "a unit holds {keys:results} that somebody still wants, and no other has room"
    KEPT_TAIL = "{surplus:units} more than the work at hand can use, kept until that has been so for {window_s:.1f} s; it has been for {idle_s:.1f} s"
    KEPT_BREAK_EVEN = "{surplus:units} more than needed now, kept for the moment: starting again would cost {keep_s:.1f} s, the last use was {idle_s:.1f} s ago"
    KEPT_FOR_LATER = (
        "{surplus:units} more than needed now, kept: {later:units} will be used by tasks that wait for others"
    )
    TOO_LATE = "a new unit takes {boot_s:.1f} s to start and would find too little of the {work_s:.1f} s of work that {runnable:tasks} have left"
    RAMP = "the tasks' durations are not known yet: {have:units} until one of them ends or proves long"
    AT_MAXIMUM = "the work could use {want:units}, the maximum is {limit}"
    AT_MAXIMUM_BESIDE = "the work could use {want:units}, the maximum is {limit}, and {full:units} there can take no more: paused since the memory is full, or busy with tasks that may run nowhere else"
    BUDGET = "the work could use {want:units}, the budget allows {limit} ({spent:.1f} spent)"
    NO_CAPACITY = "the platform has no room for more than {limit:units}: {message}"
    BACKOFF = "{failures:starts} in a row came to nothing, the next attempt is in {wait_s:.1f} s: {message}"
    TRIED = "{failures:starts} in a row came to nothing: one is tried now, others come once it has started: {message}"
    BLIND = "the platform did not answer, so nothing is known and nothing is done: {message}"
    FROZEN = "the pool is left alone: {message}"
    PINNED = "{surplus:units} more than needed, which cannot be drained: {message}"
    DRAINING = "{count:units} being drained"
    BOUND = "{tasks:tasks} such as {example} may run only on workers or hosts that are not there: no new one helps"
    IMPOSSIBLE = "{tasks:tasks} such as {example} can never run here: {missing}"
    # vetoes between decision and act
    BECAME_BUSY = "the worker was given {tasks:tasks} after the decision"
    LEFT = "the worker left after the decision"
    NEW_ADDRESS = "the worker was restarted after the decision"
    PROVIDER = "the provider could not do what it was asked: {message}"
    TAKEN = "the platform takes the unit away: {message}"
    STAYED = "the unit was to go and stays: its worker has started, or another one went instead"
    VERSIONS = "worker {worker} has distributed {version} and the scheduler {scheduler}, so it may fail at its first task: start both from the same image or environment"
    # ends of a drain
    DRAIN_DONE = "drained in {took_s:.1f} s"
    DRAIN_REFUSED = "the drain was refused, the worker is back at work: {message}"
    DRAIN_TIMED_OUT = "the drain took longer than {limit_s:.0f} s, the worker is back at work with {tasks:tasks} and {keys:results}"


class _Counted:
    """A number that can be formatted with a noun: ``{n:tasks}`` is ``1 task`` or ``2 tasks``."""

    def __init__(self, value: int | float | str) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        if not spec.isalpha():
            return format(self._value, spec)
        return f"{self._value} {spec.removesuffix('s') if self._value == 1 else spec}"


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
        return Code[self.code].value.format(**{name: _Counted(n) for name, n in self.numbers.items()})


def why(code: Code, /, **numbers: int | float | str) -> Why:
    """Make a reason; the numbers must be those of the code's sentence."""
    return Why(code.name, numbers)
