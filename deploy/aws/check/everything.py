"""All checks, in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from deploy.aws.check import (
    agreement,
    arguments,
    buckets,
    eks_groups,
    iam,
    inputs,
    karpenter,
    kops_cluster,
    kops_groups,
    lint,
    provider,
    references,
    rendering,
    schemas,
    termination,
    wiring,
)
from deploy.aws.check.hcl import Module, read
from deploy.aws.check.machines import Group
from deploy.aws.check.pods import pods_of
from deploy.aws.check.problems import Place, Problem, Report
from deploy.aws.check.rendering import RenderError
from deploy.aws.check.sizes import Sizes
from deploy.aws.check.tree import Tree
from rig.folders import RigError

_KOPS_SCHEMAS = {"Cluster": "kops.k8s.io_clusters.yaml", "InstanceGroup": "kops.k8s.io_instancegroups.yaml"}
#: What a check raises that meets a number where it expects a mapping, say.
_SHAPELESS = (AttributeError, IndexError, KeyError, TypeError, ValueError, yaml.YAMLError)
_READABLE = "a shape that the checks can read; is something missing, or of another type?"


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
        for variant in self.tree.kops_variants():
            file = f"{inputs.TEMPLATE} ({variant})"
            try:
                documents = rendering.kops_documents(self.tree, variant)
            except RenderError as error:
                self.report.problems.append(rendering.failed(file, error))
                continue
            self._write(f"kops-{variant.replace(' ', '-')}.yaml", documents)
            self._kops(file, documents, validators, self.tree.kops_values(variant))

    def _kops(
        self,
        file: str,
        documents: Sequence[dict[str, Any]],
        validators: dict[str, Any],
        values: Mapping[str, Any],
    ) -> None:
        before = len(self.report.problems)
        for document in documents:
            kind = document.get("kind", "")
            place = Place(file, f"{kind} {(document.get('metadata') or {}).get('name')}")
            self.report.problems += place.expect_one_of("kind", kind, list(_KOPS_SCHEMAS))
            if kind in validators:
                self.report.problems += schemas.check(place, document, validators[kind])
        told = len(self.report.problems) > before
        clusters = [document for document in documents if document.get("kind") == "Cluster"]
        groups = [document for document in documents if document.get("kind") == "InstanceGroup"]
        if len(clusters) != 1:
            words = "one object Cluster"
            self.report.problems.append(
                Place(file).problem("kind", [d.get("kind") for d in documents], words)
            )
            return
        [cluster] = clusters
        place = Place(file, f"Cluster {(cluster.get('metadata') or {}).get('name')}")
        self._add(place, told, lambda: kops_cluster.check(place, cluster))
        self._add(place, told, lambda: iam.check_kops(self.tree, place, cluster, values))
        self._add(Place(file), told, lambda: kops_groups.check(file, cluster, groups, self.sizes))
        made = partial(kops_groups.groups_of, file, groups, self.sizes)
        self._agree("values-aws-kops.yaml", file, told, made)

        def handled() -> Iterable[Problem]:
            if not cluster["spec"].get("karpenter", {}).get("enabled"):
                return ()
            return termination.check(self.tree.yaml(termination.FILE), made())

        self._add(Place(file), told, handled)

    def karpenter(self) -> None:
        """The chart of Karpenter's pools on EKS, and the values of the project's chart for it."""
        try:
            documents = rendering.karpenter_documents(self.tree)
            there = rendering.karpenter_documents(self.tree, ["eu-west-1a"])
        except RenderError as error:
            self.report.problems.append(rendering.failed("karpenter", error))
            return
        self._write("eks-karpenter.yaml", documents)
        definitions = None
        try:
            definitions = karpenter.definitions()
        except RigError as error:
            self._left_out(f"Karpenter's objects against their schemas: {error}")
        before = len(self.report.problems)
        if definitions is not None:
            both = [*documents, *there]
            self._add(Place("karpenter"), False, lambda: karpenter.check_schemas(both, definitions))
        told = len(self.report.problems) > before
        for variant, wanted in ((documents, rendering.BY_ID), (there, rendering.BY_TAG)):
            self._add(Place("karpenter"), told, partial(karpenter.check, variant, self.sizes))
            self._add(Place("karpenter"), told, partial(karpenter.check_found, variant, wanted))
        groups = lambda: karpenter.groups_of(documents, self.sizes)  # noqa: E731 - called where errors are told
        self._agree("values-eks-karpenter.yaml", "karpenter", told, groups)

    def opentofu(self) -> None:
        """OpenTofu's files against the provider's schema, what they refer to, and what they allow."""
        checks: tuple[Callable[[Tree, Mapping[Path, Module]], Iterable[Problem]], ...]
        checks = (
            *(provider.check, arguments.check, references.check, wiring.check),
            *(iam.check, buckets.check),
        )
        for check in checks:
            self._add(Place("opentofu"), False, partial(check, self.tree, self.modules))
        printing = {name: self.module(name) for name in ("eks-karpenter", "eks-node-groups")}
        self._add(Place("opentofu"), False, lambda: inputs.check_printed(printing))
        self._add(Place("opentofu/kops"), False, lambda: inputs.check(self.tree, self.module("kops")))

    def node_groups(self) -> None:
        """EKS's managed node groups, and the values of the project's chart for them."""
        module = self.module("eks-node-groups")
        place = Place(module.name)
        self._add(place, False, lambda: eks_groups.check(module, self.sizes))
        autoscaler = Place(eks_groups.VALUES)
        self._add(autoscaler, False, lambda: eks_groups.check_autoscaler(self.tree.yaml(eks_groups.VALUES)))
        groups = lambda: eks_groups.groups_of(module, self.sizes)  # noqa: E731 - called where errors are told
        self._agree("values-eks-node-groups.yaml", module.name, False, groups)

    def lint(self) -> None:
        """YAML, shell, and the reasons of what checkov is told to skip."""
        self.report.problems += lint.check_yaml(self.tree)
        self.report.problems += lint.check_shell(self.tree)
        self.report.problems += lint.check_reasons(self.tree)

    def security(self) -> None:
        """Checkov's rules."""
        if self.checkov is None:
            words = "no .venv-checkov (`make .venv-checkov/stamp`), no checkov in PATH, and no --checkov"
            self._left_out(f"security rules of OpenTofu's files: {words}")
        else:
            self.report.problems += lint.check_security(self.tree, self.checkov)

    def _agree(self, file: str, machines: str, told: bool, groups: Callable[[], Sequence[Group]]) -> None:
        """Compare a file of values with the groups of machines that it is for."""
        try:
            documents = rendering.release_documents(self.tree, file)
        except RenderError as error:
            self.report.problems.append(rendering.failed(file, error))
            return
        made: list[Group] = []

        def make() -> Iterable[Problem]:
            made.extend(groups())
            return ()

        if not self._add(Place(machines), told, make):
            return

        def check() -> Iterable[Problem]:
            pods = pods_of(file, documents)
            note = agreement.first_machines(file, pods)
            if note not in self.report.notes:
                self.report.notes.append(note)
            return agreement.check(pods, made, self.tree.yaml(file))

        self._add(Place(file), told, check)

    def _add(self, place: Place, told: bool, check: Callable[[], Iterable[Problem]]) -> bool:
        """Add what a check finds; whether it came to its end.

        It does not with an object that has another shape than it reads. If no schema has told so already, it
        is a problem of its own.
        """
        try:
            for problem in check():
                self.report.problems.append(problem)
        except _SHAPELESS as error:
            if not told:
                self.report.problems.append(place.problem("shape", error, _READABLE))
            return False
        return True

    def _left_out(self, words: str) -> None:
        """Say what was not looked at; in CI that is a problem."""
        if os.environ.get("CI"):
            self.report.problems.append(Problem("check", "CI", words, "nothing left out in CI"))
        else:
            self.report.left_out.append(words)

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
        try:
            PARTS[name](check)
        except RigError as error:  # no Helm, without a network
            check._left_out(f"{name}: {error}")
        except _SHAPELESS as error:
            check.report.problems.append(Problem(name, "shape", repr(error), _READABLE))
    check.report.problems = list(dict.fromkeys(check.report.problems))
    return check.report
