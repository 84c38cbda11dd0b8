"""A reverse proxy that does what an Ingress object says, as an ingress controller would."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClientConnection, WebSocketHandler, websocket_connect

#: They are about one connection (RFC 9110, 7.6.1), or the answer's length once it is decoded.
_OWN = {
    "connection", "content-length", "content-encoding", "keep-alive", "transfer-encoding", "upgrade",
    "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol",
}  # fmt: skip
_MESSAGE_BYTES = 64 * 1024 * 1024


class Ingress:
    """What a rule of an Ingress object says, and what has come by.

    Parameters
    ----------
    manifest
        The object, with one rule and one path.
    backend
        ``host:port`` of its Service's port.

    Attributes
    ----------
    answers
        How often each status was answered.
    messages
        WebSockets' messages, by direction: ``up`` and ``down``.
    port
        Where it listens, on loopback.
    """

    def __init__(self, manifest: Mapping[str, Any], backend: str) -> None:
        (rule,) = manifest["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        assert path["pathType"] == "Prefix"
        self.host: str = rule["host"]
        self.path: str = path["path"].rstrip("/")
        self.backend = backend
        self.answers: Counter[int] = Counter()
        self.messages: Counter[str] = Counter()
        self.port = 0

    def takes(self, host: str, path: str) -> bool:
        """Whether the rule is about such a request."""
        return host == self.host and (path == self.path or path.startswith(f"{self.path}/"))

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen for as long as the context lasts."""
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        routes = [(r".*/ws", _Socket, {"ingress": self}), (r".*", _Page, {"ingress": self})]
        server = HTTPServer(Application(routes))
        server.add_sockets(sockets)
        try:
            yield
        finally:
            server.stop()
            await server.close_all_connections()

    def headers(self, given: HTTPHeaders) -> HTTPHeaders:
        """Those of a request, for the backend: with the browser's Host, as ingress controllers send it."""
        kept = HTTPHeaders({k: v for k, v in given.get_all() if k.lower() not in _OWN})
        kept["X-Forwarded-Host"] = f"{self.host}:{self.port}"
        kept["X-Forwarded-Proto"] = "http"
        return kept


class _Page(RequestHandler):
    def initialize(self, ingress: Ingress) -> None:
        self.ingress = ingress

    async def get(self) -> None:
        ingress = self.ingress
        if not ingress.takes(self.request.host_name, self.request.path):
            self.send_error(404)
            return
        # Not shared: what it keeps would outlive the test's event loop.
        client = AsyncHTTPClient(force_instance=True)
        try:
            answer = await client.fetch(
                HTTPRequest(
                    f"http://{ingress.backend}{self.request.uri}",
                    headers=ingress.headers(self.request.headers),
                    follow_redirects=False,
                    request_timeout=60,
                ),
                raise_error=False,
            )
        finally:
            client.close()
        ingress.answers[answer.code] += 1
        self.set_status(answer.code, answer.reason)
        for key, value in answer.headers.get_all():
            if key.lower() not in _OWN:
                self.set_header(key, value)
        if answer.body and answer.code != 304:
            self.write(answer.body)


class _Socket(WebSocketHandler):
    def initialize(self, ingress: Ingress) -> None:
        self.ingress = ingress
        self.behind: WebSocketClientConnection | None = None
        self.reading: asyncio.Task[None] | None = None

    def check_origin(self, origin: str) -> bool:
        return True  # whoever is behind decides

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        # Bokeh's own, and the token of its session.
        return subprotocols[0] if subprotocols else None

    async def open(self, *args: str, **kwargs: str) -> None:
        ingress = self.ingress
        if not ingress.takes(self.request.host_name, self.request.path):
            self.close(1008)
            return
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        request = HTTPRequest(
            f"ws://{ingress.backend}{self.request.uri}", headers=ingress.headers(self.request.headers)
        )
        self.behind = await websocket_connect(
            request,
            subprotocols=[each.strip() for each in offered.split(",") if each],
            max_message_size=_MESSAGE_BYTES,
        )
        self.reading = asyncio.create_task(self._read(self.behind))

    async def _read(self, behind: WebSocketClientConnection) -> None:
        while (message := await behind.read_message()) is not None:
            self.ingress.messages["down"] += 1
            await self.write_message(message, binary=isinstance(message, bytes))
        self.close()

    async def on_message(self, message: str | bytes) -> None:
        assert self.behind is not None
        self.ingress.messages["up"] += 1
        await self.behind.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
        if self.behind is not None:
            self.behind.close()
