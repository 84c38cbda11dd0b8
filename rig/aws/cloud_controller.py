"""The cloud controller manager's part: it knows which Node is which instance, and removes dead ones'."""

from __future__ import annotations

import time
from typing import Any

from rig.aws.hardware import labels
from rig.aws.instances import Instance
from rig.aws.machines import Machines, say
from rig.clients import Api, ApiError

UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
#: How often it asks EC2 about Nodes that are not Ready, as the real one.
MONITOR_S = 5.0


class CloudController:
    """The controllers of Nodes that belong to a cloud.

    Parameters
    ----------
    api
        The API server, a client of its own.
    machines
        The instances.
    """

    def __init__(self, api: Api, machines: Machines) -> None:
        self.api = api
        self.machines = machines
        self._monitored_s = 0.0

    def tick(self) -> None:
        """Look at the Nodes, if something may have changed."""
        monitor = time.monotonic() - self._monitored_s > MONITOR_S
        if not monitor and all(instance.joined for instance in self.machines.alive()):
            return
        nodes = self.api("GET", "/api/v1/nodes?resourceVersion=0")["items"]
        # After the Nodes: else one that was launched while they were asked for would not be known.
        by_provider_id = {each.provider_id: each for each in list(self.machines.instances.values())}
        for node in nodes:
            instance = by_provider_id.get(node["spec"].get("providerID", ""))
            taints = node["spec"].get("taints") or []
            if instance and any(taint["key"] == UNINITIALIZED for taint in taints):
                self._initialize(node, taints, instance)
            elif monitor and not (instance and instance.alive) and not _ready(node):
                say(f"cloud controller: the instance of {node['metadata']['name']} is gone")
                self._delete(node)
        if monitor:
            self._monitored_s = time.monotonic()

    def _initialize(self, node: dict[str, Any], taints: list[dict[str, Any]], instance: Instance) -> None:
        patch = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"], "labels": labels(instance)},
            "spec": {"taints": [taint for taint in taints if taint["key"] != UNINITIALIZED]},
        }
        path = f"/api/v1/nodes/{node['metadata']['name']}"
        try:
            self.api("PATCH", path, patch, "application/merge-patch+json")
        except ApiError as error:
            if error.status not in (404, 409):  # again at the next tick
                raise
        else:
            instance.joined = True
            say(f"joined {instance.id}")

    def _delete(self, node: dict[str, Any]) -> None:
        try:
            self.api("DELETE", f"/api/v1/nodes/{node['metadata']['name']}")
        except ApiError as error:
            if error.status != 404:
                raise


def _ready(node: dict[str, Any]) -> bool:
    conditions = node["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
