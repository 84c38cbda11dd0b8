"""A real browser, Chromium without a window, told what to do by its own protocol (DevTools)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect
from waiting import until

START_S = 90.0
ANSWER_S = 60.0
_MESSAGE_BYTES = 64 * 1024 * 1024
#: No window, no sandbox (tests run as root), and no request that no page has asked for.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find() -> str | None:
    """The browser's path, None where there is none."""
    return shutil.which("chromium")


class Page:
    """The one tab.

    Parameters
    ----------
    socket
        To the tab.
    """

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            reply = await asyncio.wait_for(_read(self._socket), ANSWER_S)
            if reply.get("id") == number:
                assert "error" not in reply, reply["error"]
                return reply["result"]

    async def go(self, address: str) -> None:
        """Go to an address; it is not loaded yet when this returns."""
        result = await self._call("Page.navigate", url=address)
        assert "errorText" not in result, result["errorText"]

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is now; None for what is undefined or fails."""
        result = await self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return None if "exceptionDetails" in result else result["result"].get("value")

    async def picture(self) -> bytes:
        """What is seen, as PNG."""
        result = await self._call("Page.captureScreenshot", format="png")
        return base64.b64decode(result["data"])


async def _read(socket: WebSocketClientConnection) -> dict[str, Any]:
    message = await socket.read_message()
    assert message is not None, "the browser has gone"
    read: dict[str, Any] = json.loads(message)
    return read


@asynccontextmanager
async def open_browser(
    folder: Path, hosts: Mapping[str, str], size: tuple[int, int] = (1400, 900)
) -> AsyncIterator[Page]:
    """Start a browser; it ends with the context.

    Parameters
    ----------
    folder
        For its profile: a new one.
    hosts
        Addresses of host names, which no name server knows.
    size
        Of the page, in pixels.
    """
    program = find()
    assert program is not None
    rules = ", ".join(f"MAP {name} {address}" for name, address in hosts.items())
    profile = folder / "profile"
    with (folder / "chromium.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            program, *_OPTIONS, f"--user-data-dir={profile}", f"--host-resolver-rules={rules}",
            f"--window-size={size[0]},{size[1]}", "about:blank",
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)},
        )  # fmt: skip
    try:
        port_file = profile / "DevToolsActivePort"

        def port() -> str:
            assert process.returncode is None, (folder / "chromium.log").read_text()
            return port_file.read_text().split("\n")[0] if port_file.exists() else ""

        listed = f"http://127.0.0.1:{await until(port, 'the browser is up', START_S)}/json/list"

        async def tab() -> Any:
            tabs = json.loads(await asyncio.to_thread(_get, listed))
            return next((each for each in tabs if each["type"] == "page"), None)

        found = await until(tab, "the browser has a tab", START_S)
        socket = await websocket_connect(
            found["webSocketDebuggerUrl"], connect_timeout=START_S, max_message_size=_MESSAGE_BYTES
        )
        try:
            yield Page(socket)
        finally:
            socket.close()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=ANSWER_S) as response:
        body: bytes = response.read()
    return body
