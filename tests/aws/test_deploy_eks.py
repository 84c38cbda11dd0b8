"""Each way to break the variants for EKS is told, with file, key, value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployed import SCHEMAS, Copy, told

from deploy.aws.check import karpenter
from deploy.aws.check.everything import Check, run
from rig.folders import RigError

POOLS = "karpenter/templates/nodepools.yaml"
CLASSES = "karpenter/templates/nodeclasses.yaml"
NODES = "karpenter/values.yaml"
KARPENTER = "values-eks-karpenter.yaml"
GROUPS = "opentofu/eks-node-groups/groups.tf"
MANAGED = "values-eks-node-groups.yaml"
AUTOSCALER = "cluster-autoscaler-values.yaml"


@pytest.mark.parametrize("part", ["karpenter", "node-groups"])
def test_what_we_ship_has_no_problem(tmp_path: Path, part: str) -> None:
    assert Copy.make(tmp_path).problems(part) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "key", "value", "expected"),
    [
        (POOLS, "consolidateAfter: {{", "consolidateAfterwards: {{", POOLS, "spec.disruption", "consolidateAfterwards", "no key consolidateAfterwards"),
        (CLASSES, "httpTokens: required", "httpToken: required", CLASSES, "spec.metadataOptions", "httpToken", "no key httpToken"),
        (CLASSES, "httpTokens: required", "httpTokens: optional", CLASSES, "metadataOptions.httpTokens", "optional", "required"),
        (CLASSES, "httpPutResponseHopLimit: 1", "httpPutResponseHopLimit: 2", CLASSES, "httpPutResponseHopLimit", "2", "machine's credentials"),
        (CLASSES, "encrypted: true", "encrypted: false", CLASSES, "blockDeviceMappings[0].ebs.encrypted", "False", "true"),
        (POOLS, "value: worker, effect: NoSchedule", "value: worker, effect: NoScheduled", POOLS, "NodePool dask-workers: spec.template.spec.taints[0].effect", "NoScheduled", "one of NoSchedule"),
        (POOLS, "kind: EC2NodeClass, name: dask-workers", "kind: EC2NodeClass, name: dask-worker", POOLS, "nodeClassRef.name", "dask-worker", "dask-workers"),
        (POOLS, "expireAfter: Never", "expireAfter: 720h", POOLS, "NodePool dask-scheduler: spec.template.spec.expireAfter", "720h", "Never"),
        (POOLS, "expireAfter: Never", "expireAfter: Never\n      terminationGracePeriod: 1h", POOLS, "NodePool dask-scheduler: spec.template.spec.terminationGracePeriod", "1h", "in spite of their annotation"),
        (POOLS, "expireAfter: 336h", "expireAfter: 336h\n      terminationGracePeriod: 1h", POOLS, "NodePool dask-workers: spec.template.spec.terminationGracePeriod", "1h", "in spite of their annotation"),
        (POOLS, "expireAfter: 336h", "expireAfter: 10m", POOLS, "NodePool dask-workers: spec.template.spec.expireAfter", "10m", "at least 24h"),
        (POOLS, "kind: EC2NodeClass, name: dask-workers", "kind: NodeClass, name: dask-workers", POOLS, "nodeClassRef.kind", "NodeClass", "EC2NodeClass"),
        (POOLS, "{group: karpenter.k8s.aws,", "{group: karpenter.k8s.aw,", POOLS, "nodeClassRef.group", "karpenter.k8s.aw", "karpenter.k8s.aws"),
        (POOLS, "labels: {dask-tide/role: worker}", "labels: {dask-tide/role: worker, kubernetes.io/foo: bar}", POOLS, "NodePool dask-workers: spec.template.metadata.labels", "kubernetes.io/foo", "a domain of one's own"),
        (CLASSES, "/dev/xvda", "/dev/sda1", CLASSES, "blockDeviceMappings[0].deviceName", "/dev/sda1", "/dev/xvda, Amazon Linux 2023's root"),
        (POOLS, "  limits: {{ toJson .Values.worker.limits }}\n", "", POOLS, "NodePool dask-workers: spec.limits", "None", "no pool without any"),
        (POOLS, "- {key: karpenter.k8s.aws/instance-family, operator: In", "- {key: karpenter.k8s.aws/instance-famly, operator: In", POOLS, "spec.template.spec.requirements", "instance-famly", "karpenter.k8s.aws/instance-family"),
        (NODES, "capacityTypes: [spot, on-demand]", "capacityTypes: [spot, on-request]", "karpenter", "rendering", "capacityTypes", "Helm"),
        (POOLS, "labels: {dask-tide/role: worker}", "labels: {dask-tide/role: workers}", KARPENTER, "pools.cpu.nodeSelector", "worker", "dask-workers has dask-tide/role=workers"),
        (NODES, "limits: {cpu: 88, memory: 352Gi}", "limits: {cpu: 40, memory: 352Gi}", KARPENTER, "pools.cpu.maximum", "40", "at most 20"),
        (NODES, "families: [m5, m5a,", "families: [m5, m5x,", POOLS, "karpenter.k8s.aws/instance-family", "m5x", "a family of"),
        (NODES, "consolidateAfter: 3m", "consolidateAfter: 3 minutes", "karpenter", "rendering", "consolidateAfter", "Helm"),
        (POOLS, 'budgets: [{nodes: "100%"}]', 'budgets: [{nodes: "0"}]', POOLS, "NodePool dask-workers: spec.disruption.budgets", "'0'", '"100%"'),
        (POOLS, 'budgets: [{nodes: "100%"}]', 'budgets: [{nodes: "100%"}, {nodes: "0", reasons: [Empty]}]', POOLS, "spec.disruption.budgets", "Empty", '"100%"'),
        (POOLS, "consolidateAfter: {{ .Values.worker.consolidateAfter }}", "consolidateAfter: Never", POOLS, "NodePool dask-workers: spec.disruption.consolidateAfter", "Never", "of at most 1h"),
        (POOLS, "    consolidateAfter: 3m\n", "    consolidateAfter: 300h\n", POOLS, "NodePool dask-scheduler: spec.disruption.consolidateAfter", "300h", "of at most 1h"),
        (NODES, "consolidateAfter: 3m", "consolidateAfter: Never", "karpenter", "rendering", "consolidateAfter", "Helm"),
        (POOLS, "values: [amd64]", "values: [amd46]", POOLS, "requirement kubernetes.io/arch", "amd46", "amd64"),
        (POOLS, "{key: kubernetes.io/arch,", "{key: kubernetes.io/arc,", POOLS, "spec.template.spec.requirements", "kubernetes.io/arc", "kubernetes.io/arch"),
        (POOLS, "operator: In, values: [on-demand]", "operator: In, values: [spot]", KARPENTER, "scheduler.nodeSelector", "scheduler", "no spot machines"),
        (CLASSES, 'dict "karpenter.sh/discovery"', 'dict "karpenter.sh/discoverry"', CLASSES, "spec.subnetSelectorTerms", "discoverry", "{'karpenter.sh/discovery': 'example'}"),
        (CLASSES, '"ids" $.Values.securityGroupIds', '"ids" $.Values.subnetIds', CLASSES, "spec.securityGroupSelectorTerms", "subnet-0123456789abcdef0", "{'id': 'sg-0123456789abcdef0'}"),
        (CLASSES, "$terms | default ", "", CLASSES, "spec.subnetSelectorTerms", "karpenter.sh/discovery", "{'id': 'subnet-0123456789abcdef0'}"),
        (CLASSES, '"ids" $.Values.subnetIds', '"ids" (list)', CLASSES, "spec.subnetSelectorTerms", "karpenter.sh/discovery", "{'id': 'subnet-0123456789abcdef0'}"),
        (CLASSES, "    dask-tide/cluster: {{", "    dask-tide/cluste: {{", CLASSES, "spec.tags.dask-tide/cluster", "None", "the budget sums it up"),
        (CLASSES, "  role: {{ $.Values.nodeRole | quote }}\n", "", CLASSES, "spec.role", "None", "the machines' role"),
        (CLASSES, "httpEndpoint: enabled", "httpEndpoint: disabled", CLASSES, "spec.metadataOptions.httpEndpoint", "disabled", "enabled"),
        (CLASSES, "deleteOnTermination: true", "deleteOnTermination: false", CLASSES, "ebs.deleteOnTermination", "False", "nobody else deletes"),
        (CLASSES, "        volumeType: gp3\n", "", CLASSES, "ebs.volumeType", "None", "one of gp2"),
        (NODES, "volumeGiB: 48", "volumeGiB: 48000", CLASSES, "ebs.volumeSize", "48000Gi", "from 20Gi to 2048Gi"),
        (POOLS, "- {key: kubernetes.io/arch, operator: In, values: [amd64]}\n", "", POOLS, "spec.template.spec.requirements", "", "one of kubernetes.io/arch"),
        (POOLS, "{key: topology.kubernetes.io/zone,", "{key: topology.kubernetes.io/zon,", POOLS, "spec.template.spec.requirements", "topology.kubernetes.io/zon", "topology.kubernetes.io/zone"),
        (POOLS, "    consolidationPolicy: WhenEmpty\n", "", POOLS, "NodePool dask-scheduler: spec.disruption.consolidationPolicy", "None", "WhenEmpty"),
        (CLASSES, "associatePublicIPAddress: false", "associatePublicIPAddress: true", CLASSES, "spec.associatePublicIPAddress", "True", "false"),
        (CLASSES, "spec:\n", "specs:\n", CLASSES, "EC2NodeClass dask-scheduler: .", "specs", "no key specs"),
        (KARPENTER, "    spot: true\n", "", KARPENTER, "pools.cpu.spot", "False", "dask-workers has spot machines"),
        (KARPENTER, "operator: In, values: [on-demand]", "operator: In, values: [on-deman]", KARPENTER, "pools.safe.affinity", "on-deman", "labels that dask-workers (spot, on-demand) can have"),
        (KARPENTER, "key: karpenter.sh/capacity-type, operator: In, values: [on-demand]", "key: karpenter.sh/capacity-typ, operator: In, values: [on-demand]", KARPENTER, "pools.safe.affinity", "capacity-typ", "labels that dask-workers"),
        (KARPENTER, "operator: In, values: [on-demand]", "operator: In, values: [spot]", KARPENTER, "pools.safe.spot", "False", "dask-workers has spot machines"),
        (KARPENTER, "key: karpenter.sh/capacity-type, operator: In, values: [spot]", "key: karpenter.sh/capacity-type, operator: In, values: [spott]", KARPENTER, "pools.cpu.affinity", "spott", "what dask-workers can have"),
        (KARPENTER, "    maximum: 4\n", "    maximum: 5\n", KARPENTER, "pools.cpu.maximum + pools.safe.maximum", "40 + 5", "dask-workers has room for only 98%"),
        (KARPENTER, "scheduler:\n", "scheduler:\n  spot: true\n", KARPENTER, "scheduler.spot", "True", "the work in hand"),
        (KARPENTER, "nodes: {read: true}", "nodes: {read: false}", KARPENTER, "nodes.read", "False", "until the power is cut"),
        (KARPENTER, '{pods: "100"}', '{pods: "44"}', KARPENTER, "resourceQuota.hard.pods", "44", "at least 90"),
        (KARPENTER, "nodes: {read: true}", "nodes: {read: true}\ntide: {interruption: {watch: aws}}", KARPENTER, "tide.interruption.watch", "aws", "not to pods, on dask-workers"),
        (KARPENTER, "nodes: {read: true}", "nodes: {read: true}\nsecurity: {tls: {enabled: false}}", KARPENTER, "security.tls.enabled", "False", "runs code in the cluster"),
        (KARPENTER, "value: worker, effect: NoSchedule", "value: batch, effect: NoSchedule", KARPENTER, "pools.cpu.tolerations", "batch", "dask-tide/role=worker:NoSchedule"),
    ],
)  # fmt: skip
def test_karpenters_pools(
    tmp_path: Path, file: str, old: str, new: str, where: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("karpenter")
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "key", "value", "expected"),
    [
        (GROUPS, 'effect = "NO_SCHEDULE"', 'effect = "NoSchedule"', GROUPS, "aws_eks_node_group.scheduler: taint[0].effect", "NoSchedule", "one of NO_SCHEDULE"),
        (GROUPS, 'capacity_type        = "SPOT"', 'capacity_type        = "spot"', GROUPS, "aws_eks_node_group.workers: capacity_type", "spot", "one of ON_DEMAND, SPOT"),
        (GROUPS, "min_size     = 0", "min_size     = 2", GROUPS, "scaling_config", "2", "min_size ≤ desired_size ≤ max_size"),
        (GROUPS, "min_size     = 0\n    max_size     = var.worker_maximum\n    desired_size = 0", "min_size     = 3\n    max_size     = var.worker_maximum\n    desired_size = 3", GROUPS, "aws_eks_node_group.workers: scaling_config.min_size", "3", "also while nobody computes"),
        (GROUPS, "max_size     = 1", "max_size     = 5", GROUPS, "aws_eks_node_group.scheduler: machines", "5", "at most 2 machines"),
        (GROUPS, 'capacity_type        = "SPOT"', 'capacity_type        = "ON_DEMAND"', MANAGED, "pools.cpu.spot", "True", "or spot machines among workers (on-demand)"),
        (GROUPS, "delete_on_termination = true", "delete_on_termination = false", GROUPS, "block_device_mappings[0].ebs.delete_on_termination", "False", "nobody else deletes"),
        (GROUPS, "/dev/xvda", "/dev/sda1", GROUPS, "block_device_mappings[0].device_name", "/dev/sda1", "/dev/xvda, Amazon Linux 2023's root"),
        (GROUPS, '["instance", "volume"]', '["instance"]', GROUPS, "tag_specifications.for_each", "instance", '"instance" and "volume"'),
        (GROUPS, '{ "dask-tide/cluster" = var', '{ "dask-tide/clusters" = var', GROUPS, "tag_specifications.tags.dask-tide/cluster", "dask-tide/clusters", "the budget sums it up"),
        (GROUPS, "http_put_response_hop_limit = 1", "http_put_response_hop_limit = 2", GROUPS, "http_put_response_hop_limit", "2", "machine's credentials"),
        (GROUPS, "encrypted             = true", "encrypted             = false", GROUPS, "ebs.encrypted", "False", "true"),
        (GROUPS, "force_update_version = false", "force_update_version = true", GROUPS, "force_update_version", "True", "disruption budget"),
        (GROUPS, "subnet_ids           = [each.value]", "subnet_ids           = var.worker_subnet_ids", GROUPS, "subnet_ids", "worker_subnet_ids", "keep zones even"),
        (GROUPS, '"dask-tide/role" = "worker"', '"dask-tide/role" = "wrker"', MANAGED, "pools.cpu.nodeSelector", "worker", "workers has dask-tide/role=wrker"),
        (GROUPS, 'capacity_type        = "ON_DEMAND"', 'capacity_type        = "SPOT"', MANAGED, "scheduler.nodeSelector", "scheduler", "no spot machines"),
        (GROUPS, "  launch_template {\n    id      = aws_launch_template.machine.id\n    version = aws_launch_template.machine.latest_version\n  }\n\n", "", GROUPS, "aws_eks_node_group.scheduler: launch_template", "None", "IMDSv1"),
        (GROUPS, "    ignore_changes = [scaling_config[0].desired_size]\n", "", GROUPS, "aws_eks_node_group.scheduler: lifecycle.ignore_changes", "None", "machines that have work"),
        (GROUPS, 'http_endpoint               = "enabled"', 'http_endpoint               = "enable"', GROUPS, "metadata_options.http_endpoint", "enable", "one of enabled"),
        (AUTOSCALER, "scale-down-unneeded-time: 3m", "scale-down-unneeded-time: 3 minutes", AUTOSCALER, "extraArgs.scale-down-unneeded-time", "3 minutes", "a duration"),
        (AUTOSCALER, "scale-down-unneeded-time: 3m", "scale-down-unneeded-time: 300h", AUTOSCALER, "extraArgs.scale-down-unneeded-time", "300h", "of 0 to 60 minutes"),
        (AUTOSCALER, "new-pod-scale-up-delay: 0s", "new-pod-scale-up-delay: 59m", AUTOSCALER, "extraArgs.new-pod-scale-up-delay", "59m", "0 to 1 minutes: work waits"),
        (AUTOSCALER, "max-node-provision-time: 10m", "max-node-provision-time: 1s", AUTOSCALER, "extraArgs.max-node-provision-time", "1s", "3 to 30 minutes: machines take minutes"),
        (AUTOSCALER, "threshold: 0.95", "threshold: 95", AUTOSCALER, "extraArgs.scale-down-utilization-threshold", "95", "from 0 to 1"),
        (AUTOSCALER, "ignore-daemonsets-utilization: true", "ignore-daemonsets-utilization: yess", AUTOSCALER, "extraArgs.ignore-daemonsets-utilization", "yess", "True, False"),
        (AUTOSCALER, "  scale-down-unneeded-time: 3m\n", "", AUTOSCALER, "extraArgs.scale-down-unneeded-time", "None", "said"),
        (AUTOSCALER, "threshold: 0.95", "threshold: 0.5", AUTOSCALER, "extraArgs.scale-down-utilization-threshold", "0.5", "at least 0.8"),
        (AUTOSCALER, "extraArgs:\n", "", AUTOSCALER, "shape", "mapping values are not allowed", "a shape that the checks can read"),
        (AUTOSCALER, "expander: least-waste", "expander: priority", AUTOSCALER, "extraArgs.expander", "priority", "expanderPriorities"),
        (AUTOSCALER, "cloudProvider: aws", "cloudProvider: aws\nautoDiscovery: {clusterName: lab}", AUTOSCALER, "autoDiscovery", "lab", "none: EKS tags all node groups"),
        (GROUPS, "      workers-on-demand = aws_eks_node_group.workers_on_demand\n", "", GROUPS, "aws_eks_node_group.workers_on_demand: local.groups", "aws_eks_node_group.scheduler", "by these cluster-autoscaler knows its groups"),
        (AUTOSCALER, "cloudProvider: aws", "cloudProvider: awss", AUTOSCALER, "cloudProvider", "awss", "aws"),
        (AUTOSCALER, "extraArgs:\n", "extraArgs: none\nmore:\n", AUTOSCALER, "shape", "", "a shape that the checks can read"),
        (MANAGED, "    spot: true\n", "", MANAGED, "pools.cpu.spot", "False", "workers has spot machines"),
        (MANAGED, "    spot: true\n", "    spot: true\n    affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: eks.amazonaws.com/capacityType, operator: In, values: [spot]}]}]}}}\n", MANAGED, "pools.cpu.affinity", "capacityType", "labels that workers (spot) can have"),
        (MANAGED, "nodes: {read: true}", "nodes: {read: true}\nadmission: {enabled: false}", MANAGED, "admission.enabled", "False", "nobody else enforces"),
        (MANAGED, '{pods: "100"}', '{pods: "44"}', MANAGED, "resourceQuota.hard.pods", "44", "at least 90"),
        (MANAGED, "nodes: {read: true}", "nodes: {read: true}\ntide: {interruption: {watch: aws}}", MANAGED, "tide.interruption.watch", "aws", "not to pods, on workers (opentofu/eks-node-groups/groups.tf)"),
        (MANAGED, "nodes: {read: true}", "nodes: {read: true}\nnetworkPolicy: {enabled: false}", MANAGED, "networkPolicy.enabled", "False", "any pod of the cluster reaches the scheduler"),
        ("opentofu/eks-node-groups/variables.tf", "default     = 2\n", "default     = 1\n", MANAGED, "pools.safe.maximum", "4", "at most 2"),
        ("opentofu/eks-node-groups/variables.tf", "default     = 20", "default     = 10", MANAGED, "pools.cpu.maximum", "40", "at most 20"),
        ("opentofu/eks-node-groups/variables.tf", '"m5a.xlarge"', '"m5a.large"', GROUPS, "instance_types", "m5a.large", "types of one size"),
        (AUTOSCALER, "skip-nodes-with-local-storage: false", "skip-nodes-with-local-storage: true", AUTOSCALER, "skip-nodes-with-local-storage", "True", "emptyDir"),
        (AUTOSCALER, "expander: least-waste", "expander: least_waste", AUTOSCALER, "extraArgs.expander", "least_waste", "one of least-waste"),
        (AUTOSCALER, "scale-down-unneeded-time", "scale-down-uneeded-time", AUTOSCALER, "extraArgs.scale-down-uneeded-time", "uneeded", "scale-down-unneeded-time"),
    ],
)  # fmt: skip
def test_managed_node_groups(
    tmp_path: Path, file: str, old: str, new: str, where: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = [*copy.problems("node-groups"), *copy.problems("opentofu")]
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("part", "values", "machines", "hops"),
    [
        ("karpenter", KARPENTER, CLASSES, "httpPutResponseHopLimit: "),
        ("node-groups", MANAGED, GROUPS, "http_put_response_hop_limit = "),
        ("kops", "values-aws-kops.yaml", "kops/cluster.tmpl.yaml", "httpPutResponseHopLimit: "),
    ],
)
def test_workers_may_ask_machines_that_answer_pods(
    tmp_path: Path, part: str, values: str, machines: str, hops: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(values, "nodes: {read: true}", "nodes: {read: true}\ntide: {interruption: {watch: aws}}")
    text = copy.tree.text(machines)
    copy.tree.path(machines).write_text(text.replace(f"{hops}1", f"{hops}2"), encoding="utf-8")
    problems = copy.problems(part)
    assert told(problems, machines, "op", "2", "machine's credentials"), "\n".join(map(str, problems))
    assert not told(problems, values, "tide.interruption.watch", "", "")


def test_without_a_network_karpenters_schemas_are_left_out_and_in_ci_that_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise RigError("no module proxy")

    monkeypatch.setattr(karpenter, "definitions", none)
    copy = Copy.make(tmp_path)
    copy.replace(CLASSES, "httpTokens: required", "httpTokens: optional")
    for ci in ("", "true"):
        monkeypatch.setenv("CI", ci)
        report = run(Check(copy.tree, SCHEMAS), ["karpenter"])
        assert told(report.problems, CLASSES, "httpTokens", "optional", "required"), "the rest is checked"
        assert told(report.problems, "check", "CI", "no module proxy", "nothing left out") == bool(ci)
        assert any("no module proxy" in words for words in report.left_out) == (not ci)
