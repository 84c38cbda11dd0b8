"""All checks, in parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deploy.aws.check import (
    agreement,
    eks_groups,
    inputs,
    karpenter,
    kops_cluster,
    kops_groups,
    lint,
    provider,
    references,
    rendering,
    schemas,
)
from deploy.aws.check.hcl import Module, read
from deploy.aws.check.machines import Group
from deploy.aws.check.problems import Place, Report
from deploy.aws.check.rendering import RenderError
from deploy.aws.check.sizes import Sizes
from deploy.aws.check.tree import KOPS_VARIANTS, Tree

_KOPS_SCHEMAS = {"Cluster": "kops.k8s.io_clusters.yaml", "InstanceGroup": "kops.k8s.io_instancegroups.yaml"}


@dataclass
class Check:
    """One pass over the files.

    Parameters
    ----------
    tree
        What to check.
    kops_schemas
        The folder of kOps's CustomResourceDefinitions. They are not ours to commit: where it is absent, the
        report says that this part was left out.
    checkov
        The program. Without it the report says so, too.
    render
        A folder for the rendered files, if they are wanted.
    """

    tree: Tree
    kops_schemas: Path
    checkov: Path | None = None
    render: Path | None = None
    report: Report = field(default_factory=Report)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes.read(self.tree)

    @cached_property
    def modules(self) -> dict[Path, Module]:
        modules = {}
        for folder in self.tree.modules():
            modules[folder.resolve()], problems = read(self.tree, folder)
            self.report.problems += problems
        return modules

    def module(self, name: str) -> Module:
        return self.modules[self.tree.path(f"opentofu/{name}").resolve()]

    def kops(self) -> None:
        """The kOps template in all variants, and the values of the chart for it."""
        validators = {}
        for kind, name in _KOPS_SCHEMAS.items():
            if (self.kops_schemas / name).exists():
                validators[kind] = schemas.read(self.kops_schemas / name)
            else:
                words = f"kOps's {kind} against its schema: no {self.kops_schemas / name} (AWS_SCHEMAS)"
                self.report.left_out.append(words)
        for variant in KOPS_VARIANTS:
            file = f"{inputs.TEMPLATE} ({variant})"
            try:
                documents = rendering.kops_documents(self.tree, variant)
            except RenderError as error:
                self.report.problems.append(rendering.failed(file, error))
                continue
            self._write(f"kops-{variant}.yaml", documents)
            for document in documents:
                kind = document.get("kind", "")
                place = Place(file, f"{kind} {document['metadata']['name']}")
                self.report.problems += place.expect_one_of("kind", kind, list(_KOPS_SCHEMAS))
                if kind in validators:
                    self.report.problems += schemas.check(place, document, validators[kind])
            [cluster] = [document for document in documents if document["kind"] == "Cluster"]
            groups = [document for document in documents if document["kind"] == "InstanceGroup"]
            place = Place(file, f"Cluster {cluster['metadata']['name']}")
            self.report.problems += kops_cluster.check(place, cluster)
            self.report.problems += kops_groups.check(file, cluster, groups, self.sizes)
            self._agree("values-aws-kops.yaml", kops_groups.groups_of(file, groups, self.sizes))

    def karpenter(self) -> None:
        """The chart of Karpenter's pools on EKS, and the values of the project's chart for it."""
        try:
            documents = rendering.karpenter_documents(self.tree)
        except RenderError as error:
            self.report.problems.append(rendering.failed("karpenter", error))
            return
        self._write("eks-karpenter.yaml", documents)
        self.report.problems += karpenter.check(documents, karpenter.definitions(), self.sizes)
        self._agree("values-eks-karpenter.yaml", karpenter.groups_of(documents, self.sizes))

    def opentofu(self) -> None:
        """OpenTofu's files against the provider's schema, and what they refer to."""
        self.report.problems += provider.check(self.tree, self.modules)
        self.report.problems += references.check(self.tree, self.modules)
        self.report.problems += inputs.check(self.tree, self.module("kops"))

    def node_groups(self) -> None:
        """EKS's managed node groups, and the values of the project's chart for them."""
        module = self.module("eks-node-groups")
        self.report.problems += eks_groups.check(module, self.sizes)
        self.report.problems += eks_groups.check_autoscaler(self.tree.yaml(eks_groups.VALUES))
        self._agree("values-eks-node-groups.yaml", eks_groups.groups_of(module, self.sizes))

    def lint(self) -> None:
        """YAML, shell, and the reasons of what checkov is told to skip."""
        self.report.problems += lint.check_yaml(self.tree)
        self.report.problems += lint.check_shell(self.tree)
        self.report.problems += lint.check_reasons(self.tree)

    def security(self) -> None:
        """Checkov's rules."""
        if self.checkov is None:
            self.report.left_out.append("security rules of OpenTofu's files: no --checkov")
        else:
            self.report.problems += lint.check_security(self.tree, self.checkov)

    def _agree(self, file: str, groups: Sequence[Group]) -> None:
        try:
            documents = rendering.release_documents(self.tree, file)
        except RenderError as error:
            self.report.problems.append(rendering.failed(file, error))
            return
        values = self.tree.yaml(file)
        defaults = yaml.safe_load((self.tree.chart / "values.yaml").read_text(encoding="utf-8"))
        pods = agreement.pods_of(file, documents, values, defaults)
        self.report.problems += agreement.check(pods, groups, values)
        note = agreement.first_machines(file, pods)
        if note not in self.report.notes:
            self.report.notes.append(note)

    def _write(self, name: str, documents: Sequence[dict[str, Any]]) -> None:
        if self.render is not None:
            self.render.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump_all(documents, sort_keys=False)
            (self.render / name).write_text(text, encoding="utf-8")


PARTS: dict[str, Callable[[Check], None]] = {
    "kops": Check.kops,
    "karpenter": Check.karpenter,
    "opentofu": Check.opentofu,
    "node-groups": Check.node_groups,
    "lint": Check.lint,
    "security": Check.security,
}


def run(check: Check, parts: Collection[str] = tuple(PARTS)) -> Report:
    """Do some parts, or all."""
    for name in parts:
        PARTS[name](check)
    return check.report
