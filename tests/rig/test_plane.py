"""Level plane: real servers, fake nodes."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from leftovers import Traces, by_hand, started
from waiting import wait_until

from rig.clients import Api, ApiError, KubectlError
from rig.folders import RigError, runs
from rig.keeper import clean
from rig.plane import Options, Plane

pytestmark = pytest.mark.timeout(300, func_only=True)

NODES = "/api/v1/nodes"
MAPS = "/api/v1/namespaces/default/configmaps"
PLANE = (
    "import time\nfrom rig.plane import Plane\n"
    "plane = Plane.start()\nprint(plane.folder.name, flush=True)\ntime.sleep(600)"
)


def _config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def test_pods_run_on_fake_nodes(control: Plane) -> None:
    names = control.add_kwok_nodes(3, cpus=64, labels={"zone": "a"})
    assert control.add_kwok_nodes(1) == ["kwok-3"]
    assert set(names) < control.ready_nodes()
    labels = {"app": "many"}
    container = {"name": "c", "image": "any", "resources": {"requests": {"cpu": "1"}}}
    control.kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "many", "namespace": "default"},
            "spec": {
                "replicas": 50,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"nodeSelector": {"zone": "a"}, "containers": [container]},
                },
            },
        }
    )

    api = control.api()

    def ready() -> bool:
        status = api("GET", "/apis/apps/v1/namespaces/default/replicasets/many")["status"]
        return bool(status.get("readyReplicas") == 50)

    wait_until(ready, "50 pods are ready", detail=lambda: control.kubectl("get", "pods,events"))


def test_users_have_the_rights_that_they_are_given(control: Plane) -> None:
    control.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps")
    control.kubectl("create", "rolebinding", "bob", "--role=reader", "--user=bob")
    control.kubectl("create", "rolebinding", "robot", "--role=reader", "--serviceaccount=default:default")
    for kubeconfig in (
        control.user_kubeconfig("bob"),
        control.serviceaccount_kubeconfig("default", "default"),
    ):
        api = Api(kubeconfig)
        wait_until(partial(_allowed, api, MAPS), "the binding is known")
        with pytest.raises(ApiError, match="403") as refused:
            api("GET", NODES)
        assert refused.value.status == 403


def _allowed(api: Api, path: str) -> bool:
    try:
        api("GET", path)
    except ApiError:
        return False
    return True


def test_the_api_server_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another etcd's member and a proxy, of the user's.
    monkeypatch.setenv("ETCD_NAME", "mine")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Plane.start(options=Options(audit=True)) as plane:
        version = plane.api()("POST", MAPS, _config_map("before"))["metadata"]["resourceVersion"]
        with plane.apiserver_away(), pytest.raises(OSError, match="refused"):
            plane.api()("GET", NODES)
        plane.api()("POST", MAPS, _config_map("after"))  # the old one's connection broke
        plane.compact_etcd()
        plane.restart_apiserver()
        # The watch's status is in its first event.
        events = plane.api()("GET", f"{MAPS}?watch=1&timeoutSeconds=5&resourceVersion={version}", raw=True)
        assert json.loads(events.splitlines()[0])["object"]["code"] == 410
        audit = [json.loads(line) for line in (plane.folder / "logs" / "audit.log").read_text().splitlines()]
        ours = [each for each in audit if each["requestURI"] == MAPS and each["user"]["username"] == "admin"]
        assert [each["verb"] for each in ours] == ["create", "create"]


def test_a_server_that_fails_says_why() -> None:
    with pytest.raises(RigError, match=r"kube-apiserver ended:(.|\n)*nonsense"):
        Plane.start("test-nonsense", options=Options(apiserver=("--nonsense",)))
    assert not (runs() / "test-nonsense").exists()


def test_kubectl_fails_with_its_own_words(control: Plane) -> None:
    with pytest.raises(KubectlError, match='pods "nobody" not found'):
        control.kubectl("get", "pod", "nobody")


def test_two_side_by_side(control: Plane) -> None:
    with Plane.start() as other:
        other.api()("POST", MAPS, _config_map("other"))
        with pytest.raises(ApiError, match="not found"):
            control.api()("GET", f"{MAPS}/other")
        with pytest.raises(RigError, match="runs already"):
            Plane.start(other.folder.name)
        assert set(clean()).isdisjoint({other.folder.name, control.folder.name})


def test_nothing_is_left(control: Plane) -> None:
    with Plane.start() as plane:
        traces = Traces(plane.folder.name).take()
        assert len(traces.processes) >= 5
        assert traces.left()
    assert traces.left() == []


def test_nothing_is_left_when_the_test_run_is_killed(starter: list[subprocess.Popen[str]]) -> None:
    traces = Traces(started(starter, PLANE)).take()
    starter[0].kill()
    traces.wait_gone()


def test_the_next_start_removes_what_a_killed_keeper_left(starter: list[subprocess.Popen[str]]) -> None:
    traces = Traces(started(starter, PLANE)).take()
    os.kill(traces.keeper, 9)
    # Its servers die with it; only files are left, until somebody starts another cluster: maybe another test.
    wait_until(
        lambda: set(traces.left()) <= {str(runs() / traces.name)},
        "the servers died",
        detail=lambda: str(traces.left()),
    )
    with Plane.start():
        assert traces.left() == []


def test_by_hand(tmp_path: Path) -> None:
    name = f"test-by-hand-{os.getpid()}"
    rig = by_hand(name, 120)
    try:
        said = rig("up", "--level", "plane", "--nodes", "2")
        assert f"export KUBECONFIG={runs() / name / 'kubeconfig'}" in said
        assert "kwok-1" in rig("kubectl", "get", "nodes", "--no-headers")
        # Options are kubectl's, wherever they are.
        assert "service/kubernetes" in rig("kubectl", "-n", "default", "get", "services", "--output=name")
        assert f"{name} (this checkout's): KUBECONFIG=" in rig("status")
        attached = Plane.attach(name)
        attached.restart_apiserver()
        wait_until(lambda: attached.ready_nodes() == {"kwok-0", "kwok-1"}, "both are Ready")
    finally:
        traces = Traces(name).take()
        assert "nothing is left" in rig("down")
    assert traces.left() == []
    assert "no cluster runs" in rig("down")
