"""The objects of a cluster, as Python makes them; tests/kubernetes compares them with the chart's."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import dask
import pytest
import yaml
from click.testing import CliRunner

from dask_tide import config
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.manifests import Certificates, make_certificates, make_release, manifests
from dask_tide.providers.kubernetes.manifests.command import manifests_command

ROOT = Path(__file__).parents[2]
#: The one value without a default.
IMAGE = {"image": {"repository": "example.org/dask-tide"}}
TLS = Certificates(ca="ca", certificate="certificate", key="key")
POOLS = {"pools": {"cpu": {"threads": 2, "maximum": 40}, "gpu": {"daskResources": {"GPU": 1}}}}


def objects(values=None, **arguments):
    values = {**(values or {}), "image": IMAGE["image"] | (values or {}).get("image", {})}
    made = manifests("r", "ns", values, **({"tls": TLS} | arguments))
    found = {(one["kind"], one["metadata"]["name"]): one for one in made}
    assert len(found) == len(made)
    return found


def pod_specs(made):
    return {
        name: one["spec"]["template"]["spec"]
        for (kind, name), one in made.items()
        if kind in ("Deployment", "ReplicaSet")
    }


def template_label(made, pool="r-default"):
    return made["ReplicaSet", pool]["spec"]["template"]["metadata"]["labels"]["dask-tide/template"]


# Pools


def test_pools_have_replicas_only_where_asked():
    assert "replicas" not in objects()["ReplicaSet", "r-default"]["spec"]
    assert objects(replicas=0)["ReplicaSet", "r-default"]["spec"]["replicas"] == 0


def test_the_template_carries_its_digest():
    pool = {"podLabels": {"team": "t"}, "podAnnotations": {"a": "b", "karpenter.sh/do-not-disrupt": "false"}}
    template = objects({"poolDefaults": pool})["ReplicaSet", "r-default"]["spec"]["template"]
    digested = {"labels": {"team": "t"}, "annotations": {"a": "b"}, "spec": template["spec"]}
    text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()[:10]
    assert template["metadata"]["labels"]["dask-tide/template"] == expected


def test_the_digest_changes_with_the_spec_and_the_selector_does_not():
    before, after = objects(), objects({"image": {"tag": "other"}})
    assert template_label(before) != template_label(after)
    selectors = [made["ReplicaSet", "r-default"]["spec"]["selector"] for made in (before, after)]
    assert selectors[0] == selectors[1]
    assert "dask-tide/template" not in selectors[0]["matchLabels"]


def test_the_digest_is_not_changed_by_what_only_the_scheduler_does():
    before = objects(POOLS)
    after = objects({"pools": {**POOLS["pools"], "cpu": {"threads": 2, "maximum": 9, "price": 3}}})
    assert template_label(before, "r-cpu") == template_label(after, "r-cpu")


@pytest.mark.parametrize("key", ["podLabels", "podAnnotations"])
def test_other_labels_or_annotations_make_other_pods(key):
    """Running workers kept the old ones, idle or not, and nobody said so."""
    made = [
        objects({"poolDefaults": {key: {"sidecar.istio.io/inject": value}}}) for value in ("true", "false")
    ]
    assert len({template_label(one) for one in [*made, objects()]}) == 3


def test_marks_make_no_other_pods():
    """The scheduler changes them on pods that run."""
    spot = {"poolDefaults": {"spot": True}}
    seen = objects({**spot, "nodes": {"read": True}})
    marked = objects(
        {"poolDefaults": {"spot": True, "podAnnotations": {"karpenter.sh/do-not-disrupt": "false"}}}
    )
    annotations = [
        made["ReplicaSet", "r-default"]["spec"]["template"]["metadata"]["annotations"]
        for made in (objects(spot), seen, marked)
    ]
    assert [one.get("karpenter.sh/do-not-disrupt") for one in annotations] == [None, "true", "false"]
    assert template_label(objects(spot)) == template_label(seen) == template_label(marked)


def test_other_certificates_make_other_pods():
    other = Certificates(ca="ca", certificate="another", key="key")
    assert template_label(objects()) != template_label(objects(tls=other))


def test_rotation_makes_other_pods_where_the_certificates_are_not_ours():
    def made(**more):
        return objects({"security": {"tls": {"source": "secret", "secretName": "mine", **more}}})

    assert template_label(made()) == template_label(made())
    assert template_label(made()) != template_label(made(rotate="now"))
    assert template_label(made(rotate=1)) == template_label(made(rotate="1"))


@pytest.mark.parametrize("source", ["generated", "cert-manager", "secret"])
def test_of_a_secret_of_ones_own_pods_get_three_files(source):
    """What else was in it, the authority's key say, code of each client could read. Ours have no more."""
    tls = {"source": source, "secretName": "mine" if source == "secret" else None}
    made = objects({"security": {"tls": tls}, "notebook": {"enabled": True}})
    expected: dict[str, object] = {
        "secretName": "mine" if source == "secret" else "r-tls",
        "defaultMode": 0o440,
    }
    if source == "secret":
        expected["items"] = [{"key": key, "path": key} for key in ("ca.crt", "tls.crt", "tls.key")]
    found = [
        volume["secret"]
        for spec in pod_specs(made).values()
        for volume in spec["volumes"]
        if volume["name"] == "tls"
    ]
    assert found == [expected] * 3


def test_a_worker_leaves_within_its_grace_period():
    spec = pod_specs(objects({"pools": {"cpu": {"terminationGracePeriodSeconds": 101}}}))["r-cpu"]
    environment = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert spec["terminationGracePeriodSeconds"] == 101
    assert environment["DASK_TIDE__DEPARTURE__TIMEOUT"] == "75s"


def test_the_pools_own_resources_go_on_top():
    given = {"requests": {"memory": "1Gi"}, "limits": {"nvidia.com/gpu": 1, "memory": None}}
    made = objects({"pools": {"gpu": {"threads": 4, "memory": "8Gi", "resources": given}}})
    assert pod_specs(made)["r-gpu"]["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "1Gi"},
        "limits": {"nvidia.com/gpu": 1},
    }


def test_nobody_takes_our_labels_away():
    stolen = {
        "app.kubernetes.io/instance": "x",
        "dask-tide/pool": "x",
        "dask-tide/template": "x",
        "team": "t",
    }
    made = objects({"pools": {"cpu": {"podLabels": stolen}}, "scheduler": {"podLabels": stolen}})
    labels = made["ReplicaSet", "r-cpu"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "r"
    assert labels["dask-tide/pool"] == "cpu"
    assert labels["dask-tide/template"] == template_label(made, "r-cpu") != "x"
    assert labels["team"] == "t"
    scheduler = made["Deployment", "r-scheduler"]["spec"]["template"]["metadata"]["labels"]
    assert scheduler["app.kubernetes.io/instance"] == "r"


def test_newcomers_are_protected_unless_the_user_says_otherwise():
    made = objects({"pools": {"spot": {"podAnnotations": {"karpenter.sh/do-not-disrupt": "false"}}}})
    assert made["ReplicaSet", "r-spot"]["spec"]["template"]["metadata"]["annotations"] == {
        "controller.kubernetes.io/pod-deletion-cost": "100",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "false",
    }


def test_spot_pools_are_so_in_the_schedulers_configuration():
    pools = {"a": {"spot": True}, "b": {"nodeSelector": {"eks.amazonaws.com/capacityType": "SPOT"}}, "c": {}}
    tide = json.loads(objects({"pools": pools})["ConfigMap", "r-config"]["data"]["tide.json"])["tide"]
    read = config.read(tide)
    assert {name: template.pool.spot for name, template in read.pools.items()} == {
        "a": True,
        "b": True,
        "c": False,
    }


def test_workers_are_told_how_to_see_a_notice():
    made = objects({"tide": {"interruption": {"watch": "aws", "interval": 2.5}}})
    environment = [
        (one["name"], one["value"])
        for one in pod_specs(made)["r-default"]["containers"][0]["env"]
        if "INTERRUPTION" in one["name"]
    ]
    assert environment == [
        ("DASK_TIDE__INTERRUPTION__INTERVAL", "2.5"),
        ("DASK_TIDE__INTERRUPTION__WATCH", "aws"),
    ]
    assert dask_config(environment) == {"interval": 2.5, "watch": "aws"}
    made = objects({"tide": {"interruption": {"watch": None}}})
    names = [one["name"] for one in pod_specs(made)["r-default"]["containers"][0]["env"]]
    assert not [name for name in names if "INTERRUPTION" in name]


def dask_config(environment):
    return dask.config.collect_env(dict(environment))["tide"]["interruption"]


# Placement

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
SPOT = {
    ("eks.amazonaws.com/capacityType", "NotIn", "SPOT"),
    ("karpenter.sh/capacity-type", "NotIn", "spot"),
    ("node.kubernetes.io/lifecycle", "NotIn", "spot"),
}


def terms(spec):
    """What of a node is required: of each alternative the conditions."""
    affinity = spec.get("affinity", {}).get("nodeAffinity", {}).get(REQUIRED, {"nodeSelectorTerms": []})
    return [
        {(one["key"], one["operator"], *one["values"]) for one in term["matchExpressions"]}
        for term in affinity["nodeSelectorTerms"]
    ]


def test_scheduler_and_notebook_are_not_on_spot_unless_they_may_be():
    specs = pod_specs(objects({"notebook": {"enabled": True}}))
    assert {name: terms(spec) for name, spec in specs.items()} == {
        "r-scheduler": [SPOT],
        "r-notebook": [SPOT],
        "r-default": [],
    }
    willing = {"scheduler": {"spot": True}, "notebook": {"enabled": True, "spot": True}}
    assert not any(terms(spec) for spec in pod_specs(objects(willing)).values())


def test_of_the_schedulers_own_alternatives_none_is_on_spot():
    wanted = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": wanted}}, "podAntiAffinity": {}}
    spec = pod_specs(objects({"scheduler": {"affinity": affinity}}))["r-scheduler"]
    assert terms(spec) == [SPOT | {("zone", "In", zone)} for zone in "ab"]
    assert spec["affinity"]["podAntiAffinity"] == {}


def test_packing_makes_other_pods_and_is_off():
    plain, packed = objects(), objects({"poolDefaults": {"packing": True}})
    assert not pod_specs(plain)["r-default"].keys() & {"affinity", "topologySpreadConstraints"}
    assert template_label(plain) != template_label(packed)


# Buffers

BUFFER = {"buffer": {"pools": {"cpu": {"units": 2}, "gpu": {"schedule": [{"at": "0 8 * * *", "units": 3}]}}}}


def test_a_placeholder_takes_the_room_of_a_worker_where_that_may_run():
    gpu = {
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
    }
    specs = pod_specs(objects({"pools": {"cpu": {"threads": 3}, "gpu": gpu}, **BUFFER}))
    for pool in ("cpu", "gpu"):
        worker, placeholder = specs[f"r-{pool}"], specs[f"r-{pool}-buffer"]
        assert placeholder["containers"][0]["resources"] == worker["containers"][0]["resources"]
        for key in ("nodeSelector", "tolerations"):
            assert placeholder.get(key) == worker.get(key)


@pytest.mark.parametrize("pool", POOLS["pools"])
def test_nobody_takes_a_placeholder_for_a_worker(pool):
    made = objects(POOLS | BUFFER)
    placeholder = made["Deployment", f"r-{pool}-buffer"]["spec"]
    labels = placeholder["template"]["metadata"]["labels"]
    assert labels.items() >= placeholder["selector"]["matchLabels"].items()
    for kind, name in (("ReplicaSet", f"r-{pool}"), ("Deployment", "r-scheduler")):
        assert not labels.items() >= made[kind, name]["spec"]["selector"]["matchLabels"].items()


def test_nobody_takes_the_clock_for_a_placeholder():
    made = objects(POOLS | BUFFER)
    [job] = [one["spec"]["jobTemplate"]["spec"] for (kind, _), one in made.items() if kind == "CronJob"]
    selected = made["Deployment", "r-gpu-buffer"]["spec"]["selector"]["matchLabels"]
    assert not job["template"]["metadata"]["labels"].items() >= selected.items()


def test_a_number_by_the_clock_is_not_set_back_by_an_upgrade():
    made = objects(POOLS | BUFFER)
    replicas = {
        pool: made["Deployment", f"r-{pool}-buffer"]["spec"].get("replicas") for pool in POOLS["pools"]
    }
    assert replicas == {"cpu": 2, "gpu": None}


def test_the_longest_names_make_names_of_cron_jobs():
    pool = "p" * 20
    times = [{"at": f"{minute} * * * *", "units": 1} for minute in range(3)]
    values = {"pools": {pool: {}}, "buffer": {"pools": {pool: {"schedule": times}}}}
    made = manifests("r" * 36, "ns", values | IMAGE)
    names = [one["metadata"]["name"] for one in made if one["kind"] == "CronJob"]
    assert len(set(names)) == 3
    assert {len(name) for name in names} == {52}


# Safety


def test_what_nobody_asked_for_is_not_made():
    """A PodDisruptionBudget, above all: with one scheduler it holds up every drain of its node."""
    assert {kind for kind, _ in objects()} == {
        *("Deployment", "ReplicaSet", "Service", "ConfigMap", "Secret", "NetworkPolicy"),
        *("Role", "RoleBinding", "ServiceAccount"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    }


def test_no_pod_has_a_liveness_probe():
    """Tasks in C that keep the interpreter's lock failed it, and busy containers were restarted."""
    for spec in pod_specs(objects({"notebook": {"enabled": True}})).values():
        assert "livenessProbe" not in spec["containers"][0]


def test_only_the_scheduler_has_a_token():
    made = objects({"notebook": {"enabled": True}})
    tokens = {name: spec["automountServiceAccountToken"] for name, spec in pod_specs(made).items()}
    assert tokens == {"r-scheduler": True, "r-default": False, "r-notebook": False}
    accounts = [one for (kind, _), one in made.items() if kind == "ServiceAccount"]
    assert [one["automountServiceAccountToken"] for one in accounts] == [False] * 3


def test_no_pod_takes_services_for_configuration():
    for spec in pod_specs(objects({"notebook": {"enabled": True}})).values():
        assert spec["enableServiceLinks"] is False


def test_without_admission_policies_pods_are_not_patched():
    made = objects({"admission": {"enabled": False}})
    assert not [kind for kind, _ in made if kind.startswith("ValidatingAdmission")]
    assert made["Role", "r-scheduler"]["rules"][0]["verbs"] == ["get", "list", "watch"]
    tide = json.loads(made["ConfigMap", "r-config"]["data"]["tide.json"])["tide"]
    assert tide["options"]["annotate"] is False


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort"])
def test_clients_outside_are_let_in_by_their_own_addresses(kind):
    """With `Cluster`, the default, the network policy saw a node's address in place of the client's."""
    made = objects({"scheduler": {"service": {"type": kind}}})
    assert made["Service", "r-scheduler-outside"]["spec"]["externalTrafficPolicy"] == "Local"
    assert "externalTrafficPolicy" not in made["Service", "r-scheduler"]["spec"]


def test_who_is_shut_in_has_no_way_out_by_the_scheduler():
    """A task fetched what it liked by `get_client().run_on_scheduler(fetch, url)`."""
    api = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 6443}]}
    data = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    values = {"networkPolicy": {"egress": [data], "apiServer": [api]}, "notebook": {"enabled": True}}
    made = objects(values)
    policies = {name: one["spec"] for (kind, name), one in made.items() if kind == "NetworkPolicy"}
    assert all(spec["policyTypes"] == ["Ingress", "Egress"] for spec in policies.values())
    ours = {"to": [{"podSelector": {"matchLabels": made["Service", "r-scheduler"]["spec"]["selector"]}}]}
    del ours["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
    names = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    assert {name: spec["egress"] for name, spec in policies.items()} == {
        "r-scheduler": [ours, names, api],
        "r-worker": [ours, names, data],
        "r-notebook": [ours, names, data],
    }
    # They select all pods in which a client's code runs.
    selected = [spec["podSelector"]["matchLabels"].items() for spec in policies.values()]
    for (kind, name), one in made.items():
        if kind in ("Deployment", "ReplicaSet"):
            labels = one["spec"]["template"]["metadata"]["labels"].items()
            assert sum(each <= labels for each in selected) == 1, name


def test_two_clusters_share_no_names():
    def names(name, namespace):
        cluster_scoped = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ClusterRole")
        return {
            (one["kind"], one["metadata"]["name"])
            for one in manifests(name, namespace, IMAGE | {"nodes": {"read": True}}, tls=TLS)
            if one["kind"].startswith(cluster_scoped) or namespace == "ns"
        }

    assert not names("r", "ns") & names("s", "ns")
    assert not names("r", "ns") & names("r", "other")


def test_the_schedulers_configuration_is_valid():
    release = {**POOLS, "tide": {"release": {"keep": "10s"}, "options": {"on-close": "release"}}}
    tide = json.loads(objects(release)["ConfigMap", "r-config"]["data"]["tide.json"])["tide"]
    read = config.read(tide)
    assert (read.provider, read.name, read.settings.keep_s) == ("kubernetes", "r", 10)
    assert {name: template.pool.maximum for name, template in read.pools.items()} == {"cpu": 40, "gpu": 10}
    assert read.pools["cpu"].pool.memory_bytes == 2 * 2**30
    assert read.options["on-close"] == "release"
    assert read.options["namespace"] == "ns"


def test_another_configuration_restarts_the_scheduler():
    def checksum(values):
        template = objects(values)["Deployment", "r-scheduler"]["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"tide": {"interval": "1s"}})


def test_objects_share_no_parts():
    made = objects()
    made["Deployment", "r-scheduler"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"] = 0
    worker = made["ReplicaSet", "r-default"]["spec"]["template"]["spec"]
    assert worker["securityContext"]["runAsUser"] == 1000
    assert objects()["Deployment", "r-scheduler"] != made["Deployment", "r-scheduler"]


def test_a_bad_name_is_refused():
    with pytest.raises(ConfigError, match="name: got 'a_b', expected lower-case letters"):
        manifests("a_b", "ns")


def test_the_key_is_not_printed():
    assert "secret" not in repr(Certificates(ca="a", certificate="b", key="secret"))


# Certificates


@pytest.fixture(scope="module")
def made_certificates() -> Certificates:
    return make_certificates("r", "ns")


def _context(purpose, folder, certificates, trusted):
    for name in ("ca", "certificate", "key"):
        (folder / name).write_text(getattr(certificates, name))
    context = ssl.create_default_context(purpose, cadata=trusted.ca)
    context.load_cert_chain(folder / "certificate", folder / "key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    return context


def _handshake(tmp_path, ours, theirs):
    """Let a client with their certificates talk to a server with ours."""
    server = _context(ssl.Purpose.CLIENT_AUTH, tmp_path, ours, ours)
    client = _context(ssl.Purpose.SERVER_AUTH, tmp_path, theirs, ours)
    near, far = socket.socketpair()
    answers = []

    def serve():
        try:
            with server.wrap_socket(near, server_side=True) as connection:
                connection.sendall(b"welcome")
        except ssl.SSLError as error:
            answers.append(error)
            near.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(far, server_hostname="r-scheduler.ns.svc") as connection:
            return connection.recv(7)
    except OSError:
        return None
    finally:
        thread.join()


def test_servers_and_clients_accept_each_other(tmp_path, made_certificates):
    assert _handshake(tmp_path, made_certificates, made_certificates) == b"welcome"


def test_a_certificate_of_another_cluster_is_refused(tmp_path, made_certificates):
    assert not _handshake(tmp_path, made_certificates, make_certificates("r", "ns"))


def test_certificates_are_made_where_they_are_wanted():
    generated = make_release("r", "ns", IMAGE)
    assert generated.certificates is not None
    assert generated.certificates.certificate.startswith("-----BEGIN CERTIFICATE-----")
    for tls in ({"enabled": False}, {"source": "cert-manager"}, {"source": "secret", "secretName": "s"}):
        assert make_release("r", "ns", IMAGE | {"security": {"tls": tls}}, tls=TLS).certificates is None


def test_the_notebooks_token_is_given_chosen_or_random():
    def token(given=None, **notebook):
        made = objects({"notebook": {"enabled": True, **notebook}}, token=given)
        return base64.b64decode(made["Secret", "r-notebook"]["data"]["token"]).decode()

    assert token("given", token="chosen") == "given"
    assert token(token="chosen") == "chosen"
    assert len(token()) >= 32
    assert token() != token()
    named = objects({"notebook": {"enabled": True, "existingSecret": "mine"}})
    assert ("Secret", "r-notebook") not in named


def test_another_token_restarts_the_notebook_server():
    def annotations(**notebook):
        made = objects({"notebook": {"enabled": True, "podAnnotations": {"checksum/token": "x"}, **notebook}})
        return made["Deployment", "r-notebook"]["spec"]["template"]["metadata"]["annotations"]

    assert annotations(token="old") == annotations(token="old") != annotations(token="new")
    assert annotations(existingSecret="mine") == annotations(existingSecret="mine", token="new")


# What the scheduler would refuse


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"tide": {"release": {"keep": "30 parsecs"}}}, "tide.release.keep"),
        ({"tide": {"interval": "1 parsec"}}, "tide.interval"),
        ({"image": {"tag": "1"}}, "image.repository"),
        ({"tide": {"limits": {"maximum": 1}}, "poolDefaults": {"minimum": 2}}, "tide.limits.maximum"),
        ({"tide": {"start": {"backoff-maximum": "1ms"}}}, "tide.start.backoff-maximum"),
        ({"tide": {"journal": {"max-bytes": "much"}}}, "tide.journal.max-bytes"),
        ({"tide": {"options": {"machine-within": "1 parsec"}}}, "tide.options.machine-within"),
        (
            {"tide": {"options": {"prices": {"a/b/c/d": 1}}}, "nodes": {"read": True}},
            "tide.options.prices.a/b/c/d",
        ),
        ({"tide": {"interruption": {"url": None}}}, "tide.interruption.url"),
        ({"security": {"tls": {"validityDays": 10_000_000}}}, "security.tls.validityDays"),
        ({"security": {"tls": {"validityDays": 36_501}}}, "security.tls.validityDays"),
    ],
)
def test_what_the_scheduler_would_refuse_is_refused_before_anything_is_made(tmp_path, values, key):
    values = IMAGE | values
    with pytest.raises(ConfigError) as error:
        make_release("r", "ns", values)
    assert error.value.key == key
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(manifests_command, ["--values", str(tmp_path / "v.yaml")])
    assert result.exit_code == 2
    assert f"Error: {key}: got " in result.output
    assert "kind:" not in result.output


def test_certificates_may_last_for_a_century():
    made = make_release("r", "ns", IMAGE | {"security": {"tls": {"validityDays": 36_500}}})
    assert made.certificates is not None


def test_the_configuration_of_the_process_that_makes_them_is_nothing_to_them():
    with dask.config.set({"tide.limits.maximum": 0, "tide.start.backoff": "1h"}):
        make_release("r", "ns", IMAGE | {"poolDefaults": {"minimum": 2}}, tls=TLS)


# The command


def test_the_command_prints_what_kubectl_applies(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("pools: {cpu: {maximum: 3, threads: 2}}")
    second.write_text("{image: {repository: example.org/dask-tide}, pools: {cpu: {maximum: 4}}}")
    arguments = ["--name", "r", "--namespace", "ns", "--values", str(first), "--values", str(second)]
    arguments += ["--set", "image.tag=1", "--set", r"poolDefaults.nodeSelector.kubernetes\.io/arch=arm64"]
    result = CliRunner().invoke(manifests_command, arguments)
    assert result.exit_code == 0, result.output
    assert "&id" not in result.output
    printed = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(result.output)}
    encoded = printed["Secret", "r-tls"]["data"]
    certificates = [base64.b64decode(encoded[name]).decode() for name in ("ca.crt", "tls.crt", "tls.key")]
    values = {
        "pools": {"cpu": {"maximum": 4, "threads": 2}},
        "image": {"tag": 1},
        "poolDefaults": {"nodeSelector": {"kubernetes.io/arch": "arm64"}},
    }
    assert printed == objects(values, tls=Certificates(*certificates))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--set", "pools.cpu.maximun=4"], 2, "pools.cpu.maximun: got 4"),
        (["--set", "pools.cpu"], 2, "expected KEY=VALUE"),
        (["--set", "a={"], 1, "--set a={"),
        (["--name", "A"], 2, "name: got 'A'"),
        (["--namespace", "A B"], 2, "namespace: got 'A B'"),
        (["--namespace", "a" * 64], 2, "namespace: got"),
        (["--values", "/nowhere"], 2, "does not exist"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, code, said):
    result = CliRunner().invoke(manifests_command, arguments)
    assert result.exit_code == code
    assert said in result.output


def test_a_file_of_values_that_is_none_is_named(tmp_path):
    for content, said in (
        (b"- a", "expected a mapping"),
        (b"{", "while parsing"),
        (b"\xff", "v.yaml: 'utf-8' codec"),
    ):
        (tmp_path / "v.yaml").write_bytes(content)
        result = CliRunner().invoke(manifests_command, ["--values", str(tmp_path / "v.yaml")])
        assert result.exit_code != 0
        assert said in result.output
    (tmp_path / "v.yaml").write_text("")
    arguments = ["--values", str(tmp_path / "v.yaml"), "--set", "image.repository=example.org/dask-tide"]
    assert CliRunner().invoke(manifests_command, arguments).exit_code == 0


# The package


def test_the_wheel_has_the_charts_files(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in ("Chart.yaml", "values.yaml", "values.schema.json"):
            packed = archive.read(f"dask_tide/providers/kubernetes/manifests/chart/{name}")
            assert packed == (ROOT / "charts" / "dask-tide" / name).read_bytes()


def test_the_charts_version_is_the_packages():
    project = (ROOT / "pyproject.toml").read_text()
    app_version = yaml.safe_load((ROOT / "charts/dask-tide/Chart.yaml").read_text())["appVersion"]
    assert f'version = "{app_version}"' in project
