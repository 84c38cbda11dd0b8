"""The scheduler of a cluster that ends by itself, as a program.

``python -m dask_tide.providers.kubernetes.lifetime [--idle-timeout 10m] [arguments of dask scheduler]``

It is the scheduler of a Job that owns all other objects of the cluster. When it exits with 0 the Job is
complete, Kubernetes deletes it (``ttlSecondsAfterFinished: 0``) and collects what it owns: no process
needs the right to delete anything. So it exits with 0 only when the cluster is over: when somebody has
shut it down, or nobody was connected and there was no work for the idle timeout. ``dask scheduler`` exits
with 0 after SIGTERM, too; here that is 143, and the Job starts another (its node was drained, say).

Somebody is connected while a client is, or while one that has said ``tide_stay(seconds)`` lately, as
:class:`~dask_tide.TideCluster` does.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from dask.utils import parse_timedelta

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

__all__ = ["Lifetime", "dask_setup", "main"]

logger = logging.getLogger("distributed.tide.lifetime")

#: Whoever has asked for the scheduler has this long to come, however short the idle timeout.
ARRIVAL_S = 60.0
#: A client that has sent no heartbeat (one in 5 s) for so long is not there, whatever TCP believes.
_SILENT_S = 15.0
#: Looks per idle timeout, and bounds of the time between them.
_LOOKS, _SHORTEST_S, _LONGEST_S = 10, 0.1, 5.0
#: Clients of tasks: they live as long as their worker, and are there for the work's sake.
_OF_TASKS = "Client-worker-"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_idle_timeout_s: float | None = None
#: What stood before Dask's handlers, which put it back at the first signal.
_before: dict[int, object] = {}
#: Whether ours stand: without them nobody can tell an end that was meant from a signal's.
_listening = False
_signals: list[int] = []
_tasks: set[asyncio.Task[None]] = set()


class Lifetime:
    """Tells when a scheduler's cluster is over.

    Parameters
    ----------
    scheduler
        The scheduler.
    idle_timeout_s
        It is over when for so long nobody was connected and there was no work.
    now_s, wall_s
        Clocks: one that runs evenly, and the one that clients' heartbeats are dated by.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        idle_timeout_s: float,
        *,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._scheduler = scheduler
        self._idle_timeout_s = idle_timeout_s
        self._now_s, self._wall_s = now_s, wall_s
        self._until_s = now_s()
        #: Nothing ends before; afterwards the last moment at which somebody was there or something to do.
        self._active_s = now_s() + max(ARRIVAL_S - idle_timeout_s, 0.0)

    def stay(self, seconds: float) -> None:
        """Somebody is there, and will have said so again before these ``seconds`` are over."""
        self._until_s = max(self._until_s, self._now_s() + seconds)
        self._active_s = self._now_s()

    def over(self) -> bool:
        """Look; whether the cluster is over."""
        now_s = self._now_s()
        if self._connected():
            # Now, also if that is earlier than what whoever comes first is given.
            self._active_s = now_s
        elif self._busy():
            self._active_s = max(self._active_s, now_s)
        return now_s - self._active_s > self._idle_timeout_s

    def _connected(self) -> bool:
        since_s = self._wall_s() - _SILENT_S
        return self._now_s() < self._until_s or any(
            client.last_seen > since_s
            for name, client in self._scheduler.clients.items()
            if name in self._scheduler.client_comms and not name.startswith(_OF_TASKS)
        )

    def _busy(self) -> bool:
        """Whether there is work: with a worker, queued, or without a worker that could take it."""
        scheduler = self._scheduler
        return bool(
            scheduler.queued
            or scheduler.unrunnable
            or any(ws.processing for ws in scheduler.workers.values())
        )


async def dask_setup(scheduler: Scheduler) -> None:
    """Watch over the scheduler that loads this module (:func:`main` sees to that)."""
    global _listening  # noqa: PLW0603 - Dask gives a preload nothing but the scheduler
    # By now Dask's own handlers stand, and those of nobody else would be asked.
    for signum in _SIGNALS:
        handler = signal.getsignal(signum)
        if handler is _before.get(signum):
            _signals.append(signum)  # Dask's was told already
        else:
            signal.signal(signum, partial(_told, handler))
    _listening = True
    if _idle_timeout_s is None:
        return
    lifetime = Lifetime(scheduler, _idle_timeout_s)

    async def tide_stay(seconds: float) -> None:
        lifetime.stay(seconds)

    scheduler.handlers["tide_stay"] = tide_stay
    task = asyncio.create_task(_watch(scheduler, lifetime, _idle_timeout_s), name="dask-tide-lifetime")
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _told(
    before: Callable[[int, FrameType | None], object] | int | None, signum: int, frame: FrameType | None
) -> None:
    _signals.append(signum)
    if callable(before):
        before(signum, frame)


async def _watch(scheduler: Scheduler, lifetime: Lifetime, idle_timeout_s: float) -> None:
    interval_s = min(max(idle_timeout_s / _LOOKS, _SHORTEST_S), _LONGEST_S)
    while not lifetime.over():  # noqa: ASYNC110 - what it looks at tells nobody
        await asyncio.sleep(interval_s)
    logger.info("For %g s nobody was connected and there was no work: the cluster ends.", idle_timeout_s)
    await scheduler.close(reason="tide-idle-timeout")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a scheduler; exits with 0 when its cluster is over."""
    # Not this module, which is `__main__`: the one that Dask loads below.
    lifetime = importlib.import_module("dask_tide.providers.kubernetes.lifetime")
    lifetime._run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> None:
    global _idle_timeout_s  # noqa: PLW0603 - Dask gives a preload nothing but the scheduler
    from distributed.cli.dask_scheduler import main as dask_scheduler

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--idle-timeout", type=lambda text: float(parse_timedelta(text)))
    given, others = parser.parse_known_args(arguments)
    _idle_timeout_s = given.idle_timeout
    _before.update((signum, signal.getsignal(signum)) for signum in _SIGNALS)
    try:
        dask_scheduler(["--preload", __name__, *others], prog_name="dask scheduler")
    except SystemExit as end:
        if end.code:
            raise
    if _signals or not _listening:
        sys.exit(128 + (_signals or [signal.SIGTERM])[0])


if __name__ == "__main__":
    main()
