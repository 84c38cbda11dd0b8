"""Handlers: what clients and command lines may ask a scheduler that has the controller.

Each is called as ``client.scheduler.tide_status()`` and so on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from distributed.comm.core import Comm

from dask_tide.errors import ConfigError
from dask_tide.model import Phase

from .explain import describe, story, summary
from .loop import Controller

#: For how long workers stay to which a client may be about to connect.
_DIRECT_S = 10.0


def register(controller: Controller) -> Callable[[], None]:
    """Add the handlers to the controller's scheduler; returns what takes them away again."""
    handlers = controller.scheduler.handlers

    async def tide_status() -> dict[str, Any]:
        return status(controller)

    async def tide_explain(lines: int = 20) -> str:
        return explain(controller, lines)

    async def tide_scale(n: int, pool: str | None = None) -> dict[str, Any]:
        return _checked(controller.scale, n=n, pool=pool)

    async def tide_adapt(
        minimum: int | None = None, maximum: int | None = None, pool: str | None = None
    ) -> dict[str, Any]:
        return _checked(controller.adapt, minimum=minimum, maximum=maximum, pool=pool)

    async def tide_floor(n: int, seconds: float = 30.0, pool: str | None = None) -> dict[str, Any]:
        return _checked(controller.floor, n_workers=n, seconds=seconds, pool=pool)

    async def tide_notice(worker: str, message: str) -> bool:
        return controller.notice(worker, message)

    ours = {name: _minded(controller, handlers[name]) for name in _ASK_WORKERS}
    ours["ncores_running"] = _expected(controller, handlers["ncores_running"])
    for handler in (tide_status, tide_explain, tide_scale, tide_adapt, tide_floor, tide_notice):
        ours[handler.__name__] = handler
    handlers.update(ours)

    def unregister() -> None:
        for name, handler in ours.items():
            if handlers.get(name) is not handler:
                continue  # somebody else's by now
            if (stock := getattr(handler, "stock", None)) is None:
                del handlers[name]
            else:
                handlers[name] = stock

    return unregister


#: Handlers of Dask's that have workers do something without a task.
_ASK_WORKERS = (
    *("scatter", "broadcast", "proxy", "register_worker_plugin", "unregister_worker_plugin"),
    *("worker_logs", "call_stack", "profile", "benchmark_hardware", "get_story", "replicate", "rebalance"),
)


def _minded(controller: Controller, handler: Any) -> Any:
    """Dask's handler, while which no idle worker goes."""
    stock = getattr(handler, "stock", handler)  # not the one of a controller before this
    takes_comm = next(iter(inspect.signature(stock).parameters), "") == "comm"

    # Dask hands the connection to those whose first parameter has this name.
    async def minded(comm: Comm, **arguments: Any) -> Any:
        data = stock.__name__ == "scatter"
        # It waits for a worker to give the data to, and no task says that one is wanted.
        if data and not controller.scheduler.running:
            controller.expect(arguments.get("timeout") or 2.0)
        one = arguments.get("worker")  # of `proxy`
        workers = arguments.get("workers") if one is None else [one]
        with controller.requests.asked(workers, comm, data=data):
            return await stock(*([comm] if takes_comm else []), **arguments)

    minded.stock = stock  # type: ignore[attr-defined]
    return minded


def _expected(controller: Controller, handler: Any) -> Any:
    """Dask's handler that ``scatter(direct=True)`` asks, again and again, for workers to connect to."""
    stock = getattr(handler, "stock", handler)

    @functools.wraps(stock)
    def expected(*args: Any, **arguments: Any) -> Any:
        controller.expect(_DIRECT_S)
        return stock(*args, **arguments)

    expected.stock = stock  # type: ignore[attr-defined]
    return expected


def _checked(method: Any, **arguments: Any) -> dict[str, Any]:
    """Call it; a wrong argument becomes a reply that :func:`raise_for` turns into the error again."""
    try:
        method(**arguments)
    except ConfigError as error:
        return {"error": [error.key, error.value, error.expected]}
    return {}


def raise_for(reply: dict[str, Any]) -> None:
    """Raise the error that a handler has replied with, if it did."""
    if "error" in reply:
        raise ConfigError(*reply["error"])


def status(controller: Controller) -> dict[str, Any]:
    """How things stand: units, pools, the last decisions, what was spent (price × seconds)."""
    snapshot = controller.snapshot
    units = () if snapshot is None else snapshot.units
    return {
        "cluster": controller.config.name or "",
        "provider": controller.config.provider,
        "mode": "manual" if controller.manual else "automatic",
        "pools": {
            name: {
                "minimum": pool.minimum,
                "maximum": pool.maximum,
                "boot_s": controller.ledger.records[name].boot_s,
                "cold_boot_s": controller.ledger.records[name].cold_boot_s,
                "units": {
                    phase.value: count
                    for phase in Phase
                    if (count := sum(1 for u in units if u.pool == name and u.phase is phase))
                },
            }
            for name, pool in controller.pools.items()
        },
        "units": [
            {
                "name": unit.name,
                "pool": unit.pool,
                "phase": unit.phase.value,
                "age_s": unit.age_s,
                "machine": unit.machine,
                "message": unit.message,
            }
            for unit in units
        ],
        "decisions": [
            {
                "at_s": line.at_s,
                "action": type(action).__name__.lower(),
                "pool": action.pool,
                "count": getattr(action, "count", len(getattr(action, "units", ()))),
                "why": str(action.why),
                "sentence": describe(action),
            }
            for line in controller.journal.recent
            for action in line.actions
        ][-100:],
        "unfinished_tasks": controller.tally.unfinished,
        "spent": controller.ledger.spent,
        "starts": sum(record.registered for record in controller.ledger.records.values()),
        "errors": controller.errors,
    }


def explain(controller: Controller, lines: int = 20) -> str:
    """The last ``lines`` things that happened, and how things stand now, as plain sentences."""
    recent = list(controller.journal.recent)
    if not recent:
        return "Nothing has been decided yet."
    told = list(story(recent))[-lines:] if lines > 0 else []
    now = controller.preview()
    return "\n".join([*told, *(["", *summary(now)] if told else summary(now))])
