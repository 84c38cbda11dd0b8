"""Level nodes: real kubelets and containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kernel import killed_for_memory
from leftovers import Traces, by_hand, machine_state, started
from waiting import wait_until

from rig import binaries, images
from rig.folders import RigError, runs
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

CLUSTER = (
    "import time\nfrom rig.nodes import Cluster\n"
    "cluster = Cluster.start()\ncluster.node_up('n1')\n"
    "print(cluster.folder.name, flush=True)\ntime.sleep(600)"
)


def _pod(name: str, *arguments: str, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "c", "image": images.TOOLBOX, "imagePullPolicy": "Never"}
    container["args"] = list(arguments)
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


@contextmanager
def _pods(cluster: Cluster, *manifests: dict[str, Any]) -> Iterator[None]:
    cluster.kubectl.apply(*manifests)
    names = [f"{each['kind']}/{each['metadata']['name']}" for each in manifests]
    try:
        yield
    finally:
        cluster.kubectl("delete", "--grace-period=0", "--force", "--ignore-not-found", *names)


def _wait_phase(cluster: Cluster, name: str, phase: str) -> None:
    api = cluster.api()
    wait_until(
        lambda: api("GET", f"/api/v1/namespaces/default/pods/{name}")["status"].get("phase") == phase,
        f"pod {name} is {phase}",
        detail=lambda: cluster.kubectl("describe", "pod", name),
    )


def test_a_pod_runs_and_ends_when_told(cluster: Cluster) -> None:
    with _pods(cluster, _pod("sleeper", "sleep", terminationGracePeriodSeconds=30)):
        _wait_phase(cluster, "sleeper", "Running")
        wait_until(lambda: cluster.kubectl("logs", "sleeper") == "asleep\n", "its log is read")
        # A name with all of DNS's parts needs no search list.
        found = cluster.kubectl("exec", "sleeper", "--", "/toolbox", "lookup", "kubernetes.default")
        assert found == "10.96.0.1\n"
        following = subprocess.Popen(
            cluster.kubectl.command("logs", "--follow", "sleeper"), text=True, stdout=subprocess.PIPE
        )
        assert following.stdout is not None
        assert following.stdout.readline() == "asleep\n"
        cluster.kubectl("delete", "pod", "sleeper")  # waits
        assert "woken" in following.communicate(timeout=30)[0]


def test_a_service_is_reached_from_everywhere(cluster: Cluster) -> None:
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    web = _pod("web", "serve", ":8080", nodeName="n1", container={"readinessProbe": probe})
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    with _pods(cluster, service, web):
        cluster.kubectl("wait", "--for=condition=Ready", "pod/web")
        with _pods(cluster, *(_pod(f"client-{node}", "sleep", nodeName=node) for node in ("n1", "n2"))):
            for node in ("n1", "n2"):  # the server's own node, and another
                _wait_phase(cluster, f"client-{node}", "Running")
                get = ("exec", f"client-{node}", "--", "/toolbox", "get", "http://web")
                wait_until(partial(_says, "web\n", cluster, *get), f"the Service answers on {node}")
        address = cluster.kubectl.json("get", "service", "web")["spec"]["clusterIP"]
        toolbox = str(binaries.ensure("toolbox")["toolbox"])
        assert cluster.run_in([toolbox, "get", f"http://{address}"]).stdout == "web\n"
        assert _forwarded(cluster, toolbox) == "web\n"


def _says(expected: str, cluster: Cluster, *words: str) -> bool:
    try:
        return cluster.kubectl(*words) == expected
    except RigError:
        return False


def _forwarded(cluster: Cluster, toolbox: str) -> str:
    """What the pod answers to somebody outside of the cluster's network."""
    command = cluster.kubectl.command("port-forward", "pod/web", ":8080", "--address=127.0.0.1")
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as forward:
        try:
            assert forward.stdout is not None
            port = forward.stdout.readline().split("->")[0].rpartition(":")[2].strip()
            command = [toolbox, "get", f"http://127.0.0.1:{port}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        finally:
            forward.terminate()


def test_memory_has_a_limit(cluster: Cluster) -> None:
    before = killed_for_memory()
    limits = {"resources": {"limits": {"memory": "48Mi"}}}
    with _pods(
        cluster,
        _pod("glutton", "eat", "200", container=limits),
        _pod("gourmet", "eat", "10", container=limits),
    ):
        _wait_phase(cluster, "gourmet", "Succeeded")
        _wait_phase(cluster, "glutton", "Failed")
        status = cluster.kubectl.json("get", "pod", "glutton")["status"]["containerStatuses"][0]
        # Kubernetes' reason has been seen to be Error, too; the kernel's own count does not err.
        assert status["state"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
        assert killed_for_memory() > before


def test_a_node_is_as_ordered(cluster: Cluster) -> None:
    cluster.node_up(
        "big",
        cpus=96,
        memory_gib=384,
        labels={"node.kubernetes.io/instance-type": "m5.24xlarge"},
        taints=["spot=yes:NoSchedule"],
        provider_id="aws:///zone/i-0123",
    )
    try:
        node = cluster.kubectl.json("get", "node", "big")
        assert node["status"]["capacity"]["cpu"] == "96"
        assert node["status"]["capacity"]["memory"] == "384Gi"
        assert node["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "m5.24xlarge"
        assert {"key": "spot", "value": "yes", "effect": "NoSchedule"} in node["spec"]["taints"]
        assert node["spec"]["providerID"] == "aws:///zone/i-0123"
        with _pods(
            cluster,
            _pod("on-big", "sleep", nodeName="big", container={"resources": {"limits": {"cpu": "40"}}}),
        ):
            _wait_phase(cluster, "on-big", "Running")
        with pytest.raises(RigError, match="up already"):
            cluster.node_up("big")
    finally:
        cluster.node_down("big", forget=True)
    assert "big" not in cluster.kubectl("get", "nodes")


def test_a_dead_node_is_not_ready_and_its_name_boots_again(cluster: Cluster) -> None:
    cluster.node_up("mortal")
    with _pods(cluster, _pod("victim", "sleep", nodeName="mortal")):
        _wait_phase(cluster, "victim", "Running")
        cluster.node_down("mortal")
        assert "mortal" not in cluster.nodes()
        wait_until(lambda: "mortal" not in cluster.ready_nodes(), "the dead node is NotReady")
        # A machine that stands still for long makes all of them silent.
        wait_until(lambda: {"n1", "n2"} <= cluster.ready_nodes(), "the others are ready")
        assert "mortal" not in cluster.ready_nodes()
    cluster.node_up("mortal")
    cluster.node_down("mortal", forget=True)


def test_an_image_is_loaded_into_nodes_that_run(cluster: Cluster, tmp_path: Any) -> None:
    tag = "docker.io/dask-tide/later:rig"
    tar = tmp_path / "later.tar"
    tar.write_bytes(images.archive(tag, binaries.ensure("toolbox")["toolbox"]))
    cluster.load(tar)
    with _pods(cluster, _pod("later", "sleep", container={"image": tag})):
        _wait_phase(cluster, "later", "Running")


def test_a_second_cluster_beside_it_leaves_nothing(cluster: Cluster) -> None:
    before = machine_state()
    with Cluster.start() as other:
        other.nodes_up("n1", "n2")
        cluster.kubectl("create", "configmap", "mine")
        assert "mine" not in other.kubectl("get", "configmaps")
        other.kubectl.apply(_pod("sleeper", "sleep"))
        _wait_phase(other, "sleeper", "Running")
        other.node_down("n2")
        traces = Traces(other.folder.name).take()
        assert len(traces.namespaces) >= 7
        assert machine_state() == before
    traces.wait_gone()  # a PID namespace's last process may take a moment
    assert machine_state() == before
    assert {"n1", "n2"} <= cluster.ready_nodes()


@pytest.mark.parametrize("who", ["starter", "keeper"])
def test_nothing_is_left_when_it_is_killed(
    able: None, starter: list[subprocess.Popen[str]], who: str
) -> None:
    before = machine_state()
    traces = Traces(started(starter, CLUSTER)).take()
    if who == "starter":
        starter[0].kill()
    else:
        os.kill(traces.keeper, signal.SIGKILL)
        alive = [f"{kind}" for kind in ("process", "mnt", "net")]
        wait_until(
            lambda: not any(each.startswith(kind) for each in traces.left() for kind in alive),
            "its machines died",
            detail=lambda: json.dumps(traces.left()),
        )
        # The next start; a test beside this one may have made another one already.
        Cluster.start().stop()
    traces.wait_gone()
    assert machine_state() == before


def test_by_hand(able: None) -> None:
    def nodes() -> set[str]:
        return set(rig("kubectl", "get", "nodes", "--output=name").split())

    before, name = machine_state(), f"test-by-hand-{os.getpid()}"
    rig = by_hand(name, 200)
    try:
        assert f"export KUBECONFIG={runs() / name / 'kubeconfig'}" in rig(
            "up", "--level", "nodes", "--nodes", "1"
        )
        assert nodes() == {"node/n1"}
        rig("node-up", "n9")
        assert nodes() == {"node/n1", "node/n9"}
        assert Cluster.attach(name).ready_nodes() == {"n1", "n9"}
        network = Path("/proc/self/ns/net")
        assert rig("in", "readlink", str(network)).strip() not in ("", str(network.readlink()))
        rig("node-down", "n9", "--forget")
        assert nodes() == {"node/n1"}
    finally:
        traces = Traces(name).take()
        assert "nothing is left" in rig("down")
    traces.wait_gone()
    assert machine_state() == before
