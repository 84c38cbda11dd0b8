"""What one deploys, run: the shipped files on the simulated cloud, and what the rig takes from them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import SCHEMAS
from distributed import Client, Future
from fleet import DEADLINE_S
from releases import CHART, VALUES, Release, addresses, computed_once, helm, nap
from waiting import wait_until

from deploy.aws.check.everything import Check, run
from deploy.aws.check.tree import Tree
from rig.aws import cluster_autoscaler, fleets
from rig.aws.account import CLUSTER, NODE_ROLE, WORKER_TYPES
from rig.aws.faults import Faults
from rig.cloud import Cloud, given_autoscaler, missing

DEPLOYED = Tree()
#: Of `deploy/aws/karpenter`, and what of its machines' labels tells pods apart.
WORKERS, ROLE = "dask-workers", "dask-tide/role"
#: Work for no more than two workers, which is one machine.
TASKS, TASK_S = 3, 0.5


class Shipped(Release):
    """A release with `values-eks-karpenter.yaml`, on machines of `deploy/aws/karpenter`."""

    def __init__(self, cloud: Cloud, namespace: str, folder: Path) -> None:
        super().__init__(cloud, namespace, "r", folder)
        self.cloud = cloud

    def install(self) -> None:
        """As docs/aws.md has it."""
        own = self.folder / "own.yaml"
        # Machines here boot within seconds, and a worker is kept idle as long as it is said to take to start.
        fast = {"bootTime": "3s"}
        own.write_text(yaml.safe_dump({"image": VALUES["image"], "pools": {"cpu": fast, "safe": fast}}))
        values = str(DEPLOYED.path("values-eks-karpenter.yaml"))
        self.helm("install", self.name, str(CHART), "--values", values, "--values", str(own))
        # The first pods of both pools, which Kubernetes starts, would boot machines.
        self.kubectl("scale", "replicaset", "--all", "--replicas=0")
        told = f"clusterName={CLUSTER},nodeRole={NODE_ROLE},worker.consolidateAfter=5s"
        self.helm("install", "dask-nodes", str(DEPLOYED.path("karpenter")), "--set", told)

    def machines(self) -> dict[str, str]:
        """The market of each machine for workers that is paid for now, by its node."""
        return {each.node: each.market for each in self.cloud.instances(WORKERS)}

    def market(self, client: Client, future: Future) -> list[str]:
        """The markets of the machines whose workers hold a result."""
        holders = client.who_has([future])[future.key]
        names = [name for name, address in addresses(client).items() if address in holders]
        pods = self.pods()
        return [self.machines()[pods[name]["spec"]["nodeName"]] for name in names if name in pods]

    def situation(self) -> str:
        seen = self.cloud.kubectl("get", "nodes,nodeclaims,nodepools,ec2nodeclasses", "--output=wide")
        return "\n".join([seen, *map(str, self.cloud.bill()), super().situation()])


@pytest.fixture
def shipped(cloud: Cloud, tmp_path: Path) -> Iterator[Shipped]:
    name = f"shipped-{os.getpid()}"
    cloud.kubectl("create", "namespace", name)
    cloud.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    release = Shipped(cloud, name, tmp_path)
    try:
        release.install()
        yield release
    finally:
        release.close()
        helm(cloud.kubectl, name, tmp_path, "uninstall", "r", "--wait=false")
        helm(cloud.kubectl, name, tmp_path, "uninstall", "dask-nodes", "--wait=false")
        cloud.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.xdist_group("nodes")
@pytest.mark.timeout(400, func_only=True)
def test_what_we_ship_for_karpenter_goes_from_nothing_to_nothing(shipped: Shipped) -> None:
    def wait(condition: Callable[[], Any], what: str) -> None:
        wait_until(condition, what, DEADLINE_S, shipped.situation)

    shipped.ready()
    assert [each.market for each in shipped.cloud.instances("dask-scheduler")] == ["on-demand"]
    with shipped.client() as client:
        parts = client.map(nap, [TASK_S] * TASKS, pure=False)
        answer = client.submit(lambda workers: sorted(set(workers)), parts)
        del parts
        wait(answer.done, "the result")
        assert set(shipped.machines().values()) == {"spot"}, shipped.situation()
        wait(lambda: shipped.market(client, answer) == ["on-demand"], "the result does not stay on spot")
        assert answer.result(timeout=DEADLINE_S)
        computed_once(client)
        answer.release()
        shipped.settled(0, "once the answer was fetched")

    def gone() -> bool:
        nodes = shipped.cloud.kubectl("get", "nodes", f"--selector={ROLE}=worker", "--output=name")
        return not shipped.machines() and not nodes

    wait(gone, "the machines of workers go")


def flags(arguments: list[str]) -> dict[str, str]:
    """A command line's."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def test_the_rigs_cluster_autoscaler_has_the_shipped_flags() -> None:
    told = flags(cluster_autoscaler.arguments(Path("kubeconfig"), Path("config"), CLUSTER))
    shipped = DEPLOYED.yaml("cluster-autoscaler-values.yaml")["extraArgs"]
    other = {name for name, value in shipped.items() if told[name] != str(value).lower()}
    assert other <= set(cluster_autoscaler.TIMING)
    assert {"skip-nodes-with-local-storage", "expander", "scale-down-utilization-threshold"} <= told.keys()


def test_kops_tells_cluster_autoscaler_what_its_own_chart_is_told(tmp_path: Path) -> None:
    run(Check(DEPLOYED, SCHEMAS, render=tmp_path), ["kops"])
    cluster, *_ = yaml.safe_load_all((tmp_path / "kops-cluster-autoscaler.yaml").read_text())
    of_kops = {
        re.sub("([A-Z])", r"-\1", name).lower().replace("daemon-sets", "daemonsets"): value
        for name, value in cluster["spec"]["clusterAutoscaler"].items()
        if name not in ("enabled", "balanceSimilarNodeGroups")
    }
    shipped = DEPLOYED.yaml("cluster-autoscaler-values.yaml")["extraArgs"]
    assert {name: re.sub("(?<=m)0s$", "", str(value)) for name, value in of_kops.items()} == {
        name: str(value) for name, value in shipped.items()
    }


def test_a_relative_cluster_autoscaler_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "cluster-autoscaler"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLUSTER_AUTOSCALER", "bin/cluster-autoscaler")
    assert given_autoscaler() == str(binary)
    assert "CLUSTER_AUTOSCALER" not in missing("cluster-autoscaler")
    monkeypatch.setenv("CLUSTER_AUTOSCALER", "bin/other")
    assert given_autoscaler() == ""


def test_a_group_of_several_types_starts_the_cheapest_that_there_is() -> None:
    policy = {
        "LaunchTemplate": {"Overrides": [{"InstanceType": kind} for kind in WORKER_TYPES]},
        "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 0},
    }
    faults = Faults(0.0)
    zone = "eu-west-1a"
    assert fleets.chosen(policy, zone, faults) == {"instance_type": "m5.xlarge", "lifecycle": "spot"}
    faults.stock_outs = ["m5.*/*/spot"]
    assert fleets.chosen(policy, zone, faults) == {"instance_type": "r5.xlarge", "lifecycle": "spot"}
    policy["InstancesDistribution"] = {"OnDemandPercentageAboveBaseCapacity": 100}
    assert fleets.chosen(policy, zone, faults) == {"instance_type": "m5.xlarge", "lifecycle": None}
