"""The inputs of the kOps template: each one said is used, and each one used is said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from deploy.aws.check.hcl import Module
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree
from deploy.aws.check.wiring import SECURITY_GROUPS

TEMPLATE = "kops/cluster.tmpl.yaml"
DEFAULTS = "kops/defaults.yaml"
#: Of an item of `podRoles`, which the template goes through.
_ITEM = {"namespace", "name", "policyArns"}


_SCALED = "awsRegion autoscalingGroups name minSize maxSize rbac serviceAccount name"
#: What other outputs print for whom: all the keys in them.
_PRINTED = {
    ("eks-karpenter", "karpenter_values"): "clusterName nodeRole subnetIds securityGroupIds",
    ("eks-karpenter", "karpenter_settings"): "settings clusterName interruptionQueue",
    ("eks-node-groups", "autoscaler_values"): _SCALED,
}
#: What must stand behind some of these keys, as what is like it is taken, too, and why.
_MEANT = {
    "interruptionQueue": ("module.interruptions.queue_name", "Karpenter asks for its URL by the name"),
    "maxSize": ("group.scaling_config[0].max_size", "else machines that a group may have never come"),
    "minSize": ("group.scaling_config[0].min_size", "else machines stay that nobody needs"),
    "nodeRole": ("aws_iam_role.machine.name", "an EC2NodeClass wants the name"),
    "securityGroupIds": (SECURITY_GROUPS, "else machines reach neither control plane nor DNS"),
    "subnetIds": ("var.subnet_ids", "else machines come where nobody wants them"),
}


def check_printed(modules: Mapping[str, Module]) -> Iterator[Problem]:
    """Values that OpenTofu prints for charts: their keys, which these would take for nothing."""
    for (module, name), keys in _PRINTED.items():
        output = modules[module].outputs.get(name)
        if output is None:
            words = f"output {name}, which docs/aws.md has one print"
            yield Place(f"opentofu/{module}/outputs.tf").problem(f"output {name}", None, words)
            continue
        value = str(output.body.get("value"))
        said = re.findall(r"[{,]\s*(\w+)\s*=(?!=)", value)
        yield from output.place.expect(said == keys.split(), "value", " ".join(said), f"the keys {keys}")
        for key in keys.split():
            meant, why = _MEANT.get(key, ("", ""))
            holds = re.search(rf"\b{key} = {re.escape(meant)}(?![\w.])", value) is not None
            yield from output.place.expect(holds or not meant, "value", value, f"{key} = {meant}: {why}")


def check(tree: Tree, foundation: Module) -> Iterator[Problem]:
    """Keys that the template, the files of inputs and OpenTofu's output do not agree on.

    Helm fills in nothing for an input that does not exist, where kOps gives up.
    """
    defaults = set(tree.yaml(DEFAULTS))
    used = set()
    for action in re.findall(r"\{\{(.*?)\}\}", tree.text(TEMPLATE), re.DOTALL):
        code = re.sub(r'/\*.*?\*/|"(?:[^"\\]|\\.)*"', "", action, flags=re.DOTALL)
        used |= set(re.findall(r"(?<![\w.)])\$?\.([A-Za-z]\w*)", code))
    for name in sorted(used - _ITEM):
        yield from Place(TEMPLATE).expect_one_of("{{ . }}", name, sorted(defaults))
    for name in sorted(defaults - used):
        yield Place(DEFAULTS).problem(name, name, f"an input that {TEMPLATE} uses")
    for file in sorted(
        {file for variant in tree.kops_variants() for file in tree.kops_inputs(variant)} - {DEFAULTS}
    ):
        for name in tree.yaml(file) or {}:
            yield from Place(file).expect_one_of(name, name, sorted(defaults))
    output = foundation.outputs.get("kops_inputs")
    if output is None:
        yield Place("opentofu/kops/outputs.tf").problem("output kops_inputs", None, "the template's inputs")
        return
    for name in re.findall(r"[{,]\s*(\w+)\s*=(?!=)", str(output.body["value"])):
        yield from output.place.expect_one_of("value", name, sorted(defaults))
