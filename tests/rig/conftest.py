"""Clusters for the tests of the rig itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from abilities import skip_unless_ci

from rig import packages
from rig.nodes import Cluster
from rig.plane import Options, Plane

#: Shorter than by default, so that the tests of dead nodes are; long enough for a crowded machine.
GRACE_S = 15


@pytest.fixture(scope="session")
def control() -> Iterator[Plane]:
    """A control plane of our own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the test cluster runs on Linux only")
    with Plane.start() as plane:
        yield plane


@pytest.fixture(scope="session")
def able() -> None:
    """Skip where no nodes can be; in CI that is a failure."""
    if reason := packages.lacking():
        skip_unless_ci(reason)


@pytest.fixture(scope="session")
def cluster(able: None) -> Iterator[Cluster]:
    """A cluster with two nodes, `n1` and `n2`."""
    with Cluster.start(options=Options(node_grace_s=GRACE_S)) as cluster:
        cluster.nodes_up("n1", "n2")
        yield cluster


@pytest.fixture
def starter() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that start a cluster, to be killed."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()
