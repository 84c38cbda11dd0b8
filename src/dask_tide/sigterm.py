"""SIGTERM: which servers of a process depart on it, and which processes leave it to others.

It is the nanny's business. Where it is sent to all processes of a group (Slurm, some container
runtimes), the worker's process leaves it to its nanny (:func:`defer`); it would die with its results.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta
from distributed import Worker
from distributed.worker import WORKER_ANY_RUNNING

from dask_tide.departure import Leaver, depart
from dask_tide.errors import ConfigError
from dask_tide.leaving import departs

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["defer", "join", "leave"]

logger = logging.getLogger("distributed.tide.departure")

#: Kubernetes kills 30 s after SIGTERM; closing takes some of that.
DEFAULT_TIMEOUT = "20s"
#: How long a worker's process that got SIGTERM waits for its nanny to begin a departure.
DEFER_S = 10.0
#: How long what it says may take to be read then.
READ_S = 1.0


class _Sigterm:
    """SIGTERM of the process, and who departs on it.

    There is one, whatever the number of nannies: a signal is the process's, and its workers
    should not hand their results to one another.
    """

    def __init__(self) -> None:
        self.leavers: list[Leaver] = []
        self.timeout_s = 0.0
        self.before: Any = signal.SIG_DFL
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None

    def take(self) -> None:
        """Put our handler before whichever is installed, unless it is ours or SIGTERM has come."""
        installed = signal.getsignal(signal.SIGTERM)
        if not self.leavers or self.task or installed == self._handle:
            return
        # None: installed by something other than Python, which we could not put back.
        self.before = signal.SIG_DFL if installed is None else installed
        signal.signal(signal.SIGTERM, self._handle)

    def others(self) -> Any:
        """The handler that is installed beside ours."""
        installed = signal.getsignal(signal.SIGTERM)
        return self.before if installed == self._handle else installed

    def give_back(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self.before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Nothing is logged here: a signal may interrupt the logging of something else.
        # From now on a second SIGTERM has its usual effect: a quick exit.
        self.give_back()
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self.task = asyncio.ensure_future(self._depart())

    async def _depart(self) -> None:
        departures = (depart(leaver, self.timeout_s) for leaver in self.leavers)
        results = await asyncio.gather(*departures, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            logger.error("A departure failed; the process ends.", exc_info=failure)
        if failures:
            # Dask's way out could wait 30 s for a thread that is still at work.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif signal.getsignal(signal.SIGTERM) != self.before:
            return  # there was a second SIGTERM
        # Ours was before the usual effect of SIGTERM, not instead of it. Dask's command line is about
        # to exit anyway; another program may not be.
        signal.raise_signal(signal.SIGTERM)


_sigterm = _Sigterm()


def hurry(left_s: float) -> None:
    """Let a departure that is about to begin take no longer than ``left_s``: then the machine is gone."""
    _sigterm.timeout_s = max(0.0, min(_sigterm.timeout_s, left_s))


def join(server: Leaver) -> bool:
    """Let a nanny with its worker, or a worker without a nanny, depart on SIGTERM.

    Call it in the event loop of the server, which must be in the main thread: elsewhere no
    signal can be handled, which is logged and nothing done.

    Parameters
    ----------
    server
        What departs; all servers of the process that have joined do so together.

    Returns
    -------
    bool
        Whether it will depart on SIGTERM.

    Raises
    ------
    ConfigError
        If ``tide.departure.timeout`` is no duration.
    """
    timeout = dask.config.get("tide.departure.timeout", DEFAULT_TIMEOUT)
    try:
        _sigterm.timeout_s = float(parse_timedelta(timeout))
    except (KeyError, TypeError, ValueError):
        raise ConfigError("tide.departure.timeout", timeout, "a duration such as '25s'") from None
    if not _in_main_thread():
        if server not in _sigterm.leavers:
            logger.info("%r is not in the main thread: SIGTERM will not drain it.", server)
        return False
    _sigterm.leavers.append(server)
    _sigterm.loop = asyncio.get_running_loop()
    _sigterm.take()
    # Dask's command line installs its handler in a task of its own, which may come after us.
    _sigterm.loop.call_later(1.0, _sigterm.take)
    return True


def leave(server: Leaver) -> None:
    """Undo :func:`join`; where it was not done, do nothing."""
    with suppress(ValueError):
        _sigterm.leavers.remove(server)
    if _sigterm.leavers or not _in_main_thread():
        return
    handler = _sigterm.others()
    if isinstance(server, Worker) and getattr(handler, "__module__", "") == "distributed._signals":
        # `dask worker --no-nanny` would cancel the close that is under way, and wait for ever for what it
        # has cancelled. The process is about to end; SIGTERM has nothing to add. In one step: it may come
        # between two.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        _sigterm.give_back()


def defer(worker: Worker) -> None:
    """Let the process of a worker leave SIGTERM to its nanny, which may have got it, too.

    If the nanny has not begun to depart after :data:`DEFER_S`, SIGTERM was meant for this process
    alone and has its usual effect; a second one has it at once.

    Parameters
    ----------
    worker
        A worker with a nanny, in whose process and event loop this is called.
    """
    if multiprocessing.parent_process() is None or not _in_main_thread():
        return  # not a process that a nanny has started
    loop = asyncio.get_running_loop()

    def obey() -> None:
        if not departs(worker) and worker.status in WORKER_ANY_RUNNING:
            signal.raise_signal(signal.SIGTERM)

    def wait() -> None:
        # The loop may have stood still meanwhile, for a task that keeps the interpreter's lock, and what the
        # nanny said not have been read yet.
        loop.call_later(READ_S, obey)

    def handle(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_soon_threadsafe(loop.call_later, DEFER_S, wait)

    signal.signal(signal.SIGTERM, handle)


def _in_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()
