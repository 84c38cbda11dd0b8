"""Attacks: what code that a client sends may not do, and who is not let in at all.

Whoever has the release's certificate may run code in its scheduler and workers: that is what Dask is for. It
must get no further: not to Secrets, other pods, other images, other releases, more workers than allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from known import known
from releases import DEADLINE_S, POOL, Release, workers
from releases import VALUES as USUAL
from waiting import wait_until

from dask_tide.providers.kubernetes.manifests import make_certificates, manifests
from dask_tide.providers.kubernetes.pods import DELETION_COST, DO_NOT_DISRUPT, SAFE_TO_EVICT
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
JSON_PATCH, JSON = "application/json-patch+json", "application/json"
FORBIDDEN, POLICY = 403, 422
#: Method, path, body, content type.
Request = tuple[str, str, Any, str]

MAXIMUM = 2
VALUES = {
    "pools": {"cpu": POOL | {"minimum": 1, "maximum": MAXIMUM, "podAnnotations": {"example.com/owner": "us"}}}
}


def _by_value() -> Callable[..., list[tuple[int, str]]]:
    # Inside of a function, so that it is sent by value: no pod can import tests.
    def ask(
        requests: list[Any], with_token: bool = True, impersonate: str = "", host: str = ""
    ) -> list[tuple[int, str]]:
        """Send requests (to the API server) with what a pod has; statuses and bodies of the answers."""
        import json
        import os
        import ssl
        import urllib.error
        import urllib.request

        folder = "/var/run/secrets/kubernetes.io/serviceaccount"
        if with_token:
            with open(f"{folder}/token") as file:  # noqa: PTH123 -- no imports more than needed
                headers = {"Authorization": f"Bearer {file.read()}"}
            tls = ssl.create_default_context(cafile=f"{folder}/ca.crt")
        else:
            headers = {}
            tls = ssl._create_unverified_context()
        if impersonate:
            headers["Impersonate-User"] = impersonate
        host = host or ":".join(os.environ[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
        answers = []
        for method, path, body, kind in requests:
            request = urllib.request.Request(
                f"https://{host}{path}",
                method=method,
                data=None if body is None else json.dumps(body).encode(),
                headers=headers | {"Content-Type": kind},
            )
            try:
                with urllib.request.urlopen(request, context=tls, timeout=10) as answer:
                    answers.append((answer.status, answer.read(300).decode(errors="replace")))
            except urllib.error.HTTPError as error:
                answers.append((error.code, error.read().decode(errors="replace")))
        return answers

    return ask


ask = _by_value()


def patch(path: str, body: Any, kind: str = MERGE) -> Request:
    return "PATCH", path, body, kind


def get(path: str) -> Request:
    return "GET", path, None, JSON


def post(path: str, body: Any) -> Request:
    return "POST", path, body, JSON


def annotate(pod: str, **annotations: str | None) -> Request:
    return patch(pod, {"metadata": {"annotations": annotations}})


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release]) -> Release:
    """With one worker that is never given up, as a target."""
    return install_once(VALUES)


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        # Alone: one of the attacks is allowed, and brings another one, which leaves again.
        wait_until(
            lambda: len(workers(client)) == len(release.all_pods()) == 1,
            "its worker is there, and no other",
            DEADLINE_S,
            release.situation,
        )
        yield client


@pytest.fixture
def neighbour(nodes: Cluster, release: Release) -> str:
    """A pod of another release in the same namespace; it finds no node."""
    pool = POOL | {"nodeSelector": {"no": "such-label"}}
    values = {"image": USUAL["image"], "pools": {"cpu": pool}}
    made = manifests("other", release.namespace, values, replicas=1)
    nodes.kubectl.apply(*(one for one in made if one["kind"] in ("ServiceAccount", "ReplicaSet")))
    found = ("--namespace", release.namespace, "get", "pods", "-l", "app.kubernetes.io/instance=other")
    pods = wait_until(lambda: nodes.kubectl.json(*found)["items"], "the other's pod is there")
    return str(pods[0]["metadata"]["name"])


def beyond_the_role(release: Release, worker: str) -> dict[str, Request]:
    """What the Role does not allow."""
    space = f"/api/v1/namespaces/{release.namespace}"
    sets = f"/apis/apps/v1/namespaces/{release.namespace}/replicasets"
    deployments = f"/apis/apps/v1/namespaces/{release.namespace}/deployments"
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{release.namespace}"
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    name, pod = release.name, f"{space}/pods/{worker}"
    own = f"{release.namespace}.{name}"
    container = {"name": "evil", "image": "evil"}
    evil = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "evil"},
        "spec": {"containers": [container]},
    }
    account = {"kind": "ServiceAccount", "name": f"{name}-scheduler", "namespace": release.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    all_rights = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    return {
        "read all secrets": get(f"{space}/secrets"),
        "read its own certificate's secret": get(f"{space}/secrets/{name}-tls"),
        "read config maps": get(f"{space}/configmaps"),
        "create a pod": post(f"{space}/pods", evil),
        "create a pod by applying it": patch(f"{space}/pods/evil?fieldManager=x", evil, APPLY),
        "create a deployment": post(deployments, {}),
        "exec into a pod": post(f"{pod}/exec?command=id&stdout=true", None),
        "exec into a pod by websocket": get(f"{pod}/exec?command=id&stdout=true"),
        "attach to a pod": post(f"{pod}/attach?stdout=true", None),
        "forward a port": post(f"{pod}/portforward?ports=8786", None),
        "read a pod's log": get(f"{pod}/log"),
        "reach a pod through the API server": get(f"{pod}/proxy/"),
        "add an ephemeral container": patch(
            f"{pod}/ephemeralcontainers", {"spec": {"ephemeralContainers": [container]}}
        ),
        "resize a pod": patch(f"{pod}/resize", {"spec": {"containers": [container]}}),
        "change a pod's status": patch(f"{pod}/status", {"status": {"phase": "Failed"}}),
        "replace a pod": ("PUT", pod, evil, JSON),
        "delete a pod": ("DELETE", pod, None, JSON),
        "delete all pods": ("DELETE", f"{space}/pods", None, JSON),
        "evict a pod": post(f"{pod}/eviction", {"metadata": {"name": worker}}),
        "change a ReplicaSet's template": patch(
            f"{sets}/{name}-cpu", {"spec": {"template": {"spec": {"containers": [container]}}}}
        ),
        "scale by the ReplicaSet itself": patch(f"{sets}/{name}-cpu", {"spec": {"replicas": 1}}),
        "scale by PUT": ("PUT", f"{sets}/{name}-cpu/scale", {"spec": {"replicas": 1}}, JSON),
        "delete its ReplicaSet": ("DELETE", f"{sets}/{name}-cpu", None, JSON),
        "scale another release": patch(f"{sets}/other-cpu/scale", {"spec": {"replicas": 1}}),
        "scale a deployment": patch(f"{deployments}/{name}-scheduler/scale", {"spec": {"replicas": 0}}),
        "read another namespace's pods": get("/api/v1/namespaces/default/pods"),
        "read another namespace's secrets": get("/api/v1/namespaces/kube-system/secrets"),
        "read all namespaces' pods": get("/api/v1/pods"),
        "list namespaces": get("/api/v1/namespaces"),
        "read nodes": get("/api/v1/nodes"),
        "create a token": post(f"{space}/serviceaccounts/{name}-worker/token", {"spec": {}}),
        "create a token of its own": post(f"{space}/serviceaccounts/{name}-scheduler/token", {"spec": {}}),
        "extend its Role": patch(f"{rbac}/roles/{name}-scheduler", {"rules": all_rights}),
        "bind a bigger role": post(
            f"{rbac}/rolebindings", {"metadata": {"name": "x"}, "roleRef": role, "subjects": [account]}
        ),
        "weaken the policy of pods": patch(f"{policies}/{own}.pods", {"spec": {"validations": []}}),
        "remove the policy of the scale": ("DELETE", f"{policies}/{own}.scale", None, JSON),
        "remove a policy's binding": (
            "DELETE",
            f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/{own}.pods",
            None,
            JSON,
        ),
    }


def beyond_the_policies(release: Release, worker: str, neighbour: str) -> dict[str, Request]:
    """What the Role allows and the admission policies do not."""
    space = f"/api/v1/namespaces/{release.namespace}/pods"
    scale = f"/apis/apps/v1/namespaces/{release.namespace}/replicasets/{release.name}-cpu/scale"
    pod = f"{space}/{worker}"
    image = {"spec": {"containers": [{"name": "worker", "image": "evil"}]}}
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": worker}}
    record = {
        "manager": "x",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:annotations": {"f:" + "x" * 100_000: {}}}},
    }
    return {
        "change an image": patch(pod, image, "application/strategic-merge-patch+json"),
        "change an image by JSON patch": patch(
            pod, [{"op": "replace", "path": "/spec/containers/0/image", "value": "evil"}], JSON_PATCH
        ),
        "change an image by applying it": patch(f"{pod}?fieldManager=x&force=true", head | image, APPLY),
        "end a pod by a deadline": patch(pod, {"spec": {"activeDeadlineSeconds": 1}}),
        "tolerate any node": patch(
            pod,
            [{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists"}}],
            JSON_PATCH,
        ),
        "take a pod out of its ReplicaSet": patch(pod, {"metadata": {"labels": {"dask-tide/pool": "x"}}}),
        "add a label": patch(pod, {"metadata": {"labels": {"x": "y"}}}),
        "keep a pod by a finalizer": patch(pod, {"metadata": {"finalizers": ["example.com/x"]}}),
        "take away a pod's owner": patch(pod, {"metadata": {"ownerReferences": None}}),
        "add an annotation": annotate(pod, **{"example.com/x": "y"}),
        "change a foreign annotation": annotate(pod, **{"example.com/owner": "me"}),
        "remove a foreign annotation": annotate(pod, **{"example.com/owner": None}),
        "mark a pod and do something else, too": annotate(
            pod, **{DELETION_COST: "1", "example.com/owner": "me"}
        ),
        "write a book into a mark": annotate(pod, **{SAFE_TO_EVICT: "x" * 100_000}),
        "write one into the record of who changed it": patch(
            pod, {"metadata": {"annotations": {SAFE_TO_EVICT: "true"}, "managedFields": [record]}}
        ),
        "write one by applying it": patch(
            f"{pod}?fieldManager=x&force=true",
            head | {"metadata": {"name": worker, "annotations": {DO_NOT_DISRUPT: "x" * 100_000}}},
            APPLY,
        ),
        "mark another release's pod": annotate(f"{space}/{neighbour}", **{DELETION_COST: "-1"}),
        "mark the scheduler's pod": annotate(f"{space}/{release.scheduler_pod()}", **{SAFE_TO_EVICT: "true"}),
        "scale beyond the maximum": patch(scale, {"spec": {"replicas": MAXIMUM + 1}}),
        "scale to a million": patch(scale, {"spec": {"replicas": 10**6}}),
        "scale beyond the maximum by applying it": patch(
            f"{scale}?fieldManager=x&force=true",
            {
                "apiVersion": "autoscaling/v1",
                "kind": "Scale",
                "metadata": {"name": f"{release.name}-cpu"},
                "spec": {"replicas": MAXIMUM + 1},
            },
            APPLY,
        ),
    }


def allowed(release: Release, worker: str) -> dict[str, Request]:
    """What the scheduler is there for."""
    space = f"/api/v1/namespaces/{release.namespace}"
    sets = f"/apis/apps/v1/namespaces/{release.namespace}/replicasets"
    scale = f"{sets}/{release.name}-cpu/scale"
    marks = {DELETION_COST: "7", SAFE_TO_EVICT: "true", DO_NOT_DISRUPT: None}
    pod = f"{space}/pods/{worker}"
    return {
        "mark its worker's pod": annotate(pod, **marks),
        "remove the marks": annotate(pod, **dict.fromkeys(marks)),
        "mark it again": annotate(pod, **(marks | {DO_NOT_DISRUPT: "true"})),
        "scale within the maximum": patch(scale, {"spec": {"replicas": MAXIMUM}}),
        "read its scale": get(scale),
        "read pods": get(f"{space}/pods"),
        "read events": get(f"{space}/events"),
        "read ReplicaSets": get(sets),
    }


def test_code_in_the_scheduler_gets_no_further_than_its_role_and_the_policies(
    release: Release, client: Client, neighbour: str
) -> None:
    worker = next(iter(workers(client)))

    def answers(requests: dict[str, Request], **options: Any) -> dict[str, tuple[int, str]]:
        given = client.run_on_scheduler(ask, list(requests.values()), **options)
        return dict(zip(requests, given, strict=True))

    before = spec(release, worker)
    role = beyond_the_role(release, worker)
    refused = answers(role)
    assert unlike(refused, FORBIDDEN) == {}
    account = f"system:serviceaccount:{release.namespace}:{release.name}-scheduler"
    by_others = {what: said for what, (_, said) in refused.items() if account not in said}
    assert by_others == {}, "refused as what it is, not for another reason"
    assert unlike(answers(role, impersonate="admin"), FORBIDDEN) == {}

    refused = answers(beyond_the_policies(release, worker, neighbour))
    assert unlike(refused, POLICY) == {}
    by_others = {what: said for what, (_, said) in refused.items() if "the scheduler may" not in said}
    assert by_others == {}, "refused by our policies, not for another reason"
    assert spec(release, worker) == before, "nothing has changed"

    # And it is not that all is refused.
    assert unlike(answers(allowed(release, worker)), 200) == {}
    assert client.submit(sum, [20, 22]).result(timeout=DEADLINE_S) == 42


def unlike(answers: dict[str, tuple[int, str]], status: int) -> dict[str, tuple[int, str]]:
    return {what: answer for what, answer in answers.items() if answer[0] != status}


def spec(release: Release, pod: str) -> tuple[Any, ...]:
    """What nobody may change about a pod."""
    found = release.all_pods()[pod]
    metadata = found["metadata"]
    own = (DELETION_COST, SAFE_TO_EVICT, DO_NOT_DISRUPT)
    annotations = {key: value for key, value in metadata["annotations"].items() if key not in own}
    return found["spec"], metadata["labels"], metadata["ownerReferences"], annotations


def test_code_in_a_worker_has_no_way_to_the_api_server(release: Release, client: Client) -> None:
    def seen() -> dict[str, Any]:
        import os
        from pathlib import Path

        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
        try:
            Path("/new").touch()
        except OSError as error:
            written = type(error).__name__
        else:
            written = "yes"
        return {
            "mounted": Path("/var/run/secrets/kubernetes.io").exists(),
            "user": os.getuid(),
            "written": written,
            **{line[0]: line[1] for line in lines if line[0] in ("CapEff:", "NoNewPrivs:", "Seccomp:")},
        }

    space = f"/api/v1/namespaces/{release.namespace}"
    tries = [
        get(f"{space}/pods"),
        get(f"{space}/secrets"),
        get("/api/v1/nodes"),
        post(f"{space}/pods", {"metadata": {"name": "evil"}}),
    ]
    for where in (
        client.submit(seen, pure=False).result(timeout=DEADLINE_S),
        *client.run(seen).values(),
        *client.run(seen, nanny=True).values(),
    ):
        assert where["mounted"] is False
        assert where["user"] == 1000
        assert where["written"] == "OSError"
        assert int(where["CapEff:"], 16) == 0
        assert where["NoNewPrivs:"] == "1"
        assert where["Seccomp:"] == "2"
    answers = client.submit(ask, tries, with_token=False, pure=False).result(timeout=DEADLINE_S)
    assert {status for status, _ in answers} <= {401, 403}, answers
    # Nor does its node's kubelet, which can do all that and more for its pods, listen to it.
    (name,) = workers(client)
    node = release.pods()[name]["status"]["hostIP"]
    own = f"{release.namespace}/{name}/worker"
    tries = [
        get("/pods"),
        get(f"/containerLogs/{own}"),
        get(f"/exec/{own}?command=id&output=1"),
        get("/metrics"),
    ]
    tries += [post(f"/run/{own}?cmd=id", None), get("/configz"), get("/logs/")]
    kubelet = {"with_token": False, "host": f"{node}:10250"}
    answers = client.submit(ask, tries, **kubelet, pure=False).result(timeout=DEADLINE_S)
    assert answers == [(401, "Unauthorized")] * len(tries)


#: Run in the cluster's network: what becomes of somebody who knocks at a port, in so many ways.
KNOCK = """
import json, socket, ssl, sys

def knock(host, port, context):
    with socket.create_connection((host, int(port)), timeout=10) as bare:
        talk = context.wrap_socket(bare) if context else bare
        if not context:
            # Whoever does not speak TLS would take it for an empty message, and answer.
            talk.sendall(bytes(64))
        return "answered" if talk.recv(1) else "hung up"

def attempt(address, context):
    try:
        return knock(*address.rsplit(":", 1), context)
    except TimeoutError:
        return "nothing"
    except OSError as error:
        return "refused"

def tls(*certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(*certificate)
    return context

own, other = sys.argv[1:3]
print(json.dumps({
    address: {
        "plain": attempt(address, None),
        "no certificate": attempt(address, tls()),
        "other's certificate": attempt(address, tls(f"{other}/tls.crt", f"{other}/tls.key")),
        "own certificate": attempt(address, tls(f"{own}/tls.crt", f"{own}/tls.key")),
    }
    for address in sys.argv[3:]
}))
"""

#: The same with Dask's own client. (Not by port-forward: the first one that is refused would end it.)
CONNECT = """
import json, sys
from distributed import Client, Security

own, other, address = sys.argv[1:]

def attempt(protocol, security=None, timeout=3):
    try:
        with Client(f"{protocol}://{address}", timeout=timeout, security=security) as client:
            return "at work" if client.submit(sum, [1, 2]).result(timeout=30) == 3 else "strange"
    except OSError as error:
        return "refused"

def with_certificate(folder):
    return Security(
        tls_ca_file=f"{own}/ca.crt",
        tls_client_cert=f"{folder}/tls.crt",
        tls_client_key=f"{folder}/tls.key",
        require_encryption=True,
    )

print(json.dumps({
    "plain": attempt("tcp"),
    "other's certificate": attempt("tls", with_certificate(other)),
    "own certificate": attempt("tls", with_certificate(own), timeout=30),
}))
"""


@pytest.fixture
def rogue(tmp_path: Path) -> Path:
    """A folder with a certificate that is as good as the release's, but from another authority."""
    folder = tmp_path / "rogue"
    folder.mkdir()
    certificates = make_certificates("r", "elsewhere")
    (folder / "tls.crt").write_text(certificates.certificate)
    (folder / "tls.key").write_text(certificates.key)
    return folder


def test_who_has_no_certificate_of_the_release_is_not_let_in(
    release: Release, client: Client, nodes: Cluster, rogue: Path
) -> None:
    # Behind the Service's name; and each worker and its nanny, which take orders as well.
    service = release.objects("service")[0]["spec"]["clusterIP"]
    info = known(client)
    addresses = [*info, *(worker["nanny"] for worker in info.values())]
    assert all(address.startswith("tls://") for address in addresses)
    ports = [f"{service}:8786", *(address.removeprefix("tls://") for address in addresses)]
    said = nodes.run_in([sys.executable, "-c", KNOCK, release.folder, rogue, *ports]).stdout
    expected = {"no certificate": "refused", "other's certificate": "refused"}
    for address, results in json.loads(said).items():
        assert results.pop("plain") in ("refused", "hung up"), address
        assert results.pop("own certificate") == "answered", address
        assert results == expected, address

    said = nodes.run_in([sys.executable, "-c", CONNECT, release.folder, rogue, f"{service}:8786"]).stdout
    assert json.loads(said) == {
        "plain": "refused",
        "other's certificate": "refused",
        "own certificate": "at work",
    }
