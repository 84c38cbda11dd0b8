"""Each way to break the kOps cluster is told, with file, key, value and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from deployed import SCHEMAS, Copy, told

from deploy.aws.check.everything import Check, run
from deploy.aws.check.tree import Tree

TEMPLATE = "kops/cluster.tmpl.yaml"
INPUTS = "kops/defaults.yaml"
VALUES = "values-aws-kops.yaml"
HOPS = "httpPutResponseHopLimit: 1"
WORKERS_TAINT = '"dask-tide/role=worker:NoSchedule"'

needs_schemas = pytest.mark.skipif(not SCHEMAS.exists(), reason=f"kOps's schemas are not in {SCHEMAS}")


def test_what_we_ship_has_no_problem() -> None:
    report = run(Check(Tree(), SCHEMAS), ["kops"])
    assert report.problems == []
    assert any("may boot a machine for each of pools.cpu" in note for note in report.notes)


def test_without_kops_schemas_it_says_what_is_left_out(tmp_path: Path) -> None:
    report = run(Check(Tree(), tmp_path), ["kops"])
    assert report.problems == []
    assert [words.split(" against")[0] for words in report.left_out] == [
        "kOps's Cluster",
        "kOps's InstanceGroup",
    ]


def test_all_that_can_be_said_has_no_problem(tmp_path: Path) -> None:
    """Three zones, a DNS zone, a key, an image, a role for workers: parts of the template that defaults leave out."""
    mine = tmp_path / "my.yaml"
    mine.write_text(
        """
        clusterName: dask.example.org
        dnsZone: example.org
        zones: [eu-west-1a, eu-west-1b, eu-west-1c]
        controlPlaneZones: [eu-west-1a, eu-west-1b, eu-west-1c]
        workerZones: [eu-west-1a, eu-west-1b]
        stateKeyArn: "arn:aws:kms:eu-west-1:123456789012:key/0"
        image: 099720109477/ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260101
        podRoles:
        - {namespace: dask, name: dask-worker, policyArns: ["arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"]}
        """
    )
    rendered = tmp_path / "rendered"
    check = Check(Tree(inputs=(mine,)), SCHEMAS, render=rendered)
    assert run(check, ["kops"]).problems == []
    for variant in ("cluster-autoscaler", "karpenter"):
        cluster, *groups = yaml.safe_load_all((rendered / f"kops-{variant}.yaml").read_text())
        assert [
            statement["Effect"] for statement in json.loads(cluster["spec"]["additionalPolicies"]["master"])
        ] == ["Allow"]
        assert [group["spec"]["image"][:12] for group in groups] == ["099720109477"] * 6


@needs_schemas
@pytest.mark.parametrize(
    ("old", "new", "key", "value", "expected"),
    [
        ("enableSQSTerminationDraining: true", "enableSqsTerminationDraining: true", "spec.nodeTerminationHandler", "enableSqs", "no key enableSqsTerminationDraining"),
        ("onDemandAboveBase: 0", "onDemandAboveBasis: 0", "spec.mixedInstancesPolicy", "onDemandAboveBasis", "no key"),
        ("rootVolumeSize: 48", 'rootVolumeSize: "48"', "spec.rootVolumeSize", "'48'", "the type integer"),
        ("apiVersion: kops.k8s.io/v1alpha2", "apiVersion: kops.k8s.io/v1alpha1", "apiVersion", "v1alpha1", "v1alpha2"),
    ],
)  # fmt: skip
def test_what_the_schema_does_not_know(
    tmp_path: Path, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(TEMPLATE, old, new)
    assert told(copy.problems("kops"), TEMPLATE, key, value, expected)


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "value", "expected"),
    [
        (TEMPLATE, "expander: least-waste", "expander: least-wast", "spec.clusterAutoscaler.expander", "least-wast", "one of least-waste"),
        (TEMPLATE, "skipNodesWithLocalStorage: false", "skipNodesWithLocalStorage: true", "skipNodesWithLocalStorage", "True", "emptyDir"),
        (TEMPLATE, "scaleDownUnneededTime: 3m0s", "scaleDownUnneededTime: 3 min", "scaleDownUnneededTime", "3 min", "a duration"),
        (TEMPLATE, 'scaleDownUtilizationThreshold: "0.95"', 'scaleDownUtilizationThreshold: "95"', "scaleDownUtilizationThreshold", "95", "from 0 to 1"),
        (TEMPLATE, WORKERS_TAINT, '"dask-tide/role=worker:NoScheduled"', "InstanceGroup dask-workers: spec.taints[0]", "NoScheduled", "one of NoSchedule"),
        (TEMPLATE, "minSize: 0\n  autoscale: true\n  {{- end }}\n  maxSize: 1", "minSize: 2\n  autoscale: true\n  {{- end }}\n  maxSize: 1", "InstanceGroup dask-scheduler: spec.minSize", "2", "spec.maxSize, 1"),
        (TEMPLATE, "  manager: Karpenter\n", "  manager: Karpenter\n  minSize: 0\n", "spec.minSize", "0", "Karpenter starts from nothing"),
        (TEMPLATE, "  manager: Karpenter\n", "  manager: Karpente\n", "spec.manager", "Karpente", "CloudGroup, Karpenter"),
        (TEMPLATE, "role: ControlPlane", "role: ControlPlain", "spec.role", "ControlPlain", "one of ControlPlane"),
        (TEMPLATE, "rootVolumeEncryption: true", "rootVolumeEncryption: false", "rootVolumeEncryption", "False", "true"),
        (TEMPLATE, "encryptedVolume: true", "encryptedVolume: false", "etcdMembers[0].encryptedVolume", "False", "true"),
        (TEMPLATE, "httpTokens: required", "httpTokens: optional", "instanceMetadata.httpTokens", "optional", "required"),
        (TEMPLATE, HOPS, "httpPutResponseHopLimit: 2", "instanceMetadata.httpPutResponseHopLimit", "2", "machine's credentials"),
        (TEMPLATE, "{httpTokens: required, httpPutResponseHopLimit: 1}", "{httpTokens: required}", "httpPutResponseHopLimit", "None", "1, said"),
        (TEMPLATE, "cilium: {}", "amazonvpc: {}", "spec.networking", "amazonvpc", "enforces NetworkPolicies"),
        (TEMPLATE, "capacityRebalance: false", "capacityRebalance: true", "spec.capacityRebalance", "True", "behind the autoscaler's back"),
        (TEMPLATE, "  suspendProcesses: [AZRebalance]\n", "", "spec.suspendProcesses", "[]", "AZRebalance"),
        (TEMPLATE, "node-template/resources/ephemeral-storage:", "node-template/resources/ephemeral-storag:", "cloudLabels", "None", "does not know the disk"),
        (TEMPLATE, "spotAllocationStrategy: price-capacity-optimized", "spotAllocationStrategy: cheapest", "spotAllocationStrategy", "cheapest", "one of lowest-price"),
        (TEMPLATE, "enableSQSTerminationDraining: true", "enableSQSTerminationDraining: false", "enableSQSTerminationDraining", "False", "true"),
        (TEMPLATE, "  karpenter:\n    enabled: true", "  karpenter:\n    enabled: true\n  nodeTerminationHandler:\n    enabled: true", "spec.nodeTerminationHandler", "True", "none beside Karpenter"),
        (TEMPLATE, "useServiceAccountExternalPermissions: true", "useServiceAccountExternalPermissions: false", "useServiceAccountExternalPermissions", "False", "Karpenter insists"),
        (TEMPLATE, "drainAndTerminate: true", "drainAndTerminate: false", "rollingUpdate.drainAndTerminate", "False", "drains a machine before"),
        (TEMPLATE, "cidr: {{ $.networkPrefix }}.{{ add 224 $index }}.0/24", "cidr: {{ $.networkPrefix }}.0.0/24", "spec.subnets[1].cidr", "10.32.0.0/24", "does not overlap 10.32.0.0/19"),
        (TEMPLATE, "type: Utility", "type: Utilty", "spec.subnets[1].type", "Utilty", "Utility"),
        (TEMPLATE, "subnets: {{ toJson .zones }}", "subnets: [eu-west-1d]", "spec.subnets[0]", "eu-west-1d", "one of eu-west-1a"),
        (TEMPLATE, "subnets: {{ toJson .zones }}", "subnets: [utility-eu-west-1a]", "spec.subnets[0]", "utility-eu-west-1a", "one of eu-west-1a"),
        (TEMPLATE, "certManager:\n    enabled: true", "certManager:\n    enabled: false", "spec.certManager", "False", "spec.metricsServer.insecure: false needs"),
        (TEMPLATE, "clusterAutoscaler:\n    enabled: true", "clusterAutoscaler:\n    enabled: false", "Cluster dask-adaptive.k8s.local: spec", "[]", "clusterAutoscaler or karpenter"),
        (TEMPLATE, "kops.k8s.io/cluster: {{ .clusterName }}", "kops.k8s.io/cluster: dask", "InstanceGroup system: metadata.labels", "dask", "dask-adaptive.k8s.local"),
        (TEMPLATE, "onDemandBase: 0", "onDemandBase: 21", "mixedInstancesPolicy.onDemandBase", "21", "spec.maxSize"),
        (TEMPLATE, "onDemandAboveBase: 0", "onDemandAboveBase: 101", "mixedInstancesPolicy.onDemandAboveBase", "101", "from 0 to 100"),
        (TEMPLATE, "machineType: {{ first .workerTypes }}", "machineType: c5.xlarge", "mixedInstancesPolicy.instances", "m5.xlarge", "with c5.xlarge"),
        (TEMPLATE, "class: Network", "class: Classic", "spec.api.loadBalancer.class", "Classic", "Network"),
        (TEMPLATE, "allowContainerRegistry: true", "allowContainerRegistry: false", "spec.iam.allowContainerRegistry", "False", "ECR"),
        (TEMPLATE, "networkCIDR: {{ .networkPrefix }}.0.0/16", "networkCIDR: 10.0.0.0/16", "spec.subnets[0].cidr", "10.32.0.0/19", "within 10.0.0.0/16"),
        (TEMPLATE, "rootVolumeType: gp3", "rootVolumeType: gp33", "spec.rootVolumeType", "gp33", "gp3"),
        (TEMPLATE, "    enableRebalanceDraining: false\n", "    enableRebalanceDraining: true\n", "enableRebalanceDraining", "True", "no notice"),
        (INPUTS, 'dnsZone: ""', "dnsZone: example.org", "spec.dnsZone", "example.org", "a zone that dask-adaptive.k8s.local ends with"),
        (INPUTS, "controlPlaneZones: [eu-west-1a]", "controlPlaneZones: [eu-west-1a, eu-west-1b]", "etcdMembers", "eu-west-1b", "an odd number"),
        (INPUTS, "adminCidrs: [203.0.113.0/24]", "adminCidrs: [0.0.0.0/0]", "spec.kubernetesApiAccess", "0.0.0.0/0", "not the whole internet"),
        (INPUTS, "clusterName: dask-adaptive.k8s.local", "clusterName: dask.k8s.local", "metadata.name", "dask.k8s.local", "`--`"),
        (INPUTS, "discoveryStore: s3://example-", "discoveryStore: s3://example.", "discoveryStore", "s3://example.", "no dot in the bucket's name"),
        (INPUTS, "m5a.xlarge, ", "m5a.2xlarge, ", "mixedInstancesPolicy.instances", "m5a.2xlarge", "types of one size"),
        (INPUTS, "m5a.xlarge, ", "m5z.xlarge, ", "spec.machineType", "m5z.xlarge", "an instance type of"),
        (INPUTS, "workerMaximum: 20", "workerMaximun: 20", "InstanceGroup dask-workers: spec.maxSize", "None", "no group without a limit"),
        (INPUTS, "autoscaler: cluster-autoscaler", "autoscaler: cluster-autoscaller", "rendering", "neither cluster-autoscaler nor karpenter", "Helm"),
    ],
)  # fmt: skip
def test_what_the_schema_cannot_say(
    tmp_path: Path, file: str, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("kops")
    assert told(problems, "kops/", key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "key", "value", "expected"),
    [
        (VALUES, "nodeSelector: {dask-tide/role: worker}", "nodeSelector: {dask-tide/role: wrker}", VALUES, "pools.cpu.nodeSelector", "wrker", "dask-workers has dask-tide/role=worker"),
        (TEMPLATE, "nodeLabels: {dask-tide/role: worker}", "nodeLabels: {dask-tide/roll: worker}", TEMPLATE, "InstanceGroup dask-workers: labels", "dask-tide/roll", "pools.cpu selects dask-tide/role=worker"),
        (VALUES, "    tolerations: [{key: dask-tide/role, operator: Equal, value: worker, effect: NoSchedule}]\n", "", VALUES, "pools.cpu.tolerations", "[]", "dask-tide/role=worker:NoSchedule"),
        (VALUES, "value: worker, effect: NoSchedule", "value: worker, effect: NoExecute", VALUES, "pools.cpu.tolerations", "NoExecute", "dask-tide/role=worker:NoSchedule"),
        (VALUES, "value: scheduler, effect: NoSchedule}]", "value: scheduler, effect: NoSchedule}, {key: gpu, operator: Exists}]", VALUES, "scheduler.tolerations[1]", "gpu", "a taint of the group"),
        (TEMPLATE, f"  taints: [{WORKERS_TAINT}]\n", "", TEMPLATE, "InstanceGroup dask-workers: taints", "[]", "other pods would come"),
        (VALUES, "maximum: 40", "maximum: 41", VALUES, "pools.cpu.maximum", "41", "at most 40"),
        (INPUTS, "workerMaximum: 20", "workerMaximum: 19", VALUES, "pools.cpu.maximum", "40", "at most 38"),
        (VALUES, "    resources: {requests: {cpu: 1700m}}\n", "", VALUES, "pools.cpu.maximum", "40", "at most 20"),
        (VALUES, "memory: 6Gi", "memory: 15Gi", VALUES, "pools.cpu.resources", "15360Mi", "what a machine of dask-workers has left"),
        (VALUES, "terminationGracePeriodSeconds: 100", "terminationGracePeriodSeconds: 180", VALUES, "pools.cpu.terminationGracePeriodSeconds", "180", "120 s after its notice"),
        (VALUES, "nodes: {read: true}", "nodes: {read: false}", VALUES, "nodes.read", "False", "until the power is cut"),
        (VALUES, "podDisruptionBudget: {enabled: true}", "podDisruptionBudget: {enabled: false}", VALUES, "scheduler.podDisruptionBudget.enabled", "False", "would end the work in hand"),
        (VALUES, "  nodeSelector: {dask-tide/role: scheduler}\n  tolerations: [{key: dask-tide/role, operator: Equal, value: scheduler,", "  nodeSelector: {dask-tide/role: worker}\n  tolerations: [{key: dask-tide/role, operator: Equal, value: worker,", VALUES, "scheduler.nodeSelector", "worker", "no spot machines"),
        (VALUES, "threads: 2", "thread: 2", VALUES, "rendering", "thread", "Helm"),
    ],
)  # fmt: skip
def test_the_charts_pods_and_the_groups_are_for_each_other(
    tmp_path: Path, file: str, old: str, new: str, where: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("kops")
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))
