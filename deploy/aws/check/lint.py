"""Other people's tools: yamllint, shellcheck, and checkov's security rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from yamllint import linter
from yamllint.config import YamlLintConfig

from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

_DEADLINE_S = 600.0
_SKIP = "checkov:skip="


def check_yaml(tree: Tree) -> Iterator[Problem]:
    """yamllint, on all YAML that is no template."""
    config = YamlLintConfig(file=str(tree.path(".yamllint.yaml")))
    for path in sorted([*tree.folder.rglob("*.yaml"), *tree.folder.rglob("*.yml")]):
        if "templates" in path.parts or path.name.endswith(".tmpl.yaml"):
            continue
        for found in linter.run(path.read_text(encoding="utf-8"), config):
            yield Problem(tree.name(path), f"line {found.line}", found.desc, f"yamllint's rule {found.rule}")


def check_shell(tree: Tree) -> Iterator[Problem]:
    """shellcheck, on all shell scripts."""
    scripts = sorted(tree.folder.rglob("*.sh"))
    command = [str(Path(sys.executable).parent / "shellcheck"), "--format=json", *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"shellcheck failed: {done.stderr}")
    for found in json.loads(done.stdout):
        name = tree.name(Path(found["file"]))
        yield Problem(name, f"line {found['line']}", found["message"], f"shellcheck's rule SC{found['code']}")


def check_security(tree: Tree, checkov: Path) -> Iterator[Problem]:
    """Checkov's rules for OpenTofu; none is fetched from its makers."""
    command = [str(checkov), "--directory", str(tree.path("opentofu")), "--framework", "terraform"]
    command += ["--skip-download", "--download-external-modules", "false", "--output", "json", "--soft-fail"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"checkov failed: {done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    if said["summary"]["parsing_errors"]:
        yield Place("opentofu").problem(
            "checkov", said["results"]["parsing_errors"], "files that checkov can read"
        )
    failed = {
        (found["file_path"].lstrip("/"), found["resource"], found["check_id"], found["check_name"])
        for found in said["results"]["failed_checks"]
    }
    for file, resource, rule, words in sorted(failed):
        yield Problem(f"opentofu/{file}", resource, f"fails {rule}", words)


def check_reasons(tree: Tree) -> Iterator[Problem]:
    """A rule that is skipped says why."""
    for path in sorted(tree.path("opentofu").rglob("*.tf")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if _SKIP in line:
                reason = line.split(_SKIP, 1)[1].partition(":")[2].strip()
                holds = " " in reason
                yield from Place(tree.name(path)).expect(
                    holds, f"line {number}", line.strip(), "a reason after the rule"
                )
