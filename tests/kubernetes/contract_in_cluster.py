"""The kubernetes provider keeps the contract: `test_contract.py` runs this where pods reach a scheduler.

Each provider has a namespace of its own, so that one test's pods, which end slowly, are not another one's.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dask_tide.providers.base import ProviderContext
from dask_tide.providers.kubernetes.manifests import manifests
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.provider import KubernetesProvider
from dask_tide.testing.contract import Platform, ProviderContract
from rig.clients import Api
from rig.network import ROUTER

#: The contract has some workers stopped that nobody has parked.
PATIENCE = Patience(park_s=3.0)
POOL: dict[str, Any] = {
    "memory": "1Gi",
    "maximum": 8,
    "terminationGracePeriodSeconds": 10,
    "resources": {"requests": {"cpu": "20m", "memory": "100Mi"}},
}
VALUES: dict[str, Any] = {
    "image": {"repository": "docker.io/dask-tide/dask-tide", "tag": "dev", "pullPolicy": "Never"},
    "security": {"tls": {"enabled": False}},
    "pools": {"one": POOL, "two": POOL | {"threads": 2, "daskResources": {"GPU": 1}}},
}

_numbers = itertools.count()


class TestKubernetesProvider(ProviderContract):
    host: ClassVar[str] = ROUTER
    kubeconfig = Path(os.environ.get("DASK_TIDE_CONTRACT_KUBECONFIG", ""))

    @pytest.fixture(autouse=True)
    def _namespaces(self) -> Iterator[None]:
        self.api = Api(self.kubeconfig)
        self.made: list[str] = []
        yield
        for namespace in self.made:
            self.api("DELETE", f"/api/v1/namespaces/{namespace}")

    def provider(self, context: ProviderContext) -> KubernetesProvider:
        """Make what the chart or `TideCluster` would have made, and the provider above it."""
        namespace = f"contract-{os.getpid()}-{next(_numbers)}"
        self.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        self.made.append(namespace)
        for manifest in manifests(context.cluster, namespace, VALUES, replicas=0):
            if manifest["kind"] == "ServiceAccount":
                self.api("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", manifest)
            elif manifest["kind"] == "ReplicaSet":
                (container,) = manifest["spec"]["template"]["spec"]["containers"]
                assert container["args"][:2] == ["dask", "worker"]
                container["args"][2] = context.scheduler_address
                self.api("POST", f"/apis/apps/v1/namespaces/{namespace}/replicasets", manifest)
        options = {"namespace": namespace, "kubeconfig": str(self.kubeconfig)}
        return KubernetesProvider(replace(context, options=options), PATIENCE)

    async def vanish(self, platform: Platform, unit: str) -> None:
        self.api("DELETE", f"{_pods(platform)}/{unit}?gracePeriodSeconds=0")

    def make_unable(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = f"/apis/apps/v1/namespaces/{_namespace(platform)}/replicasets"
        self.api("DELETE", f"{sets}/{platform.context.cluster}-one")

    async def leftovers(self, platform: Platform, before: frozenset[int]) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.api("GET", _pods(platform))["items"]]


def _namespace(platform: Platform) -> str:
    assert isinstance(platform.provider, KubernetesProvider)
    return platform.provider._api.namespace


def _pods(platform: Platform) -> str:
    return f"/api/v1/namespaces/{_namespace(platform)}/pods"
