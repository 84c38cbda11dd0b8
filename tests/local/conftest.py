"""A client of the scheduler that a module's tests have."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from distributed import Client, Scheduler


@pytest_asyncio.fixture
async def client(scheduler: Scheduler) -> AsyncIterator[Client]:
    """It is nobody's default client."""
    async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
        yield client
