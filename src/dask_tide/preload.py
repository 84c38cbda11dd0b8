"""Preload: the module that ``dask scheduler`` and ``dask worker`` load.

=====================================================  ==========================================
``dask scheduler --preload dask_tide.preload``         the controller runs in the scheduler
``dask worker --preload-nanny dask_tide.preload``      on SIGTERM the workers give away what they
                                                       hold before they exit
``dask worker --no-nanny --preload dask_tide.preload`` the same, for a worker without a nanny
=====================================================  ==========================================
"""

from __future__ import annotations

import logging
from typing import TypeGuard

from distributed import Nanny, Scheduler, Worker
from distributed.core import Server

from dask_tide import departure
from dask_tide.errors import TideError

__all__ = ["dask_setup", "dask_teardown"]

logger = logging.getLogger("distributed.tide.preload")


async def dask_setup(server: Server) -> None:
    """Add what this project does for a server of that type; Dask calls it when the server starts.

    Parameters
    ----------
    server
        A scheduler, a nanny or a worker. A worker that has a nanny needs nothing: SIGTERM is
        sent to its nanny.

    Raises
    ------
    SystemExit
        With 2, if the configuration is wrong: Dask would log any other exception and serve on.
    """
    try:
        if isinstance(server, Scheduler):
            # Here, since workers need not load the controller.
            from dask_tide.controller.attach import attach

            attach(server)
        elif _departs(server):
            departure.join(server)
    except TideError as error:
        logger.error("%s", error)
        raise SystemExit(2) from None


async def dask_teardown(server: Server) -> None:
    """Undo :func:`dask_setup`; Dask calls it when the server closes."""
    if _departs(server):
        departure.leave(server)


def _departs(server: Server) -> TypeGuard[Nanny | Worker]:
    return isinstance(server, Nanny) or (isinstance(server, Worker) and server.nanny is None)
