"""Preload: the module that ``dask scheduler`` and ``dask worker`` load.

=====================================================  ==========================================
``dask scheduler --preload dask_tide.preload``         the controller runs in the scheduler
``dask worker --preload-nanny dask_tide.preload``      on SIGTERM the workers give away what they
                                                       hold before they exit; they can be parked
``dask worker --no-nanny --preload dask_tide.preload`` the same, for a worker without a nanny,
                                                       which cannot be parked
=====================================================  ==========================================

See :mod:`dask_tide.sigterm`, :mod:`dask_tide.departure`, :mod:`dask_tide.parking`, for the port that
tells whether they run :mod:`dask_tide.readiness`, and for spot machines :mod:`dask_tide.interruption`.
"""

from __future__ import annotations

import asyncio
import logging

from distributed import Nanny, Scheduler, Worker
from distributed.core import Server

from dask_tide import interruption, parking, readiness, sigterm
from dask_tide.errors import TideError

__all__ = ["dask_setup", "dask_teardown"]

logger = logging.getLogger("distributed.tide.preload")

#: The name of this module, whatever the name is under which it was loaded.
_MODULE = "dask_tide.preload"


async def dask_setup(server: Server) -> None:
    """Add what this project does for a server of that type; Dask calls it when the server starts.

    Parameters
    ----------
    server
        A scheduler, a nanny or a worker.

    Raises
    ------
    SystemExit
        With 2, if the configuration is wrong, or a scheduler cannot have a controller: Dask would log any
        other exception and serve on.
    """
    try:
        if isinstance(server, Scheduler):
            # Here, since workers need not load the controller.
            from dask_tide.controller.attach import attach

            attach(server)
        elif isinstance(server, Worker) and server.nanny is not None:
            sigterm.defer(server)
        elif isinstance(server, Nanny | Worker):
            readiness.join(server)
            handles_sigterm = sigterm.join(server)
            if isinstance(server, Nanny):
                _load_in_worker(server)
                interruption.join(server)
                if handles_sigterm:
                    parking.join(server)
    except Exception as error:
        if isinstance(error, TideError):
            logger.error("%s", error)
        elif isinstance(server, Scheduler):
            logger.exception("The controller cannot be started; without one no worker would ever come")
        else:
            raise
        if (task := asyncio.current_task()) is not None:
            # Asked by nobody else, and asyncio would say so with a traceback that hides the message.
            task.add_done_callback(asyncio.Task.exception)
        raise SystemExit(2) from None


async def dask_teardown(server: Server) -> None:
    """Undo :func:`dask_setup`; Dask calls it when the server closes."""
    if not isinstance(server, Nanny | Worker):
        return
    readiness.leave(server)
    if isinstance(server, Nanny):
        interruption.leave(server)
        # While it is parked SIGTERM must still reach it, and nothing of the nanny is closed.
        await parking.hold(server)
        parking.leave(server)
    if isinstance(server, Nanny) or server.nanny is None:
        sigterm.leave(server)


def _load_in_worker(nanny: Nanny) -> None:
    """Have the nanny's workers load this module, too; it has not started one yet."""
    preloads = [nanny.preload] if isinstance(nanny.preload, str) else list(nanny.preload)
    if _MODULE in preloads:
        return
    nanny.preload = [*preloads, _MODULE]
    if nanny.preload_argv and not isinstance(nanny.preload_argv[0], str):  # one list for each of them
        nanny.preload_argv = [*nanny.preload_argv, []]
