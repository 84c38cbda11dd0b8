"""Copies of what one deploys on AWS, which tests break in one place each."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.aws.check.everything import Check, run
from deploy.aws.check.problems import Problem
from deploy.aws.check.tree import CHECKOUT, Tree

#: kOps's schemas are not ours to commit; where they are absent, what needs them is left out.
SCHEMAS = Path(os.environ.get("AWS_SCHEMAS") or CHECKOUT.parent / "shared" / "aws")
CHECKOV = CHECKOUT / ".venv-checkov" / "bin" / "checkov"


@dataclass(frozen=True)
class Copy:
    """``deploy/aws`` in a folder of the test's own."""

    tree: Tree

    @classmethod
    def make(cls, folder: Path) -> Copy:
        original = Tree()
        copied = folder / "aws"
        shutil.copytree(original.folder, copied, ignore=shutil.ignore_patterns("check", "__pycache__"))
        return cls(Tree(copied, original.chart))

    def replace(self, file: str, old: str, new: str) -> None:
        """Break a file where `old` stands for the first time."""
        text = self.tree.text(file)
        assert old in text, f"{file} has changed: no {old!r}"
        self.tree.path(file).write_text(text.replace(old, new, 1), encoding="utf-8")

    def remove(self, file: str, block: str) -> None:
        """Take a block out of an OpenTofu file: ``resource "aws_sqs_queue" "this"``."""
        text, found = re.subn(
            rf"^{re.escape(block)} {{\n.*?^}}\n", "", self.tree.text(file), flags=re.DOTALL | re.MULTILINE
        )
        assert found == 1, f"{file} has changed: no {block}"
        self.tree.path(file).write_text(text, encoding="utf-8")

    def problems(self, part: str) -> list[Problem]:
        return run(Check(self.tree, SCHEMAS, CHECKOV), [part]).problems


def told(problems: list[Problem], file: str, key: str, value: str, expected: str) -> bool:
    """Whether one of the problems names all four."""
    return any(
        problem.file.startswith(file)
        and key in problem.key
        and value in problem.value
        and expected in problem.expected
        for problem in problems
    )
