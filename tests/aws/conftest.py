"""Releases of the chart on a simulated AWS, whose workers are on machines that come and go.

Each has a NodePool of its own, so that a test finds no machine of another's, warm or dying.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, values

from rig import image_build
from rig.aws.cluster_autoscaler import GROUP
from rig.aws.karpenter import node_pool
from rig.cloud import Cloud, Sky, missing

_numbers = itertools.count()


@contextmanager
def fleets(cloud: Cloud, folder: Path) -> Iterator[Callable[..., Fleet]]:
    """A factory of releases; they go with the block, and so do their machines."""
    made: list[Fleet] = []
    node_pools: list[str] = []

    def make(
        pools: dict[str, dict[str, Any]] | None = None,
        more: dict[str, Any] | None = None,
        *,
        share: Fleet | None = None,
        ready: bool = True,
        **machines: Any,
    ) -> Fleet:
        name = f"t-{os.getpid()}-{next(_numbers)}"
        cloud.kubectl("create", "namespace", name)
        cloud.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        own = folder / name
        own.mkdir()
        fleet = Fleet(cloud, name, "r", own, *((share.node_pool, share.group) if share else (name,)))
        made.append(fleet)
        fleet.apply("install", values(fleet.node_pool, **(pools or {})) | (more or {}))
        # The first pod of a pool, which Kubernetes starts, would boot a machine.
        fleet.kubectl("scale", *(f"replicaset/r-{pool}" for pool in pools or {"cpu": {}}), "--replicas=0")
        if share is None:
            node_pools.append(name)
            cloud.kubectl.apply(node_pool(name, **machines))
        if ready:
            fleet.ready()
        return fleet

    try:
        yield make
    finally:
        for fleet in made:
            fleet.close()
            # Nobody waits for them: they go while the next test runs.
            cloud.kubectl("delete", "namespace", fleet.namespace, "--wait=false")
        if node_pools:
            cloud.kubectl("delete", "nodepool", *node_pools, "--wait=false", "--ignore-not-found")


@pytest.fixture
def install(cloud: Cloud, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Install the chart: ``install({"cpu": {"maximum": 4}}, {"tide": {…}}, markets=["spot"])``.

    The first argument are pools, as far as they differ from :data:`fleet.POOL`; the second are other values
    of the chart; the rest is for :func:`rig.aws.karpenter.node_pool`. ``share`` is another fleet, whose
    machines it uses, too.
    """
    with fleets(cloud, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def install_once(
    one_cloud: Cloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Fleet]]:
    """The same, for fleets that all tests of a module use."""
    with fleets(one_cloud, tmp_path_factory.mktemp("fleets")) as make:
        yield make


@pytest.fixture
def fleet(install: Callable[..., Fleet]) -> Fleet:
    """The chart with one pool, `cpu`, of up to six workers on three machines."""
    return install()


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fleet]]:
    """As ``install``, with cluster-autoscaler and an Auto Scaling group, in a cloud of the module's own."""
    if reason := missing("cluster-autoscaler"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("grouped")
    sky = Sky(autoscaler="cluster-autoscaler")
    with Cloud.start(sky=sky, tars=[image_build.build()]) as cloud, fleets(cloud, folder) as make:
        group = Fleet(cloud, "", "", folder, "workers", GROUP)

        def install(*values: Any) -> Fleet:
            group.no_machines("of the test before are left")
            # The group is there already: it would boot a machine for the pool's first pod.
            with cloud.autoscaler_away():
                return make(*values, share=group)

        yield install
