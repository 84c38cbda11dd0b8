"""What a TideCluster with Kubernetes refuses before anything is made, and what it makes of its arguments."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dask
import pytest

from dask_tide import TideCluster, config
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes import cluster as kubernetes
from dask_tide.providers.kubernetes.arguments import _SENT, make_values, split_options
from dask_tide.providers.kubernetes.ephemeral import make_ephemeral
from dask_tide.providers.kubernetes.manifests import make_all, manifests

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: me, user: {token: secret}}]
contexts:
- {name: here, context: {cluster: here, user: me, namespace: science}}
- {name: there, context: {cluster: here, user: me, namespace: arts}}
"""


#: The one argument without a default.
IMAGE = "example.org/dask-tide:1"


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
        ({"values": {"imge": {}}}, "values.imge"),
        ({"values": "image"}, "values"),
        ({"values": {"pools": ["cpu"]}, "maximum": 2}, "values.pools"),
        ({"values": {"security": {"tls": {"source": "cert-manager"}}}}, "values.security.tls.source"),
        ({"image": None}, "image.repository"),
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
        ({"namespace": "A B"}, "namespace"),
        ({"kubeconfig": 5}, "kubeconfig"),
        ({"options": "science"}, "tide.options"),
        ({"options": {"namespace": 5}}, "namespace"),
        ({"options": {"kubeconfig": "/no/such/file"}, "kubeconfig": None}, "tide.options.kubeconfig"),
        ({"options": {"context": "elsewhere"}}, "tide.options.context"),
        ({"options": {"nodes": True}}, "tide.options.nodes"),
        ({"options": {"annotate": False}}, "tide.options.annotate"),
        ({"options": {"on-close": "stay"}}, "tide.options.on-close"),
        ({"values": {"tide": {"options": {"namespace": "arts"}}}}, "values.tide.options.namespace"),
        ({"values": {"tide": {"release": {"keep": "30 parsecs"}}}}, "values.tide.release.keep"),
        ({"minimum": 3, "limits": {"maximum": 2}}, "tide.limits.maximum"),
        ({"start": {"backoff_maximum": "1ms"}}, "tide.start.backoff-maximum"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_made(
    kubeconfig: Path, arguments: dict[str, Any], key: str
) -> None:
    # Nobody listens at that address: what is not refused first fails with another error.
    usual: dict[str, Any] = {"kubeconfig": kubeconfig, "image": IMAGE}
    with pytest.raises(ConfigError) as error:
        TideCluster("kubernetes", **(usual | arguments))
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
    with dask.config.set({"tide.release.keep": "7s", "tide.aim": "fast", "tide.folder": "/mine"}):
        assert values()["tide"] == {"release": {"keep": "7s"}, "aim": "fast"}


def test_of_each_section_it_is_known_whether_it_goes_along() -> None:
    """A new one belongs into the one list or into the other."""
    stays = {
        *("provider", "name", "pools", "options"),  # arguments say them, or become values
        *("folder", "journal"),  # of this machine
        *("departure", "readiness", "interruption"),  # of workers: the chart writes the first two
    }
    assert set(_SENT) == set(config.DEFAULTS) - stays


def test_empty_sections_say_nothing() -> None:
    empty = {"tide.pools": None, "tide.release": None, "tide.options": None, "tide.provider": "kubernetes"}
    with dask.config.set(empty):
        made = values()
        assert split_options({}) == ({}, {})
    assert (made["pools"], made["tide"]) == ({}, {})


# -- where ----------------------------------------------------------------------------------------


@asynccontextmanager
async def host(provider: str | None = "kubernetes", **arguments: Any) -> AsyncIterator[Any]:
    """What would make the cluster; it is not started."""
    cluster = TideCluster(provider, asynchronous=True, image=IMAGE, **arguments)
    site: Any = cluster._site
    try:
        yield site._host
    finally:
        await cluster.close()


def section(host: Any) -> dict[str, Any]:
    """The section `tide` of the scheduler's configuration."""
    objects = {(one["kind"], one["metadata"]["name"]): one for one in make_all(host._release)}
    assert {one["metadata"].get("namespace", host.namespace) for one in objects.values()} == {host.namespace}
    found: dict[str, Any] = json.loads(objects["ConfigMap", f"{host.name}-config"]["data"]["tide.json"])
    return found["tide"]


#: What the chart says in the section's options, in the namespace `science`.
WRITTEN = {"on-close": "keep", "namespace": "science", "nodes": False}


async def test_options_say_where_it_is_as_the_arguments_do(kubeconfig: Path) -> None:
    options = {"namespace": "physics", "kubeconfig": str(kubeconfig), "context": "there"}
    async with host(options=options) as made:
        assert made.namespace == "physics"
        told = section(made)["options"]
    assert {key: told[key] for key in told if key != "annotate"} == {**WRITTEN, "namespace": "physics"}
    del options["namespace"]
    async with host(options=options) as made:
        assert made.namespace == "arts", "the context's"


async def test_ones_own_configuration_says_where_it_is(kubeconfig: Path) -> None:
    options = {"namespace": "physics", "kubeconfig": str(kubeconfig), "unschedulable_after": "5s"}
    with dask.config.set({"tide.provider": "kubernetes", "tide.options": options}):
        async with host(None) as made:
            assert made.namespace == "physics"
            told = section(made)["options"]
    assert told["unschedulable-after"] == "5s", "what is the scheduler's goes to it"
    assert told.keys() == {*WRITTEN, "annotate", "unschedulable-after"}


async def test_what_is_said_otherwise_wins(kubeconfig: Path, tmp_path: Path) -> None:
    mine = {"namespace": "physics", "kubeconfig": str(tmp_path / "nowhere"), "context": "nowhere"}
    with dask.config.set({"tide.provider": "kubernetes", "tide.options": mine}):
        options = {"namespace": "law", "context": "here", "on_close": "release"}
        async with host(options=options, kubeconfig=kubeconfig) as made:
            assert made.namespace == "law"
            assert section(made)["options"]["on-close"] == "release"
        async with host(options=options, kubeconfig=kubeconfig, namespace="arts", context="there") as made:
            assert made.namespace == "arts"


async def test_options_of_another_provider_are_nothing_to_this_one(kubeconfig: Path) -> None:
    with dask.config.set({"tide.provider": "local", "tide.options": {"namespace": "physics", "nodes": 3}}):
        async with host(kubeconfig=kubeconfig) as made:
            assert made.namespace == "science"
            assert section(made)["options"].keys() == {*WRITTEN, "annotate"}


@pytest.mark.parametrize(
    ("option", "value"), [({"nodes": True}, "nodes.read"), ({"annotate": False}, "admission.enabled")]
)
def test_what_a_value_of_the_chart_says_is_no_option(
    kubeconfig: Path, option: dict[str, Any], value: str
) -> None:
    with pytest.raises(ConfigError) as error:
        TideCluster("kubernetes", kubeconfig=kubeconfig, options=option)
    assert f"the value {value} of the chart" in error.value.expected


# -- the rest of a cluster that is not started ----------------------------------------------------


async def test_keys_may_be_written_with_underscores(kubeconfig: Path) -> None:
    async with host(kubeconfig=kubeconfig, release={"idle_timeout": "3s"}, start={"backoff": "2s"}) as made:
        told = section(made)
    assert told["release"] == {"idle-timeout": "3s"}
    assert told["start"] == {"backoff": "2s"}


async def test_it_can_be_looked_at_before_its_start(kubeconfig: Path) -> None:
    cluster = TideCluster("kubernetes", asynchronous=True, kubeconfig=kubeconfig, name="one", image=IMAGE)
    assert cluster.dashboard_link == ""
    assert "one" in cluster._repr_html_()
    assert "one" in repr(cluster)
    await cluster.close()


HUB = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hub"}}}
THEIRS = {"podSelector": {"matchLabels": {"app": "theirs"}}}
ANYBODY: dict[str, Any] = {"namespaceSelector": {}}


@pytest.mark.parametrize(
    ("values", "clients", "dashboard"),
    [
        ({}, [HUB], [HUB]),
        ({"networkPolicy": {"clients": None, "dashboard": None}}, [HUB], [HUB]),
        ({"networkPolicy": {"clients": [THEIRS]}}, [THEIRS, HUB], [HUB]),
        ({"networkPolicy": {"dashboard": [THEIRS]}}, [HUB], [THEIRS, HUB]),
        ({"ingress": {"enabled": True}}, [HUB], [ANYBODY]),
        ({"serviceMonitor": {"enabled": True}}, [HUB], [ANYBODY]),
        (
            {"ingress": {"enabled": True}, "networkPolicy": {"clients": [THEIRS], "dashboard": [THEIRS]}},
            *([THEIRS, HUB], [THEIRS, HUB]),
        ),
    ],
)
async def test_in_a_pod_who_makes_it_is_let_in_beside_all_others(
    kubeconfig: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    clients: list[Any],
    dashboard: list[Any],
) -> None:
    monkeypatch.setattr(kubernetes, "own_namespace", lambda *_: "hub")
    given = json.dumps(values)
    async with host(kubeconfig=kubeconfig, values=values) as made:
        objects = make_all(made._release)
    [policy] = [
        one["spec"]
        for one in objects
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-scheduler")
    ]
    let_in = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert {port: peers[1:] for port, peers in let_in.items()} == {8786: clients, 8787: dashboard}
    assert all("podSelector" in peers[0] for peers in let_in.values()), "the release's own pods"
    assert json.dumps(values) == given, "the user's own mapping"


# -- the Job --------------------------------------------------------------------------------------


def test_the_job_runs_the_pod_of_the_charts_deployment() -> None:
    objects = manifests("dask", "science", {"image": {"repository": "example.org/dask-tide"}}, replicas=0)
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
