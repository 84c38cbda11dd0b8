"""The chart and Python make the same objects of the same values."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from crontimes import NO_TIMES, NO_ZONES, TIMES, ZONES

from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.manifests import Certificates, manifests
from dask_tide.providers.kubernetes.manifests.golang import plain
from dask_tide.providers.kubernetes.manifests.goyaml import dump_all, parse
from rig import binaries

CHART = Path(__file__).parents[2] / "charts" / "dask-tide"

POOL_WITH_ALL = {
    "threads": 4,
    "memory": "32Gi",
    "minimum": 1,
    "maximum": 40,
    "price": 0.00001,
    "daskResources": {"GPU": 1, "DISK": 0.5},
    "bootTime": "90s",
    "resources": {
        "limits": {"nvidia.com/gpu": 1, "memory": None},
        "requests": {"memory": "1Gi", "ephemeral-storage": 1e9},
    },
    "image": "example.org/mine:1",
    "imagePullSecrets": [],
    "packing": True,
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "tolerationSeconds": 1000000}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "runtimeClassName": "nvidia",
    "env": [{"name": "QUERY", "value": "<a & b>: \"é\" 'on' 1_000\n"}, {"name": "ON", "value": "on"}],
    "envFrom": [{"secretRef": {"name": "s"}}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d"}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "scratch": {"emptyDir": {"sizeLimit": "10Gi"}},
    "priorityClassName": "spare",
    "podLabels": {"team": "x", "dask-tide/pool": "stolen"},
    "podAnnotations": {"karpenter.sh/do-not-disrupt": "false", "more": "12:30:45"},
    "terminationGracePeriodSeconds": 101,
    "extraArgs": ["--lifetime", "1h"],
}


def market(operator: str, *values: str) -> dict[str, Any]:
    """An affinity that requires so of Karpenter's label for markets."""
    wanted = {"key": "karpenter.sh/capacity-type", "operator": operator} | (
        {"values": [*values]} if values else {}
    )
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["x"]}]},
        {"matchExpressions": [wanted]},
    ]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


PLACED: dict[str, Any] = {
    key: POOL_WITH_ALL[key]
    for key in ("nodeSelector", "tolerations", "affinity", "env", "envFrom", "volumes", "volumeMounts")
}
EVERYTHING = {
    "image": {
        "repository": "example.org/x",
        "tag": "2",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "p"}],
    },
    "pools": {"gpu": POOL_WITH_ALL, "cpu": {}, "gone": None},
    "poolDefaults": {"threads": 2, "priorityClassName": "system-cluster-critical"},
    "buffer": {
        "pools": {
            "gpu": {"units": 2},
            "cpu": {"schedule": [{"at": "0 8 * * 1-5", "units": 3}]},
            "gone": None,
        },
        "priority": -8,
        "image": "example.org/pause:1",
    },
    "tide": {
        "release": {"keep": "10s", "machine-idle": "1m"},
        "interruption": {"watch": "aws", "url": "http://[fd00:ec2::254]", "interval": 2.5},
        "idle-shutdown": None,
        "options": {
            "on-close": "release",
            "prices": {"m5.xlarge": 0.192, "m5.*/spot": 7e-2, "*/eu-west-1a/on-demand": 1},
        },
    },
    "scheduler": {
        **PLACED,
        "resources": {"requests": {"cpu": 1.5}, "limits": {"memory": None}},
        "priorityClassName": "vital",
        "podLabels": {"team": "x"},
        "podAnnotations": {"karpenter.sh/do-not-disrupt": None, "more": "x"},
        "terminationGracePeriodSeconds": 5,
        "extraArgs": ["--idle-timeout", "1h"],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "podDisruptionBudget": {"enabled": True},
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "host": "dask.example.org",
        "path": "/dask/",
        "tls": [{"hosts": ["dask.example.org"], "secretName": "page"}],
    },
    "nodes": {"read": True},
    "serviceMesh": {"enabled": True},
    "networkPolicy": {
        "clients": [{"podSelector": {"matchLabels": {"app": "jupyterhub"}}}],
        "dashboard": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
        "notebook": [{"podSelector": {}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        "apiServer": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 6443}]}],
    },
    "serviceAccounts": {"scheduler": {"annotations": {"a": "b"}}, "worker": {"annotations": {"c": "d"}}},
    "notebook": {
        **PLACED,
        "enabled": True,
        "token": "secret",
        "image": "example.org/notebook:1",
        "args": ["jupyter", "server"],
        "work": {"persistentVolumeClaim": {"claimName": "work"}},
        "podLabels": {"team": "x"},
        "podAnnotations": {"a": "b"},
        "priorityClassName": "spare",
    },
    "serviceMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
    "priorityClasses": {
        "spare": {"value": -5, "preemptionPolicy": "Never", "description": "goes first"},
        "vital": {"value": 1000000},
    },
    "resourceQuota": {"hard": {"pods": "50"}},
    "limitRange": {"limits": [{"type": "Container", "max": {"memory": "64Gi"}}]},
}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
ON_SSD = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
NAMED = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
CHOOSY = {
    "nodeAffinity": {
        REQUIRED: {"nodeSelectorTerms": [ON_SSD, NAMED]},
        PREFERRED: [{"weight": 1, "preference": ON_SSD}],
    },
    "podAffinity": {
        PREFERRED: [{"weight": 2, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {}}}],
        REQUIRED: [],
    },
    "podAntiAffinity": {REQUIRED: []},
}
MORNING = {"at": "30 7 * * mon-fri", "timeZone": "Europe/Berlin", "units": 6}
EVENING = {"at": "0 18 * * *", "timeZone": None, "units": 0}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "two pools": {
        "pools": {
            "cpu": {"tolerations": POOL_WITH_ALL["tolerations"], "volumes": POOL_WITH_ALL["volumes"]},
            "gpu": {"resources": {"limits": {"nvidia.com/gpu": 2}}, "daskResources": {"GPU": 2.0}},
        }
    },
    "no admission": {"admission": {"enabled": False}},
    "spot": {
        "pools": {
            "said": {"spot": True},
            "selected": {"nodeSelector": {"karpenter.sh/capacity-type": "spot"}},
            "denied": {"spot": False, "nodeSelector": {"karpenter.sh/capacity-type": "spot"}},
            "demand": {"spot": None, "nodeSelector": {"karpenter.sh/capacity-type": "on-demand"}},
            "required": {"affinity": market("In", "on-demand", "spot")},
            "excluded": {"affinity": market("NotIn", "spot")},
            "known": {"affinity": market("Exists")},
            "eks": {"nodeSelector": {"eks.amazonaws.com/capacityType": "SPOT"}},
            "other": {"nodeSelector": {"node.kubernetes.io/lifecycle": "spot", "a": "b"}},
        }
    },
    "spot with eyes": {"nodes": {"read": True}, "poolDefaults": {"spot": True}},
    "spot without hands": {
        "nodes": {"read": True},
        "admission": {"enabled": False},
        "poolDefaults": {"spot": True},
    },
    "scheduler and notebook on spot": {
        "scheduler": {"spot": True, "affinity": CHOOSY},
        "notebook": {"enabled": True, "spot": True},
    },
    "choosy": {
        "scheduler": {"affinity": CHOOSY},
        "notebook": {"enabled": True, "affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}},
        "poolDefaults": {"affinity": CHOOSY, "packing": True},
    },
    "packing": {
        "poolDefaults": {"packing": True},
        "pools": {
            "a": {},
            "b": {"packing": False},
            "c": {"packing": None, "topologySpreadConstraints": POOL_WITH_ALL["topologySpreadConstraints"]},
            "d": {"affinity": {"podAffinity": None}},
        },
    },
    "notices": {"tide": {"interruption": {"watch": "aws", "interval": "2s"}}},
    "no notices": {"tide": {"interruption": {"watch": None}}},
    "buffer": {"buffer": {"pools": {"default": {"units": 0}}}},
    "buffers": {
        "image": {"pullSecrets": [{"name": "p"}]},
        "scheduler": {key: PLACED[key] for key in ("nodeSelector", "tolerations", "affinity")},
        "pools": {
            "cpu": {"threads": 3},
            "gpu": {**POOL_WITH_ALL, "imagePullSecrets": None},
            "big": {},
            "none": {"imagePullSecrets": []},
        },
        "buffer": {
            "priorityClassName": "mine",
            "pools": {
                "cpu": {"units": 2, "schedule": None, "resources": {"requests": {"cpu": "500m"}}},
                "gpu": {"schedule": [MORNING, EVENING]},
                "big": {"units": None, "schedule": [MORNING], "resources": {}},
                "none": {"units": 1, "schedule": []},
            },
        },
    },
    "buffer gone": {"buffer": {"pools": None, "priorityClassName": None}},
    "in a mesh without TLS": {"security": {"tls": {"enabled": False}}, "serviceMesh": {"enabled": True}},
    "no TLS": {"security": {"tls": {"enabled": False}}, "notebook": {"enabled": True}},
    "TLS of a secret": {"security": {"tls": {"source": "secret", "secretName": "mine", "rotate": 20261123}}},
    "TLS of cert-manager": {"security": {"tls": {"source": "cert-manager"}}},
    "TLS rotated": {"security": {"tls": {"rotate": 20261123, "validityDays": 10}}},
    "notebook": {"notebook": {"enabled": True}},
    "notebook with a secret": {"notebook": {"enabled": True, "existingSecret": "mine"}},
    "notebook with a checksum of one's own": {
        "notebook": {"enabled": True, "token": "é", "podAnnotations": {"checksum/token": "x"}}
    },
    "no network policies": {"networkPolicy": {"enabled": False}},
    "workers shut in": {"networkPolicy": {"egress": [], "apiServer": []}, "ingress": {"enabled": True}},
    "no network policies, and where they would lead": {"networkPolicy": {"enabled": False, "egress": []}},
    "nobody shut in": {"networkPolicy": {"apiServer": [{}]}, "notebook": {"enabled": True}},
    "metrics": {"serviceMonitor": {"enabled": True}},
    "a number as the tag": {"image": {"tag": 20261128}},
    "volumes of other kinds": {
        "poolDefaults": {"scratch": {"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}},
        "notebook": {"enabled": True, "work": {"persistentVolumeClaim": {"claimName": "x"}}},
    },
    "a larger volume of the same kind": {"poolDefaults": {"scratch": {"emptyDir": {"sizeLimit": "9Gi"}}}},
    "another priority of placeholders": {"buffer": {"priority": -3, "pools": {"default": {"units": 1}}}},
    "what the scheduler takes at its limits": {
        "nodes": {"read": True},
        "pools": {
            "a": {"bootTime": "1 ns", "minimum": 2, "memory": "1Mi"},
            "b": {"bootTime": 0.5, "minimum": 1, "memory": "0.001Gi"},
            "c": {"bootTime": None},
        },
        "tide": {
            "interval": " 250 MS ",
            "forecast": {"prior": "auto"},
            "release": {"keep": "0s", "idle-timeout": 0, "machine-idle": None, "tail": "1.5 Minutes"},
            "interruption": {"interval": "2us"},
            "start": {"timeout": "1.w", "backoff": "60000 milliseconds", "backoff-maximum": "1 minute"},
            "limits": {"maximum": 3},
            "drain": {"timeout": "10"},
            "folder": "/data",
            "journal": {"path": None, "max-bytes": "0.5 kiB", "files": 1},
            "options": {
                "prices": {"a": 0, "a/b": 1, "a*/?/c": 2},
                "unschedulable-after": 0,
                "machine-within": "0h",
            },
        },
    },
    "times of all kinds": {
        "buffer": {"pools": {"default": {"schedule": [{"at": at, "units": 1} for at in TIMES]}}}
    },
    "the same times elsewhere": {
        "buffer": {
            "pools": {"default": {"schedule": [EVENING, *({**EVENING, "timeZone": zone} for zone in ZONES)]}}
        }
    },
    "a backoff as long as it becomes": {"tide": {"start": {"backoff": 60}}},
    "a backoff that stays": {"tide": {"start": {"backoff-maximum": "0.5"}}},
    "ours said otherwise": {
        "scheduler": {
            "env": [{"name": "DASK_CONFIG", "value": "/mine"}, {"name": "MORE", "value": "$(DASK_CONFIG)"}],
            "podDisruptionBudget": None,
        },
        "poolDefaults": {
            "env": [
                {"name": "DASK_TIDE__DEPARTURE__TIMEOUT", "value": "10s"},
                {"name": "HOME", "value": "/d"},
            ],
            "scratch": {"emptyDir": None, "hostPath": {"path": "/fast"}},
        },
        "notebook": {
            "enabled": True,
            "env": [{"name": "JUPYTER_TOKEN", "value": "t"}, {"name": "TLS_CHECKSUM", "value": "mine"}],
        },
        "networkPolicy": {
            "egress": [],
            "apiServer": [{"ports": [{"port": 443}]}],
            "dns": [{"ports": [{"port": 5353, "protocol": "UDP"}]}],
        },
    },
    "as a condition": {"enabled": True},
    "no names": {
        "networkPolicy": {"egress": [], "apiServer": [], "dns": None},
        "notebook": {"enabled": True},
    },
    "nulls": {
        "image": {"tag": None},
        "pools": None,
        "tide": None,
        "scheduler": {"podAnnotations": None, "podLabels": None, "resources": None, "env": None},
        "ingress": {"enabled": True, "annotations": None},
        "networkPolicy": {"clients": None},
        "notebook": {"enabled": True, "podLabels": None, "resources": None},
    },
}
#: They could not push placeholders out.
LOW_WORKERS = {
    "buffer": {"pools": {"default": {"units": 1}}},
    "poolDefaults": {"priorityClassName": "low"},
    "priorityClasses": {"low": {"value": -10}},
}
#: The scheduler would end with exit code 2, again and again, and an upgrade has ended the one that ran.
#: (But for ".5s", which Dask takes for 1.5 s.)
CRASHES: dict[str, list[Any]] = {
    "tide.interval": [
        "5 parsecs",
        "",
        "s",
        "1 2 min",
        ".5s",
        "-1s",
        "0 s",
        "0.00",
        0,
        -1,
        None,
        "auto",
        "1e400",
    ],
    "tide.forecast.prior": [None, "AUTO", "5 parsecs", -1],
    "tide.release.keep": [None, "1s auto"],
    "tide.release.tail": [None, "auto"],
    "tide.release.machine-idle": ["auto", "1 ss"],
    "tide.interruption.interval": [None, "0s"],
    "tide.drain.timeout": [None, "auto", "0s"],
    "tide.start.timeout": [None, 0],
    "tide.start.backoff": [None, "0s"],
    "tide.start.backoff-maximum": [None, "499 ms", 0.4],
    "tide.idle-shutdown": ["auto", "0s", 0],
    "tide.limits.maximum": [-1, "2"],
    "tide.folder": [3, ""],
    "tide.journal.path": [3, ""],
    "tide.journal.max-bytes": [None, 0, 0.5, "much", "0", "0.9", "0 GiB", "20 MiBs"],
    "tide.journal.files": [None, 0, 1.5, "2"],
    "tide.options.machine-within": [None, "auto", "1 parsec"],
    "tide.options.unschedulable-after": [None, -1],
    "tide.options.prices.a": [-1, "1", None],
    "pools.cpu.memory": ["1M", "0.9Mi", "0.0001Gi"],
    "pools.cpu.bootTime": ["0s", "3 foo", 0, "auto"],
}


def nested(key: str, value: object) -> dict[str, Any]:
    """Values with this one alone."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value | {"nodes": {"read": True}}


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("r", {"polls": {}}, "polls"),
    ("r", {"pools": {"cpu": {"maximun": 4}}}, "maximun"),
    ("r", {"scheduler": {"service": {"typ": "ClusterIP"}}}, "typ"),
    ("r", {"pools": {"cpu": {"memory": "4"}}}, "memory"),
    ("r", {"serviceMonitor": {"interval": "30s\n"}}, "serviceMonitor.interval"),
    ("r", {"pools": {"cpu": {"threads": 0}}}, "threads"),
    ("r", {"pools": {"a_b": {}}}, "a_b"),
    ("r", {"pools": {"a" * 21: {}}}, "20 characters"),
    ("r", {"pools": {"cpu": {"minimum": 11}}}, "minimum"),
    ("r", {"poolDefaults": {"env": None}}, "env"),
    ("r", {"security": {"tls": {"source": "secret"}}}, "secretName"),
    ("r", {"buffer": {"pools": {"default": {"unit": 2}}}}, "unit"),
    ("r", {"buffer": {"pools": {"default": {}}}}, "either units or a schedule"),
    ("r", {"buffer": {"pools": {"default": {"units": 1, "schedule": [EVENING]}}}}, "either units or"),
    ("r", {"buffer": {"pools": {"cpu": {"units": 1}}}}, "the name of a pool"),
    ("r", {"buffer": {"pools": {"default": {"schedule": [{"at": "@daily", "units": 1}]}}}}, "at"),
    ("r", {"buffer": {"pools": {"default": {"schedule": [{"at": "0 8 * *", "units": 1}]}}}}, "at"),
    ("r", {"buffer": {"pools": {"default": {"schedule": [{"units": 1}]}}}}, "at"),
    ("r", {"buffer": {"pools": {"default": {"schedule": [EVENING, {**EVENING, "units": 9}]}}}}, "differ"),
    *(
        (
            "r",
            {"buffer": {"pools": {"default": {"schedule": [{"at": at, "units": 1}]}}}},
            "buffer.pools.default.schedule",
        )
        for at in NO_TIMES
    ),
    *(
        (
            "r",
            {"buffer": {"pools": {"default": {"schedule": [{**EVENING, "timeZone": zone}]}}}},
            "as timeZone",
        )
        for zone in NO_ZONES
    ),
    (
        "r",
        {"buffer": {"pools": {"default": {"schedule": [EVENING, {"at": "0  18 * * *", "units": 9}]}}}},
        "differ",
    ),
    ("r", {"buffer": {"priority": 0}}, "priority"),
    ("r", {"buffer": {"priority": -11}}, "priority"),
    ("r", {"priorityClasses": {"buffer": {"value": 1}}}, "buffer"),
    ("r", {"priorityClasses": {"buffer-10": {"value": 1}}}, "buffer"),
    ("r", {"poolDefaults": {"scratch": {"emptyDir": None}}}, "poolDefaults.scratch"),
    ("r", {"pools": {"cpu": {"scratch": {}}}}, "pools.cpu.scratch"),
    ("r", {"notebook": {"work": {"emptyDir": None}}}, "notebook.work"),
    ("r", {"poolDefaults": {"resources": {"claims": [{"name": "gpu"}]}}}, "claims"),
    ("r", {"tide": {"idle-shutdown": "1h"}}, "tide.idle-shutdown"),
    *(
        ("r", pools, "podAnnotations")
        for said in ({"karpenter.sh/do-not-disrupt": "x" * 17}, {"karpenter.sh/do-not-disrupt": True})
        for pools in ({"poolDefaults": {"podAnnotations": said}}, {"pools": {"a": {"podAnnotations": said}}})
    ),
    ("r", {"networkPolicy": {"egress": []}}, "networkPolicy.apiServer"),
    ("r", {"networkPolicy": {"egress": [{}], "apiServer": None}}, "get service,endpoints kubernetes"),
    ("r", {"networkPolicy": {"egress": [], "apiServer": "10.96.0.1"}}, "networkPolicy.apiServer"),
    ("r", LOW_WORKERS, "above buffer.priority"),
    ("r", {"tide": {"interruption": {"watch": "gcp"}}}, "watch"),
    ("r", {"tide": {"interruption": {"wach": "aws"}}}, "wach"),
    ("r", {"tide": {"options": {"prices": {"m5.xlarge": 0.2}}}}, "prices"),
    ("r", {"scheduler": {"spot": "no"}}, "spot"),
    ("r", {"pools": {"cpu": {"packing": "yes"}}}, "packing"),
    ("r", {"tide": {"interruption": {"url": None}}}, "url"),
    ("r", {"tide": {"options": {"namespace": "ns"}}}, "namespace"),
    ("r", {"security": {"tls": {"validityDays": 10_000_000}}}, "validityDays"),
    ("r", {"tide": {"provider": "local"}}, "provider"),
    *(("r", nested(key, wrong), key) for key, all_wrong in CRASHES.items() for wrong in all_wrong),
    ("r", nested("tide.options.prices", {"a/b/c/d": 1}), "a/b/c/d"),
    ("r", nested("tide.options.prices", {"/a": 1}), "/a"),
    ("r", {"tide": {"start": {"backoff": "2m"}}}, "tide.start.backoff-maximum"),
    ("r", {"tide": {"limits": {"maximum": 1}}, "poolDefaults": {"minimum": 2}}, "tide.limits.maximum"),
    ("r", {"image": {"repository": None}}, "image.repository"),
    ("r", {"image": {"repository": ""}}, "image.repository"),
    ("0r", {}, "beginning with a letter"),
    ("r" * 37, {}, "36 characters"),
]


def template(
    name: str, values: dict[str, Any], folder: Path, *arguments: str, namespace: str = "ns"
) -> subprocess.CompletedProcess[str]:
    # The one value without a default.
    values = {**values, "image": {"repository": "example.org/x", **values.get("image", {})}}
    # JSON is YAML, and text in it is text; PyYAML would write 1e5, which Helm reads as a number.
    (folder / "values.yaml").write_text(json.dumps(values))
    # A helm of one's own making takes itself for one of Kubernetes 1.20's time.
    more = ["--namespace", namespace, "--kube-version", "1.35.0", *arguments]
    return helm_template(name, CHART, folder / "values.yaml", *more)


def helm_template(name: str, chart: Path, values: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(binaries.ensure("helm")["helm"]), "template", name, str(chart)]
    command += ["--values", str(values), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return named


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_chart_and_python_agree(values: dict[str, Any], tmp_path: Path) -> None:
    agree("r", "ns", values, tmp_path)


def agree(release: str, namespace: str, values: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """Compare what both make, and return it."""
    rendered = template(release, values, tmp_path, namespace=namespace)
    assert rendered.returncode == 0, rendered.stderr
    chart = by_name([one for one in map(parse, re.split(r"(?m)^---$", rendered.stdout)) if one])

    def secret(name: str, *keys: str) -> list[str]:
        data = chart.get(("Secret", name), {}).get("data", {})
        return [base64.b64decode(data[key]).decode() for key in keys if data]

    # What is random comes from the chart.
    certificates = secret(f"{release}-tls", "ca.crt", "tls.crt", "tls.key")
    token = secret(f"{release}-notebook", "token")
    made = manifests(
        release,
        namespace,
        parse((tmp_path / "values.yaml").read_text()),
        tls=Certificates(*certificates) if certificates else None,
        token=token[0] if token else None,
    )
    python = by_name(made)
    assert sorted(python) == sorted(chart)
    for name, one in chart.items():
        assert python[name] == one
        for container in one.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            names = [variable["name"] for variable in container.get("env", ())]
            assert len(names) == len(set(names)), "a name that is there twice no patch can change"
        for volume in one.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", ()):
            assert len(volume) == 2, "a name and one source"
    return made


#: Tokens whose digests are numbers in YAML, or would be were they not too large for one.
DIGESTS_LIKE_NUMBERS = {
    "63162492e2": "token-310",
    "19e2418584": "token-61",
    "628917e754": "token-763",
    "0e53373414": "token-27444",
    "2886720476": "token-291",
    "0332533634": "token-1224",
}


@pytest.mark.parametrize("token", DIGESTS_LIKE_NUMBERS.values(), ids=DIGESTS_LIKE_NUMBERS)
def test_digests_that_look_like_numbers_are_text(token: str, tmp_path: Path) -> None:
    made = agree("r", "ns", {"notebook": {"enabled": True, "token": token}}, tmp_path)
    assert [parse(document) for document in dump_all(made).split("\n---\n")] == made


def as_helm_reads(text: str, folder: Path) -> Any:
    """What becomes of a file of values, by the way of a chart that writes them down as JSON."""
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: echo, version: 0.1.0}")
    (folder / "templates" / "echo.yaml").write_text("echo: {{ .Values | toJson | b64enc }}")
    (folder / "values.yaml").write_text("{}")
    (folder / "given.yaml").write_text(text)
    rendered = helm_template("echo", folder, folder / "given.yaml")
    assert rendered.returncode == 0, rendered.stderr
    return json.loads(base64.b64decode(parse(rendered.stdout)["echo"]))


SCALARS = """
    63162492e2 19e2418584 -1e400 1e5 +1e5 -1.e5 1e-05 1e+50 .5e3 -.5 +.5 5. .1 1.5. 1_0.5 1_0e2 1e5_0 1_000
    1__0 _1 0332533634 0777 -0777 00 08 0o17 0b11 -0b11 0b12 0x1F 0x_1 0x1p-2 0xyz -- + 1- 1.2.3.4 10m 1Gi
    99999999999999999999 12:30 12:30:45 2024-01-01
    2024-01-01T00:00:00Z y N yes No on OFF true null ~ = inf
""".split()  # noqa: SIM905 -- a table


def test_scalars_mean_what_they_mean_to_helm(tmp_path: Path) -> None:
    text = "".join(f"k{number}: {scalar}\n" for number, scalar in enumerate([*SCALARS, "'1e5'"]))
    ours, theirs = plain(parse(text)), as_helm_reads(text, tmp_path)
    assert ours == theirs
    truths = [{key for key, value in read.items() if isinstance(value, bool)} for read in (ours, theirs)]
    assert truths[0] == truths[1]


def test_what_is_text_is_text_to_kubectl_too(tmp_path: Path) -> None:
    """Helm and kubectl read YAML with the same library."""
    texts = {f"k{number}": scalar for number, scalar in enumerate(SCALARS)}
    assert as_helm_reads(dump_all([texts]), tmp_path) == texts


#: Whatever has a name that YAML may take for something else.
LOOKS_LIKE_SOMETHING_ELSE: dict[str, Any] = {
    **EVERYTHING,
    "pools": {"1e5": {"priorityClassName": "0x10", "runtimeClassName": "2024"}, "on": {"nodeSelector": {}}},
    "buffer": {
        "pools": {"1e5": {"units": 1}, "on": {"schedule": [EVENING]}},
        "priorityClassName": "1_000",
    },
    "scheduler": {"priorityClassName": "1e5", "podDisruptionBudget": {"enabled": True}},
    "priorityClasses": {"on": {"value": 1}, "1e5": {"value": 2}},
    "security": {"tls": {"source": "secret", "secretName": "2024"}},
    "notebook": {"enabled": True, "existingSecret": "1e5", "priorityClassName": "on"},
}
NAMES = {
    *("name", "namespace", "serviceAccountName", "secretName", "priorityClassName", "runtimeClassName"),
    *("kubernetes.io/metadata.name", "app.kubernetes.io/instance", "dask-tide/pool", "policyName", "token"),
}


@pytest.mark.parametrize(
    ("release", "namespace"),
    [("r", "2024"), ("r", "1e5"), ("r", "0x10"), ("r", "2024-01-01"), ("on", "yes"), ("null", "true")],
)
@pytest.mark.parametrize(
    "values",
    [
        LOOKS_LIKE_SOMETHING_ELSE,
        {
            "security": {"tls": {"source": "cert-manager"}},
            "notebook": {"enabled": True, "token": "\x17z\xdb"},
        },
    ],
    ids=["everything", "cert-manager"],
)
def test_names_that_look_like_something_else_are_text(
    release: str, namespace: str, values: dict[str, Any], tmp_path: Path
) -> None:
    """`namespace: 2024` is a number, which no API server takes for a name; `on` is true."""
    made = agree(release, namespace, values, tmp_path)
    namespaces = {one["metadata"].get("namespace", namespace) for one in made}
    assert namespaces == {namespace}

    def check(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                assert isinstance(key, str), f"{path}: {key!r}"
                assert key not in NAMES or isinstance(below, str | dict), f"{path}.{key}: {below!r}"
                check(below, f"{path}.{key}")
        elif isinstance(value, list):
            for number, below in enumerate(value):
                check(below, f"{path}[{number}]")

    for one in made:
        check(one, f"{one['kind']} {one['metadata']['name']}")


@pytest.mark.parametrize(
    ("name", "values", "named"), MISTAKES, ids=[f"{case[2]}-{number}" for number, case in enumerate(MISTAKES)]
)
def test_chart_and_python_refuse_the_same(
    name: str, values: dict[str, Any], named: str, tmp_path: Path
) -> None:
    rendered = template(name, values, tmp_path)
    assert rendered.returncode != 0
    # The schema's errors have paths with slashes.
    assert named in rendered.stderr or named.replace(".", "/") in rendered.stderr
    with pytest.raises(ConfigError, match=named):
        manifests(name, "ns", parse((tmp_path / "values.yaml").read_text()))


@pytest.mark.parametrize("switch", ["security.tls.enabled", "admission.enabled", "networkPolicy.enabled"])
def test_who_is_let_in_is_said(switch: str, tmp_path: Path) -> None:
    """Null, as a file of values has it that says no more than the key, took all network policies away."""
    above, _, key = switch.rpartition(".")
    rendered = template("r", nested(switch, None), tmp_path)
    assert rendered.returncode != 0
    assert re.search(rf"{above.replace('.', '[./]')}.*\b{key}\b", rendered.stderr), rendered.stderr
    with pytest.raises(ConfigError, match=rf"^{re.escape(switch)}: got None"):
        manifests("r", "ns", parse((tmp_path / "values.yaml").read_text()))


def test_names_that_kubernetes_keeps_for_itself_are_not_made(tmp_path: Path) -> None:
    values = {"priorityClasses": {"low": {"value": 1}}}
    rendered = template("r", values, tmp_path, namespace="system-x")
    assert rendered.returncode != 0
    assert 'namespace "system-x"' in rendered.stderr
    with pytest.raises(ConfigError, match="namespace: got 'system-x'"):
        manifests("r", "system-x", values)
    agree("r", "system-x", {}, tmp_path)


def test_the_image_may_be_named_as_the_guides_do(tmp_path: Path) -> None:
    """With `--set`, which makes a number of what looks like one."""
    [guide] = re.findall(r"--set (image\S+)", (CHART.parents[1] / "docs" / "chart.md").read_text())
    assert guide.endswith(",image.tag=1")
    rendered = template("r", {}, tmp_path, "--set", guide)
    assert rendered.returncode == 0, rendered.stderr
    assert "image: registry.example/dask-tide:1\n" in rendered.stdout.replace('"', "")


def test_templates_make_new_certificates_each_time(tmp_path: Path) -> None:
    """Why Argo CD and the like should take another source: they render without asking the cluster."""
    first, second = (template("r", {}, tmp_path).stdout for _ in range(2))
    assert first != second
    fixed = {"security": {"tls": {"source": "cert-manager"}}}
    first, second = (template("r", fixed, tmp_path).stdout for _ in range(2))
    assert first == second
