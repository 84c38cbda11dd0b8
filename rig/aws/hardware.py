"""What instances run on: real kubelets, or kwok's objects for thousands of pods."""

from __future__ import annotations

import threading
from typing import Any

from rig.aws.account import REGION
from rig.aws.instances import Instance
from rig.aws.user_data import Kubelet, allocatable, capacity, memory_mib
from rig.clients import Api, ApiError
from rig.machine import Machine
from rig.nodes import Cluster

_FIRST = 10


def labels(instance: Instance) -> dict[str, str]:
    """The labels that a cloud controller gives a Node."""
    return {
        "node.kubernetes.io/instance-type": instance.kind,
        "topology.kubernetes.io/region": REGION,
        "topology.kubernetes.io/zone": instance.zone,
    }


class Kubelets:
    """Real nodes.

    Parameters
    ----------
    cluster
        The cluster that they are nodes of.
    """

    #: The subnets: an instance's address is its node's, on the cluster's switch.
    blocks = ("10.66.0.64/26", "10.66.0.128/26", "10.66.0.192/26")

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def boot(self, instance: Instance, kubelet: Kubelet, kind: dict[str, Any]) -> None:
        """Boot a node; it joins when it likes."""
        machine = Machine(
            instance.node,
            cpus=kind["VCpuInfo"]["DefaultVCpus"],
            memory_gib=memory_mib(kind) / 1024,
            labels=kubelet.labels,
            taints=kubelet.taints,
            provider_id=instance.provider_id,
            kubelet=kubelet.sized(kind),
            of_cloud=True,
        )
        self.cluster.boot(machine, index=int(instance.address.rpartition(".")[2]) - _FIRST, wait=False)

    def cut(self, instance: Instance) -> None:
        """Pull the plug."""
        self.cluster.node_down(instance.node)


class Kwok:
    """Nodes that are only objects; kwok says that they and their pods are well.

    Parameters
    ----------
    api
        The API server.
    """

    blocks = ("10.66.64.0/18", "10.66.128.0/18", "10.66.192.0/18")

    def __init__(self, api: Api) -> None:
        self.api = api
        self._one_at_a_time = threading.Lock()

    def boot(self, instance: Instance, kubelet: Kubelet, kind: dict[str, Any]) -> None:
        """Make a Node as a kubelet would register it."""
        config = kubelet.sized(kind)
        own = {
            "kubernetes.io/hostname": instance.node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": instance.node,
                "labels": own | labels(instance) | kubelet.labels,
                "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"providerID": instance.provider_id, "taints": [_taint(each) for each in kubelet.taints]},
            "status": {
                "capacity": capacity(kind, config),
                "allocatable": allocatable(kind, config),
                "addresses": [{"type": "InternalIP", "address": instance.address}],
                "nodeInfo": {"kubeletVersion": "fake", "operatingSystem": "linux", "architecture": "amd64"},
            },
        }
        with self._one_at_a_time:
            self.api("POST", "/api/v1/nodes", node)
        instance.joined = True

    def cut(self, instance: Instance) -> None:
        """Take the Node away: nobody is there to fall silent."""
        try:
            with self._one_at_a_time:
                self.api("DELETE", f"/api/v1/nodes/{instance.node}")
        except ApiError as error:
            if error.status != 404:
                raise


def _taint(text: str) -> dict[str, str]:
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return {"key": key, "value": value, "effect": effect}
