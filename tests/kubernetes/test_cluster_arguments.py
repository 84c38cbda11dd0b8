"""What a TideCluster with Kubernetes refuses before anything is made, and what it makes of its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import pytest

from dask_tide import TideCluster
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.arguments import make_values
from dask_tide.providers.kubernetes.ephemeral import make_ephemeral
from dask_tide.providers.kubernetes.manifests import manifests

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: here, context: {cluster: here, user: me, namespace: science}}]
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    return path


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"maximum": -1}, "pools.default.maximum"),
        ({"minimum": 3, "maximum": 2}, "pools.default.minimum"),
        ({"memory_limit": "auto"}, "pools.default.memory"),
        ({"memory_limit": "4"}, "pools.default.memory"),
        ({"pools": {"cpu": {"maxmum": 1}}}, "pools.cpu.maxmum"),
        ({"pools": {"cpu": {"maximum": 1}}, "maximum": 2}, "pools"),
        ({"pools": [1]}, "pools"),
        ({"pools": {"cpu": 1}}, "pools.cpu"),
        ({"values": {"pools": {"a": {}, "b": {}}}, "maximum": 2}, "pools"),
        ({"values": {"imge": {}}}, "imge"),
        ({"values": "image"}, "values"),
        ({"values": {"pools": ["cpu"]}, "maximum": 2}, "pools"),
        ({"values": {"security": {"tls": {"source": "cert-manager"}}}}, "security.tls.source"),
        ({"image": "two words"}, "image"),
        ({"image": 1}, "image"),
        ({"name": "Not A Label"}, "tide.name"),
        ({"idle_timeout": "soon"}, "idle_timeout"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"idle_timeout": "s"}, "idle_timeout"),
        ({"timeout": -1}, "timeout"),
        ({"context": "elsewhere"}, "tide.options.context"),
        ({"kubeconfig": "/no/such/file"}, "tide.options.kubeconfig"),
        ({"release": {"kep": "3s"}}, "tide.release.kep"),
        ({"release": {"keep": "3 bananas"}}, "tide.release.keep"),
        ({"name_space": "science"}, "name_space"),
        ({"host": "0.0.0.0"}, "host"),
        ({"scheduler_port": 8786}, "scheduler_port"),
        ({"dashboard_address": "here"}, "dashboard_address"),
        ({"dashboard_address": ":65536"}, "dashboard_address"),
        ({"namespace": 5}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"kubeconfig": 5}, "kubeconfig"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_made(
    kubeconfig: Path, arguments: dict[str, Any], key: str
) -> None:
    # Nobody listens at that address: what is not refused first fails with another error.
    with pytest.raises(ConfigError) as error:
        TideCluster("kubernetes", **({"kubeconfig": kubeconfig} | arguments))
    assert error.value.key == key


def values(**arguments: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"pool": {}, "pools": None, "settings": {}, "image": None, "values": None}
    return make_values(**(nothing | arguments))


def test_arguments_become_values() -> None:
    made = values(
        pool={"threads": 2, "memory": "1.5 GiB", "maximum": 7, "resources": {"GPU": 1}},
        settings={"release": {"keep": "30s"}, "idle-shutdown": "1h"},
        image="registry:5000/team/dask@sha256:abc",
        values={"poolDefaults": {"maximum": 3}, "tide": {"release": {"keep": "1s", "tail": "2s"}}},
    )
    assert made["pools"] == {
        "default": {"threads": 2, "memory": "1536Mi", "maximum": 7, "daskResources": {"GPU": 1}}
    }
    assert made["poolDefaults"] == {"maximum": 3}
    assert made["tide"] == {"release": {"keep": "30s", "tail": "2s"}, "idle-shutdown": "1h"}
    assert made["image"] == {"repository": "registry:5000/team/dask@sha256", "tag": "abc"}


@pytest.mark.parametrize(
    ("reference", "repository", "tag"),
    [("a/b:1", "a/b", "1"), ("a/b", "a/b", "latest"), ("host:5000/b", "host:5000/b", "latest")],
)
def test_an_image_is_split(reference: str, repository: str, tag: str) -> None:
    assert values(image=reference)["image"] == {"repository": repository, "tag": tag}


def test_pools_may_have_the_keys_of_the_configuration_or_of_the_chart() -> None:
    container = {"limits": {"example.org/gpu": 1}}
    pools = {
        "cpu": {"memory": 2**31, "boot-time": "90s"},
        "gpu": {"memory": "8Gi", "resources": container, "nodeSelector": {"gpu": "yes"}},
    }
    assert values(pools=pools)["pools"] == {
        "cpu": {"memory": "2048Mi", "bootTime": "90s"},
        "gpu": {"memory": "8Gi", "resources": container, "nodeSelector": {"gpu": "yes"}},
    }


def test_ones_own_configuration_of_the_policy_goes_along() -> None:
    with dask.config.set({"tide.release.keep": "7s", "tide.folder": "/mine"}):
        assert values()["tide"] == {"release": {"keep": "7s"}}


def test_the_job_runs_the_pod_of_the_charts_deployment() -> None:
    objects = manifests("dask", "science", replicas=0)
    [deployment] = [one for one in objects if one["kind"] == "Deployment"]
    made = make_ephemeral(objects, idle_timeout_s=600, deadline_s=30)
    pod, theirs = made.job["spec"]["template"]["spec"], deployment["spec"]["template"]["spec"]
    assert pod.pop("restartPolicy") == "OnFailure"
    [container], [their_container] = pod.pop("containers"), dict(theirs).pop("containers")
    assert pod == {key: value for key, value in theirs.items() if key != "containers"}
    arguments, their_arguments = container.pop("args"), their_container["args"]
    assert container == {key: value for key, value in their_container.items() if key != "args"}
    assert arguments[-len(their_arguments) + 2 :] == their_arguments[2:]
    assert {one["metadata"]["namespace"] for one in made.owned} == {"science"}
    assert {one["kind"] for one in made.beyond} == {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    job = {**made.job, "metadata": {**made.job["metadata"], "uid": "1"}}
    owners = {one["metadata"]["ownerReferences"][0]["uid"] for one in made.owned_by(job)}
    assert owners == {"1"}
    assert all(one["spec"]["replicas"] == 0 for one in made.owned if one["kind"] == "ReplicaSet")
