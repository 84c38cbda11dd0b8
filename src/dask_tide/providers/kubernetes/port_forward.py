"""A port on loopback that is a pod's port: `kubectl port-forward`, without kubectl.

Each connection becomes a WebSocket to the API server, which passes it on to the node: ``GET
/api/v1/namespaces/NS/pods/POD/portforward?ports=8786``, subprotocol ``v4.channel.k8s.io``. A message's
first byte is its channel, 0 for data and 1 for errors; the first message of each channel repeats the port,
two bytes (Kubernetes: ``staging/src/k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx2
from httpx2.websockets import (
    AsyncWebSocketSession,
    WebSocketDisconnect,
    WebSocketNetworkError,
    WebSocketUpgradeError,
)

from dask_tide.errors import ProviderError, words

__all__ = ["PortForward"]

logger = logging.getLogger("distributed.tide.kubernetes")

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_PORT_BYTES = 2
#: What is sent at once, and what a message may have: the other side sends 32 KiB.
_CHUNK_BYTES = 64 * 1024
_LIMIT_BYTES = 1024 * 1024
#: A node may be slow to answer, but not for ever; a laptop that was closed comes back to dead connections.
_PING_S, _PONG_S = 20.0, 60.0
_FORBIDDEN = (401, 403)
_ERRORS = (
    ProviderError,
    WebSocketDisconnect,
    WebSocketNetworkError,
    WebSocketUpgradeError,
    httpx2.HTTPError,
    OSError,
    LookupError,
)


class PortForward:
    """Listens on loopback; a connection is connected to the pod that is the right one at that moment.

    So when the pod is replaced, whoever connects again reaches the new one.

    Parameters
    ----------
    http
        Client of the API server, with its address and credentials.
    namespace
        Of the pod.
    find
        Name of the pod; raises LookupError if there is none now, ProviderError if nothing is known.
    port
        The pod's.
    """

    def __init__(
        self, http: httpx2.AsyncClient, namespace: str, find: Callable[[], Awaitable[str]], port: int
    ) -> None:
        self._http = http
        self._namespace = namespace
        self._find = find
        self._remote_port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False
        self.port = 0
        #: Why the last connection that failed did so.
        self.error = ""
        #: That the API server does not let this user connect.
        self.forbidden = False

    async def start(self, port: int = 0) -> None:
        """Listen, on ``port`` or if that is taken on any."""
        try:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        except OSError:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close all connections and stop listening."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._closed:  # it came in at the last moment
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            # Only `close` cancels it, and asyncio would log that as an error.
            with suppress(asyncio.CancelledError):
                await self._forward(reader, writer)
        except* _ERRORS as errors:
            self.error = "; ".join(_words(error) for error in errors.exceptions)
            self.forbidden = any(map(_is_forbidden, errors.exceptions))
            logger.debug("A connection to port %d of the scheduler's pod: %s", self._remote_port, self.error)
        finally:
            self._connections.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pod = await self._find()
        async with self._http.websocket(
            f"api/v1/namespaces/{self._namespace}/pods/{pod}/portforward",
            params={"ports": self._remote_port},
            subprotocols=[_PROTOCOL],
            max_message_size_bytes=_LIMIT_BYTES,
            keepalive_ping_interval_seconds=_PING_S,
            keepalive_ping_timeout_seconds=_PONG_S,
        ) as socket:
            both = [
                asyncio.ensure_future(_send(reader, socket)),
                asyncio.ensure_future(_receive(socket, writer)),
            ]
            try:
                # The protocol cannot close one direction: when one has ended, so has the connection.
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            for task in done:
                task.result()


async def _send(reader: asyncio.StreamReader, socket: AsyncWebSocketSession) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            await socket.send_bytes(bytes([_DATA]) + data)


async def _receive(socket: AsyncWebSocketSession, writer: asyncio.StreamWriter) -> None:
    begun: set[int] = set()
    refusal = ""
    with suppress(ConnectionError, WebSocketDisconnect):
        while not refusal:
            message = await socket.receive_bytes()
            channel, data = message[0], message[1:]
            if channel not in begun:
                begun.add(channel)
                data = data[_PORT_BYTES:]
            if channel == _ERROR:
                refusal = data.decode(errors="replace").strip()
            elif data:
                writer.write(data)
                await writer.drain()
    if refusal:
        raise ConnectionRefusedError(refusal)


def _is_forbidden(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_forbidden, error.exceptions))
    return isinstance(error, WebSocketUpgradeError) and error.response.status_code in _FORBIDDEN


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_words, error.exceptions))
    if isinstance(error, WebSocketUpgradeError):
        return f"the API server answered {error.response.status_code}"
    return words(error)
