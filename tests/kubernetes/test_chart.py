"""The chart on a real API server: what Helm does with it, and what its policies and roles let through.

Pods are kwok's; no container runs.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from crontimes import NO_TIMES, NO_ZONES, TIMES, ZONES
from releases import CHART, HelmError
from releases import helm as run_helm

from dask_tide.providers.kubernetes.manifests import manifests
from dask_tide.providers.kubernetes.manifests.command import manifests_command
from rig.clients import Api, ApiError, Existing
from rig.plane import Plane

pytestmark = pytest.mark.xdist_group("plane")

TWO_POOLS = {"pools": {"cpu": {"maximum": 40}, "gpu": {}}}
BUFFER = {
    "pools": {
        "cpu": {"units": 2},
        "gpu": {"schedule": [{"at": "0 8 * * 1-5", "timeZone": "Europe/Berlin", "units": 1}]},
    }
}
DEADLINE_S = 40.0
#: Other projects' kinds that the chart can make.
FOREIGN_KINDS = [
    ("cert-manager.io", "v1", "Certificate"),
    ("cert-manager.io", "v1", "Issuer"),
    ("monitoring.coreos.com", "v1", "ServiceMonitor"),
]

DRY = "?dryRun=All"
MERGE = "application/merge-patch+json"
#: The annotations that the scheduler may change.
KEYS = {
    "cost": "controller.kubernetes.io/pod-deletion-cost",
    "safe": "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "disrupt": "karpenter.sh/do-not-disrupt",
}
READ = {"get", "list", "watch"}
ROLE = {"pods": READ | {"patch"}, "events": READ, "replicasets.apps": READ}
SCALE = "replicasets.apps/scale"


def with_image(values: dict[str, Any]) -> dict[str, Any]:
    """Values, and the one that has no default."""
    return {**values, "image": {"repository": "example.org/dask-tide", **values.get("image", {})}}


class Helm:
    """helm, and questions about what it made, in one namespace."""

    def __init__(self, plane: Plane | Existing, namespace: str, folder: Path) -> None:
        self.plane = plane
        self.namespace = namespace
        self.folder = folder

    def __call__(self, *arguments: str) -> str:
        return run_helm(self.plane.kubectl, self.namespace, self.folder, *arguments)

    def install(self, name: str, values: dict[str, Any] | None = None, *arguments: str) -> str:
        return self("install", name, str(CHART), *self.values(values), *arguments)

    def upgrade(self, name: str, values: dict[str, Any] | None = None, *arguments: str) -> str:
        return self("upgrade", name, str(CHART), *self.values(values), *arguments)

    def values(self, values: dict[str, Any] | None) -> list[str]:
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump(with_image(values or {})))
        return ["--values", str(file)]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.plane.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def get(self, kind: str, name: str = "", *arguments: str) -> Any:
        given = [kind, name] if name else [kind]
        return self.plane.kubectl.json("--namespace", self.namespace, "get", *given, *arguments)

    def items(self, kind: str, selector: str) -> list[Any]:
        items: list[Any] = self.get(kind, "", "--selector", selector)["items"]
        return items

    def secret(self, name: str) -> dict[str, str]:
        data = self.get("secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def template_label(self, replicaset: str) -> str:
        template = self.get("replicaset", replicaset)["spec"]["template"]
        return str(template["metadata"]["labels"]["dask-tide/template"])

    def as_(self, account: str) -> Api:
        """The API as a pod with this ServiceAccount's token has it."""
        return Api(self.plane.serviceaccount_kubeconfig(self.namespace, account))

    def path(self, plural: str, name: str, *more: str) -> str:
        root = "/apis/apps/v1" if plural == "replicasets" else "/api/v1"
        return "/".join([root, "namespaces", self.namespace, plural, name, *more])


@pytest.fixture
def make_helm(
    request: pytest.FixtureRequest, new_namespace: Callable[..., str], tmp_path: Path
) -> Iterator[Callable[[], Helm]]:
    """A factory of namespaces in which all pods must be "restricted"; what is installed is taken away."""
    made: list[Helm] = []
    # Nobody wants fake nodes, or other projects' kinds that take everything, in a cluster that is in use.
    own = {"kwok_nodes", "foreign_kinds"} & set(request.fixturenames)
    plane: Plane | Existing = request.getfixturevalue("plane" if own else "any_plane")

    def make() -> Helm:
        made.append(Helm(plane, new_namespace(plane.kubectl, "restricted"), tmp_path))
        return made[-1]

    yield make
    for helm in made:  # some of it is in no namespace
        for name in helm("list", "--all", "--short").split():
            helm("uninstall", name)


@pytest.fixture
def helm(make_helm: Callable[[], Helm]) -> Helm:
    return make_helm()


@pytest.fixture(scope="module")
def kwok_nodes(plane: Plane) -> Iterator[None]:
    names = plane.add_kwok_nodes(2, prefix="chart")
    yield
    plane.kubectl("delete", "node", *names)


@pytest.fixture(scope="module")
def foreign_kinds(plane: Plane) -> None:
    """Definitions of other projects' kinds, which take everything."""
    definitions: list[dict[str, Any]] = []
    for group, version, kind in FOREIGN_KINDS:
        plural = f"{kind.lower()}s"
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        served = {
            "name": version,
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": schema},
        }
        spec = {"group": group, "names": {"kind": kind, "plural": plural}, "scope": "Namespaced"}
        definitions.append(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {**spec, "versions": [served]},
            }
        )
    plane.kubectl.apply(*definitions)
    names = [f"crd/{one['metadata']['name']}" for one in definitions]
    plane.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.1)


def refusal(call: Callable[[], Any]) -> str:
    """What the API server says when it refuses; empty if it does not."""
    try:
        call()
    except ApiError as error:
        return str(error)
    return ""


def annotated(**changed: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {KEYS.get(key, key): value for key, value in changed.items()}}}


def recorded(field: str) -> dict[str, Any]:
    """A mark, and a record of a manager that says that it owns a field."""
    change = annotated(cost="0")
    fields: dict[str, Any] = {"f:metadata": {"f:annotations": {f"f:{field}": {}}}}
    entry = {"manager": "me", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z"}
    change["metadata"]["managedFields"] = [{**entry, "fieldsType": "FieldsV1", "fieldsV1": fields}]
    return change


def patch(helm: Helm, api: Api, pod: str, change: dict[str, Any], query: str = "") -> Any:
    return api("PATCH", helm.path("pods", pod) + query, change, MERGE)


def scale(helm: Helm, api: Api, replicaset: str, count: int, query: str = "") -> Any:
    change = {"spec": {"replicas": count}}
    return api("PATCH", helm.path("replicasets", replicaset, "scale") + query, change, MERGE)


def scheduler_of(helm: Helm, release: str, pod: str) -> Api:
    """The API as the scheduler has it, once its policies are enforced: that takes some tenths of a second."""
    api = helm.as_(f"{release}-scheduler")
    label = partial(patch, helm, api, pod, {"metadata": {"labels": {"probe": "1"}}}, DRY)
    grow = partial(scale, helm, api, f"{release}-cpu", 1_000_000, DRY)
    until(lambda: "ValidatingAdmissionPolicy" in refusal(label), "the policy for pods is enforced")
    until(lambda: "ValidatingAdmissionPolicy" in refusal(grow), "the policy for scales is enforced")
    return api


def pod_of(helm: Helm, selector: str) -> str:
    until(lambda: helm.items("pods", selector), f"a pod of {selector}")
    return str(helm.items("pods", selector)[0]["metadata"]["name"])


# Helm


def test_lint(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))
    assert "0 chart(s) failed" in helm(
        "lint", "--strict", str(CHART), *helm.values(TWO_POOLS | {"buffer": BUFFER})
    )


def test_an_unknown_value_is_refused_by_its_name(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"/pools/cpu.*'maximun'"):
        helm.install("r", {"pools": {"cpu": {"maximun": 4}}})


def test_the_api_server_takes_every_object(helm: Helm, foreign_kinds: None) -> None:
    peers = [{"podSelector": {"matchLabels": {"app": "hub"}}}]
    values = {
        "pools": {"cpu": {"maximum": 40, "packing": True}, "gpu": {"spot": True}},
        "buffer": BUFFER,
        "scheduler": {"podDisruptionBudget": {"enabled": True}, "service": {"type": "LoadBalancer"}},
        "ingress": {"enabled": True, "className": "nginx", "host": "dask.example.org", "path": "/dask"},
        "security": {"tls": {"source": "cert-manager"}},
        "nodes": {"read": True},
        "networkPolicy": {
            "clients": peers,
            "dashboard": peers,
            "notebook": peers,
            "egress": [{"to": peers}],
            "apiServer": [{"to": peers}],
        },
        "notebook": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "priorityClasses": {"spare": {"value": -5, "preemptionPolicy": "Never"}},
        "resourceQuota": {"hard": {"pods": "50"}},
        "limitRange": {"limits": [{"type": "Container", "max": {"memory": "64Gi"}}]},
    }
    objects = manifests("r", helm.namespace, with_image(values), replicas=0)
    arguments = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    said = helm.kubectl(*arguments, stdin="\n---\n".join(map(json.dumps, objects)))
    assert len(said.splitlines()) == len(objects)
    helm.install("r", values)
    assert len(helm("get", "manifest", "r").split("\nkind: ")) == len(objects) + 1


def test_replicas_are_the_schedulers_over_upgrade_and_rollback(helm: Helm) -> None:
    """With `replicas` in the template every upgrade set a pool back."""
    helm.install("r", TWO_POOLS)

    def replicas() -> dict[str, int]:
        found = helm.items("replicasets", "dask-tide/pool")
        return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}

    assert replicas() == {"r-cpu": 1, "r-gpu": 1}
    helm.kubectl("scale", "replicaset", "r-cpu", "--replicas=5")
    helm.kubectl("scale", "replicaset", "r-gpu", "--replicas=0")
    first = helm.template_label("r-cpu")
    helm.upgrade("r", {**TWO_POOLS, "image": {"tag": "new"}})
    assert replicas() == {"r-cpu": 5, "r-gpu": 0}
    assert helm.template_label("r-cpu") != first
    helm("rollback", "r", "1")
    assert replicas() == {"r-cpu": 5, "r-gpu": 0}
    assert helm.template_label("r-cpu") == first


def test_uninstalling_leaves_nothing(helm: Helm) -> None:
    values = {**TWO_POOLS, "notebook": {"enabled": True}, "nodes": {"read": True}, "buffer": BUFFER}
    helm.install("r", {**values, "priorityClasses": {"spare": {"value": -5}}})
    kinds = {one["kind"] for one in manifests("r", "ns", with_image(values))} | {"PriorityClass", "Pod"}
    asked = ",".join(sorted(kinds))
    # Cluster-scoped objects of other tests' releases have the same label.
    selector = "app.kubernetes.io/name=dask-tide,app.kubernetes.io/instance=r"

    def left() -> list[str]:
        own = helm.items(asked, selector)
        prefix, namespace = f"{helm.namespace}.r.", helm.namespace
        return [
            name
            for one in own
            if one["metadata"].get("namespace") == namespace
            or (name := one["metadata"]["name"]).startswith(prefix)
            if (name := one["metadata"]["name"])
        ]

    assert f"{helm.namespace}.r.pods" in left()
    helm("uninstall", "r")
    until(lambda: not left(), "everything is gone")


def test_a_buffer_by_the_clock_keeps_its_number_over_an_upgrade(helm: Helm) -> None:
    def replicas() -> dict[str, int]:
        found = helm.items("deployments", "app.kubernetes.io/component=buffer")
        return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}

    helm.install("r", {**TWO_POOLS, "buffer": BUFFER})
    assert replicas() == {"r-cpu-buffer": 2, "r-gpu-buffer": 1}
    helm.kubectl("scale", "deployment", "r-gpu-buffer", "--replicas=5")
    helm.upgrade("r", {**TWO_POOLS, "buffer": BUFFER, "image": {"tag": "new"}})
    assert replicas() == {"r-cpu-buffer": 2, "r-gpu-buffer": 5}


def test_the_api_server_takes_the_times_that_the_chart_takes_and_no_others(helm: Helm) -> None:
    job = next(
        one
        for one in manifests("r", helm.namespace, with_image({**TWO_POOLS, "buffer": BUFFER}))
        if one["kind"] == "CronJob"
    )
    api = helm.plane.api()

    def refused(**spec: str) -> bool:
        path = f"/apis/batch/v1/namespaces/{helm.namespace}/cronjobs{DRY}"
        return bool(refusal(partial(api, "POST", path, {**job, "spec": {**job["spec"], **spec}})))

    assert [at for at in TIMES if refused(schedule=at)] == []
    assert [at for at in NO_TIMES if not refused(schedule=at)] == []
    assert [zone for zone in ZONES if refused(timeZone=zone)] == []
    assert [zone for zone in NO_ZONES if not refused(timeZone=zone)] == []


def test_the_longest_names_make_names_of_pods(helm: Helm) -> None:
    name, pool = "r" * 36, "p" * 20
    buffer = {"pools": {pool: {"schedule": [{"at": "0 8 * * *", "units": 1}]}}}
    helm.install(name, {"pools": {pool: {}}, "buffer": buffer})
    pod = pod_of(helm, f"dask-tide/pool={pool}")
    assert pod.startswith(f"{name}-{pool}-")
    assert len(pod) == 63
    with pytest.raises(HelmError, match="36 characters"):
        helm.install("r" * 37)


def test_two_releases_share_a_namespace(helm: Helm) -> None:
    helm.install("r", TWO_POOLS)
    helm.install("s", TWO_POOLS)
    pods = {name: pod_of(helm, f"app.kubernetes.io/instance={name},dask-tide/pool=cpu") for name in "rs"}
    assert pods["r"].startswith("r-cpu-")
    assert pods["s"].startswith("s-cpu-")
    assert helm.secret("r-tls")["ca.crt"] != helm.secret("s-tls")["ca.crt"]
    api = scheduler_of(helm, "r", pods["r"])
    patch(helm, api, pods["r"], annotated(disrupt=None))
    assert "workers of r only" in refusal(partial(patch, helm, api, pods["s"], annotated(disrupt=None)))
    assert refusal(partial(scale, helm, api, "s-cpu", 1)).startswith("403")
    helm("uninstall", "r")
    assert helm.get("replicaset", "s-cpu")["spec"]["replicas"] == 1
    assert helm.items("secrets", "app.kubernetes.io/instance=s")


# Pods


def test_all_pods_are_restricted_and_become_ready(helm: Helm, kwok_nodes: None) -> None:
    helm.install("r", {**TWO_POOLS, "notebook": {"enabled": True}})
    for workload in (
        "deployment/r-scheduler",
        "deployment/r-notebook",
        "replicaset/r-cpu",
        "replicaset/r-gpu",
    ):
        helm.kubectl("wait", workload, "--for=jsonpath={.status.readyReplicas}=1", "--timeout=30s")
    assert len(helm.items("pods", "app.kubernetes.io/instance=r")) == 4


def test_a_quota_of_pods_keeps_none_from_starting(helm: Helm, kwok_nodes: None) -> None:
    """A number, as `--set` makes it; until Kubernetes has counted, a new quota refuses everything."""
    helm.install("r", TWO_POOLS, "--set", "resourceQuota.hard.pods=6")
    for workload in ("deployment/r-scheduler", "replicaset/r-cpu", "replicaset/r-gpu"):
        helm.kubectl("wait", workload, "--for=jsonpath={.status.readyReplicas}=1", "--timeout=30s")
    counted = {"hard": {"pods": "6"}, "used": {"pods": "3"}}
    until(lambda: helm.get("resourcequota", "r")["status"] == counted, "they are counted")


def test_what_the_command_prints_can_be_applied_again(helm: Helm, kwok_nodes: None) -> None:
    arguments = ["--name", "r", "--namespace", helm.namespace, "--set", "admission.enabled=false"]
    arguments += ["--set", "pools.cpu.maximum=4", "--set", "image.repository=example.org/dask-tide"]
    printed = CliRunner().invoke(manifests_command, arguments).output
    helm.kubectl("apply", "-f", "-", stdin=printed)
    helm.kubectl("wait", "deployment/r-scheduler", "--for=condition=Available", "--timeout=30s")
    helm.kubectl("scale", "replicaset", "r-cpu", "--replicas=3")
    helm.kubectl("apply", "-f", "-", stdin=printed)
    assert helm.get("replicaset", "r-cpu")["spec"]["replicas"] == 3


# Certificates


def test_certificates_are_kept_over_upgrades_until_they_are_rotated(helm: Helm) -> None:
    def seen() -> tuple[dict[str, str], str, str]:
        scheduler = helm.get("deployment", "r-scheduler")["spec"]["template"]["spec"]["containers"][0]["env"]
        checksum = next(one["value"] for one in scheduler if one["name"] == "TLS_CHECKSUM")
        return helm.secret("r-tls"), checksum, helm.template_label("r-default")

    helm.install("r")
    first = seen()
    helm.upgrade("r", {"tide": {"interval": "1s"}})
    assert seen() == first

    helm.upgrade("r", {}, "--set", "security.tls.rotate=20261123")
    second = seen()
    assert all(second[0][key] != first[0][key] for key in ("ca.crt", "tls.crt", "tls.key"))
    assert second[1] != first[1], "the scheduler starts anew"
    assert second[2] != first[2], "workers are stale"
    helm.upgrade("r", {}, "--reuse-values", "--set", "tide.interval=2s")
    assert seen() == second

    # As after an accident: better new certificates everywhere than none.
    helm.kubectl("delete", "secret", "r-tls")
    helm.upgrade("r", {}, "--reuse-values")
    third = seen()
    assert third[0] != second[0]
    assert third[1] != second[1]

    taken_over = {"security": {"tls": {"source": "secret", "secretName": "r-tls"}}}
    with pytest.raises(HelmError, match="Helm would delete it now"):
        helm.upgrade("r", taken_over)
    assert seen() == third


def test_what_was_said_of_our_environment_is_taken_back(helm: Helm) -> None:
    def seen() -> list[dict[str, str]]:
        environment = helm.get("deployment", "r-scheduler")["spec"]["template"]["spec"]["containers"][0][
            "env"
        ]
        return [one for one in environment if one["name"] in ("DASK_CONFIG", "HOME")]

    helm.install("r")
    before = seen()
    for value in ("/one", "/two"):
        said = [{"name": "DASK_CONFIG", "value": value}, {"name": "HOME", "value": value}]
        helm.upgrade("r", {"scheduler": {"env": said}})
        assert seen() == said
    helm.upgrade("r", {"tide": {"interval": "1s"}})
    assert sorted(seen(), key=str) == sorted(before, key=str)


def test_the_notebooks_token_is_kept_over_upgrades(helm: Helm) -> None:
    helm.install("r", {"notebook": {"enabled": True}})
    token = helm.secret("r-notebook")["token"]
    with pytest.raises(HelmError, match=r"existingSecret: got r-notebook.*Helm would delete it now"):
        helm.upgrade("r", {"notebook": {"enabled": True, "existingSecret": "r-notebook"}})
    assert helm.secret("r-notebook")["token"] == token
    assert len(token) >= 32
    helm.upgrade("r", {"notebook": {"enabled": True}, "tide": {"interval": "1s"}})
    assert helm.secret("r-notebook")["token"] == token


def test_another_token_restarts_the_notebook_server(helm: Helm) -> None:
    """The Secret was changed, and who knew the old token was let in as long as the pod lived."""

    def seen() -> tuple[str, str]:
        template = helm.get("deployment", "r-notebook")["spec"]["template"]
        return helm.secret("r-notebook")["token"], template["metadata"]["annotations"]["checksum/token"]

    helm.install("r", {"notebook": {"enabled": True}})
    first = seen()
    helm.upgrade("r", {"notebook": {"enabled": True}, "tide": {"interval": "1s"}})
    assert seen() == first
    helm.upgrade("r", {}, "--reuse-values", "--set", "notebook.token=new")
    second = seen()
    assert second[0] == "new"
    assert second[1] != first[1]
    # As after an accident: a new one, and the server has it.
    helm.kubectl("delete", "secret", "r-notebook")
    helm.upgrade("r", {"notebook": {"enabled": True}})
    assert len({pair[0] for pair in (first, second, seen())}) == 3
    assert len({pair[1] for pair in (first, second, seen())}) == 3


# Rights


def rights(helm: Helm, account: str) -> dict[str, set[str]]:
    """Verbs by resource (and a name), beyond those that everybody has."""

    def listed(name: str) -> set[tuple[str, str, str]]:
        user = f"--as=system:serviceaccount:{helm.namespace}:{name}"
        rules: set[tuple[str, str, str]] = set()
        for line in helm.kubectl(user, "auth", "can-i", "--list").splitlines()[1:]:
            resource, rest = line.split(" ", 1)
            _urls, names, verbs = (part.strip(" ]") for part in rest.split("[")[1:])
            rules |= {(resource, names, verb) for verb in verbs.split()}
        return rules

    found: dict[str, set[str]] = {}
    for resource, names, verb in listed(account) - listed("nobody"):
        found.setdefault(" ".join(filter(None, (resource, names))), set()).add(verb)
    return found


def test_the_scheduler_may_do_what_it_needs_and_nobody_else_anything(helm: Helm) -> None:
    helm.install("r", {**TWO_POOLS, "notebook": {"enabled": True}, "buffer": BUFFER})
    expected = ROLE | {f"{SCALE} r-cpu": {"get", "patch"}, f"{SCALE} r-gpu": {"get", "patch"}}
    until(lambda: rights(helm, "r-scheduler") == expected, f"rights are {expected}")
    assert rights(helm, "r-worker") == {}
    assert rights(helm, "r-notebook") == {}
    assert rights(helm, "r-buffer") == {"deployments.apps/scale r-gpu-buffer": {"patch"}}


def test_without_policies_pods_cannot_be_patched(helm: Helm) -> None:
    helm.install("r", {"admission": {"enabled": False}, "nodes": {"read": True}})
    expected = ROLE | {"pods": READ, "nodes": READ, f"{SCALE} r-default": {"get", "patch"}}
    until(lambda: rights(helm, "r-scheduler") == expected, f"rights are {expected}")
    made = helm.get("validatingadmissionpolicies,validatingadmissionpolicybindings")["items"]
    assert not [one for one in made if one["metadata"]["name"].startswith(f"{helm.namespace}.")]


def test_of_pods_only_three_annotations_can_be_changed(helm: Helm) -> None:
    """`patch pods` alone let the scheduler change images and push pods out of their pool."""
    helm.install("r", TWO_POOLS)
    pod = pod_of(helm, "app.kubernetes.io/instance=r,dask-tide/pool=cpu")
    scheduler = pod_of(helm, "app.kubernetes.io/instance=r,app.kubernetes.io/component=scheduler")
    helm.kubectl("annotate", "pod", pod, "foreign=here")
    api = scheduler_of(helm, "r", pod)
    before = helm.get("pod", pod)
    container = before["spec"]["containers"][0]
    tolerations = [*before["spec"]["tolerations"], {"operator": "Exists"}]

    identity = "labels, finalizers or owners"
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "image": ({"spec": {"containers": [{**container, "image": "evil"}]}}, "spec of pods"),
        "tolerations": ({"spec": {"tolerations": tolerations}}, "spec of pods"),
        "deadline": ({"spec": {"activeDeadlineSeconds": 1}}, "spec of pods"),
        "label added": ({"metadata": {"labels": {"x": "y"}}}, identity),
        "label changed": ({"metadata": {"labels": {"dask-tide/pool": "gpu"}}}, identity),
        "labels gone": ({"metadata": {"labels": None}}, identity),
        "finalizers": ({"metadata": {"finalizers": ["x/y"]}}, identity),
        "owners": ({"metadata": {"ownerReferences": None}}, identity),
        "annotation added": (annotated(x="y"), "these annotations"),
        "annotation changed": (annotated(foreign="y"), "these annotations"),
        "annotation gone": (annotated(foreign=None), "these annotations"),
        "one allowed, one not": (annotated(cost="0", x="y"), "these annotations"),
        "an annotation of 17": (annotated(safe="x" * 17), "16 characters"),
        "a book": (annotated(disrupt="x" * 100_000), "16 characters"),
        "one mark, one book": (annotated(cost="0", disrupt="x" * 100_000), "16 characters"),
        "a book about who changed it": (recorded("x" * 100_000), "managedFields"),
    }
    for name, (change, why) in refused.items():
        said = refusal(partial(patch, helm, api, pod, change))
        assert f"ValidatingAdmissionPolicy '{helm.namespace}.r.pods'" in said, name
        assert why in said, name
    assert "workers of r only" in refusal(partial(patch, helm, api, scheduler, annotated(cost="0")))

    def apply(**metadata: Any) -> Any:
        """The same by server-side apply."""
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, **metadata}}
        query = "?fieldManager=tide&force=true"
        return api("PATCH", helm.path("pods", pod) + query, body, "application/apply-patch+yaml")

    assert identity in refusal(partial(apply, labels={"x": "y"}))
    after = helm.get("pod", pod)
    for key in ("containers", "tolerations"):
        assert after["spec"][key] == before["spec"][key]
    for key in ("annotations", "labels", "ownerReferences"):
        assert after["metadata"][key] == before["metadata"][key]

    for changed in (
        annotated(cost="0", safe="true", disrupt=None),  # idle
        annotated(cost="-100", safe="true", disrupt=None),  # chosen to go
        annotated(cost="100", safe="false", disrupt="true"),  # busy again
        annotated(cost=None, safe=None, disrupt=None),
    ):
        patch(helm, api, pod, changed)
        given = changed["metadata"]["annotations"]
        there = {key: value for key, value in given.items() if value is not None}
        assert helm.get("pod", pod)["metadata"]["annotations"] == {"foreign": "here", **there}
    apply(annotations={KEYS["cost"]: "7"})
    assert helm.get("pod", pod)["metadata"]["annotations"][KEYS["cost"]] == "7"
    # Others are not bound by it; what they write the scheduler may leave, and take away.
    helm.kubectl("label", "pod", pod, "x=y")
    helm.kubectl("annotate", "pod", pod, f"{KEYS['safe']}={'x' * 17}")
    patch(helm, api, pod, annotated(cost="-100", disrupt="true"))
    patch(helm, api, pod, annotated(safe="false"))


def test_the_scale_ends_at_the_pools_maximum(helm: Helm) -> None:
    helm.install("r", TWO_POOLS)
    api = scheduler_of(helm, "r", pod_of(helm, "app.kubernetes.io/instance=r,dask-tide/pool=cpu"))
    for count in (40, 0, 3):
        scale(helm, api, "r-cpu", count)
        assert helm.get("replicaset", "r-cpu")["spec"]["replicas"] == count
    said = refusal(partial(scale, helm, api, "r-cpu", 41))
    assert "may scale r-cpu to 40 at the most, not to 41" in said
    assert f"ValidatingAdmissionPolicy '{helm.namespace}.r.scale'" in said
    assert "10 at the most" in refusal(partial(scale, helm, api, "r-gpu", 11))
    assert helm.get("replicaset", "r-cpu")["spec"]["replicas"] == 3

    helm.upgrade("r", {"pools": {"cpu": {"maximum": 50}, "gpu": {}}})
    until(lambda: not refusal(partial(scale, helm, api, "r-cpu", 50, DRY)), "the new maximum counts")
    assert "not to 51" in refusal(partial(scale, helm, api, "r-cpu", 51))

    # One that is above it, since that was lowered, may shrink step by step, and not grow.
    helm.kubectl("scale", "replicaset/r-cpu", "--replicas=55")
    assert "not to 56" in refusal(partial(scale, helm, api, "r-cpu", 56))
    assert "not to 55" in refusal(partial(scale, helm, api, "r-cpu", 55))
    for count in (54, 51, 3):
        scale(helm, api, "r-cpu", count)
    assert "not to 51" in refusal(partial(scale, helm, api, "r-cpu", 51))


def test_code_in_the_scheduler_can_do_no_harm_beyond_its_pools(helm: Helm) -> None:
    helm.install("r", TWO_POOLS)
    pod = pod_of(helm, "app.kubernetes.io/instance=r,dask-tide/pool=cpu")
    api = helm.as_("r-scheduler")
    until(lambda: not refusal(partial(api, "GET", helm.path("pods", pod))), "its role counts")
    new_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "evil"}, "spec": {"containers": []}}
    replicas = {"spec": {"replicas": 2}}
    attempts: list[tuple[Any, ...]] = [
        ("GET", f"/api/v1/namespaces/{helm.namespace}/secrets"),
        ("GET", helm.path("secrets", "r-tls")),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/pods"),
        ("POST", f"/api/v1/namespaces/{helm.namespace}/pods", new_pod),
        ("POST", helm.path("pods", pod, "exec?command=true")),
        ("POST", helm.path("pods", pod, "eviction"), {}),
        ("PATCH", helm.path("pods", pod, "status"), annotated(cost="0"), MERGE),
        ("PATCH", helm.path("pods", pod, "ephemeralcontainers"), {}, MERGE),
        ("DELETE", helm.path("pods", pod)),
        ("PATCH", helm.path("replicasets", "r-cpu"), replicas, MERGE),
        ("DELETE", helm.path("replicasets", "r-cpu")),
        ("POST", helm.path("serviceaccounts", "r-scheduler", "token"), {}),
        (
            "DELETE",
            f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{helm.namespace}.r.pods",
        ),
    ]
    for attempt in attempts:
        assert refusal(partial(api, *attempt)).startswith("403"), attempt
    for account in ("r-worker", "default"):
        assert refusal(partial(helm.as_(account), "GET", helm.path("pods", pod))).startswith("403")
