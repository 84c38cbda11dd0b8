"""Observe: one turn of the event loop in which the scheduler's state becomes a Snapshot."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from distributed.core import Status

from dask_tide.model import Pool, PoolState, Worker, owner_of

from .bindings import Bindings
from .drain import shuffling
from .ledger import PoolRecord
from .supply import Supply
from .wishes import Wishes

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, WorkerState

#: What a worker says of itself when it is about to go, whoever told it to.
_LEAVING = (Status.closing_gracefully, Status.closing, Status.closed)

#: Of how many idle workers, and of how many of their results, the only copies are counted in one
#: tick. No hook tells when a result gets or loses a replica, so they must be counted; 2,500 take 1 ms.
_CANDIDATES = 16
_KEYS = 2500
_NOT_COUNTED = None, 0


def owners(scheduler: Scheduler, units: Container[str]) -> list[str]:
    """The unit that runs each of the scheduler's workers, in their order; empty: nobody's."""
    return [owner_of(ws.name, units) for ws in scheduler.workers.values()]


def leaving(scheduler: Scheduler, owned_by: Sequence[str]) -> set[str]:
    """Units none of whose workers means to stay; from :func:`owners`, as in :func:`workers`."""
    states = scheduler.workers.values()
    staying = {unit for ws, unit in zip(states, owned_by, strict=True) if ws.status not in _LEAVING}
    return set(owned_by) - staying


def workers(
    scheduler: Scheduler,
    owned_by: Sequence[str],
    refused: Mapping[str, str],
    bindings: Bindings,
    doomed: Container[str],
    blocked: Mapping[str, int],
    asked: Container[str],
    stuck: Mapping[str, str],
) -> tuple[Worker, ...]:
    """The scheduler's workers as plain values.

    Parameters
    ----------
    scheduler
        Whose workers.
    owned_by
        From :func:`owners`, in the same turn of the event loop.
    refused
        Units that refused a drain a short while ago, and why.
    bindings
        Tasks that may not run everywhere.
    doomed
        Units whose machine is about to go: that a task may run only there keeps nothing.
    blocked
        By address, how many threads run what was cancelled.
    asked
        Addresses of those who answer a request, or are about to, that is no task.
    stuck
        By address, the name of the reason why a worker takes no task any more.
    """
    states = scheduler.workers.values()
    idle = [ws for ws, unit in zip(states, owned_by, strict=True) if unit and not ws.processing]
    pinned = _pinned(scheduler, idle)
    needed = bindings.needed(scheduler)
    only_copies = _only_copies(idle)
    return tuple(
        Worker(
            address=ws.address,
            name=str(ws.name),
            unit=unit,
            threads=ws.nthreads,
            status=ws.status.name,
            tasks=len(ws.processing),
            bound=bindings.given(ws) if unit else bindings.taken(ws),
            blocked=blocked.get(ws.address, 0),
            held_keys=len(ws.has_what),
            held_bytes=ws.nbytes,
            only_copies=0 if not ws.has_what else only_copies.get(ws.address, _NOT_COUNTED)[0],
            largest_bytes=only_copies.get(ws.address, _NOT_COUNTED)[1],
            used_bytes=process_bytes(ws),
            limit_bytes=ws.memory_limit or 0,
            pinned=_pin(ws, lasts=unit not in doomed)
            or pinned.get(ws.address, "")
            or ("" if unit in doomed else needed.get(ws.address, ""))
            or ("a client's request has to do with it" if ws.address in asked and unit not in doomed else "")
            or refused.get(unit, ""),
            stuck=stuck.get(ws.address, ""),
        )
        for ws, unit in zip(states, owned_by, strict=True)
    )


def pool_state(
    pool: Pool,
    now_s: float,
    *,
    blind: str,
    wishes: Wishes,
    supply: Supply,
    record: PoolRecord,
) -> PoolState:
    """What is known of a pool, brought together from those who know it."""
    name = pool.name
    limit = supply.limit(name, now_s)
    return PoolState(
        pool=pool,
        blind=blind,
        frozen=supply.frozen.get(name, ""),
        manual=wishes.manual_of(name),
        floor=wishes.floor_of(name, now_s),
        boot_s=record.boot_s,
        cold_boot_s=record.cold_boot_s,
        room=record.room,
        price=record.price_lately(now_s),
        dearest=record.dearest,
        bound=supply.prices.get(name),
        capacity=None if limit is None else limit.maximum,
        capacity_message="" if limit is None else limit.message,
        started=record.started,
        failed=record.failed + supply.rejected[name],
        failure=record.failure,
        baseline_bytes=record.baseline_bytes,
    )


def process_bytes(ws: WorkerState) -> int:
    """Memory of the worker's process, and what it has spilled; 0 before its first heartbeat."""
    metrics = ws.metrics
    spilled = metrics.get("spilled_bytes") or {}
    return int(metrics.get("memory", 0)) + int(spilled.get("memory", 0))


def _pin(ws: WorkerState, *, lasts: bool) -> str:
    if ws.actors:
        return f"worker {ws.name} holds {len(ws.actors)} actors, which cannot be moved"
    # On a machine that is about to go they are lost anyway if they do not end in time.
    if ws.long_running and lasts:
        return f"worker {ws.name} runs {len(ws.long_running)} tasks that have seceded"
    return ""


def _pinned(scheduler: Scheduler, idle: list[WorkerState]) -> dict[str, str]:
    """Workers that a shuffle, and idle ones that another plugin of the scheduler, wants to keep."""
    pinned = dict.fromkeys(shuffling(scheduler), "a P2P shuffle relies on it")
    if not idle:
        return pinned
    for name, plugin in list(scheduler.plugins.items()):
        valid = getattr(plugin, "valid_workers_downscaling", None)
        if valid is None or name == "tide":
            continue
        allowed = {ws.address for ws in valid(scheduler, list(idle))}
        for ws in idle:
            if ws.address not in allowed:
                pinned.setdefault(ws.address, f"the scheduler's plugin {name} keeps it")
    return pinned


def _only_copies(idle: Iterable[WorkerState]) -> dict[str, tuple[int, int]]:
    """How many results only this worker has, and the largest one's bytes, for the few likeliest to go."""
    counted: dict[str, tuple[int, int]] = {}
    budget = _KEYS
    holding = [ws for ws in idle if ws.has_what]
    holding.sort(key=lambda ws: (len(ws.has_what), ws.address))
    rank = {ws: number for number, ws in enumerate(holding)}
    for ws in holding[:_CANDIDATES]:
        budget -= len(ws.has_what)
        if budget < 0:
            break
        last = [ts.get_nbytes() for ts in ws.has_what if _is_last(ws, ts.who_has or (), rank)]
        counted[ws.address] = len(last), max(last, default=0)
    return counted


def _is_last(ws: WorkerState, copies: Iterable[WorkerState], rank: Mapping[WorkerState, int]) -> bool:
    """Whether, of the workers that have a copy, this one is the last that may go."""
    if ws.status in _LEAVING:
        return all(other.status in _LEAVING for other in copies)
    return all(rank.get(other, len(rank)) <= rank[ws] for other in copies if other.status not in _LEAVING)
