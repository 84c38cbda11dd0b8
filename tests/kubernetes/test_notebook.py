"""The example notebook, run by the Jupyter server that the chart installs, as a browser has it run."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from releases import POOL, Release
from tornado.websocket import WebSocketClientConnection, websocket_connect

from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

NOTEBOOK = Path(__file__).parents[2] / "examples" / "kubernetes.ipynb"
CELL_S = 150.0


class Jupyter:
    """A Jupyter server's REST interface, and its kernels by WebSocket.

    Parameters
    ----------
    port
        Of loopback.
    token
        Its password.
    """

    def __init__(self, port: int, token: str) -> None:
        self._place = f"127.0.0.1:{port}"
        self._token = token

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://{self._place}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"token {self._token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    async def kernel(self, kernel: str) -> Kernel:
        address = f"ws://{self._place}/api/kernels/{kernel}/channels?token={self._token}"
        return Kernel(await websocket_connect(address, connect_timeout=60))


class Kernel:
    """What runs a notebook's cells."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._session = uuid.uuid4().hex

    async def run(self, code: str) -> str:
        """Run a cell and return what is below it then, as text."""
        message = uuid.uuid4().hex
        header = {
            "msg_id": message,
            "session": self._session,
            "username": "",
            "date": "",
            "msg_type": "execute_request",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self._socket.write_message(json.dumps(request | {"channel": "shell", "buffers": []}))
        shown: list[str] = []
        while True:
            reply = await self._socket.read_message()
            assert reply is not None, "the kernel has gone"
            answer = json.loads(reply)
            if answer["parent_header"].get("msg_id") != message:
                continue
            kind, content = answer["msg_type"], answer["content"]
            if kind == "stream":
                shown.append(content["text"])
            elif kind in ("execute_result", "display_data"):
                shown.append(content["data"]["text/plain"])
            elif kind == "error":
                pytest.fail(f"the cell failed:\n{code}\n" + "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(shown)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def release(nodes: Cluster, new_namespace: Callable[..., str], tmp_path: Path) -> Iterator[Release]:
    release = Release(nodes, new_namespace(nodes.kubectl, "restricted"), "r", tmp_path)
    small = {"requests": {"cpu": "50m", "memory": "150Mi"}, "limits": {"memory": "1Gi"}}
    notebook = {"enabled": True, "resources": small}
    release.apply("install", {"pools": {"cpu": POOL | {"maximum": 3}}, "notebook": notebook})
    release.ready()
    release.kubectl("rollout", "status", "deployment/r-notebook", "--timeout=90s", deadline_s=100)
    yield release
    release.close()


async def test_the_example_notebook_runs_in_the_cluster(release: Release) -> None:
    await asyncio.to_thread(release.settled, 0, "of a new release")
    port = await asyncio.to_thread(release.forward, "service/r-notebook", 8888)
    (secret,) = release.objects("secrets", "app.kubernetes.io/component=notebook")
    server = Jupyter(port, base64.b64decode(secret["data"]["token"]).decode())
    with pytest.raises(OSError, match="403"):
        await asyncio.to_thread(Jupyter(port, "wrong"), "GET", "contents")

    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    saved = {"type": "notebook", "format": "json", "content": book}
    await asyncio.to_thread(server, "PUT", f"contents/{NOTEBOOK.name}", saved)
    begin = {"path": NOTEBOOK.name, "name": "", "type": "notebook", "kernel": {"name": "python3"}}
    session = await asyncio.to_thread(server, "POST", "sessions", begin)
    kernel = await server.kernel(session["kernel"]["id"])
    shown: dict[str, str] = {}
    try:
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], "outputs are not kept: they would get old"
                running = kernel.run("".join(cell["source"]))
                shown[cell["id"]] = await asyncio.wait_for(running, CELL_S)
    finally:
        kernel.close()

    assert shown["connect"] == "tls://r-scheduler:8786 workers: 0\n"
    assert len(set(re.findall(r"^worker r-cpu-\w{5} on (n[123])$", shown["compute"], re.MULTILINE))) > 1
    assert re.search(r"simulated: 7\.\d{4} ± 0\.00\d\d", shown["compute"])
    off = re.search(r"formula:   7\.\d{4}, off by (\d\.\d) standard errors", shown["check"])
    assert off is not None
    assert float(off.group(1)) < 4
    assert "asked for" in shown["why"]
    assert "Pool cpu" in shown["why"]
    assert re.fullmatch(r"r-cpu-\w{5} running on n[123]\n", shown["where"]), "the one that holds the answers"
    assert "Pool cpu: no units" in shown["leave"], shown["leave"]
    release.settled(0)
