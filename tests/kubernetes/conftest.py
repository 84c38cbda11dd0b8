"""Kubernetes for tests: the rig's own, or the user's (``DASK_TIDE_KUBECONFIG`` or ``KUBECONFIG``)."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from abilities import skip_unless_ci
from releases import POOL, Release

from rig import binaries, image_build, packages
from rig.clients import Existing, Kubectl
from rig.folders import RigError
from rig.nodes import Cluster
from rig.plane import SERVERS, Options, Plane

_numbers = itertools.count()


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    """A control plane of our own: with kwok's nodes, and an API server that may be taken away."""
    if not sys.platform.startswith("linux"):
        skip_unless_ci("the test cluster runs on Linux only")
    try:
        binaries.ensure(*SERVERS, "kubectl")
    except RigError as error:
        if shutil.which("go"):
            raise
        skip_unless_ci(f"no control plane: {error}")
    # On a busy machine nodes of kwok would count as dead, and their pods never be ready again.
    with Plane.start(options=Options(node_grace_s=600)) as plane:
        yield plane


@pytest.fixture(scope="session")
def any_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plane | Existing:
    """An API server of which nothing is broken: the user's if one is given, else the same as `plane`."""
    if (cluster := Existing.given(tmp_path_factory.mktemp("existing"))) is not None:
        return cluster
    plane: Plane = request.getfixturevalue("plane")
    return plane


@pytest.fixture(scope="session")
def image() -> Path:
    """The project's image: a docker-archive tar, built if it is not in the cache."""
    if reason := image_build.missing():
        skip_unless_ci(reason)
    return image_build.build()


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster with three real nodes, `n1`, `n2` and `n3`, that have the project's image.

    There is one for each of xdist's workers: tests that use it belong to the group `nodes`, by
    ``pytestmark = pytest.mark.xdist_group("nodes")``, and those of a module run one after the other. Who
    kills a node boots one of their own for it.
    While you write tests, ``DASK_TIDE_CLUSTER`` names one that runs (``make cluster``: see rig/README.md).
    """
    if name := os.environ.get("DASK_TIDE_CLUSTER"):
        yield Cluster.attach(name)
        return
    if reason := packages.lacking():
        skip_unless_ci(reason)
    with Cluster.start(tars=[request.getfixturevalue("image")]) as cluster:
        cluster.nodes_up("n1", "n2", "n3")
        yield cluster


@pytest.fixture
def namespace(plane: Plane, new_namespace: Callable[..., str]) -> str:
    """A namespace of the test's own; it goes with the test."""
    return new_namespace(plane.kubectl)


@contextmanager
def namespaces() -> Iterator[Callable[..., str]]:
    """A factory of namespaces that go with the block."""
    made: list[tuple[Kubectl, str]] = []

    def make(kubectl: Kubectl, pod_security: str = "") -> str:
        name = f"test-{os.getpid()}-{next(_numbers)}"
        kubectl("create", "namespace", name)
        # Until it has one no pod may be made there.
        kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=60s")
        made.append((kubectl, name))
        if pod_security:
            kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={pod_security}")
        return name

    try:
        yield make
    finally:
        for kubectl, name in made:
            kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def new_namespace() -> Iterator[Callable[..., str]]:
    """A factory of namespaces that go with the test: ``new_namespace(plane.kubectl, "restricted")``."""
    with namespaces() as make:
        yield make


@contextmanager
def releases(nodes: Cluster, folder: Path) -> Iterator[Callable[..., Release]]:
    """A factory of releases, all in one restricted namespace that goes with the block."""
    made: list[Release] = []
    with namespaces() as new_namespace:
        namespace = new_namespace(nodes.kubectl, "restricted")

        def make(values: dict[str, Any] | None = None, name: str = "r", ready: bool = True) -> Release:
            own = folder / name
            own.mkdir()
            release = Release(nodes, namespace, name, own)
            made.append(release)
            release.apply("install", {"pools": {"cpu": POOL}} if values is None else values)
            if ready:
                release.ready()
            return release

        try:
            yield make
        finally:
            for release in made:
                release.close()


@pytest.fixture
def install(nodes: Cluster, tmp_path: Path) -> Iterator[Callable[..., Release]]:
    """Install the chart: ``install(values, name="r")``; all of a test's are in one restricted namespace."""
    with releases(nodes, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def install_once(
    nodes: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Release]]:
    """The same, for a release that all tests of a module use."""
    with releases(nodes, tmp_path_factory.mktemp("releases")) as make:
        yield make


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], int]]:
    """How often the provider has logged something, whether or not Dask's loggers pass it on."""
    logger = logging.getLogger("distributed.tide.kubernetes")
    logger.addHandler(caplog.handler)
    yield lambda words: len({id(record) for record in caplog.records if words in record.getMessage()})
    logger.removeHandler(caplog.handler)
