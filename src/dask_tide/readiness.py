"""Readiness: a port that is open while the workers of this process run.

For platforms that ask a port whether a unit is ready, as a kubelet does (``tcpSocket``). The port
is the nanny's: code that holds the GIL of its worker for minutes does not close it, and no worker
that is merely busy is taken for a dead one. It says nothing and listens to nothing: whoever
connects has the answer, and is hung up on.

It opens when every worker of the process runs (a worker runs once it is registered), closes while
one starts again, and when one is *withdrawn*: parked (:mod:`dask_tide.parking`) or leaving
(:mod:`dask_tide.departure`). A worker without a nanny keeps it in its own process, where the
kernel still answers for it while the GIL is held, until its queue of 128 connections is full.

``tide.readiness.port`` says which (null: none), ``tide.readiness.host`` on which address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

import dask
from distributed import Nanny, Worker
from distributed.core import Status
from distributed.worker import WORKER_ANY_RUNNING

from dask_tide.errors import ConfigError

__all__ = ["join", "leave", "restore", "withdraw"]

# Below `distributed`, since Dask shows no other logger's INFO.
logger = logging.getLogger("distributed.tide.readiness")

#: All IPv4 interfaces: a kubelet connects to the pod's own address. ("::" is both families.)
DEFAULT_HOST = "0.0.0.0"
#: How often it is looked whether the workers run: a nanny does not tell.
LOOK_S = 0.1

Server = Nanny | Worker


class _Readiness:
    """The port of this process, and whose state it tells.

    There is one, whatever the number of nannies: a pod is ready or it is not.
    """

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.withdrawn: list[Server] = []
        self.host, self.port = DEFAULT_HOST, 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        self.listening: socket.socket | None = None
        self.trouble = ""

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Open or close the port as the workers are."""
        ready = bool(self.servers) and not self.withdrawn and all(map(_runs, self.servers))
        if ready and self.listening is None:
            self._open()
        elif not ready:
            self.close()

    def _open(self) -> None:
        assert self.loop is not None
        ipv6 = ":" in self.host
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        try:
            self.listening = socket.create_server(
                (self.host, self.port), family=family, dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6()
            )
        except OSError as error:
            if str(error) != self.trouble:  # once, not ten times a second
                logger.error("No readiness port %d on %s: %s", self.port, self.host, error)
            self.trouble = str(error)
            return
        self.trouble = ""
        self.listening.setblocking(False)
        self.loop.add_reader(self.listening, self._hang_up)
        logger.info("Ready: port %d is open.", self.port)

    def _hang_up(self) -> None:
        assert self.listening is not None
        with suppress(OSError):  # who has connected may have gone
            connection, _ = self.listening.accept()
            connection.close()

    def close(self) -> None:
        if self.listening is None:
            return
        assert self.loop is not None
        self.loop.remove_reader(self.listening)
        self.listening.close()
        self.listening = None
        logger.info("Not ready: port %d is closed.", self.port)


_readiness = _Readiness()


def join(server: Server) -> None:
    """Let the port tell of a nanny with its worker, or of a worker without a nanny.

    Call it in the event loop of the server. Where no port is configured, nothing is done.

    Parameters
    ----------
    server
        Whose state it is; with several in a process, the port is open while all of them run.

    Raises
    ------
    ConfigError
        If ``tide.readiness.port`` or ``tide.readiness.host`` make no sense.
    """
    port: Any = dask.config.get("tide.readiness.port", None)
    host: Any = dask.config.get("tide.readiness.host", DEFAULT_HOST)
    if port is None:
        return
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
        raise ConfigError("tide.readiness.port", port, "a port number, 1 to 65535, or null")
    if not isinstance(host, str) or not host:
        raise ConfigError("tide.readiness.host", host, "an address such as '0.0.0.0'")
    _readiness.host, _readiness.port = host, port
    _readiness.servers.append(server)
    if _readiness.task is None:
        _readiness.loop = asyncio.get_running_loop()
        _readiness.task = asyncio.create_task(_readiness.watch(), name="tide-readiness")


def leave(server: Server) -> None:
    """Undo :func:`join`; where it was not done, do nothing."""
    for servers in (_readiness.servers, _readiness.withdrawn):
        with suppress(ValueError):
            servers.remove(server)
    if _readiness.task is not None and not _readiness.servers:
        _readiness.task.cancel()
        _readiness.task = None
        _readiness.close()
    elif _readiness.task is not None:
        _readiness.look()


def withdraw(server: Server) -> None:
    """Close the port at once, until :func:`restore`: this server is about to go."""
    if server in _readiness.servers and server not in _readiness.withdrawn:
        _readiness.withdrawn.append(server)
        _readiness.look()


def restore(server: Server) -> None:
    """Undo :func:`withdraw`; where it was not done, do nothing."""
    if server in _readiness.withdrawn:
        _readiness.withdrawn.remove(server)
        _readiness.look()


def _runs(server: Server) -> bool:
    if isinstance(server, Worker):
        return server.status in WORKER_ANY_RUNNING
    process = server.process
    # The process says so once its worker has registered.
    return (
        server.status is Status.running and process is not None and process.status is Status.running
    ) and process.is_alive()
