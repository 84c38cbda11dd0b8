"""What a scheduler knows of its workers at this moment."""

from __future__ import annotations

from typing import Any

from distributed import Client
from waiting import until


def known(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker, by address; for a client that is not asynchronous.

    Not ``client.scheduler_info``: the client keeps that up to date by itself as well, and an earlier answer
    may come later than the one that was asked for. A scheduler that does not answer knows nobody.
    """

    async def ask() -> Any:
        return await client.scheduler.identity() if client.scheduler else {"workers": {}}

    try:
        workers: dict[str, dict[str, Any]] = client.sync(ask)["workers"]
    except OSError:
        return {}
    return workers


async def nanny_runs(client: Client) -> None:
    """Wait until the one worker's nanny knows that it has started; it has registered before that.

    Until then a nanny takes the worker's end, or the scheduler's, for a failed start.
    """

    async def running() -> bool:
        statuses = await client.run(lambda dask_worker: dask_worker.status.name, nanny=True)
        return list(statuses.values()) == ["running"]

    await until(running, "its nanny knows that it has started")
