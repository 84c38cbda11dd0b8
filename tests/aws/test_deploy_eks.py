"""Each way to break the variants for EKS is told, with file, key, value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployed import Copy, told

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
        (POOLS, "expireAfter: Never", "expireAfter: Never\n      terminationGracePeriod: 1h", POOLS, "terminationGracePeriod", "1h", "in spite of its annotation"),
        (POOLS, "  limits: {{ toJson .Values.worker.limits }}\n", "", POOLS, "NodePool dask-workers: spec.limits", "None", "no pool without any"),
        (POOLS, "- {key: karpenter.k8s.aws/instance-family, operator: In", "- {key: karpenter.k8s.aws/instance-famly, operator: In", POOLS, "spec.template.spec.requirements", "instance-famly", "karpenter.k8s.aws/instance-family"),
        (NODES, "capacityTypes: [spot, on-demand]", "capacityTypes: [spot, on-request]", "karpenter", "rendering", "capacityTypes", "Helm"),
        (POOLS, "labels: {dask-tide/role: worker}", "labels: {dask-tide/role: workers}", KARPENTER, "pools.cpu.nodeSelector", "worker", "dask-workers has dask-tide/role=workers"),
        (NODES, "limits: {cpu: 80, memory: 320Gi}", "limits: {cpu: 40, memory: 320Gi}", KARPENTER, "pools.cpu.maximum", "40", "at most 20"),
        (NODES, "families: [m5, m5a,", "families: [m5, m5x,", POOLS, "karpenter.k8s.aws/instance-family", "m5x", "a family of"),
        (NODES, "consolidateAfter: 3m", "consolidateAfter: 3 minutes", "karpenter", "rendering", "consolidateAfter", "Helm"),
        (KARPENTER, "nodes: {read: true}", "nodes: {read: false}", KARPENTER, "nodes.read", "False", "until the power is cut"),
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
        (GROUPS, "http_put_response_hop_limit = 1", "http_put_response_hop_limit = 2", GROUPS, "http_put_response_hop_limit", "2", "machine's credentials"),
        (GROUPS, "encrypted             = true", "encrypted             = false", GROUPS, "ebs.encrypted", "False", "true"),
        (GROUPS, "force_update_version = false", "force_update_version = true", GROUPS, "force_update_version", "True", "disruption budget"),
        (GROUPS, "subnet_ids           = [each.value]", "subnet_ids           = var.worker_subnet_ids", GROUPS, "subnet_ids", "worker_subnet_ids", "keep zones even"),
        (GROUPS, '"dask-tide/role" = "worker"', '"dask-tide/role" = "wrker"', MANAGED, "pools.cpu.nodeSelector", "worker", "workers has dask-tide/role=wrker"),
        (GROUPS, 'capacity_type        = "ON_DEMAND"', 'capacity_type        = "SPOT"', MANAGED, "scheduler.nodeSelector", "scheduler", "no spot machines"),
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
    problems = copy.problems("node-groups")
    assert told(problems, where, key, value, expected), "\n".join(map(str, problems))
