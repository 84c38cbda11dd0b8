"""Clusters that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dask_tide import TideCluster


@pytest.fixture
def tide(tmp_path: Path) -> Iterator[Callable[..., TideCluster]]:
    """A factory of clusters with real worker processes; they close when the test ends."""
    with ExitStack() as stack:

        def make(**arguments: Any) -> TideCluster:
            arguments = {"maximum": 4} | arguments if "pools" not in arguments else arguments
            defaults: dict[str, Any] = {"dashboard_address": None, "memory_limit": "1 GiB", "folder": str(tmp_path)}
            if "pools" in arguments:
                defaults.pop("memory_limit")
            cluster = TideCluster(**(defaults | arguments))
            stack.enter_context(cluster)
            return cluster

        yield make


@pytest_asyncio.fixture
async def atide(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[TideCluster]]]:
    """The same for asynchronous tests: ``cluster = await atide(maximum=2)``."""
    clusters: list[TideCluster] = []

    async def make(**arguments: Any) -> TideCluster:
        defaults: dict[str, Any] = {"dashboard_address": None, "folder": str(tmp_path)}
        if "pools" not in arguments:
            defaults |= {"memory_limit": "1 GiB", "maximum": 4}
        cluster = TideCluster(asynchronous=True, **(defaults | arguments))
        clusters.append(cluster)
        return await cluster

    yield make
    for cluster in clusters:
        await cluster.close()
