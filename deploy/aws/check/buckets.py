"""Whether buckets can be public."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.aws.check.hcl import Module
from deploy.aws.check.problems import Problem
from deploy.aws.check.tree import Tree

_BLOCKS = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Buckets that are open, or that nobody has closed."""
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
            if found and found[1] == "discovery" and not name.endswith("_acls"):
                continue  # its policy, which iam.py checks, is public on purpose
            value = block.body.get(name)
            yield from block.place.expect(value is True, name, value, "true: no bucket is public")
    for block in module.resources.values():
        if block.type == "aws_s3_bucket":
            words = "an aws_s3_bucket_public_access_block for it"
            yield from block.place.expect(block.name.split(".")[1] in closed, "bucket", block.name, words)
