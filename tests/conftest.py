"""Clusters that end with the test."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from records import Tasks

from dask_tide import TideCluster

if TYPE_CHECKING:
    from rig.cloud import Cloud


#: What ends with the last test on the simulated AWS.
_skies = ExitStack()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m nodes``: those that run on real nodes.

    Each of xdist's workers has a cluster of its own, and takes module after module. The simulated AWS is for
    one of them, at first: a machine cannot do with two at once.
    """
    for item in items:
        if any("nodes" in mark.args for mark in item.iter_markers("xdist_group")):
            item.add_marker("nodes")
            if "DASK_TIDE_CLUSTER" not in os.environ and not _in_the_cloud(item):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_in_the_cloud, reverse=True)


def _in_the_cloud(item: pytest.Item) -> bool:
    return item.path.parent.name == "aws" or item.path.stem == "test_cloud"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the cloud with the last test that needs it: others follow, and it is heavy."""
    if nextitem is None or not _in_the_cloud(nextitem):
        _skies.close()


def _defaults(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    of_pool = {} if "pools" in arguments else {"memory_limit": "1 GiB", "maximum": 4}
    return {"dashboard_address": None, "folder": str(folder), **of_pool}


def _said(level: int) -> Iterator[list[str]]:
    """What this project's loggers say; Dask's loggers do not propagate to pytest's."""
    said: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("distributed.tide")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """All messages of this project's loggers."""
    yield from _said(logging.INFO)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Their warnings and errors."""
    yield from _said(logging.WARNING)


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tasks]:
    """Functions whose gates are all open at the test's end, so that no cluster waits to close."""
    tasks = Tasks(tmp_path)
    yield tasks
    tasks.open_all()


@pytest.fixture
def tide(tmp_path: Path) -> Iterator[Callable[..., TideCluster]]:
    """A factory of clusters with real worker processes; they close when the test ends."""
    with ExitStack() as stack:

        def make(**arguments: Any) -> TideCluster:
            cluster = TideCluster(**(_defaults(tmp_path, arguments) | arguments))
            stack.enter_context(cluster)
            return cluster

        yield make


@pytest_asyncio.fixture
async def atide(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[TideCluster]]]:
    """The same for asynchronous tests: ``cluster = await atide(maximum=2)``."""
    clusters: list[TideCluster] = []

    async def make(**arguments: Any) -> TideCluster:
        cluster = TideCluster(asynchronous=True, **(_defaults(tmp_path, arguments) | arguments))
        clusters.append(cluster)
        return await cluster

    yield make
    for cluster in clusters:
        await cluster.close()


@pytest.fixture(scope="session")
def one_cloud() -> Iterator[Cloud]:
    """What `cloud` gives; for those who want its faults to outlive a test.

    While you write tests, ``DASK_TIDE_CLOUD`` names one that runs (``make cloud``: see rig/README.md).
    """
    from abilities import skip_unless_ci
    from fleet import BOOT_S

    from rig import image_build, packages
    from rig.cloud import Cloud, Sky, missing

    if name := os.environ.get("DASK_TIDE_CLOUD"):
        yield Cloud.attach(name)
        return
    if reason := packages.lacking() or missing() or image_build.missing():
        skip_unless_ci(reason)
    with _skies:
        yield _skies.enter_context(Cloud.start(sky=Sky(boot_s=BOOT_S), tars=[image_build.build()]))


@pytest.fixture
def cloud(one_cloud: Cloud) -> Iterator[Cloud]:
    """A cluster on a simulated AWS with Karpenter and the project's image; after a test nothing goes wrong.

    Tests that use it carry ``pytest.mark.xdist_group("nodes")``, so that there is one.
    """
    from fleet import BOOT_S

    yield one_cloud
    one_cloud.in_stock()
    one_cloud.throttle(False)
    one_cloud.boots(BOOT_S, joins=True)
