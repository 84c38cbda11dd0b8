"""Each way to break the kOps cluster is told, with file, key, value and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from deployed import SCHEMAS, Copy, told

from deploy.aws.check import kops_groups
from deploy.aws.check.everything import Check, run
from deploy.aws.check.sizes import Sizes
from deploy.aws.check.tree import Tree

TEMPLATE = "kops/cluster.tmpl.yaml"
INPUTS = "kops/defaults.yaml"
VALUES = "values-aws-kops.yaml"
HOPS = "httpPutResponseHopLimit: 1"
WORKERS_TAINT = '"dask-tide/role=worker:NoSchedule"'
HANDLER = "kops/termination-handler-values.yaml"
#: That pods may only be where Karpenter's label of the market is so.
ONLY = """    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms:
          - matchExpressions: [{{key: karpenter.sh/capacity-type, operator: {}, values: [{}]}}]
"""

needs_schemas = pytest.mark.skipif(not SCHEMAS.exists(), reason=f"kOps's schemas are not in {SCHEMAS}")


def test_what_we_ship_has_no_problem() -> None:
    report = run(Check(Tree(), SCHEMAS), ["kops"])
    assert report.problems == []
    assert any("may boot a machine for each of pools.cpu, pools.safe" in note for note in report.notes)


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
        assert [group["spec"]["image"][:12] for group in groups] == ["099720109477"] * 7


@needs_schemas
@pytest.mark.parametrize(
    ("old", "new", "key", "value", "expected"),
    [
        ("  image: {{ . }}", "  imge: {{ . }}", "spec", "imge", "no key imge"),
        ("  dnsZone: {{ . }}", "  dnsZon: {{ . }}", "spec", "dnsZon", "no key dnsZon"),
        ("policyARNs:", "policyArn:", "serviceAccountExternalPermissions[0].aws", "policyArn", "no key policyArn"),
        ("\nspec:\n  cloudProvider", "\nspecs:\n  cloudProvider", "Cluster dask-adaptive.k8s.local", "specs", "no key specs"),
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
        (TEMPLATE, "minSize: 0\n  autoscale: true\n  # Both", "minSize: 0\n  autoscale: false\n  # Both", "InstanceGroup dask-workers: spec.autoscale", "False", "nobody else would start"),
        (TEMPLATE, "minSize: 0\n  autoscale: true\n  {{- end }}\n  maxSize: 1", "minSize: 0\n  autoscale: false\n  {{- end }}\n  maxSize: 1", "InstanceGroup dask-scheduler: spec.autoscale", "False", "nobody else would start"),
        (TEMPLATE, "  name: dask-workers-on-demand\n", "  name: dask-workers\n", "InstanceGroup dask-workers: metadata.name", "dask-workers", "names that differ"),
        (TEMPLATE, "    legacy: false\n", "    legacy: true\n", "spec.iam.legacy", "True", "false"),
        (TEMPLATE, "    rbac: {}\n", "    alwaysAllow: {}\n", "spec.authorization", "alwaysAllow", "rbac"),
        (TEMPLATE, "    anonymousAuth: false\n", "    anonymousAuth: true\n", "spec.kubelet.anonymousAuth", "True", "false"),
        (TEMPLATE, "  kubelet:\n    anonymousAuth: false\n", "", "spec.kubelet.anonymousAuth", "None", "false, said"),
        (TEMPLATE, "  kubelet:\n", "  kubeAPIServer:\n    anonymousAuth: true\n  kubelet:\n", "spec.kubeAPIServer.anonymousAuth", "True", "false"),
        (TEMPLATE, "  podIdentityWebhook:\n    enabled: true\n", "  podIdentityWebhook:\n    enabled: false\n", "spec.podIdentityWebhook.enabled", "False", "pods do not get their roles"),
        (TEMPLATE, "expander: least-waste", "expander: priority", "spec.clusterAutoscaler.expander", "priority", "customPriorityExpanderConfig"),
        (TEMPLATE, "{{ div (mul .workerVolumeGiB 3) 4 }}Gi", "{{ div (mul .workerVolumeGiB 3) 4 }}x", "InstanceGroup dask-workers: spec.cloudLabels", "48x", "a size such as 48Gi"),
        (TEMPLATE, "{{ div (mul .workerVolumeGiB 3) 4 }}Gi", "x{{ div (mul .workerVolumeGiB 3) 4 }}Gi", "InstanceGroup dask-workers: spec.cloudLabels", "x48Gi", "a size such as 48Gi"),
        (TEMPLATE, "maxUnavailable: 1, maxSurge: 0", "maxUnavailable: 0, maxSurge: 0", "InstanceGroup dask-scheduler: spec.rollingUpdate", "'maxUnavailable': 0", "one of them more than 0"),
        (TEMPLATE, "nonMasqueradeCIDR: 100.64.0.0/10", "nonMasqueradeCIDR: 10.32.128.0/17", "spec.nonMasqueradeCIDR", "10.32.128.0/17", "apart from spec.networkCIDR"),
        (INPUTS, "kubernetesVersion: 1.35.4", "kubernetesVersion: latest", "spec.kubernetesVersion", "latest", "a version, such as 1.35.4"),
        (TEMPLATE, "channel: stable", "channel: stabel", "spec.channel", "stabel", "one of stable"),
        (TEMPLATE, 'range list "main" "events"', 'range list "main" "event"', "spec.etcdClusters", "event", "main and events"),
        (TEMPLATE, "scaleDownUnneededTime: 3m0s", "scaleDownUnneededTime: 300h", "scaleDownUnneededTime", "300h", "of 0 to 60 minutes"),
        (TEMPLATE, "    taintNode: true\n", "    taintNode: false\n", "spec.nodeTerminationHandler.taintNode", "False", "the scheduler learns of it"),
        (TEMPLATE, "    taintNode: true\n", "", "spec.nodeTerminationHandler.taintNode", "None", "true"),
        (TEMPLATE, "    node.kubernetes.io/lifecycle: spot\n", "    node.kubernetes.io/lifecycle: spott\n", "InstanceGroup dask-workers: spec.nodeLabels.node.kubernetes.io/lifecycle", "spott", "prices go by it"),
        (TEMPLATE, "node.kubernetes.io/lifecycle: on-demand", "node.kubernetes.io/lifecycle: spot", "InstanceGroup dask-workers-on-demand: spec.nodeLabels", "spot", "its machines are on demand"),
        (TEMPLATE, "    {{- if not $karpenter }}\n    # Nobody", "    {{- if $karpenter }}\n    # Nobody", "InstanceGroup dask-workers: spec.nodeLabels", "spot", "none: with Karpenter"),
        (TEMPLATE, "suspendProcesses: [AZRebalance]", "suspendProcesses: [AZRebalance, Launch]", "spec.suspendProcesses", "Launch", "one of AZRebalance"),
        (TEMPLATE, "    dask-tide/cluster: {{", "    dask-tide/cluste: {{", "spec.cloudLabels.dask-tide/cluster", "None", "the budget sums it up"),
        (TEMPLATE, "backupRetentionDays: 7", "backupRetentionDays: 7000", "manager.backupRetentionDays", "7000", "a number from 1 to 90"),
        (TEMPLATE, "enableRebalanceMonitoring: false", "enableRebalanceMonitoring: true", "enableRebalanceMonitoring", "True", "would cordon"),
        (TEMPLATE, "insecure: false", "insecure: true", "spec.metricsServer.insecure", "True", "false, said"),
        (TEMPLATE, "    scaleDownUnneededTime: 3m0s\n", "", "spec.clusterAutoscaler.scaleDownUnneededTime", "None", "said"),
        (TEMPLATE, 'scaleDownUtilizationThreshold: "0.95"', 'scaleDownUtilizationThreshold: "0.5"', "scaleDownUtilizationThreshold", "0.5", "at least 0.8"),
        (TEMPLATE, "balanceSimilarNodeGroups: false", "balanceSimilarNodeGroups: true", "balanceSimilarNodeGroups", "True", "in several groups"),
        (TEMPLATE, "  machineType: {{ .systemType }}\n", "", "InstanceGroup system: spec.machineType", "None", "an instance type"),
        (TEMPLATE, "  {{- with .image }}\n  image: {{ . }}\n", "  {{- with .image }}\n", "InstanceGroups: spec.image", "None", "one image for all groups"),
        (TEMPLATE, "  rootVolumeSize: 48\n", "", "spec.rootVolumeSize", "None", "a number of GiB from 20"),
        (TEMPLATE, "  rootVolumeSize: 48\n", "  rootVolumeSize: 48000\n", "spec.rootVolumeSize", "48000", "a number of GiB from 20"),
        (TEMPLATE, "ephemeral-storage: 32Gi", "ephemeral-storage: 320Gi", "InstanceGroup dask-scheduler: spec.cloudLabels", "320Gi", "at most the root volume, 48Gi"),
        (INPUTS, "systemCount: 2", "systemCount: 0", "groups", "[]", "always has a machine"),
        (INPUTS, "systemCount: 2", "systemCount: 1", "groups", "{'system': 1}", "at least 2 machines in groups without taints"),
        (INPUTS, 'dnsZone: ""', "dnsZone: example.org", "spec.dnsZone", "example.org", "a zone that dask-adaptive.k8s.local ends with"),
        (INPUTS, "controlPlaneZones: [eu-west-1a]", "controlPlaneZones: [eu-west-1a, eu-west-1b]", "etcdMembers", "eu-west-1b", "an odd number"),
        (INPUTS, "adminCidrs: [203.0.113.0/24]", "adminCidrs: [0.0.0.0/0]", "spec.kubernetesApiAccess", "0.0.0.0/0", "not the whole internet"),
        (INPUTS, "adminCidrs: [203.0.113.0/24]", "adminCidrs: []", "spec.kubernetesApiAccess", "[]", "somebody: kOps, kubectl"),
        (INPUTS, "adminCidrs: [203.0.113.0/24]", "adminCidrs: [198.51.100.7]", "spec.kubernetesApiAccess", "198.51.100.7", "with its prefix"),
        (INPUTS, "adminCidrs: [203.0.113.0/24]", "adminCidrs: [0.0.0.0/1, 128.0.0.0/1]", "spec.kubernetesApiAccess", "128.0.0.0/1", "from /8 on"),
        (TEMPLATE, "minSize: 0\n  autoscale: true\n  # Both", "minSize: 3\n  autoscale: true\n  # Both", "InstanceGroup dask-workers: spec.minSize", "3", "also while nobody computes"),
        (TEMPLATE, "newPodScaleUpDelay: 0s", "newPodScaleUpDelay: 50m", "spec.clusterAutoscaler.newPodScaleUpDelay", "50m", "0 to 1 minutes: work waits"),
        (TEMPLATE, "maxNodeProvisionTime: 10m0s", "maxNodeProvisionTime: 5s", "spec.clusterAutoscaler.maxNodeProvisionTime", "5s", "3 to 30 minutes: machines take minutes"),
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
        (TEMPLATE, "    dask-tide/role: worker\n", "    dask-tide/roll: worker\n", TEMPLATE, "InstanceGroup dask-workers: labels", "dask-tide/roll", "pools.cpu selects dask-tide/role=worker"),
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
        (VALUES, "    spot: true\n", "", VALUES, "pools.cpu.spot", "False", "dask-workers has spot machines"),
        (VALUES, "scheduler:\n", "scheduler:\n  spot: true\n", VALUES, "scheduler.spot", "True", "the work in hand"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nadmission: {enabled: false}", VALUES, "admission.enabled", "False", "nobody else enforces the maximum"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\ntide: {interruption: {watch: aws}}", VALUES, "tide.interruption.watch", "aws", "not to pods, on dask-workers"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nsecurity: {tls: {enabled: false}}", VALUES, "security.tls.enabled", "False", "runs code in the cluster"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nnetworkPolicy: {enabled: false}", VALUES, "networkPolicy.enabled", "False", "any pod of the cluster reaches the scheduler"),
        (VALUES, "    spot: false\n", "    spot: false\n" + ONLY.format("In", "on-deman"), VALUES, "pools.safe.affinity", "on-deman", "labels that dask-workers-on-demand"),
        (VALUES, "    spot: false\n", "    spot: false\n" + ONLY.format("NotInn", "spot"), VALUES, "pools.safe.affinity", "NotInn", "one of In"),
        (TEMPLATE, "  maxSize: {{ .workerOnDemandMaximum }}\n", "  maxSize: {{ .workerOnDemandMaximum }}\n  mixedInstancesPolicy: {instances: [m5.xlarge], onDemandAboveBase: 0}\n", VALUES, "pools.safe.spot", "False", "dask-workers-on-demand has spot machines"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nnotebook: {enabled: true, spot: true}", VALUES, "notebook.spot", "True", "what its user has not saved"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nnotebook: {enabled: true, nodeSelector: {dask-tide/role: worker}, tolerations: [{operator: Exists}]}", VALUES, "notebook.nodeSelector", "worker", "no spot machines"),
        (VALUES, '{pods: "100"}', '{pods: "89"}', VALUES, "resourceQuota.hard.pods", "89", "at least 90: 45 pods,"),
        (VALUES, '{hard: {pods: "100"}}', "{}", VALUES, "resourceQuota.hard.pods", "None", "which no maximum counts"),
        (VALUES, '{pods: "100"}', "{pods: many}", VALUES, "resourceQuota.hard.pods", "many", "at least 90"),
        (VALUES, '{pods: "100"}', '{pods: "100", requests.cpu: "90"}', VALUES, "resourceQuota.hard", "requests.cpu", "pods alone"),
        (VALUES, '{hard: {pods: "100"}}', '{hard: {pods: "100"}}\nbuffer: {pools: {cpu: {units: 2}, safe: {schedule: [{at: 0 8 * * *, units: 4}]}}}', VALUES, "resourceQuota.hard.pods", "100", "at least 104: 52 pods"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\nbuffer: {pools: {cpu: {units: 60}}}", VALUES, "buffer.pools.cpu", "60", "at most 40"),
        (VALUES, "nodes: {read: true}", 'nodes: {read: true}\nbuffer: {pools: {cpu: {schedule: [{at: "0 8 * * 1-5", units: 60}]}}}', VALUES, "buffer.pools.cpu", "60", "at most 40"),
        (VALUES, "  safe:\n", "  more: {<<: *worker, maximum: 10}\n  safe:\n", VALUES, "pools.cpu.maximum + pools.more.maximum", "40 + 10", "dask-workers has room for only 80%"),
        (VALUES, "    spot: false\n", "    spot: true\n", VALUES, "pools", "pools.cpu, pools.safe", "another one on demand, too"),
        (VALUES, "    maximum: 4 ", "    maximum: 0 ", VALUES, "pools", "pools.cpu", "another one on demand, too"),
        (VALUES, "    price: 3\n", "", VALUES, "pools.safe.price", "1", "the cheapest pool is used first"),
        (INPUTS, "workerOnDemandMaximum: 2", "workerOnDemandMaximum: 1", VALUES, "pools.safe.maximum", "4", "at most 2"),
        (VALUES, "threads: 2", "threads: 2007", VALUES, "pools.cpu.threads", "2007", "at most 2, for the 1700m CPU"),
        (VALUES, "bootTime: 150s", "bootTime: 150m", VALUES, "pools.cpu.bootTime", "150m", "of at most 30m"),
        (VALUES, "requests: {cpu: 500m, memory: 2Gi}", "requests: {cp: 500m, memory: 2Gi}", VALUES, "scheduler.resources.requests", "cp", "one of cpu, memory"),
        (VALUES, "limits: {memory: 4Gi}", "limits: {memory: 4007Gi}", VALUES, "scheduler.resources.limits.memory", "4007Gi", "the memory of a machine of dask-scheduler"),
        (VALUES, "    price: 3\n", "    price: 300\n", VALUES, "pools.safe.price", "300", "at most 10 times"),
        (TEMPLATE, "    node.kubernetes.io/lifecycle: on-demand\n", "", TEMPLATE, "InstanceGroup dask-workers-on-demand: labels", "worker-on-demand", "prices go by the market (pools.safe)"),
        (TEMPLATE, "  maxSize: 1\n  # Its", "  maxSize: 5\n  # Its", TEMPLATE, "InstanceGroup dask-scheduler: machines", "5", "at most 2 machines"),
        (TEMPLATE, "onDemandAboveBase: 0", "onDemandAboveBase: 100", VALUES, "pools.cpu.spot", "True", "or spot machines among dask-workers (on-demand)"),
        (VALUES, "scheduler:\n", 'scheduler:\n  podAnnotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: "true"}\n', VALUES, "scheduler.podAnnotations.cluster-autoscaler", "true", "end the work in hand"),
        (VALUES, "scheduler:\n", "scheduler:\n  podAnnotations: {karpenter.sh/do-not-disrupt: null}\n", VALUES, "scheduler.podAnnotations.karpenter.sh/do-not-disrupt", "None", "end the work in hand"),
        (VALUES, "threads: 2", "thread: 2", VALUES, "rendering", "thread", "Helm"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\ntide: {limits: {budget-per-hour: 5}}", VALUES, "tide.options.prices", "{}", "one of spot machines"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\ntide: {limits: {budget-per-hour: 5}}", VALUES, "tide.options.prices", "{}", "one of on-demand machines"),
        (VALUES, "nodes: {read: true}", "nodes: {read: true}\ntide: {limits: {budget-per-hour: 5}, options: {prices: {m5.xlarge/spot: 0.07}}}", VALUES, "tide.options.prices", "m5.xlarge/spot", "one of on-demand machines"),
    ],
)  # fmt: skip
def test_the_charts_pods_and_the_groups_are_for_each_other(
    tmp_path: Path, file: str, old: str, new: str, where: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("kops")
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    "prices", ["{m5.xlarge: 0.2}", '{"*/spot": 0.07, m5.xlarge/eu-west-1a/on-demand: 0.2}', '{"*/*": 0.2}']
)
def test_a_budget_with_prices_for_all_markets_has_no_problem(tmp_path: Path, prices: str) -> None:
    copy = Copy.make(tmp_path)
    said = f"tide: {{limits: {{budget-per-hour: 5}}, options: {{prices: {prices}}}}}"
    copy.replace(VALUES, "nodes: {read: true}", f"nodes: {{read: true}}\n{said}")
    assert copy.problems("kops") == []


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "expected"),
    [
        ("enableSqsTerminationDraining: false", "enableSqsTerminationDraining: true", "enableSqsTerminationDraining", "True", "there is no queue"),
        ("useHostNetwork: true", "useHostNetwork: false", "useHostNetwork", "False", "hop limit of 1"),
        ("taintNode: true\n", "", "taintNode", "None", "true, said: by that taint the scheduler learns of it"),
        ("enableSpotInterruptionDraining: true", "enableSpotInterruptionDraining: false", "enableSpotInterruptionDraining", "False", "nobody drains a spot machine"),
        ("enableRebalanceMonitoring: false", "enableRebalanceMonitoring: true", "enableRebalanceMonitoring", "True", "a recommendation is no notice"),
        ("enableRebalanceDraining: false", "enableRebalanceDraining: true", "enableRebalanceDraining", "True", "a recommendation is no notice"),
        ("taintNode: true", "taintNodes: true", "taintNodes", "taintNodes", "taintNode"),
        ("{dask-tide/role: worker}", "{dask-tide/role: wrker}", "daemonsetNodeSelector", "wrker", "labels of all groups with spot machines"),
        ("daemonsetNodeSelector: {dask-tide/role: worker}\n", "", "daemonsetNodeSelector", "{}", "and of no other: dask-workers"),
        ("daemonsetTolerations: [{operator: Exists}]\n", "", "daemonsetTolerations", "[]", "one of dask-tide/role=worker:NoSchedule"),
        ("taintNode: true", "- taintNode", "shape", "", "a shape that the checks can read"),
    ],
)  # fmt: skip
def test_who_tells_of_a_spot_notice_where_karpenter_hears_of_none(
    tmp_path: Path, old: str, new: str, key: str, value: str, expected: str
) -> None:
    """kubernetes/kops#18016: kOps gives Karpenter no queue."""
    copy = Copy.make(tmp_path)
    copy.replace(HANDLER, old, new)
    problems = copy.problems("kops")
    where = TEMPLATE if key == "shape" else HANDLER
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("said", "markets"),
    [
        ({}, ["on-demand"]),
        ({"mixedInstancesPolicy": {"instances": ["m5.xlarge"]}}, ["on-demand"]),
        ({"mixedInstancesPolicy": {"onDemandAboveBase": 0}}, ["spot", "on-demand"]),
        ({"maxPrice": "0.1"}, ["spot"]),
    ],
)
def test_which_markets_kops_gives_karpenters_groups(said: dict[str, object], markets: list[str]) -> None:
    """As its `karpenterCapacityTypes`: without a policy of mixed instances on demand only, however cheap spot is."""
    spec = {"role": "Node", "manager": "Karpenter", "machineType": "m5.xlarge", "maxSize": 1, **said}
    document = {"metadata": {"name": "some"}, "spec": spec}
    [group] = kops_groups.groups_of("file", [document], Sizes.read(Tree()))
    assert list(group.markets) == markets
    assert list(group.choices["karpenter.sh/capacity-type"]) == markets


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "expected"),
    [
        ('"Action": ["kms:Decrypt", "kms:GenerateDataKey"]', '"Action": ["*"]', "spec.additionalPolicies.master[0]: actions", "*", "no `*`"),
        ('"Action": ["kms:Decrypt", "kms:GenerateDataKey"]', '"Action": "kms:*"', "spec.additionalPolicies.master[0]: actions", "kms:*", "no `*`"),
        ('"Resource": ["{{ . }}"]', '"Resource": "*"', "spec.additionalPolicies.master[0]: resources", "*", "what kms:Decrypt is for"),
        ("    master: |", "    maste: |", "spec.additionalPolicies", "maste", "one of master"),
        ('"StringEquals"', '"StringEqual"', "condition kms:ViaService", "StringEqual", "an operator of IAM's"),
        ('"Effect": "Allow",', '"Effect": "Allow"', "spec.additionalPolicies.master", "Allow", "JSON"),
        ('"Action":', '"NotAction":', "spec.additionalPolicies.master[0]", "NotAction", "what is allowed, not what is not"),
        ("    node: [arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore]\n", "", "spec.externalPolicies.node", "None", "by Systems Manager alone"),
        ("master: [arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore]", "master: [arn:aws:iam::aws:policy/AmazonSSMFullAccess]", "spec.externalPolicies.master", "AmazonSSMFullAccess", "no machine needs more"),
        ("  externalPolicies:\n", "  externalPolicies:\n    apiserver: []\n", "spec.externalPolicies", "apiserver", "one of master, node"),
        ("    master: |", "    node: |", "spec.additionalPolicies", "node", "one of master"),
        ("{{- with .stateKeyArn }}", "{{- with .stateKeyArnn }}", "Cluster dask.example.org: spec.additionalPolicies", "[]", "master: the state store is encrypted with arn:aws:kms"),
        (', "kms:GenerateDataKey"]', "]", "Cluster dask.example.org: actions", "kms:Decrypt", "kms:GenerateDataKey: https://docs"),
        ("s3.{{ $.region }}.amazonaws.com", "s3.us-east-1.amazonaws.com", "spec.additionalPolicies.master[0]: condition kms:ViaService", "us-east-1", "s3.eu-west-1.amazonaws.com"),
        ("policyARNs: {{ toJson .policyArns }}", "policyARNs: [arn:aws:iam::aws:policy/AdministratorAccess]", "policyARNs", "AdministratorAccess", "allows less"),
    ],
)  # fmt: skip
def test_what_a_cluster_allows(
    tmp_path: Path, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(TEMPLATE, old, new)
    problems = copy.problems("kops")
    assert told(problems, TEMPLATE, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("file", "old", "new", "key"),
    [
        (INPUTS, "\nzones: [eu-west-1a]", "\nzones: []", "Cluster dask-adaptive.k8s.local: spec.subnets"),
        (TEMPLATE, "\nspec:\n  role: Node", "\nspecs:\n  role: Node", "InstanceGroup system: ."),
        (TEMPLATE, "kind: Cluster\n", "kind: Clusters\n", "kind"),
        (
            TEMPLATE,
            "metadata:\n  name: system\n  labels",
            "meta:\n  name: system\n  labels",
            "InstanceGroup None",
        ),
    ],
)
def test_what_has_another_shape_is_told_and_not_raised(
    tmp_path: Path, file: str, old: str, new: str, key: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("kops")
    assert told(problems, TEMPLATE, key, "", ""), "\n".join(map(str, problems))


def test_another_shape_is_told_without_schemas_too(tmp_path: Path) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(TEMPLATE, "\nspec:\n  role: Node", "\nspecs:\n  role: Node")
    problems = run(Check(copy.tree, tmp_path), ["kops"]).problems
    assert told(problems, TEMPLATE, "shape", "spec", "a shape that the checks can read")
