"""Level cloud: Karpenter on a simulated AWS, and machines that boot, are taken back and die."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from leftovers import Traces, by_hand, machine_state, started
from waiting import wait_until

from rig.aws import karpenter
from rig.aws.account import PURPOSE, TYPES
from rig.aws.cluster_autoscaler import GROUP
from rig.aws.instances import Instance
from rig.clients import KubectlError
from rig.cloud import Cloud, Sky, missing
from rig.folders import RigError

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400)]

# Deadlines of a machine that does much else; where it does not, half a minute each.
COMING_S, GOING_S = 120.0, 180.0
CLOUD = (
    "import time\nfrom rig.cloud import Cloud\ncloud = Cloud.start()\n"
    "print(cloud.folder.name, flush=True)\ntime.sleep(600)"
)


class Burst:
    """Pods that need machines, in a pool of their own: tests do not find each other's machines.

    Parameters
    ----------
    cloud
        Where.
    name
        Theirs and the pool's.
    """

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.cloud = cloud
        self.name = name
        self.api = cloud.api()

    def start(self, replicas: int, cpu: str = "1", **pool: Any) -> None:
        burst = karpenter.burst(replicas, self.name, pool=self.name, cpu=cpu)
        self.cloud.kubectl.apply(karpenter.node_pool(self.name, **pool), burst)

    def scale(self, replicas: int) -> None:
        self.cloud.kubectl("scale", "replicaset", self.name, f"--replicas={replicas}")

    def pods(self, phase: str = "Running") -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/default/pods?labelSelector=app%3D{self.name}"
        return [pod for pod in self.api("GET", path)["items"] if pod["status"]["phase"] == phase]

    def ready(self) -> int:
        """How many pods are; cheaper to ask than to list them."""
        status = self.api("GET", f"/apis/apps/v1/namespaces/default/replicasets/{self.name}")["status"]
        return int(status.get("readyReplicas", 0))

    def instances(self) -> list[Instance]:
        return self.cloud.instances(self.name)

    def claims(self) -> list[dict[str, Any]]:
        path = f"/apis/karpenter.sh/v1/nodeclaims?labelSelector=karpenter.sh%2Fnodepool%3D{self.name}"
        claims: list[dict[str, Any]] = self.api("GET", path)["items"]
        return claims

    def nodes(self) -> list[dict[str, Any]]:
        path = f"/api/v1/nodes?labelSelector={PURPOSE.replace('/', '%2F')}%3D{self.name}"
        nodes: list[dict[str, Any]] = self.api("GET", path)["items"]
        return nodes

    def node_names(self) -> set[str]:
        return {node["metadata"]["name"] for node in self.nodes()}

    def wait_running(self, count: int) -> list[dict[str, Any]]:
        self.wait(lambda: self.ready() == count, f"{count} pods run", COMING_S)
        return self.pods()

    def wait(self, condition: Callable[[], Any], what: str, deadline_s: float = COMING_S) -> Any:
        return wait_until(condition, what, deadline_s, self._detail)

    def _detail(self) -> str:
        kubectl = self.cloud.kubectl
        logs = [self.cloud.folder / "logs" / f"{name}.log" for name in ("aws", "karpenter")]
        ends = [line for log in logs for line in log.read_text().splitlines()[-15:]]
        return "\n".join(
            [kubectl("get", "pods,nodes,nodeclaims", "-o", "wide"), *(end[:400] for end in ends)]
        )


@pytest.fixture
def burst(cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Burst]:
    burst = Burst(cloud, re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_"))[:40].strip("-"))
    yield burst
    kinds = ("nodepool", "replicaset")
    for kind in kinds:  # their machines go while the next test runs
        cloud.kubectl("delete", kind, burst.name, "--wait=false", "--ignore-not-found")


def test_machines_come_with_pods_and_go_with_them(burst: Burst) -> None:
    assert burst.instances() == []
    burst.start(5)
    pods = burst.wait_running(5)
    instances = {instance.node: instance for instance in burst.instances()}
    assert len(instances) == 2, "pods of one CPU, machines of four"
    assert {pod["spec"]["nodeName"] for pod in pods} == set(instances)
    for node in burst.nodes():
        instance = instances[node["metadata"]["name"]]
        labels = node["metadata"]["labels"]
        assert node["spec"]["providerID"] == f"aws:///{instance.zone}/{instance.id}"
        assert labels["karpenter.sh/capacity-type"] == instance.market == "spot", "it is cheaper"
        assert labels["node.kubernetes.io/instance-type"] == instance.kind
        assert labels["topology.kubernetes.io/zone"] == instance.zone
        assert node["status"]["capacity"]["cpu"] == str(TYPES[instance.kind])
        assert {"key": PURPOSE, "value": burst.name, "effect": "NoSchedule"} in node["spec"]["taints"]
        assert {"type": "InternalIP", "address": instance.address} in node["status"]["addresses"]
    ids = {instance.id for instance in instances.values()}
    volumes = {volume: each for volume, each in burst.cloud.volumes().items() if each in ids}
    assert set(volumes.values()) == ids
    burst.scale(0)
    burst.wait(lambda: not (burst.instances() or burst.nodes()), "the machines go", GOING_S)
    burst.wait(lambda: not set(instances) & set(burst.cloud.nodes()), "their kubelets are no more")
    paid = [instance for instance in burst.cloud.bill() if instance.pool == burst.name]
    assert {instance.id for instance in paid} == ids
    assert not volumes.keys() & burst.cloud.volumes().keys()
    assert all(instance.ended_s and instance.paid_s > 5 and instance.cost > 0 for instance in paid)


def test_who_is_taken_back_is_told_before(burst: Burst) -> None:
    burst.start(1, markets=["spot"])
    [pod] = burst.wait_running(1)
    [instance] = burst.instances()
    cloud, name = burst.cloud, pod["metadata"]["name"]
    ask = ("exec", name, "--", "/toolbox", "metadata")
    assert cloud.kubectl(*ask, "instance-id") == f"200 {instance.id}\n"
    assert cloud.kubectl(*ask, "instance-life-cycle") == "200 spot\n"
    assert cloud.kubectl(*ask, "spot/instance-action") == "404 \n"
    # Karpenter does not evict who tolerates everything: a witness until the end.
    cloud.kubectl.apply(_witness(burst.name, instance.node))
    path = f"/api/v1/namespaces/default/pods/{burst.name}-witness"
    burst.wait(lambda: burst.api("GET", path)["status"]["phase"] == "Running", "the witness runs")
    log = subprocess.Popen(cloud.kubectl.command("logs", "--follow", name), text=True, stdout=subprocess.PIPE)
    assert log.stdout is not None
    assert log.stdout.readline() == "asleep\n"
    limit = {"InstanceId": instance.id, "HttpPutResponseHopLimit": 1}
    cloud.aws("ec2", "modify_instance_metadata_options", **limit)
    with pytest.raises(KubectlError, match="api/token"):  # nobody answers the pod; its machine has an answer
        cloud.kubectl(*ask, "instance-id")
    cloud.interrupt(instance.node)
    status, said = cloud.kubectl("exec", f"{burst.name}-witness", *ask[2:], "spot/instance-action").split(
        " ", 1
    )
    assert (status, json.loads(said)["action"]) == ("200", "terminate")
    # SIGTERM came before the power went, and the log arrived: all of it.
    assert log.communicate(timeout=60)[0] == "woken\n"
    burst.wait(lambda: instance.id not in {each.id for each in burst.instances()}, "it is gone")
    burst.wait(lambda: [each["spec"]["nodeName"] for each in burst.pods()] != [instance.node], "a new one")
    burst.wait_running(1)


def _witness(name: str, node: str) -> dict[str, Any]:
    container = {
        "name": "c",
        "image": "docker.io/dask-tide/toolbox:rig",
        "imagePullPolicy": "Never",
        "args": ["sleep"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-witness"},
        "spec": {
            "nodeName": node,
            "hostNetwork": True,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }


def test_at_the_end_of_the_notice_the_power_goes(burst: Burst) -> None:
    burst.start(1, markets=["spot"])
    [pod] = burst.wait_running(1)
    [instance] = burst.instances()
    name = pod["metadata"]["name"]
    # With this annotation Karpenter's drain waits for the pod, as long as it takes.
    burst.cloud.kubectl("annotate", "pod", name, "karpenter.sh/do-not-disrupt=true")
    log = subprocess.Popen(
        burst.cloud.kubectl.command("logs", "--follow", name),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        burst.cloud.interrupt(instance.id, notice_s=6)
        burst.wait(lambda: instance.node not in burst.cloud.nodes(), "its power is cut")
        [ended] = [each for each in burst.cloud.bill() if each.id == instance.id]
        assert ended.ended_s is not None
        assert ended.notice_s is not None
        assert ended.ended_s >= ended.notice_s
    finally:
        log.kill()
    assert "woken" not in log.communicate()[0]


def test_only_spot_instances_are_taken_back(cloud: Cloud) -> None:
    [system] = cloud.instances("system")
    with pytest.raises(RigError, match="only spot instances are interrupted"):
        cloud.interrupt(system.id)
    with pytest.raises(RigError, match="no instance 'i-0' runs"):
        cloud.terminate("i-0")


def test_without_spot_there_is_on_demand_and_without_both_nothing(burst: Burst) -> None:
    # Karpenter remembers for three minutes what was out of stock: types of this test's own.
    types = ["c5.2xlarge", "m5.2xlarge"]
    burst.cloud.stock_out("*.2xlarge/*/spot")
    burst.start(1, cpu="6", types=types)
    burst.wait_running(1)
    [instance] = burst.instances()
    assert (instance.kind, instance.market) == ("c5.2xlarge", "on-demand")
    burst.cloud.stock_out("*.2xlarge/*/on-demand")
    burst.scale(2)
    events = "/api/v1/events?fieldSelector=reason%3DNoCompatibleInstanceTypes"

    def told() -> bool:
        about = [event["involvedObject"] for event in burst.api("GET", events)["items"]]
        return ("NodePool", burst.name) in {(each["kind"], each["name"]) for each in about}

    burst.wait(told, "the pool's events say that there are none")
    assert len(burst.instances()) == len(burst.pods()) == 1


def test_a_machine_dies_without_notice(burst: Burst) -> None:
    burst.start(1)
    burst.wait_running(1)
    [instance] = burst.instances()
    burst.cloud.terminate(instance.node)
    burst.wait(lambda: instance.node not in burst.cloud.nodes(), "its power is cut")
    assert instance.node in burst.node_names(), "nobody knows yet"
    # Gone for good it is after Karpenter's finalizer, a minute later.
    burst.wait(
        lambda: all("deletionTimestamp" in node["metadata"] for node in burst.nodes()),
        "the cloud controller removes a silent Node without an instance",
        GOING_S,
    )


def test_a_machine_may_never_join(burst: Burst) -> None:
    burst.cloud.boots(0.0, joins=False)
    burst.start(1)
    burst.wait(lambda: len(burst.instances()) == 1, "a machine is launched")
    [instance] = burst.instances()
    [claim] = burst.wait(burst.claims, "Karpenter knows it")
    burst.cloud.boots(0.0, joins=True)
    assert not burst.nodes()
    assert len(burst.pods("Pending")) == 1
    # Karpenter itself waits for a quarter of an hour.
    burst.cloud.kubectl("delete", "nodeclaim", claim["metadata"]["name"])
    burst.wait_running(1)
    assert instance.id not in {each.id for each in burst.instances()}


def test_a_throttled_api_delays_machines(burst: Burst) -> None:
    def refused() -> list[dict[str, Any]]:
        calls = burst.cloud.api_calls()
        return [call for call in calls if call["operation"] == "CreateFleet" and call["status"] == 503]

    burst.cloud.throttle(True, "ec2:CreateFleet")
    burst.start(1)
    burst.wait(refused, "AWS refuses")
    assert burst.instances() == []
    burst.cloud.throttle(False)
    burst.wait_running(1)


def test_an_autoscaler_that_starts_again_makes_no_machine_twice(burst: Burst) -> None:
    burst.start(8)
    burst.wait(lambda: len(burst.instances()) >= 2, "machines are launched")
    burst.cloud.restart_autoscaler()
    burst.wait_running(8)
    burst.wait(lambda: len(burst.claims()) == len(burst.instances()), "each machine has a claim")
    assert len(burst.instances()) <= 3


def test_an_auto_scaling_group_does_what_cluster_autoscaler_asks_of_it(cloud: Cloud) -> None:
    def instances() -> dict[str, Instance]:
        return {each.node: each for each in cloud.instances(GROUP)}

    def want(count: int) -> None:
        cloud.aws("autoscaling", "set_desired_capacity", AutoScalingGroupName=GROUP, DesiredCapacity=count)

    def group() -> Any:
        said = cloud.aws("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[GROUP])
        (ours,) = said["AutoScalingGroups"]
        return ours

    def wanted() -> int:
        return int(group()["DesiredCapacity"])

    mixed = group()["MixedInstancesPolicy"]
    cloud.aws("autoscaling", "update_auto_scaling_group", AutoScalingGroupName=GROUP, MaxSize=40)
    assert (group()["MaxSize"], group()["MixedInstancesPolicy"]) == (40, mixed)
    assert not instances()
    want(1)
    wait_until(lambda: set(instances()) & cloud.ready_nodes(), "its node is Ready", COMING_S)
    ((name, instance),) = instances().items()

    def look() -> Any:
        return cloud.api()("GET", f"/api/v1/nodes/{name}")

    kind = "node.kubernetes.io/instance-type"
    wait_until(lambda: kind in look()["metadata"]["labels"], "the cloud controller has met it", COMING_S)
    node = look()
    assert node["spec"]["providerID"] == f"aws:///{instance.zone}/{instance.id}"
    assert {"key": PURPOSE, "value": "workers", "effect": "NoSchedule"} in node["spec"]["taints"]
    labels = node["metadata"]["labels"]
    assert (labels[PURPOSE], labels["node.kubernetes.io/lifecycle"]) == ("workers", instance.market)
    assert labels[kind] == instance.kind

    cloud.stock_out("*/*/spot")
    want(2)

    def failed() -> list[str]:
        said = cloud.aws("autoscaling", "describe_scaling_activities", AutoScalingGroupName=GROUP)
        return [each["StatusMessage"] for each in said["Activities"] if each["StatusCode"] == "Failed"]

    wait_until(failed, "it is told that there is none", COMING_S)
    assert "capacity" in failed()[0]
    assert (wanted(), len(instances())) == (2, 1)
    cloud.in_stock()
    wait_until(lambda: len(instances()) == 2, "it tries again", COMING_S)

    for each in instances().values():
        cloud.aws(
            "autoscaling",
            "terminate_instance_in_auto_scaling_group",
            InstanceId=each.id,
            ShouldDecrementDesiredCapacity=True,
        )
    assert wanted() == 0
    wait_until(lambda: not instances() and name not in cloud.ready_nodes(), "they are no more", GOING_S)


def test_by_hand(able: None) -> None:
    def instances() -> list[tuple[str, str]]:
        rows = [line.split() for line in rig("instances").splitlines()[1:-1]]
        return sorted((pool, market) for _, _, _, market, pool, *_ in rows)

    before, name = machine_state(), f"test-cloud-by-hand-{os.getpid()}"
    rig = by_hand(name, 200)
    system, worker = ("system", "on-demand"), ("workers", "on-demand")
    try:
        told = rig("up", "--level", "cloud", "--machines", "kwok", "--boot-s", "1")
        [example] = re.findall(r"kubectl create -f (\S+)", told)
        assert instances() == [system]
        rig("stock-out", "*/*/spot")
        assert "stock_outs: ['*/*/spot']" in rig("faults")
        rig("kubectl", "create", "-f", example)
        rig("kubectl", "scale", "replicaset/burst", "--replicas=1")
        wait_until(lambda: instances() == [system, worker], "a machine comes, and there is no spot", COMING_S)
        rig("in-stock")
        assert "stock_outs: []" in rig("faults")
    finally:
        traces = Traces(name).take()
        assert "nothing is left" in rig("down")
    traces.wait_gone()
    assert machine_state() == before


def test_nothing_is_left_of_a_killed_one(able: None, starter: list[subprocess.Popen[str]]) -> None:
    before = machine_state()
    cloud = Cloud.attach(started(starter, CLOUD))
    traces = Traces(cloud.folder.name).take()
    assert len(cloud.instances()) == 1
    starter[0].kill()
    traces.wait_gone()
    assert machine_state() == before


@pytest.mark.skipif(bool(missing("cluster-autoscaler")), reason=missing("cluster-autoscaler"))
def test_cluster_autoscaler_makes_its_group_follow_the_pods(able: None) -> None:
    with Cloud.start(sky=Sky(autoscaler="cluster-autoscaler")) as cloud:
        cloud.kubectl.apply(karpenter.burst(5))
        api = cloud.api()

        def running() -> int:
            pods = api("GET", "/api/v1/namespaces/default/pods?labelSelector=app%3Dburst")["items"]
            return sum(pod["status"]["phase"] == "Running" for pod in pods)

        wait_until(lambda: running() == 5, "pods run", COMING_S)
        assert len(cloud.instances("dask-workers")) == 2
        cloud.kubectl("scale", "replicaset", "burst", "--replicas=0")
        wait_until(lambda: not cloud.instances("dask-workers"), "the machines go", GOING_S)
