"""What becomes of instances of the simulated AWS; none is real."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rig.aws.cloud_controller import CloudController
from rig.aws.faults import Faults
from rig.aws.instances import Instance
from rig.aws.machines import Machines
from rig.folders import RigError


@pytest.fixture
def instance() -> Instance:
    """One that was launched just now."""
    return Instance("i-1", "m5.xlarge", "eu-west-1b", "spot", "workers", "ip-1", "10.66.0.69", 0.0)


def test_why_a_machine_cannot_boot_is_told(instance: Instance) -> None:
    def boot(*arguments: Any) -> None:
        raise RigError("the cluster's network: no such device")

    machines = Machines(SimpleNamespace(boot=boot), Faults(), threading.RLock())
    with pytest.raises(RigError):
        machines._boot(instance, "")
    assert instance.trouble == "the cluster's network: no such device"


def test_a_machine_that_is_launched_while_nodes_are_asked_for_keeps_its_node(instance: Instance) -> None:
    """Deleted, the Node would not come again: a kubelet registers once."""
    machines = SimpleNamespace(instances={}, alive=list)
    node = {"metadata": {"name": instance.node}, "spec": {"providerID": instance.provider_id}, "status": {}}
    asked = []

    def api(method: str, path: str) -> dict[str, Any]:
        asked.append(method)
        machines.instances[instance.id] = instance  # the API server takes its time
        return {"items": [node]}

    CloudController(api, machines).tick()  # type: ignore[arg-type]
    assert asked == ["GET"]
