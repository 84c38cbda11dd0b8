"""Whether buckets can be public, and keep what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.aws.check.hcl import Module, plain
from deploy.aws.check.problems import Problem
from deploy.aws.check.tree import Tree

_BLOCKS = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Buckets that are open, or that nobody has closed, and what they would lose."""
    del tree
    for module in modules.values():
        yield from _buckets(module)


def _buckets(module: Module) -> Iterator[Problem]:
    closed = set()
    for block in module.resources.values():
        if block.type != "aws_s3_bucket_public_access_block":
            continue
        bucket = str(block.body.get("bucket"))
        found = re.search(r"aws_s3_bucket\.(\w+)", bucket)
        closed.add(found[1] if found else bucket)
        for name in _BLOCKS:
            value = block.body.get(name)
            if found and found[1] == "discovery" and not name.endswith("_acls"):
                words = "false: IAM reads two objects of it as anybody may, by a policy that iam.py checks"
                yield from block.place.expect(value is False, name, value, words)
            else:
                yield from block.place.expect(value is True, name, value, "true: no bucket is public")
    for block in module.resources.values():
        if block.type == "aws_s3_bucket_lifecycle_configuration":
            for index, rule in enumerate(block.body.get("rule", [])):
                words = "none: only old versions go, nothing that is in use"
                yield from block.place.expect(
                    "expiration" not in rule,
                    f"rule[{index}].expiration",
                    plain(rule).get("expiration"),
                    words,
                )
        if block.type == "aws_s3_bucket":
            words = "an aws_s3_bucket_public_access_block for it"
            yield from block.place.expect(block.name.split(".")[1] in closed, "bucket", block.name, words)
