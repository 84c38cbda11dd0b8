"""The test clusters of one run of the benchmarks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rig import image_build
from rig.clients import Kubectl
from rig.folders import wait_for
from rig.nodes import Cluster
from rig.plane import Options, Plane

#: Machines of kwok: each takes 250 pods.
KWOK_NODES = 20
#: Real ones.
NODES = ("n1", "n2", "n3")

_numbers = itertools.count()


class Clusters:
    """One plane or one cluster at a time, so that none disturbs the other; started when asked for.

    ``DASK_TIDE_PLANE`` and ``DASK_TIDE_CLUSTER`` name ones that run, while you work on the benchmarks.
    """

    def __init__(self) -> None:
        self._plane: Plane | None = None
        self._nodes: Cluster | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_plane()
        self._stop_nodes()

    @property
    def plane(self) -> Plane:
        """The control plane with kwok's nodes."""
        if self._plane is None:
            self._stop_nodes()
            if name := os.environ.get("DASK_TIDE_PLANE"):
                self._plane = Plane.attach(name)
            else:
                self._plane = Plane.start(options=Options(node_grace_s=600))
            missing = KWOK_NODES - len(self._plane.ready_nodes())
            if missing > 0:
                self._plane.add_kwok_nodes(missing, cpus=64, memory="256Gi")
        return self._plane

    @property
    def nodes(self) -> Cluster:
        """The cluster with three real nodes, which have the project's image."""
        if self._nodes is None:
            self._stop_plane()
            if name := os.environ.get("DASK_TIDE_CLUSTER"):
                self._nodes = Cluster.attach(name)
            else:
                self._nodes = Cluster.start(tars=[image_build.build()])
                self._nodes.nodes_up(*NODES)
        return self._nodes

    def _stop_plane(self) -> None:
        plane, self._plane = self._plane, None
        if plane is not None and "DASK_TIDE_PLANE" not in os.environ:
            plane.stop()

    def _stop_nodes(self) -> None:
        nodes, self._nodes = self._nodes, None
        if nodes is not None and "DASK_TIDE_CLUSTER" not in os.environ:
            nodes.stop()


@contextmanager
def namespace(kubectl: Kubectl, pod_security: str = "") -> Iterator[str]:
    """A namespace that has gone, with its pods, when the next one is measured."""
    name = f"bench-{os.getpid()}-{next(_numbers)}"
    kubectl("create", "namespace", name)
    try:
        if pod_security:
            kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={pod_security}")
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
        command = ("get", "namespace", name, "--ignore-not-found", "--output=name")
        wait_for(lambda: not kubectl(*command).strip(), f"namespace {name} is gone", 180)
