"""Each way to break OpenTofu's files, YAML and shell is told, with file, key, value and what was expected."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from deployed import CHECKOV, SCHEMAS, Copy, told

from deploy.aws.check.everything import Check, run
from deploy.aws.check.hcl import code, plain
from deploy.aws.check.provider import FILE, taken
from deploy.aws.check.tree import Tree
from rig.ci import in_ci

CONDITIONS = "opentofu/modules/eks-conditions/main.tf"
STATE = "opentofu/kops/state.tf"
DISCOVERY = "opentofu/kops/discovery.tf"
QUEUE = "opentofu/modules/interruptions/main.tf"
KARPENTER = "opentofu/eks-karpenter/main.tf"
ROLE = "opentofu/modules/pod-role/main.tf"
MACHINES = "opentofu/eks-karpenter/machines.tf"
GROUPS = "opentofu/eks-node-groups/groups.tf"
CONDITIONS = "opentofu/modules/eks-conditions/main.tf"


@pytest.mark.parametrize("part", ["opentofu", "lint"])
def test_what_we_ship_has_no_problem(tmp_path: Path, part: str) -> None:
    assert Copy.make(tmp_path).problems(part) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "value", "expected"),
    [
        (QUEUE, "message_retention_seconds", "message_retention_secs", "resource aws_sqs_queue.this: message_retention_secs", "300", "message_retention_seconds"),
        (QUEUE, 'resource "aws_sqs_queue" "this"', 'resource "aws_sqs_que" "this"', "resource aws_sqs_que.this: type", "aws_sqs_que", "provider's schema"),
        (QUEUE, "  queue_url = aws_sqs_queue.this.url\n", "", "aws_sqs_queue_policy.this: queue_url", "None", "the provider requires it"),
        (QUEUE, "aws_sqs_queue.this.url", "aws_sqs_queue.that.url", "aws_sqs_queue_policy.this: queue_url", "aws_sqs_queue.that", "aws_sqs_queue.this"),
        (QUEUE, "aws_sqs_queue.this.url", "aws_sqs_queue.this.uri", "queue_url", "aws_sqs_queue.this.uri", "aws_sqs_queue.this.url"),
        (QUEUE, "for_each = local.events", "for_each = local.event", "for_each", "local.event", "local.events"),
        (QUEUE, '"${var.name}-${each.key}"', '"${var.nam}-${each.key}"', "name", "var.nam", "var.name"),
        (QUEUE, '      variable = "aws:SourceArn"\n', "", "statement[0].condition.variable", "None", "the provider requires it"),
        (QUEUE, '  statement {\n    sid       = "EventBridge', '  statemnt {\n    sid       = "EventBridge', "statemnt", "EventBridge", "statement"),
        (STATE, "  versioning_configuration {", "  versioning_configuration = {", "versioning_configuration", "Enabled", "a block"),
        (STATE, "  block_public_acls       = true\n", "  block_public_acl = true\n", "block_public_acl", "True", "block_public_acls"),
        (STATE, "data.aws_iam_policy_document.state.json", "data.aws_iam_policy_document.stat.json", "policy", "aws_iam_policy_document.stat", "aws_iam_policy_document.state"),
        (STATE, 'resource "aws_kms_key" "state" {', 'resource "aws_kms_key" "state {', "syntax", "", "HCL"),
        (CONDITIONS, 'addon_name   = "vpc-cni"', 'addon        = "vpc-cni"', "data aws_eks_addon.network: addon", "vpc-cni", "addon_name"),
        (CONDITIONS, "data.aws_eks_addon.identities.addon_version", "data.aws_eks_addon.identity.addon_version", "check pod_identities: assert", "aws_eks_addon.identity", "aws_eks_addon.identities"),
        (KARPENTER, "cluster_name    = var.cluster_name\n", "cluster        = var.cluster_name\n", "module karpenter_role: cluster", "var.cluster_name", "a variable of opentofu/modules/pod-role"),
        (KARPENTER, '  name   = "${var.cluster_name}-karpenter"\n', "", "module interruptions: name", "None", "requires it"),
        (KARPENTER, 'source = "../modules/interruptions"', 'source = "../modules/interruption"', "source", "interruption", "a folder of ours"),
        (ROLE, "count = length(var.policies)", "count = var.policies[0] == null ? 0 : 1", "aws_iam_role_policy.this: count", "data.aws_iam_policy_document.karpenter", "known before anything is made"),
        (ROLE, "count = length(var.policies)", 'count = aws_iam_role.this.arn == "" ? 0 : 1', "aws_iam_role_policy.this: count", "aws_iam_role.this.arn", "known before anything is made"),
        ("opentofu/eks-karpenter/outputs.tf", "module.registry.repository_url", "module.registry.url", "value", "module.registry.url", "module.registry.repository_url"),
        ("opentofu/modules/budget/main.tf", '"GREATER_THAN"', '"GREATER"', "aws_budgets_budget.this: notification[0].comparison_operator", "GREATER", "one of GREATER_THAN"),
        ("opentofu/modules/budget/main.tf", "= 80", '= "eighty"', "notification[0].threshold", "eighty", "a number from"),
        ("opentofu/modules/budget/main.tf", "subscriber_email_addresses = var.emails", 'subscriber_email_addresses = "me@example.org"', "subscriber_email_addresses", "me@example.org", "a list"),
        (STATE, 'status = "Enabled"', 'status = "Enable"', "aws_s3_bucket_versioning.state: versioning_configuration.status", "Enable", "one of Enabled"),
        (STATE, '"aws:kms"', '"aws:km"', "sse_algorithm", "aws:km", "aws:kms"),
        (STATE, '"BucketOwnerEnforced"', '"BucketOwner"', "rule.object_ownership", "BucketOwner", "BucketOwnerEnforced"),
        (STATE, "deletion_window_in_days = 7", "deletion_window_in_days = 3", "aws_kms_key.state: deletion_window_in_days", "3", "a number from 7 to 30"),
        (STATE, "enable_key_rotation     = true", 'enable_key_rotation     = "yes"', "enable_key_rotation", "yes", "true or false"),
        ("opentofu/modules/status-page/main.tf", '"DNS"', '"DN"', "aws_acm_certificate.this: validation_method", "DN", "one of DNS"),
        ("opentofu/modules/status-page/main.tf", '"CNAME"', '"CNAM"', "aws_route53_record.host: type", "CNAM", "CNAME"),
        ("opentofu/modules/registry/main.tf", '"IMMUTABLE"', '"IMUTABLE"', "image_tag_mutability", "IMUTABLE", "IMMUTABLE"),
        ("opentofu/eks-karpenter/machines.tf", '"EC2_LINUX"', '"EC2_LINX"', "aws_eks_access_entry.machine: type", "EC2_LINX", "EC2_LINUX"),
        (GROUPS, '    key    = "dask-tide/role"', '    key    = ["dask-tide/role"]', "aws_eks_node_group.scheduler: taint.key", "dask-tide/role", "text"),
        (GROUPS, "coalescelist(var.security_group_ids, [data.aws_eks_cluster.this.vpc_config[0].cluster_security_group_id])", "var.security_group_ids", "aws_launch_template.machine: vpc_security_group_ids", "var.security_group_ids", "else machines reach neither control plane nor DNS"),
        ("opentofu/eks-karpenter/outputs.tf", "coalescelist(var.security_group_ids, ", "concat(var.security_group_ids, ", "output karpenter_values: value", "concat(", "securityGroupIds = coalescelist(var.security_group_ids"),
        ("opentofu/eks-karpenter/outputs.tf", "= var.subnet_ids", "= slice(var.subnet_ids, 0, 1)", "output karpenter_values: value", "slice", "subnetIds = var.subnet_ids"),
        ("opentofu/eks-karpenter/outputs.tf", "aws_iam_role.machine.name", "aws_iam_role.machine.arn", "output karpenter_values: value", "aws_iam_role.machine.arn", "nodeRole = aws_iam_role.machine.name"),
        ("opentofu/eks-karpenter/outputs.tf", "module.interruptions.queue_name", "module.interruptions.queue_arn", "output karpenter_settings: value", "queue_arn", "interruptionQueue = module.interruptions.queue_name"),
        ("opentofu/eks-node-groups/outputs.tf", "minSize = group.scaling_config[0].min_size", "minSize = group.scaling_config[0].max_size", "output autoscaler_values: value", "minSize = group.scaling_config[0].max_size", "minSize = group.scaling_config[0].min_size: else machines stay"),
        ("opentofu/eks-node-groups/groups.tf", '"48Gi"', '"48x"', "aws_autoscaling_group_tag.disk: tag.value", "48x", "an amount"),
        ("opentofu/eks-node-groups/groups.tf", "node-template/resources/", "node-template/resource/", "aws_autoscaling_group_tag.disk: tag.key", "node-template/resource/", "node-template/resources/"),
        ("opentofu/eks-node-groups/groups.tf", "propagate_at_launch = false", 'propagate_at_launch = "no"', "tag.propagate_at_launch", "no", "true or false"),
        ("opentofu/eks-node-groups/groups.tf", 'labels               = { "dask-tide/role" = "scheduler" }', 'labels               = ["dask-tide/role=scheduler"]', "aws_eks_node_group.scheduler: labels", "dask-tide/role", "a mapping"),
        (QUEUE, "message_retention_seconds = 300", 'message_retention_seconds = "five minutes"', "message_retention_seconds", "five minutes", "a number from 60"),
        (QUEUE, "EC2 Spot Instance Interruption Warning", "EC2 Spot Interruption Warning", "local.events: spot-interruption", "EC2 Spot Interruption Warning", "aws.ec2: EC2 Spot Instance Interruption Warning"),
        (QUEUE, 'source = "aws.health"', 'source = "aws.ec2"', "local.events: health", "aws.ec2", "aws.health: AWS Health Event"),
        (QUEUE, '    spot-interruption = { source = "aws.ec2", type = "EC2 Spot Instance Interruption Warning" }\n', "", "aws_cloudwatch_event_rule.this: events", "AWS Health Event", "aws.ec2: EC2 Spot Instance Interruption Warning, too"),
        (QUEUE, '    rebalance         = { source = "aws.ec2", type = "EC2 Instance Rebalance Recommendation" }\n', "", "aws_cloudwatch_event_rule.this: events", "AWS Health Event", "aws.ec2: EC2 Instance Rebalance Recommendation, too"),
        (QUEUE, '    state-change      = { source = "aws.ec2", type = "EC2 Instance State-change Notification" }\n', "", "aws_cloudwatch_event_rule.this: events", "AWS Health Event", "aws.ec2: EC2 Instance State-change Notification, too"),
        (QUEUE, '    health            = { source = "aws.health", type = "AWS Health Event" }\n', "", "aws_cloudwatch_event_rule.this: events", "EC2 Spot", "aws.health: AWS Health Event, too"),
        (QUEUE, "  for_each = local.events\n", '  for_each = { for key, event in local.events : key => event if key != "health" }\n', "aws_cloudwatch_event_rule.this: for_each", "health", "${local.events}, else"),
        (QUEUE, "  for_each = local.events\n", '  for_each = local.events\n  state    = "DISABLED"\n', "aws_cloudwatch_event_rule.this: state", "DISABLED", "None, else Karpenter hears of no notice"),
        (QUEUE, "  arn  = aws_sqs_queue.this.arn", '  arn  = "arn:aws:sqs:eu-west-1:123456789012:another"', "aws_cloudwatch_event_target.this: arn", "another", "${aws_sqs_queue.this.arn}, else"),
        (QUEUE, "  queue_url = aws_sqs_queue.this.url", "  queue_url = var.name", "aws_sqs_queue_policy.this: queue_url", "var.name", "${aws_sqs_queue.this.url}, else"),
        (QUEUE, "  queue_url = aws_sqs_queue.this.url", "  count     = 0\n  queue_url = aws_sqs_queue.this.url", "aws_sqs_queue_policy.this: count", "0", "None, else EventBridge"),
        (MACHINES, "principal_arn = aws_iam_role.machine.arn", 'principal_arn = "arn:aws:iam::123456789012:role/another"', "aws_eks_access_entry.machine: principal_arn", "another", "${aws_iam_role.machine.arn}, else machines do not join"),
        (STATE, "= aws_kms_key.state.arn", '= "arn:aws:kms:eu-west-1:123456789012:key/another"', "encryption_configuration.state: rule.apply_server_side_encryption_by_default.kms_master_key_id", "another", "${aws_kms_key.state.arn}, else"),
        (STATE, 'status = "Enabled"', 'status = "Suspended"', "aws_s3_bucket_versioning.state: versioning_configuration.status", "Suspended", "Enabled, else"),
        (KARPENTER, 'data "aws_partition" "current" {}\n', 'data "aws_partition" "current" {}\n\ndata "aws_partition" "another" {}\n', "data aws_partition.another: use", "aws_partition.another", "somewhere in the module"),
        (QUEUE, "sqs_managed_sse_enabled   = true", "sqs_managed_sse_enabled   = false", "aws_sqs_queue.this: sqs_managed_sse_enabled", "False", "True, else it is not encrypted"),
        (QUEUE, "sqs_managed_sse_enabled   = true", 'sqs_managed_sse_enabled   = true\n  kms_master_key_id = "alias/aws/sqs"', "aws_sqs_queue.this: kms_master_key_id", "alias/aws/sqs", "a key that EventBridge may not use"),
        (KARPENTER, 'service_account = "karpenter"', 'service_account = "karpenterr"', "module karpenter_role: service_account", "karpenterr", "karpenter, else Karpenter"),
        (KARPENTER, "= var.karpenter_namespace", "= var.release.namespace", "module karpenter_role: namespace", "var.release.namespace", "${var.karpenter_namespace}, else Karpenter"),
        (KARPENTER, '"${var.release.name}-worker"', '"${var.release.name}-workers"', "module worker_role: service_account", "-workers", "${var.release.name}-worker, else workers"),
        ("opentofu/eks-node-groups/main.tf", "= var.release.namespace", "= var.release.name", "module worker_role: namespace", "var.release.name", "${var.release.namespace}, else workers"),
        ("opentofu/eks-node-groups/main.tf", "= var.autoscaler.service_account", '= "autoscaler"', "module autoscaler_role: service_account", "autoscaler", "else cluster-autoscaler"),
        ("opentofu/modules/registry/main.tf", 'tagStatus = "untagged"', 'tagStatus = "any"', "aws_ecr_lifecycle_policy.this: policy", "any", "else the image that a cluster runs is deleted"),
        ("opentofu/modules/budget/main.tf", "user:dask-tide/cluster$", "user:dask-tide/clusters$", "aws_budgets_budget.this: cost_filter.values", "dask-tide/clusters", "else it sums up nothing"),
        ("opentofu/kops/versions.tf", '"dask-tide/cluster"', '"dask-tide/clusters"', "provider aws: default_tags.tags.dask-tide/cluster", "dask-tide/clusters", "leftovers.sh looks for it"),
        (QUEUE, "detail-type = [each", "detail_type = [each", "event_pattern", "detail_type", "detail-type"),
        (QUEUE, "[each.value.type]", '["EC2 Spot Interruption"]', "event_pattern", "EC2 Spot Interruption", "EC2 Spot Instance Interruption Warning"),
        (QUEUE, "each.value.name", "each.valu.name", "aws_cloudwatch_event_target.this: rule", "each.valu", "each.value"),
        (QUEUE, "jsonencode(", "jsonencod(", "event_pattern", "jsonencod(…)", "a function of OpenTofu's"),
        (KARPENTER, "var.status_page == null", "var.status_page == nul", "module status_page: count", "nul", "a name that there is"),
        (KARPENTER, "var.budget.monthly_usd", "var.budget.monthly_us", "module budget: monthly_usd", "var.budget.monthly_us", "var.budget.monthly_usd"),
        (QUEUE, "  for_each = aws_cloudwatch_event_rule.this\n", "", "aws_cloudwatch_event_target.this: for_each", "None", "each.value are of it"),
        (KARPENTER, "  policies        = [data.aws_iam_policy_document.karpenter.minified_json]\n", "", "module karpenter_role: policies", "None", "policies or policy_arns"),
        ("opentofu/modules/status-page/main.tf", "option.domain_name => option", "option.domain_name => optin", "for_each", "optin", "a name that there is"),
        ("opentofu/modules/status-page/main.tf", "for record in aws_route53_record.validation : record.fqdn", "for record in aws_route53_record.validation : recrd.fqdn", "validation_record_fqdns", "recrd", "a name that there is"),
        ("opentofu/eks-karpenter/outputs.tf", "interruptionQueue =", "interruptionQue =", "output karpenter_settings: value", "interruptionQue", "the keys settings clusterName interruptionQueue"),
        ("opentofu/eks-node-groups/outputs.tf", "minSize =", "minSiz =", "output autoscaler_values: value", "minSiz", "the keys awsRegion autoscalingGroups name minSize maxSize"),
        ("opentofu/eks-karpenter/outputs.tf", "  value = yamlencode({\n    clusterName", "  valu = yamlencode({\n    clusterName", "output karpenter_values: valu", "valu", "one of description, value"),
        ("opentofu/kops/variables.tf", "  default     = false", "  defalt      = false", "variable delete_state: defalt", "defalt", "one of description, type, default"),
        ("opentofu/kops/variables.tf", "type        = string", "type        = strin", "variable region: type", "strin", "string"),
        ("opentofu/kops/variables.tf", "object({ monthly_usd = number,", "object({ monthly_usd = numbr,", "variable budget: type", "numbr", "number"),
        ("opentofu/eks-node-groups/variables.tf", "default     = 20\n", 'default     = "twenty"\n', "variable worker_maximum: default", "twenty", "the type number"),
        ("opentofu/kops/versions.tf", '"6.62.0"', '">= 6.0"', "terraform: required_providers.aws.version", ">= 6.0", "6.62.0"),
        ("opentofu/modules/budget/versions.tf", '">= 6.0, < 7.0"', '">= 6.0"', "required_providers.aws.version", ">= 6.0", "two bounds"),
        ("opentofu/kops/variables.tf", '  description = "Of the cluster."\n', "", "variable region: description", "None", "a sentence"),
        ("opentofu/kops/variables.tf", 'variable "region"', 'variable "unused" {\n  description = "x"\n  type = string\n}\n\nvariable "region"', "variable unused: use", "unused", "somewhere in the module"),
        ("opentofu/kops/outputs.tf", "adminCidrs  ", "adminCidr  ", "output kops_inputs: value", "adminCidr", "adminCidrs"),
        ("kops/cluster.tmpl.yaml", "{{ .systemCount }}", "{{ .sytemCount }}", "{{ . }}", "sytemCount", "systemCount"),
        ("kops/defaults.yaml", "workerMaximum: 20", "workerMaximun: 20", "workerMaximun", "workerMaximun", "an input that kops/cluster.tmpl.yaml uses"),
        ("kops/karpenter.yaml", "autoscaler: karpenter", "autoscaller: karpenter", "autoscaller", "autoscaller", "autoscaler"),
    ],
)  # fmt: skip
def test_arguments_and_references(
    tmp_path: Path, file: str, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("opentofu")
    assert told(problems, file, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("file", "block", "expected"),
    [
        (QUEUE, 'resource "aws_sqs_queue_policy" "this"', "EventBridge may not write"),
        (QUEUE, 'resource "aws_cloudwatch_event_rule" "this"', "Karpenter hears of no notice"),
        (QUEUE, 'resource "aws_cloudwatch_event_target" "this"', "no event comes into the queue"),
        (ROLE, 'resource "aws_eks_pod_identity_association" "this"', "no pod gets the role"),
        (MACHINES, 'resource "aws_eks_access_entry" "machine"', "machines do not join"),
        (MACHINES, 'resource "aws_iam_role_policy_attachment" "machine"', "machines do not join"),
        (GROUPS, 'resource "aws_autoscaling_group_tag" "disk"', "pods that ask for disk"),
        (STATE, 'resource "aws_s3_bucket_policy" "state"', "without TLS"),
        (STATE, 'resource "aws_s3_bucket_server_side_encryption_configuration" "state"', "no right to its key"),
        (STATE, 'resource "aws_s3_bucket_versioning" "state"', "deleted by mistake"),
        (DISCOVERY, 'resource "aws_s3_bucket_policy" "discovery"', "IAM cannot read"),
        ("opentofu/eks-karpenter/main.tf", 'module "conditions"', "what bites on the cluster"),
        ("opentofu/eks-node-groups/main.tf", 'module "conditions"', "what bites on the cluster"),
        (CONDITIONS, 'check "network_policies"', "NetworkPolicies are not enforced"),
        (CONDITIONS, 'check "pod_identities"', "no pod gets its role"),
    ],
)  # fmt: skip
def test_what_nothing_else_refers_to_is_told_when_it_is_gone(
    tmp_path: Path, file: str, block: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.remove(file, block)
    problems = copy.problems("opentofu")
    subject = block.replace('" "', ".").replace('"', "")
    assert told(problems, file, subject, "None", "it to be there, else"), problems
    assert told(problems, file, subject, "None", expected), problems


#: Modules of ours that make roles and budgets.
GLOBAL = ("karpenter_role", "autoscaler_role", "worker_role", "budget")
#: As long as they may be.
LONGEST = {"cluster_name": "c" * 36, "region": "ap-northeast-1"}


def names(module: str, **inputs: str) -> list[str]:
    """What a module's roles and budget are called; these are an account's, in all regions."""
    found = Check(Tree(), SCHEMAS).module(module)
    called = [
        block.body["name"] for name, block in found.resources.items() if name.startswith("aws_iam_role.")
    ]
    called += [block.body["name"] for name, block in found.modules.items() if name in GLOBAL]
    texts = [str(plain(name)) for name in called]
    for name, value in inputs.items():
        texts = [text.replace(f"${{var.{name}}}", value) for text in texts]
    return texts


@pytest.mark.parametrize("module", ["eks-karpenter", "eks-node-groups"])
def test_clusters_of_one_name_in_two_regions_share_no_names(module: str) -> None:
    here, there = (
        set(names(module, cluster_name="lab", region=region)) for region in ("eu-west-1", "us-east-1")
    )
    assert len(here) >= 3
    assert not here & there
    # The shortest limit, a role's.
    assert max(map(len, names(module, **LONGEST))) <= 64


def test_both_modules_for_eks_may_be_applied_to_one_cluster() -> None:
    """To move from one to the other. Only the role of one ServiceAccount, which EKS gives it once, is in both."""
    both = set(names("eks-karpenter")) & set(names("eks-node-groups"))
    assert both == {"${var.cluster_name}-${var.region}-dask-worker"}
    repositories = {
        str(Check(Tree(), SCHEMAS).module(module).modules["registry"].body["name"])
        for module in ("eks-karpenter", "eks-node-groups")
    }
    assert len(repositories) == 2


@pytest.mark.parametrize("module", ["kops", "eks-karpenter", "eks-node-groups"])
def test_regions_whose_arns_are_others_are_refused(module: str) -> None:
    """In China policies and services have other names, and there are no budgets: `apply` failed half-way."""
    [rule] = Check(Tree(), SCHEMAS).module(module).variables["region"].body["validation"]
    said = re.fullmatch(
        r'\$\{can\(regex\("(.+)", var\.region\)\) && !startswith\(var\.region, "(.+)"\)\}', rule["condition"]
    )
    assert said, rule

    def taken(region: str) -> bool:
        return bool(re.search(said[1], region)) and not region.startswith(said[2])

    assert all(
        map(taken, ["eu-west-1", "us-east-1", "ap-southeast-7", "ca-west-1", "il-central-1", "mx-central-1"])
    )
    others = [
        "cn-north-1",
        "us-gov-west-1",
        "us-iso-east-1",
        "us-isob-east-1",
        "eusc-de-east-1",
        "eu-west-1a",
        "",
    ]
    assert not any(map(taken, others))
    assert "GovCloud" in rule["error_message"]


def test_somebodys_own_inputs_are_checked_with_the_rest(tmp_path: Path) -> None:
    copy = Copy.make(tmp_path)
    mine = tmp_path / "my.yaml"
    mine.write_text("workerMaximum: 2\nzons: [eu-west-1a]\n")
    tree = replace(copy.tree, inputs=(mine,))
    problems = run(Check(tree, SCHEMAS), ["kops", "opentofu"]).problems
    assert told(problems, "values-aws-kops.yaml", "pools.cpu.maximum", "40", "at most 4")
    assert told(problems, str(mine), "zons", "zons", "one of adminCidrs")


def test_the_committed_part_of_the_providers_schema_is_what_is_used(tmp_path: Path) -> None:
    facts = json.loads(Copy.make(tmp_path).tree.text(FILE))
    used = {
        f"{kind}.{name}"
        for path in Copy.make(tmp_path / "again").tree.path("opentofu").rglob("*.tf")
        for line in path.read_text().splitlines()
        for kind, _, rest in [line.strip().partition(' "')]
        for name in [rest.partition('"')[0]]
        if kind in ("resource", "data")
    }
    assert set(facts["types"]) == used


def test_a_part_of_a_schema_keeps_what_is_required_and_forgets_inputs() -> None:
    argument = {"req": True, "block": {"value": {"req": False}}}
    whole = {
        "resource.aws_x": {"args": {"tag": argument}, "attrs": ["arn", "tag_input"]},
        "resource.aws_y": {},
    }
    part = json.loads(taken(whole, ["resource.aws_x"], "1.2.3"))
    kept = {"arguments": {"tag": {"required": True, "block": {"value": {}}}}, "attributes": ["arn"]}
    assert part == {"provider": "hashicorp/aws", "version": "1.2.3", "types": {"resource.aws_x": kept}}


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ('"a-${var.name}-b"', '" var.name"'),
        ('${format("user:x$%s", var.name)}', 'format("", var.name)'),
        ('${[for z in var.zones : "${z}x" if z != "var.no"]}', '[for z in var.zones : " z" if z != ""]'),
        ('"var.no \\" var.no"', '""'),
    ],
)
def test_strings_are_no_references(expression: str, kept: str) -> None:
    assert code(expression) == kept


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "value", "expected"),
    [
        ("values-aws-kops.yaml", "threads: 2", "threads:  2", "line", "too many spaces", "yamllint's rule colons"),
        ("kops/defaults.yaml", "region: eu-west-1\n", "region: eu-west-1\nregion: eu-west-1\n", "line", "duplication", "yamllint's rule key-duplicates"),
        ("leftovers.sh", 'printf %s "$left"', "printf %s $left", "line", "quote", "SC2086"),
        (DISCOVERY, "CKV_AWS_21:kOps writes both files anew at each update", "CKV_AWS_21", "line", "CKV_AWS_21", "a reason"),
    ],
)  # fmt: skip
def test_yaml_shell_and_reasons(
    tmp_path: Path, file: str, old: str, new: str, key: str, value: str, expected: str
) -> None:
    copy = Copy.make(tmp_path)
    copy.replace(file, old, new)
    problems = copy.problems("lint")
    assert told(problems, file, key, value, expected), "\n".join(map(str, problems))


@pytest.mark.skipif(not CHECKOV.exists() and not in_ci(), reason=f"no {CHECKOV}, which `make test` makes")
@pytest.mark.timeout(600)
def test_a_public_bucket_an_open_policy_and_an_unencrypted_queue(tmp_path: Path) -> None:
    """All at once: checkov takes seconds to start."""
    copy = Copy.make(tmp_path)
    copy.replace(STATE, "block_public_policy     = true", "block_public_policy     = false")
    copy.replace(STATE, "restrict_public_buckets = true", "restrict_public_buckets = false")
    copy.replace(QUEUE, "sqs_managed_sse_enabled   = true", "sqs_managed_sse_enabled   = false")
    copy.replace(QUEUE, "  #checkov:skip=CKV_AWS_27", "  # no skip: CKV_AWS_27")
    copy.replace("opentofu/eks-node-groups/groups.tf", 'http_tokens                 = "required"', 'http_tokens                 = "optional"')  # fmt: skip
    problems = copy.problems("security")
    block = "aws_s3_bucket_public_access_block.state"
    assert told(problems, STATE, block, "CKV_AWS_54", "S3 bucket has block public policy enabled")
    assert told(problems, STATE, block, "CKV_AWS_56", "restrict_public_bucket")
    assert told(problems, QUEUE, "aws_sqs_queue.this", "CKV_AWS_27", "encrypted")
    assert told(
        problems,
        "opentofu/eks-node-groups/groups.tf",
        "aws_launch_template.machine",
        "CKV_AWS_79",
        "Metadata",
    )
    untouched = {"opentofu/kops/discovery.tf", "opentofu/eks-karpenter/karpenter.tf"}
    assert not {problem.file for problem in problems} & untouched
