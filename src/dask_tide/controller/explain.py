"""Explain: decisions as plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from dask_tide.model import Action, Drain, Hold, Launch, Phase, PoolState, Release, Snapshot

from .journal import Line

_SHOWN = 5
#: That a platform takes longer before it shows anything of what it was asked for is worth a word.
_SLOW_S = 5.0


def describe(action: Action) -> str:
    """An action as a sentence."""
    match action:
        case Launch():
            return f"Pool {action.pool}: asked for {_units(action.count)}, because {action.why}."
        case Drain():
            return f"Pool {action.pool}: drained {_names(action.units)}, because {action.why}."
        case Release():
            return f"Pool {action.pool}: gave back {_names(action.units)}, because {action.why}."
        case Hold():
            where = f"Pool {action.pool}: nothing to do" if action.pool else "Cannot be helped"
            return f"{where}: {action.why}."


def story(lines: Iterable[Line]) -> Iterator[str]:
    """What was done and what happened, oldest first; why nothing was done, where that changed."""
    before: set[tuple[object, ...]] = set()
    for line in lines:
        when = _time(line.at_s)
        for event in line.events:
            what = f"unit {event.unit}" if event.unit else "provider"
            yield f"{when}  Pool {event.pool}: {what}: {event.why}."
        for action in line.actions:
            if not isinstance(action, Hold) or _reason(action) not in before:
                yield f"{when}  {describe(action)}"
        before = {_reason(action) for action in line.actions}


def _reason(action: Action) -> tuple[object, ...]:
    """What is told again only when it was not so in between; its other numbers change all the time."""
    return action.pool, action.why.code, action.why.numbers.get("example")


def summary(line: Line) -> Iterator[str]:
    """How things stand at this moment."""
    snapshot = line.snapshot
    yield f"At {_time(line.at_s)}: {_work(snapshot)}."
    for state in snapshot.pools:
        pool = state.pool
        phases = [unit.phase for unit in snapshot.units if unit.pool == pool.name]
        counted = ", ".join(f"{phases.count(p)} {p.value}" for p in Phase if p in phases) or "no units"
        limits = f"minimum {pool.minimum}, maximum {pool.maximum}"
        if state.manual is not None:
            limits += f", set by hand to {state.manual}"
        yield f"Pool {pool.name}: {counted}; {limits}; {_boot(state)}."
        owed_s = [u.age_s for u in snapshot.units if u.pool == pool.name and u.phase is Phase.REQUESTED]
        if owed_s and max(owed_s) > _SLOW_S:
            yield f"  The platform has shown none of those {len(owed_s)} for {max(owed_s):.0f} s."
        yield from _said(snapshot, pool.name)
    for action in line.actions:
        yield describe(action)


def _boot(state: PoolState) -> str:
    if state.boot_s is None and state.cold_boot_s is None:
        return "boot time not measured yet"
    known = [(state.boot_s, ""), (state.cold_boot_s, " where a machine must come")]
    return "boot time " + ", ".join(f"{s:.1f} s{where}" for s, where in known if s is not None)


def _said(snapshot: Snapshot, pool: str) -> Iterator[str]:
    """What the platform says of units that are not simply there, each thing once."""
    said: dict[tuple[Phase, str], list[str]] = {}
    for unit in snapshot.units:
        if unit.pool == pool and unit.message:
            said.setdefault((unit.phase, unit.message), []).append(unit.name)
    for (phase, message), names in list(said.items())[:_SHOWN]:
        yield f"  {_names(tuple(names))} ({phase.value}): {message}"


def _work(snapshot: Snapshot) -> str:
    running = sum(work.processing for work in snapshot.work)
    ready = sum(work.ready for work in snapshot.work)
    waiting = sum(work.waiting for work in snapshot.work)
    if not (running or ready or waiting):
        return "no unfinished task"
    return f"unfinished tasks: {running} with a worker, {ready} ready for one, {waiting} waiting for others"


def _units(count: int) -> str:
    return "1 more unit" if count == 1 else f"{count} more units"


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} others"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().strftime("%H:%M:%S.%f")[:-5]
