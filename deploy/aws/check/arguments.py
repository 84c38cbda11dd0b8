"""Values of the arguments that OpenTofu's files use: those that the provider's schema does not tell.

Only what is written out is looked at, not what an expression returns. An argument that is not in these tables
may have any value: who uses a new one adds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.aws.check.hcl import Module, is_block, plain
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

#: What an argument may be, by its resource's type and where it is in there.
_ONE_OF = {
    "aws_acm_certificate.validation_method": ("DNS", "EMAIL"),
    "aws_budgets_budget.budget_type": ("COST", "USAGE"),
    "aws_budgets_budget.cost_filter.name": ("TagKeyValue",),
    "aws_budgets_budget.limit_unit": ("USD",),
    "aws_budgets_budget.notification.comparison_operator": ("GREATER_THAN", "LESS_THAN", "EQUAL_TO"),
    "aws_budgets_budget.notification.notification_type": ("ACTUAL", "FORECASTED"),
    "aws_budgets_budget.notification.threshold_type": ("PERCENTAGE", "ABSOLUTE_VALUE"),
    "aws_budgets_budget.time_unit": ("DAILY", "MONTHLY", "QUARTERLY", "ANNUALLY"),
    "aws_ecr_repository.encryption_configuration.encryption_type": ("AES256", "KMS"),
    "aws_ecr_repository.image_tag_mutability": ("MUTABLE", "IMMUTABLE"),
    "aws_eks_access_entry.type": ("STANDARD", "EC2_LINUX", "EC2_WINDOWS", "FARGATE_LINUX"),
    "aws_launch_template.block_device_mappings.ebs.volume_type": ("gp2", "gp3", "io1", "io2", "standard"),
    "aws_launch_template.metadata_options.http_endpoint": ("enabled", "disabled"),
    "aws_route53_record.type": ("A", "AAAA", "CNAME", "TXT"),
    "aws_s3_bucket_lifecycle_configuration.rule.status": ("Enabled", "Disabled"),
    "aws_s3_bucket_ownership_controls.rule.object_ownership": (
        "BucketOwnerEnforced",
        "BucketOwnerPreferred",
        "ObjectWriter",
    ),
    "aws_s3_bucket_server_side_encryption_configuration.rule.apply_server_side_encryption_by_default"
    ".sse_algorithm": ("AES256", "aws:kms", "aws:kms:dsse"),
    "aws_s3_bucket_versioning.versioning_configuration.status": ("Enabled", "Suspended", "Disabled"),
    "data.aws_eks_addon.addon_name": ("vpc-cni", "eks-pod-identity-agent"),
}
#: Numbers, with the least and the most that AWS takes.
_NUMBERS = {
    "aws_budgets_budget.notification.threshold": (0, 1_000_000_000),
    "aws_eks_node_group.scaling_config.desired_size": (0, 450),
    "aws_eks_node_group.scaling_config.max_size": (1, 450),
    "aws_eks_node_group.scaling_config.min_size": (0, 450),
    "aws_eks_node_group.update_config.max_unavailable": (1, 100),
    "aws_eks_node_group.update_config.max_unavailable_percentage": (1, 100),
    "aws_kms_key.deletion_window_in_days": (7, 30),
    "aws_launch_template.block_device_mappings.ebs.volume_size": (20, 65_536),
    "aws_launch_template.metadata_options.http_put_response_hop_limit": (1, 64),
    "aws_route53_record.ttl": (0, 2_147_483_647),
    "aws_s3_bucket_lifecycle_configuration.rule.abort_incomplete_multipart_upload.days_after_initiation": (
        1,
        36_500,
    ),
    "aws_s3_bucket_lifecycle_configuration.rule.noncurrent_version_expiration.noncurrent_days": (1, 36_500),
    "aws_sqs_queue.message_retention_seconds": (60, 1_209_600),
}
_BOOLEANS = {
    "aws_autoscaling_group_tag.tag.propagate_at_launch",
    "aws_ecr_repository.force_delete",
    "aws_ecr_repository.image_scanning_configuration.scan_on_push",
    "aws_eks_node_group.force_update_version",
    "aws_kms_key.enable_key_rotation",
    "aws_launch_template.block_device_mappings.ebs.delete_on_termination",
    "aws_launch_template.block_device_mappings.ebs.encrypted",
    "aws_s3_bucket.force_destroy",
    "aws_s3_bucket_public_access_block.block_public_acls",
    "aws_s3_bucket_public_access_block.block_public_policy",
    "aws_s3_bucket_public_access_block.ignore_public_acls",
    "aws_s3_bucket_public_access_block.restrict_public_buckets",
    "aws_s3_bucket_server_side_encryption_configuration.rule.bucket_key_enabled",
    "aws_sqs_queue.sqs_managed_sse_enabled",
}
_LISTS = {
    "aws_acm_certificate_validation.validation_record_fqdns",
    "aws_budgets_budget.cost_filter.values",
    "aws_budgets_budget.notification.subscriber_email_addresses",
    "aws_eks_node_group.instance_types",
    "aws_eks_node_group.subnet_ids",
    "aws_route53_record.records",
}
_MAPPINGS = {"aws_eks_node_group.labels", "aws_launch_template.tag_specifications.tags"}
#: Of any resource.
_TEXTS = {
    "arn",
    "bucket",
    "cluster_name",
    "description",
    "key",
    "name",
    "policy",
    "queue_url",
    "role",
    "value",
}
#: What EC2 and AWS Health send to EventBridge, of which Karpenter understands these.
_EVENTS = {
    ("aws.ec2", "EC2 Spot Instance Interruption Warning"),
    ("aws.ec2", "EC2 Instance Rebalance Recommendation"),
    ("aws.ec2", "EC2 Instance State-change Notification"),
    ("aws.health", "AWS Health Event"),
}
_PATTERN = ("source", "detail-type", "detail", "account", "region", "resources")
_TAKES = "k8s.io/cluster-autoscaler/node-template/resources/"
_TYPES = ("string", "number", "bool", "any", "list", "set", "map", "object", "tuple", "optional")
_OF_TYPE: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "bool": bool,
    "list": list,
    "set": list,
    "map": dict,
    "object": dict,
}
_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Values that AWS does not take, types that there are not, and events that never come."""
    del tree
    for module in modules.values():
        for block in module.resources.values():
            yield from _values(block.place, block.type, "", block.body)
            if block.type == "aws_cloudwatch_event_rule":
                yield from _pattern(block.place, str(block.body.get("event_pattern")))
            elif block.type == "aws_eks_access_entry":
                words = "EC2_LINUX: machines with the default, STANDARD, do not join"
                kind = plain(block.body.get("type"))
                yield from block.place.expect(kind == "EC2_LINUX", "type", kind, words)
            elif block.type == "aws_autoscaling_group_tag":
                yield from _tag(block.place, plain(block.body.get("tag", [{}]))[0])
        for block in module.data.values():
            yield from _values(block.place, f"data.{block.type}", "", block.body)
        for block in module.variables.values():
            yield from _variable(block.place, block.body)
        if rules := [b for b in module.resources.values() if b.type == "aws_cloudwatch_event_rule"]:
            yield from _events(module, rules[0].place)


def is_amount(text: object) -> bool:
    """Whether it is an amount as Kubernetes writes it: ``48Gi``."""
    return bool(_AMOUNT.fullmatch(str(text)))


def _values(place: Place, kind: str, path: str, body: Mapping[str, Any]) -> Iterator[Problem]:
    given = dict(body)
    for dynamic in given.pop("dynamic", []):
        given |= {plain(name): block["content"] for name, block in dynamic.items() if isinstance(block, dict)}
    for name, value in given.items():
        if is_block(value):
            for index, block in enumerate(value):
                inner = f"{path}{name}[{index}]." if len(value) > 1 else f"{path}{name}."
                yield from _values(place, kind, inner, block)
        elif not (isinstance(value, str) and ("${" in value or not value.startswith('"'))):
            yield from _value(place, kind, f"{path}{name}", plain(value))


def _value(place: Place, kind: str, key: str, value: Any) -> Iterator[Problem]:
    name = f"{kind}." + re.sub(r"\[[0-9]+\]", "", key)
    if name in _ONE_OF:
        yield from place.expect_one_of(key, value, _ONE_OF[name])
    elif name in _NUMBERS:
        least, most = _NUMBERS[name]
        number = float(value) if re.fullmatch(r"-?[0-9.]+", str(value)) else None
        holds = number is not None and least <= number <= most
        yield from place.expect(holds, key, value, f"a number from {least} to {most}")
    elif name in _BOOLEANS:
        yield from place.expect(isinstance(value, bool), key, value, "true or false")
    elif name in _LISTS:
        yield from place.expect(isinstance(value, list), key, value, "a list")
    elif name in _MAPPINGS:
        yield from place.expect(isinstance(value, dict), key, value, "a mapping: { … }")
    elif key.rsplit(".", 1)[-1] in _TEXTS:
        yield from place.expect(isinstance(value, str), key, value, "text")


def _tag(place: Place, tag: Mapping[str, Any]) -> Iterator[Problem]:
    """What cluster-autoscaler reads of a group without machines."""
    key, value = str(tag.get("key")), tag.get("value")
    yield from place.expect(key.startswith(_TAKES), "tag.key", key, f"{_TAKES}…")
    yield from place.expect(is_amount(value), "tag.value", value, "an amount, such as 48Gi")


def _variable(place: Place, body: Mapping[str, Any]) -> Iterator[Problem]:
    said = str(body.get("type", "${any}"))
    said = re.sub(r'"[^"]*"', "", said.removeprefix("${").removesuffix("}"))
    words = re.findall(r"[A-Za-z_][\w-]*(?!\s*[=\w-])", said)
    for word in words:
        if not re.search(rf"\b{re.escape(word)}\s*=", said):
            yield from place.expect_one_of("type", word, _TYPES)
    kind, default = re.split(r"\W", said)[0], plain(body.get("default"))
    written = not (isinstance(default, str) and (default == "null" or "${" in default))
    if kind in _OF_TYPE and default is not None and written:
        right = isinstance(default, _OF_TYPE[kind]) and isinstance(default, bool) == (kind == "bool")
        yield from place.expect(right, "default", default, f"a value of the type {kind}")


def _pattern(place: Place, pattern: str) -> Iterator[Problem]:
    for name in re.findall(r"[{,]\s*\"?([\w-]+)\"?\s*[=:](?!=)", pattern):
        yield from place.expect_one_of("event_pattern", name, _PATTERN)
    for text in re.findall(r"\"([^\"$]+)\"\s*[],]", pattern):
        known = {word for event in _EVENTS for word in event}
        yield from place.expect_one_of("event_pattern", text, sorted(known))


def _events(module: Module, rule: Place) -> Iterator[Problem]:
    """Events in a local, each with its source and its type: all that Karpenter understands."""
    known = "; ".join(f"{source}: {kind}" for source, kind in sorted(_EVENTS))
    given = set()
    for name, value in module.values.items():
        for key, event in plain(value).items() if isinstance(value, dict) else ():
            pair = (event.get("source"), event.get("type")) if isinstance(event, dict) else (None, event)
            given.add(pair)
            yield from module.locals[name].expect(pair in _EVENTS, str(key), pair, f"one of {known}")
    for source, kind in sorted(_EVENTS - given):
        said = sorted(str(each) for _, each in given)
        yield rule.problem("events", said, f"{source}: {kind}, too: nobody else tells Karpenter")
