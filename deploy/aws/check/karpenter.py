"""Karpenter's NodePools and EC2NodeClasses on EKS."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.aws.check import schemas
from deploy.aws.check.arguments import is_amount
from deploy.aws.check.durations import seconds
from deploy.aws.check.kops_cluster import TAG, TAG_IS_FOR
from deploy.aws.check.kops_groups import VOLUMES
from deploy.aws.check.machines import (
    CAPACITY,
    CPU,
    EFFECTS,
    FAMILY,
    KEPT,
    ON_DEMAND,
    ROOT,
    ROOT_DEVICE,
    SPOT,
    ZONE,
    Group,
    Taint,
)
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.rendering import CLUSTER_NAME, MACHINES_ROLE
from deploy.aws.check.sizes import BIGGEST_GIB, SMALLEST_GIB, Sizes, mebibytes
from deploy.aws.check.sizes import FILE as SIZES_FILE
from deploy.aws.check.tree import CHECKOUT
from rig import binaries

#: Labels that a pool may name, and of some of them the values that there are.
_ARCH, _OS = "kubernetes.io/arch", "kubernetes.io/os"
_VALUES = {_ARCH: ("amd64",), _OS: ("linux",), CAPACITY: (SPOT, ON_DEMAND)}
_LABELS = {*_VALUES, FAMILY, CPU, ZONE}
#: How long an empty machine may stay.
_WARMEST_S = 3600.0
#: How long a machine must be let work.
_YOUNGEST_S = 24 * 3600.0
_GROUP = "karpenter.k8s.aws"
#: Ends of the domains of labels that are not for us.
_RESERVED = ("kubernetes.io", "k8s.io", "karpenter.sh", _GROUP)
MODULE = "github.com/aws/karpenter-provider-aws"
_CRDS = {"NodePool": "karpenter.sh_nodepools.yaml", "EC2NodeClass": "karpenter.k8s.aws_ec2nodeclasses.yaml"}
_FILES = {
    "NodePool": "karpenter/templates/nodepools.yaml",
    "EC2NodeClass": "karpenter/templates/nodeclasses.yaml",
}

Document = Mapping[str, Any]


def definitions() -> Path:
    """The folder of Karpenter's CustomResourceDefinitions, in its Go module: the version that the rig builds.

    Raises
    ------
    rig.folders.RigError
        If there is no Go, or no module proxy.
    """
    required = (CHECKOUT / "rig" / "go" / "karpenter" / "go.mod").read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(MODULE)} (v[0-9.]+)\b", required, re.MULTILINE)
    assert found is not None, "rig/go/karpenter/go.mod requires Karpenter"
    said = binaries.go().run("mod", "download", "-json", f"{MODULE}@{found[1]}", cwd=Path("/"))
    return Path(json.loads(said)["Dir"]) / "pkg" / "apis" / "crds"


def check_schemas(documents: Sequence[dict[str, Any]], crds: Path) -> Iterator[Problem]:
    """The rendered objects against their CustomResourceDefinitions, in this folder."""
    for document in documents:
        kind = document.get("kind", "")
        if kind in _CRDS:
            yield from schemas.check(_placed(document), document, schemas.read(crds / _CRDS[kind]))


def check(documents: Sequence[dict[str, Any]], sizes: Sizes) -> Iterator[Problem]:
    """What is wrong with the rendered objects by what their schemas cannot say."""
    named = [(document.get("kind"), document["metadata"]["name"]) for document in documents]
    classes = {name for kind, name in named if kind == "EC2NodeClass"}
    for document in documents:
        kind, place = document.get("kind"), _placed(document)
        yield from place.expect_one_of("kind", kind, sorted(_CRDS))
        holds = named.count((kind, document["metadata"]["name"])) == 1
        yield from place.expect(holds, "metadata.name", document["metadata"]["name"], "names that differ")
        if kind == "NodePool":
            yield from _pool(place, document["spec"], classes, sizes)
        elif kind == "EC2NodeClass":
            yield from _node_class(place, document["spec"])


def _placed(document: Document) -> Place:
    kind = str(document.get("kind"))
    return Place(_FILES.get(kind, "karpenter"), f"{kind} {(document.get('metadata') or {}).get('name')}")


def check_found(documents: Sequence[Document], wanted: Mapping[str, Any]) -> Iterator[Problem]:
    """Whether node classes find subnets and security groups so."""
    for document in documents:
        if document.get("kind") != "EC2NodeClass":
            continue
        for selector, terms in wanted.items():
            said = document["spec"].get(selector)
            yield from _placed(document).expect(said == terms, f"spec.{selector}", said, f"{terms}, as told")


def _node_class(place: Place, spec: Document) -> Iterator[Problem]:
    options = spec.get("metadataOptions", {})
    key = "spec.metadataOptions"
    yield from place.expect_one_of(f"{key}.httpTokens", options.get("httpTokens"), ["required"])
    role = spec.get("role")
    words = "the machines' role, which opentofu/eks-karpenter makes"
    yield from place.expect(role == MACHINES_ROLE, "spec.role", role, words)
    yield from place.expect_one_of(f"{key}.httpEndpoint", options.get("httpEndpoint"), ["enabled"])
    tagged = spec.get("tags", {}).get(TAG)
    words = f"{CLUSTER_NAME}, the cluster's name: {TAG_IS_FOR}"
    yield from place.expect(tagged == CLUSTER_NAME, f"spec.tags.{TAG}", tagged, words)
    public = spec.get("associatePublicIPAddress")
    words = "false: machines are reached from within only"
    yield from place.expect(public is False, "spec.associatePublicIPAddress", public, words)
    hops = options.get("httpPutResponseHopLimit")
    words = "1, said: with more, pods get the machine's credentials"
    yield from place.expect(hops == 1, f"{key}.httpPutResponseHopLimit", hops, words)
    mappings = spec.get("blockDeviceMappings", [])
    yield from place.expect(bool(mappings), "spec.blockDeviceMappings", mappings, "an encrypted volume")
    for index, mapping in enumerate(mappings):
        encrypted = mapping.get("ebs", {}).get("encrypted")
        key = f"spec.blockDeviceMappings[{index}].ebs"
        yield from place.expect(encrypted is True, f"{key}.encrypted", encrypted, "true")
        volume = mapping.get("ebs", {})
        kept = volume.get("deleteOnTermination")
        yield from place.expect(kept is True, f"{key}.deleteOnTermination", kept, KEPT)
        device = mapping.get("deviceName")
        yield from place.expect(
            device == ROOT_DEVICE, f"spec.blockDeviceMappings[{index}].deviceName", device, ROOT
        )
        yield from place.expect_one_of(f"{key}.volumeType", volume.get("volumeType"), VOLUMES)
        size = volume.get("volumeSize")
        holds = is_amount(size) and SMALLEST_GIB <= mebibytes(str(size)) / 1024 <= BIGGEST_GIB
        words = f"an amount from {SMALLEST_GIB}Gi to {BIGGEST_GIB}Gi"
        yield from place.expect(holds, f"{key}.volumeSize", size, words)


def _pool(place: Place, spec: Document, classes: Collection[str], sizes: Sizes) -> Iterator[Problem]:
    template = spec["template"]["spec"]
    reference = template.get("nodeClassRef", {})
    for name, known in (("group", [_GROUP]), ("kind", ["EC2NodeClass"]), ("name", sorted(classes))):
        yield from place.expect_one_of(f"spec.template.spec.nodeClassRef.{name}", reference.get(name), known)
    for label in spec["template"].get("metadata", {}).get("labels", {}):
        words = f"a label of a domain of one's own: {', '.join(_RESERVED)} are Kubernetes' and Karpenter's"
        holds = not label.partition("/")[0].endswith(_RESERVED)
        yield from place.expect(holds, "spec.template.metadata.labels", label, words)
    for index, taint in enumerate(template.get("taints", [])):
        yield from place.expect_one_of(
            f"spec.template.spec.taints[{index}].effect", taint.get("effect"), EFFECTS
        )
    limits = spec.get("limits")
    yield from place.expect(bool(limits), "spec.limits", limits, "limits: no pool without any")
    required = _required(template)
    for key in (_ARCH, _OS, FAMILY, CPU, CAPACITY):
        yield from place.expect(
            key in required, "spec.template.spec.requirements", sorted(required), f"one of {key}"
        )
    for family in required.get(FAMILY, []):
        words = f"a family of {SIZES_FILE}; add it"
        yield from place.expect(family in sizes.memory_gib_per_cpu, f"requirement {FAMILY}", family, words)
    for key, values in required.items():
        yield from place.expect_one_of("spec.template.spec.requirements", key, sorted(_LABELS))
        for value in values:
            if key in _VALUES:
                yield from place.expect_one_of(f"requirement {key}", value, _VALUES[key])
    yield from _disruption(place, spec.get("disruption", {}))
    grace = template.get("terminationGracePeriod")
    words = "none: it would end busy workers, and a busy scheduler, in spite of their annotation"
    yield from place.expect(grace is None, "spec.template.spec.terminationGracePeriod", grace, words)
    expires = template.get("expireAfter")
    expires_s = seconds(str(expires))
    words = f"Never, or at least {_YOUNGEST_S / 3600:g}h: what works on a machine that expires must hand over"
    holds = expires == "Never" or (expires_s is not None and expires_s >= _YOUNGEST_S)
    yield from place.expect(holds, "spec.template.spec.expireAfter", expires, words)
    if SPOT in required.get(CAPACITY, []):
        return
    # Whoever may not be on spot may not be moved, either.
    packed = spec.get("disruption", {}).get("consolidationPolicy")
    words = "WhenEmpty: nothing is moved for a better price"
    yield from place.expect(packed == "WhenEmpty", "spec.disruption.consolidationPolicy", packed, words)
    words = "Never: with a scheduler goes the work in hand"
    yield from place.expect(expires == "Never", "spec.template.spec.expireAfter", expires, words)


def _disruption(place: Place, disruption: Document) -> Iterator[Problem]:
    """Whether empty machines go, and all of them at once."""
    key = "spec.disruption.consolidateAfter"
    after = disruption.get("consolidateAfter")
    after_s = seconds(str(after))
    words = f"a duration of at most {_WARMEST_S / 3600:g}h: an empty machine is paid for"
    yield from place.expect(after_s is not None and after_s <= _WARMEST_S, key, after, words)
    budgets = disruption.get("budgets", [{"nodes": "10%"}])
    for_all = [budget for budget in budgets if not budget.get("reasons") or "Empty" in budget["reasons"]]
    words = 'only "100%" for reasons that hold for empty machines: they go at once, not a part at a time'
    holds = bool(for_all) and all(str(budget.get("nodes")) == "100%" for budget in for_all)
    yield from place.expect(holds, "spec.disruption.budgets", budgets, words)


def _required(template: Document) -> dict[str, list[str]]:
    return {
        requirement["key"]: requirement.get("values", [])
        for requirement in template.get("requirements", [])
        if requirement.get("operator") == "In"
    }


def groups_of(documents: Sequence[Document], sizes: Sizes) -> list[Group]:
    """The NodePools, as workers' pools see them."""
    made = []
    hop_limits = {
        document["metadata"]["name"]: document["spec"]
        .get("metadataOptions", {})
        .get("httpPutResponseHopLimit", 1)
        for document in documents
        if document["kind"] == "EC2NodeClass"
    }
    for document in documents:
        if document["kind"] != "NodePool":
            continue
        spec = document["spec"]
        template = spec["template"]["spec"]
        required = _required(template)
        known = tuple(
            sizes.of_family(family, int(cpus))
            for family in required.get(FAMILY, [])
            for cpus in required.get(CPU, [])
            if family in sizes.memory_gib_per_cpu
        )
        limits = spec.get("limits", {})
        cpus, memory_mib = int(limits.get("cpu", 0)), mebibytes(str(limits.get("memory", "0")))
        maxima = tuple(min(cpus // size.cpus, memory_mib // size.memory_mib) for size in known)
        taints = tuple(
            Taint(taint["key"], taint.get("value", ""), taint.get("effect", ""))
            for taint in template.get("taints", [])
        )
        name = document["metadata"]["name"]
        labels = dict(spec["template"].get("metadata", {}).get("labels", {}))
        markets = tuple(required.get(CAPACITY, [SPOT, ON_DEMAND]))
        choices = {key: tuple(values) for key, values in required.items()} | {CAPACITY: markets}
        place = Place(_FILES["NodePool"], f"NodePool {name}")
        hops = hop_limits.get(template.get("nodeClassRef", {}).get("name"), 1)
        made.append(Group(place, name, labels, taints, known, maxima, markets, choices, hops))
    return made
