"""Connections that a port-forward cannot pass on; those that it can are in the tests on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from waiting import until

from dask_tide.errors import Unavailable
from dask_tide.providers.kubernetes.port_forward import PortForward


@pytest_asyncio.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop was told of exceptions that nobody has caught."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    loop.set_exception_handler(None)


@pytest.mark.parametrize("error", [Unavailable("the API server is away"), LookupError("no pod is away")])
async def test_without_a_pod_the_connection_is_closed_and_it_is_known_why(
    complaints: list[dict[str, Any]], error: Exception
) -> None:
    async def find() -> str:
        raise error

    async with httpx2.AsyncClient() as http:
        forward = PortForward(http, "science", find, 8786)
        await forward.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: forward.error.endswith("is away"), "it is known why", 10, lambda: forward.error)
        await forward.close()
    assert complaints == []


async def test_who_comes_in_while_it_closes_is_sent_away(complaints: list[dict[str, Any]]) -> None:
    asked = []

    async def find() -> str:
        asked.append(1)
        return "pod"

    async with httpx2.AsyncClient() as http:
        forward = PortForward(http, "science", find, 8786)
        await forward.close()
        late = await asyncio.start_server(forward._accept, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", late.sockets[0].getsockname()[1])
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        late.close()
    assert asked == []
    assert complaints == []
