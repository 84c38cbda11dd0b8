"""What OpenTofu's modules are nothing without: what is there, and what it is tied to.

Only what no other block refers to, so that nobody misses it, and names that others know: all else
:mod:`references` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.aws.check.hcl import Module, plain
from deploy.aws.check.kops_cluster import TAG
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

#: By file and block: what its arguments are, and why. Those of blocks inside it stand after a dot.
_CONDITIONS = {
    "module conditions": (
        {"source": "../modules/eks-conditions", "cluster_name": "${var.cluster_name}"},
        "else nobody is told what bites on the cluster",
    ),
}
_WORKERS = {
    "module worker_role": (
        {
            "count": "${length(var.worker_policy_arns) == 0 ? 0 : 1}",
            "namespace": "${var.release.namespace}",
            "service_account": "${var.release.name}-worker",
        },
        "else workers, whose ServiceAccount the chart calls so, get no role",
    ),
}
#: Machines' groups: those said, else the cluster's own. Not both: both may have the tag that AWS Load
#: Balancer Controller wants to find on one alone.
SECURITY_GROUPS = (
    "coalescelist(var.security_group_ids, "
    "[data.aws_eks_cluster.this.vpc_config[0].cluster_security_group_id])"
)
_NEEDED: Mapping[str, Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "opentofu/eks-node-groups/main.tf": {
        **_CONDITIONS,
        **_WORKERS,
        "module autoscaler_role": (
            {
                "count": "${var.autoscaler == null ? 0 : 1}",
                "namespace": "${var.autoscaler.namespace}",
                "service_account": "${var.autoscaler.service_account}",
            },
            "else cluster-autoscaler, whose chart is told that name, gets no role",
        ),
    },
    "opentofu/modules/eks-conditions/main.tf": {
        "check network_policies": ({}, "else nobody is told that NetworkPolicies are not enforced"),
        "check pod_identities": ({}, "else nobody is told that no pod gets its role"),
    },
    "opentofu/modules/budget/main.tf": {
        "resource aws_budgets_budget.this": (
            {"cost_filter.values": [f'${{format("user:{TAG}$%s", var.cluster_name)}}']},
            "else it sums up nothing",
        ),
    },
    "opentofu/modules/registry/main.tf": {
        "resource aws_ecr_lifecycle_policy.this": (
            {
                "policy": "${jsonencode({rules = [{rulePriority = 1, "
                'description = "What has no tag any more", '
                'selection = {tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", '
                'countNumber = 7}, action = {type = "expire"}}]})}'
            },
            "else the image that a cluster runs is deleted",
        ),
    },
    "opentofu/modules/interruptions/main.tf": {
        "resource aws_sqs_queue.this": (
            {"sqs_managed_sse_enabled": True, "kms_master_key_id": None},
            "else it is not encrypted, or with a key that EventBridge may not use",
        ),
        "resource aws_sqs_queue_policy.this": (
            {
                "queue_url": "${aws_sqs_queue.this.url}",
                "policy": "${data.aws_iam_policy_document.queue.json}",
            },
            "else EventBridge may not write into the queue",
        ),
        "resource aws_cloudwatch_event_rule.this": (
            {
                "for_each": "${local.events}",
                "event_pattern": "${jsonencode({"
                "source = [each.value.source], detail-type = [each.value.type]})}",
                "state": None,
                "is_enabled": None,
            },
            "else Karpenter hears of no notice",
        ),
        "resource aws_cloudwatch_event_target.this": (
            {
                "for_each": "${aws_cloudwatch_event_rule.this}",
                "rule": "${each.value.name}",
                "arn": "${aws_sqs_queue.this.arn}",
            },
            "else no event comes into the queue that Karpenter reads",
        ),
    },
    "opentofu/modules/pod-role/main.tf": {
        "resource aws_eks_pod_identity_association.this": (
            {
                "cluster_name": "${var.cluster_name}",
                "namespace": "${var.namespace}",
                "service_account": "${var.service_account}",
                "role_arn": "${aws_iam_role.this.arn}",
            },
            "else no pod gets the role",
        ),
    },
    "opentofu/eks-karpenter/main.tf": {
        **_CONDITIONS,
        **_WORKERS,
        "module karpenter_role": (
            {"namespace": "${var.karpenter_namespace}", "service_account": "karpenter"},
            "else Karpenter, whose chart calls its ServiceAccount so, gets no role",
        ),
    },
    "opentofu/eks-karpenter/machines.tf": {
        "resource aws_eks_access_entry.machine": (
            {"cluster_name": "${var.cluster_name}", "principal_arn": "${aws_iam_role.machine.arn}"},
            "else machines do not join",
        ),
        "resource aws_iam_role_policy_attachment.machine": (
            {"role": "${aws_iam_role.machine.name}"},
            "else machines do not join, and pull no image",
        ),
    },
    "opentofu/eks-node-groups/groups.tf": {
        "resource aws_launch_template.machine": (
            {"vpc_security_group_ids": f"${{{SECURITY_GROUPS}}}"},
            "else machines reach neither control plane nor DNS",
        ),
        "resource aws_iam_role_policy_attachment.machine": (
            {"role": "${aws_iam_role.machine.name}"},
            "else machines do not join, and pull no image",
        ),
        "resource aws_autoscaling_group_tag.disk": (
            {
                "for_each": "${local.groups}",
                "autoscaling_group_name": "${each.value.resources[0].autoscaling_groups[0].name}",
            },
            "else a group without machines gets none for pods that ask for disk",
        ),
    },
    "opentofu/kops/state.tf": {
        "resource aws_s3_bucket_policy.state": (
            {
                "bucket": "${aws_s3_bucket.state.id}",
                "policy": "${data.aws_iam_policy_document.state.json}",
            },
            "else the keys of the cluster's authorities may be read without TLS",
        ),
        "resource aws_s3_bucket_server_side_encryption_configuration.state": (
            {
                "bucket": "${aws_s3_bucket.state.id}",
                "rule.apply_server_side_encryption_by_default.sse_algorithm": "aws:kms",
                "rule.apply_server_side_encryption_by_default.kms_master_key_id": "${aws_kms_key.state.arn}",
            },
            "else who may read the bucket needs no right to its key",
        ),
        "resource aws_s3_bucket_versioning.state": (
            {"bucket": "${aws_s3_bucket.state.id}", "versioning_configuration.status": "Enabled"},
            "else what is deleted by mistake is gone",
        ),
    },
    "opentofu/kops/discovery.tf": {
        "resource aws_s3_bucket_policy.discovery": (
            {
                "bucket": "${aws_s3_bucket.discovery.id}",
                "policy": "${data.aws_iam_policy_document.discovery.json}",
            },
            "else IAM cannot read who pods are (IRSA)",
        ),
    },
}


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """What is missing, and what is tied to something else."""
    del tree
    there = {
        (module.name, block.place.subject): block
        for module in modules.values()
        for table in (module.resources, module.modules, module.checks)
        for block in table.values()
    }
    for file, needed in _NEEDED.items():
        for subject, (arguments, why) in needed.items():
            block = there.get((file.rpartition("/")[0], subject))
            if block is None:
                yield Place(file).problem(subject, None, f"it to be there, {why}")
                continue
            # With a number there may be none of it.
            for key, wanted in {"count": None, **arguments}.items():
                value = _at(block.body, key)
                yield from block.place.expect(value == wanted, key, value, f"{wanted}, {why}")


def _at(body: Mapping[str, Any], key: str) -> Any:
    value: Any = plain(body)
    for name in key.split("."):
        inner = value[0] if isinstance(value, list) else value
        value = (inner or {}).get(name)
    return value
