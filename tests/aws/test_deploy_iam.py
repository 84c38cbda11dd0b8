"""Each right that is more than needed, or too little, is told, with file, key, value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployed import Copy, told

RIGHTS = "opentofu/eks-karpenter/karpenter.tf"
MACHINES = "opentofu/eks-karpenter/machines.tf"
AUTOSCALER = "opentofu/eks-node-groups/main.tf"
QUEUE = "opentofu/modules/interruptions/main.tf"
ROLE = "opentofu/modules/pod-role/main.tf"
REGISTRY = "opentofu/modules/registry/main.tf"
STATE = "opentofu/kops/state.tf"
GROUPS = "opentofu/eks-node-groups/groups.tf"
DISCOVERY = "opentofu/kops/discovery.tf"
OWN_INSTANCES = """    resources = ["${local.ec2}:*:instance/*", "${local.ec2}:*:launch-template/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/${local.owned}"
      values   = ["owned"]
    }

    condition {
      test     = "StringLike"
      variable = "aws:ResourceTag/karpenter.sh/nodepool"
      values   = ["*"]
    }
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "value", "expected"),
    [
        (RIGHTS, "[aws_iam_role.machine.arn]", '["*"]', "statement PassMachinesRole: resources", "*", "one role's ARN"),
        (RIGHTS, "[aws_iam_role.machine.arn]", '["arn:aws:iam::123456789012:role/*"]', "statement PassMachinesRole: resources", "role/*", "one role's ARN"),
        (RIGHTS, '      variable = "iam:PassedToService"', '      variable = "aws:RequestedRegion"', "statement PassMachinesRole: condition", "aws:RequestedRegion", "iam:PassedToService"),
        (RIGHTS, '["ec2.amazonaws.com"]', '["lambda.amazonaws.com"]', "statement PassMachinesRole: condition", "lambda.amazonaws.com", "iam:PassedToService StringEquals ec2.amazonaws.com"),
        (RIGHTS, '["ec2.amazonaws.com"]', '["ec2.amazonaws.com", "lambda.amazonaws.com"]', "statement PassMachinesRole: condition", "lambda.amazonaws.com", "iam:PassedToService StringEquals ec2.amazonaws.com"),
        (RIGHTS, '"StringEquals"\n      variable = "iam:PassedToService"', '"StringNotEquals"\n      variable = "iam:PassedToService"', "statement PassMachinesRole: condition", "StringNotEquals", "iam:PassedToService StringEquals ec2.amazonaws.com"),
        (RIGHTS, '["${local.ec2}:*:instance/*", "${local.ec2}:*:launch-template/*"]', '["*"]', "statement EndOwnMachines: resources", "*", "what ec2:TerminateInstances is for"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.splitlines(keepends=True)[0], "statement EndOwnMachines: resources", "instance/*", "a condition on aws:ResourceTag"),
        (RIGHTS, '["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"]', '["ec2:*"]', "statement EndOwnMachines: actions", "ec2:*", "no `*`"),
        (RIGHTS, '"ec2:DescribeImages"', '"ec2:Describe*"', "statement ReadEC2: actions", "ec2:Describe*", "no `*`"),
        (RIGHTS, '"ec2:DescribeImages"', '"ec2:StopInstances"', "statement ReadEC2: resources", "*", "what ec2:StopInstances is for"),
        (RIGHTS, '["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueUrl"]', '["sqs:*"]', "statement ReadInterruptions: actions", "sqs:*", "no `*`"),
        (RIGHTS, "[module.interruptions.queue_arn]", '["*"]', "statement ReadInterruptions: resources", "*", "what sqs:ReceiveMessage is for"),
        (RIGHTS, '    actions   = ["iam:GetInstanceProfile"]', '    not_actions = ["iam:GetInstanceProfile"]', "statement ReadProfiles: not_actions", "not_actions", "what is allowed, not what is not"),
        (RIGHTS, "    resources = [module.interruptions.queue_arn]\n", "", "statement ReadInterruptions: resources", "[]", "at least one"),
        (RIGHTS, 'test     = "StringEquals"', 'test     = "StringEqual"', "condition aws:ResourceTag", "StringEqual", "an operator of IAM's"),
        (AUTOSCALER, '["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]', '["autoscaling:*"]', "statement Scale: actions", "autoscaling:*", "no `*`"),
        (AUTOSCALER, '"aws:ResourceTag/k8s.io', '"aws:Resource/k8s.io', "statement Scale: condition aws:Resource/k8s.io", "aws:Resource/k8s.io", "if it is none of a misspelling"),
        (AUTOSCALER, "autoScalingGroupName/${group.resources[0].autoscaling_groups[0].name}", "autoScalingGroupName/*", "statement Scale: resources", "autoScalingGroupName/*", "groups by name"),
        (RIGHTS, '["iam:CreateInstanceProfile"]', '["iam:CreateInstanceProfile", "iam:TagInstanceProfile"]', "statement MakeProfiles: resources", "instance-profile/*", "a condition on aws:ResourceTag: iam:TagInstanceProfile"),
        (RIGHTS, 'variable = "ec2:CreateAction"', 'variable = "aws:RequestedRegion"', "statement TagWhatItStarts: resources", "volume/*", "a condition on aws:ResourceTag: ec2:CreateTags"),
        (QUEUE, '["sqs:SendMessage"]', '["sqs:*"]', "statement EventBridgeSends: actions", "sqs:*", "no `*`"),
        (QUEUE, '"events.amazonaws.com"', '"*"', "statement EventBridgeSends: actions", "sqs:SendMessage", "what everybody may"),
        (QUEUE, '"events.amazonaws.com"', '"events.amazonaws.co"', "statement EventBridgeSends: principals", "events.amazonaws.co", "a service"),
        (QUEUE, '"aws:SourceArn"', '"aws:SourceAr"', "statement EventBridgeSends: condition", "aws:SourceAr", "aws:SourceArn"),
        (QUEUE, 'effect    = "Deny"', 'effect    = "Denied"', "statement OnlyTLS: effect", "Denied", "one of Allow, Deny"),
        (QUEUE, "data.aws_iam_policy_document.queue.json", 'jsonencode({ Statement = [{ Effect = "Allow", Principal = "*", Action = "sqs:*", Resource = "*" }] })', "aws_sqs_queue_policy.this: policy", "jsonencode", "data.aws_iam_policy_document"),
        (ROLE, '"aws:RequestTag/kubernetes-service-account"', '"aws:RequestTag/kubernetes-pod-name"', "statement 0: condition", "kubernetes-pod-name", "aws:RequestTag/kubernetes-service-account"),
        (REGISTRY, ":root", ":user/me", "statement AccountAdministers: actions", "kms:*", "no `*`"),
        (REGISTRY, '["kms:*"]', '["*"]', "statement AccountAdministers: actions", "*", "no `*`"),
        (RIGHTS, '"ec2:TerminateInstances", ', '"ec2:TerminateInstance", ', "statement EndOwnMachines: actions", "ec2:TerminateInstance", "if it is none of a misspelling"),
        (RIGHTS, '    actions   = ["iam:PassRole"]\n', "", "statement PassMachinesRole: actions", "[]", "at least one"),
        (RIGHTS, '"ec2:DescribeSpotPriceHistory",\n', "", "aws_iam_policy_document.karpenter: actions", "ec2:DescribeSubnets", "ec2:DescribeSpotPriceHistory: https://karpenter.sh"),
        (RIGHTS, '      "${local.ec2}:*:subnet/*",\n', "", "aws_iam_policy_document.karpenter: resources", "security-group", "subnet/…, too, for ec2:CreateFleet"),
        (RIGHTS, '"network-interface", ', '"network-interfac", ', "statement StartTagged: resources", "network-interfac/*", "an ARN of a kind"),
        (RIGHTS, "partition}:ec2:", "partition}:ec:", "statement StartWith: resources", ":ec:", "an ARN of a kind"),
        (RIGHTS, "ResourceTag/karpenter.sh/nodepool", "ResourceTag/karpenter.sh/nodepoo", "condition aws:ResourceTag/karpenter.sh/nodepoo", "nodepoo", "if it is none of a misspelling"),
        (RIGHTS, 'values   = ["owned"]', 'values   = ["owne"]', "condition aws:ResourceTag/kubernetes.io/cluster", "owne", "owned"),
        (RIGHTS, '"ec2:CreateAction"', '"ec2:CreateActio"', "condition ec2:CreateActio", "ec2:CreateActio", "if it is none of a misspelling"),
        (RIGHTS, '["RunInstances", "CreateFleet", "Cr', '["RunInstance", "CreateFleet", "Cr', "condition ec2:CreateAction", "RunInstance", "an action of"),
        (RIGHTS, '"karpenter.sh/nodeclaim", "Name"', '"karpenter.sh/nodeclam", "Name"', "condition aws:TagKeys", "karpenter.sh/nodeclam", "a tag of"),
        (AUTOSCALER, '"autoscaling:SetDesiredCapacity", ', "", "aws_iam_policy_document.autoscaler: actions", "autoscaling:TerminateInstanceInAutoScalingGroup", "autoscaling:SetDesiredCapacity: https://github.com/kubernetes/autoscaler"),
        (STATE, 'values   = ["false"]', 'values   = ["true"]', "statement OnlyTLS: condition aws:SecureTransport", "true", "false"),
        (STATE, ', "${aws_s3_bucket.state.arn}/*"]', "]", "aws_iam_policy_document.state: statements", "OnlyTLS", "${aws_s3_bucket.state.arn}/* to all without TLS"),
        (STATE, '"s3:*"', '"s3:GetObject"', "aws_iam_policy_document.state: statements", "OnlyTLS", "denies s3:* on ${aws_s3_bucket.state.arn}"),
        (QUEUE, 'effect    = "Deny"', 'effect    = "Allow"', "aws_iam_policy_document.queue: statements", "OnlyTLS", "denies sqs:* on ${aws_sqs_queue.this.arn}"),
        (MACHINES, '    "AmazonEKS_CNI_Policy",\n', "", "aws_iam_role_policy_attachment.machine: for_each", "AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy, too"),
        (MACHINES, '"AmazonEKSWorkerNodePolicy"', '"AmazonEKSWorkerNodePolic"', "aws_iam_role_policy_attachment.machine: for_each", "AmazonEKSWorkerNodePolic", "if it is none of a misspelling"),
        (MACHINES, "aws:policy/$", "aws:policy$", "aws_iam_role_policy_attachment.machine: policy_arn", "aws:policy$", "a policy's ARN"),
        (MACHINES, '"Service"', '"Servic"', "principals", "Servic", "one of AWS, Federated, Service"),
        (MACHINES, '  type          = "EC2_LINUX"\n', "", "aws_eks_access_entry.machine: type", "None", "do not join"),
        (MACHINES, '"AmazonEKSWorkerNodePolicy"', '"AdministratorAccess"', "aws_iam_role_policy_attachment.machine: for_each", "AdministratorAccess", "allows less"),
        (DISCOVERY, "/${var.cluster_name}/openid/v1/jwks", "/*", "statement IdentityProvidersRead: resources", "/*", "everybody may read it"),
        (DISCOVERY, '["s3:GetObject"]', '["s3:GetObject", "s3:PutObject"]', "statement IdentityProvidersRead: actions", "s3:PutObject", "s3:GetObject"),
        (DISCOVERY, "block_public_acls       = true", "block_public_acls       = false", "aws_s3_bucket_public_access_block.discovery: block_public_acls", "False", "no bucket is public"),
        (STATE, "block_public_policy     = true", "block_public_policy     = false", "aws_s3_bucket_public_access_block.state: block_public_policy", "False", "no bucket is public"),
        (STATE, "restrict_public_buckets = true", "restrict_public_buckets = false", "restrict_public_buckets", "False", "no bucket is public"),
        (STATE, "  ignore_public_acls      = true\n", "", "ignore_public_acls", "None", "no bucket is public"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.replace("StringEquals", "StringNotEquals"), "statement EndOwnMachines: condition aws:ResourceTag/kubernetes.io/cluster", "StringNotEquals", "a test of what may be"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.replace("StringLike", "StringNotLike"), "statement EndOwnMachines: condition aws:ResourceTag/karpenter.sh/nodepool", "StringNotLike", "a test of what may be"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.replace("StringLike", "StringEquals"), "statement EndOwnMachines: condition aws:ResourceTag/karpenter.sh/nodepool", "StringEquals", "`*` is a star"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.replace("StringEquals", "StringEqualsIfExists"), "statement EndOwnMachines: condition aws:ResourceTag/kubernetes.io/cluster", "StringEqualsIfExists", "a test that fails without the tag"),
        (RIGHTS, OWN_INSTANCES, OWN_INSTANCES.replace("StringEquals", "ForAllValues:StringEquals"), "statement EndOwnMachines: condition aws:ResourceTag/kubernetes.io/cluster", "ForAllValues:StringEquals", "a test that fails without the tag"),
        (RIGHTS, 'variable = "aws:RequestTag/eks:eks-cluster-name"\n      values   = [var.cluster_name]', 'variable = "aws:RequestTag/eks:eks-cluster-name"\n      values   = ["lab"]', "statement StartTagged: condition aws:RequestTag/eks:eks-cluster-name", "lab", "${var.cluster_name}: that is what is there"),
        (RIGHTS, 'variable = "aws:RequestedRegion"\n      values   = [var.region]', 'variable = "aws:RequestedRegion"\n      values   = ["us-east-1"]', "statement ReadEC2: condition aws:RequestedRegion", "us-east-1", "${var.region}: that is what is there"),
        (RIGHTS, ":ec2:${var.region}", ":ec2:us-east-1", "statement EndOwnMachines: resources", ":ec2:us-east-1:*:instance/*", "an ARN of ${var.region}"),
        (AUTOSCALER, "autoScalingGroup:*:autoScalingGroupName", "autoScalingGroup:autoScalingGroupName", "statement Scale: resources", "autoScalingGroup:autoScalingGroupName", "the form of autoScalingGroups"),
        (AUTOSCALER, "nodegroup/${var.cluster_name}/*", "nodegroup/${var.cluster_name}", "statement ReadGroups: resources", "nodegroup/${var.cluster_name}", "the form of nodegroups"),
        (MACHINES, '"ec2.amazonaws.com"', '"eks.amazonaws.com"', "aws_iam_policy_document.machine_trust: principals", "eks.amazonaws.com", "ec2.amazonaws.com, and nobody else"),
        (MACHINES, '"sts:AssumeRole"', '"sts:TagSession"', "aws_iam_policy_document.machine_trust: actions", "sts:TagSession", "sts:AssumeRole: https://docs"),
        (GROUPS, '"ec2.amazonaws.com"', '"eks.amazonaws.com"', "aws_iam_policy_document.machine_trust: principals", "eks.amazonaws.com", "ec2.amazonaws.com, and nobody else"),
        (QUEUE, '"events.amazonaws.com"', '"sqs.amazonaws.com"', "aws_iam_policy_document.queue: principals", "sqs.amazonaws.com", "events.amazonaws.com, and nobody else"),
        (DISCOVERY, "/${var.cluster_name}/.well-known", "/${var.bucket_prefix}/.well-known", "statement IdentityProvidersRead: resources", "bucket_prefix", "everybody may read it"),
        (DISCOVERY, "block_public_policy     = false", "block_public_policy     = true", "aws_s3_bucket_public_access_block.discovery: block_public_policy", "True", "false: IAM reads"),
        (DISCOVERY, "restrict_public_buckets = false", "restrict_public_buckets = true", "aws_s3_bucket_public_access_block.discovery: restrict_public_buckets", "True", "false: IAM reads"),
        (STATE, "    filter {}\n", "    filter {}\n\n    expiration {\n      days = 30\n    }\n", "aws_s3_bucket_lifecycle_configuration.state: rule[0].expiration", "30", "only old versions go"),
        (STATE, '"aws_s3_bucket_public_access_block" "state" {\n  bucket                  = aws_s3_bucket.state.id', '"aws_s3_bucket_public_access_block" "state" {\n  bucket                  = "another"', "aws_s3_bucket.state: bucket", "aws_s3_bucket.state", "an aws_s3_bucket_public_access_block"),
    ],
)  # fmt: skip
def test_more_than_needed_or_less(
    tmp_path: Path, file: str, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("opentofu")
    assert told(problems, file, key, value, expected), "\n".join(map(str, problems))
