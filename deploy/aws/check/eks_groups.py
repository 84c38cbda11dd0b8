"""EKS's managed node groups, and the values of cluster-autoscaler's chart that they are scaled by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.aws.check.hcl import Block, Module, plain
from deploy.aws.check.kops_cluster import EXPANDERS, TAG, TAG_IS_FOR, delay, threshold
from deploy.aws.check.machines import (
    EKS_CAPACITY,
    KEPT,
    ON_DEMAND,
    ROOT,
    ROOT_DEVICE,
    SPOT,
    Group,
    Taint,
    known_sizes,
    same_size,
)
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.sizes import Sizes

#: EKS's words for a taint's effects.
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}
VALUES = "cluster-autoscaler-values.yaml"
#: As `kops_cluster.SAID`.
_SAID = (
    "ignore-daemonsets-utilization",
    "max-node-provision-time",
    "scale-down-delay-after-add",
    "scale-down-unneeded-time",
    "scale-down-utilization-threshold",
)
#: Flags of cluster-autoscaler that we may set.
_FLAGS = {
    "expander",
    "ignore-daemonsets-utilization",
    "max-node-provision-time",
    "new-pod-scale-up-delay",
    "scale-down-delay-after-add",
    "scale-down-unneeded-time",
    "scale-down-utilization-threshold",
    "skip-nodes-with-local-storage",
    "skip-nodes-with-system-pods",
}


def check(module: Module, sizes: Sizes) -> Iterator[Problem]:
    """What is wrong with the node groups and launch templates of a module."""
    scaled = str(module.values.get("groups"))
    for name, block in module.resources.items():
        if block.type == "aws_eks_node_group":
            yield from _group(module, block, sizes)
            words = f"local.groups with {name}: by these cluster-autoscaler knows its groups"
            holds = re.search(rf"{re.escape(name)}\b", scaled) is not None
            yield from block.place.expect(holds, "local.groups", scaled, words)
        elif block.type == "aws_launch_template":
            yield from _template(block)


def _group(module: Module, block: Block, sizes: Sizes) -> Iterator[Problem]:
    place, body = block.place, block.body
    yield from place.expect_one_of("capacity_type", plain(body.get("capacity_type")), ["ON_DEMAND", "SPOT"])
    for index, taint in enumerate(body.get("taint", [])):
        yield from place.expect_one_of(f"taint[{index}].effect", plain(taint.get("effect")), EFFECTS)
    [scaling] = body.get("scaling_config", [{}])
    least, most, now = (module.default(scaling.get(f"{name}_size")) for name in ("min", "max", "desired"))
    holds = all(isinstance(number, int) for number in (least, most, now)) and 0 <= least <= now <= most
    yield from place.expect(holds, "scaling_config", plain(scaling), "min_size ≤ desired_size ≤ max_size")
    words = "0: machines are paid for, also while nobody computes"
    yield from place.expect(least == 0, "scaling_config.min_size", least, words)
    template = str(body.get("launch_template", [{}])[0].get("id"))
    words = "an aws_launch_template of this module, else there is IMDSv1, and volumes are not encrypted"
    holds = "aws_launch_template." in template
    yield from place.expect(holds, "launch_template.id", template, words)
    ignored = body.get("lifecycle", [{}])[0].get("ignore_changes")
    words = "scaling_config[0].desired_size among them: `tofu apply` would end machines that have work"
    yield from place.expect("desired_size" in str(ignored), "lifecycle.ignore_changes", ignored, words)
    forced = body.get("force_update_version")
    words = "false, said: an update would end what a disruption budget protects"
    yield from place.expect(forced is False, "force_update_version", forced, words)
    subnets = body.get("subnet_ids", [])
    words = "one: Auto Scaling would end busy machines to keep zones even"
    yield from place.expect(isinstance(subnets, list) and len(subnets) == 1, "subnet_ids", subnets, words)
    types = module.default(body.get("instance_types", []))
    problems, known = known_sizes(place, "instance_types", types, sizes)
    yield from problems
    yield from same_size(place, "instance_types", types, known)


def _template(block: Block) -> Iterator[Problem]:
    [options] = block.body.get("metadata_options", [{}])
    tokens, hops = plain(options.get("http_tokens")), options.get("http_put_response_hop_limit")
    yield from block.place.expect_one_of("metadata_options.http_tokens", tokens, ["required"])
    words = "1, said: with more, pods get the machine's credentials"
    yield from block.place.expect(hops == 1, "metadata_options.http_put_response_hop_limit", hops, words)
    for index, mapping in enumerate(block.body.get("block_device_mappings", [{}])):
        volume = plain(mapping).get("ebs", [{}])[0]
        key = f"block_device_mappings[{index}]"
        encrypted, kept = volume.get("encrypted"), volume.get("delete_on_termination")
        yield from block.place.expect(encrypted is True, f"{key}.ebs.encrypted", encrypted, "true")
        yield from block.place.expect(kept is True, f"{key}.ebs.delete_on_termination", kept, KEPT)
        device = plain(mapping).get("device_name")
        yield from block.place.expect(device == ROOT_DEVICE, f"{key}.device_name", device, ROOT)
    # The provider's default_tags reach the template, and not what EC2 makes by it.
    dynamic = {name: given for each in plain(block.body.get("dynamic", [])) for name, given in each.items()}
    tagged = dynamic.get("tag_specifications", {})
    kinds = str(tagged.get("for_each"))
    words = '"instance" and "volume": each is paid for, and known by its tag'
    holds = {*re.findall(r'"(\w+)"', kinds)} == {"instance", "volume"}
    yield from block.place.expect(holds, "tag_specifications.for_each", kinds, words)
    tags = tagged.get("content", [{}])[0].get("tags", {})
    words = f"${{var.cluster_name}}: {TAG_IS_FOR}"
    holds = tags.get(TAG) == "${var.cluster_name}"
    yield from block.place.expect(holds, f"tag_specifications.tags.{TAG}", tags, words)


def groups_of(module: Module, sizes: Sizes) -> list[Group]:
    """The node groups, as workers' pools see them."""
    made = []
    for block in module.resources.values():
        if block.type != "aws_eks_node_group":
            continue
        body = plain(block.body)
        taints = tuple(
            Taint(taint["key"], taint.get("value", ""), EFFECTS.get(taint["effect"], taint["effect"]))
            for taint in body.get("taint", [])
        )
        types = module.default(block.body.get("instance_types", []))
        known = known_sizes(block.place, "", types, sizes)[1]
        most = module.default(block.body["scaling_config"][0]["max_size"])
        markets = (SPOT if body.get("capacity_type") == "SPOT" else ON_DEMAND,)
        choices = {EKS_CAPACITY: (str(body.get("capacity_type")),)}
        name = block.name.split(".")[1]
        maxima = (int(most),) * len(known)
        labels = dict(body.get("labels", {}))
        hops = _hop_limit(module, str(body.get("launch_template", [{}])[0].get("id")))
        made.append(Group(block.place, name, labels, taints, known, maxima, markets, choices, hops))
    return made


def _hop_limit(module: Module, template: str) -> int:
    found = re.search(r"aws_launch_template\.\w+", template)
    body = module.resources[found[0]].body if found and found[0] in module.resources else {}
    return int(body.get("metadata_options", [{}])[0].get("http_put_response_hop_limit", 1))


def check_autoscaler(values: Mapping[str, Any]) -> Iterator[Problem]:
    """The flags that decide whether idle workers' machines go."""
    place = Place(VALUES)
    flags = values.get("extraArgs", {})
    for name in _SAID:
        words = "said: its default is not for machines that come and go with the work"
        yield from place.expect(name in flags, f"extraArgs.{name}", None, words)
    for name in flags:
        yield from place.expect_one_of(f"extraArgs.{name}", name, sorted(_FLAGS))
        if name.endswith(("-time", "-delay", "-after-add")):
            yield from delay(place, f"extraArgs.{name}", flags[name])
        elif name.startswith(("skip-", "ignore-")):
            yield from place.expect_one_of(f"extraArgs.{name}", flags[name], [True, False])
    key = "scale-down-utilization-threshold"
    yield from threshold(place, f"extraArgs.{key}", flags.get(key, 0.5))
    expander = flags.get("expander")
    yield from place.expect_one_of("extraArgs.expander", expander, EXPANDERS)
    words = "expanderPriorities, which `priority` needs"
    holds = expander != "priority" or "expanderPriorities" in values
    yield from place.expect(holds, "extraArgs.expander", expander, words)
    yield from place.expect_one_of("cloudProvider", values.get("cloudProvider"), ["aws"])
    found = values.get("autoDiscovery")
    words = "none: EKS tags all node groups of a cluster for it, and others' would be scaled like ours"
    yield from place.expect(found is None, "autoDiscovery", found, words)
    key = "skip-nodes-with-local-storage"
    words = "false: workers spill to an emptyDir, and would keep their machine when idle"
    yield from place.expect(flags.get(key) is False, f"extraArgs.{key}", flags.get(key), words)
