"""Karpenter's NodePools and EC2NodeClasses on EKS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.aws.check import schemas
from deploy.aws.check.machines import CAPACITY, CPU, EFFECTS, FAMILY, Group, Taint
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.sizes import FILE as SIZES_FILE
from deploy.aws.check.sizes import Sizes, mebibytes
from deploy.aws.check.tree import CHECKOUT
from rig import binaries

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


def check(documents: Sequence[dict[str, Any]], crds: Path, sizes: Sizes) -> Iterator[Problem]:
    """What is wrong with the rendered objects."""
    classes = {
        document["metadata"]["name"]: document for document in documents if document["kind"] == "EC2NodeClass"
    }
    for document in documents:
        kind = document["kind"]
        place = Place(_FILES.get(kind, "karpenter"), f"{kind} {document['metadata']['name']}")
        if kind not in _CRDS:
            yield from place.expect_one_of("kind", kind, sorted(_CRDS))
            continue
        yield from schemas.check(place, document, schemas.read(crds / _CRDS[kind]))
        if kind == "NodePool":
            yield from _pool(place, document["spec"], classes, sizes)
        else:
            yield from _node_class(place, document["spec"])


def _node_class(place: Place, spec: Document) -> Iterator[Problem]:
    options = spec.get("metadataOptions", {})
    key = "spec.metadataOptions"
    yield from place.expect_one_of(f"{key}.httpTokens", options.get("httpTokens"), ["required"])
    hops = options.get("httpPutResponseHopLimit")
    words = "1, said: with more, pods get the machine's credentials"
    yield from place.expect(hops == 1, f"{key}.httpPutResponseHopLimit", hops, words)
    mappings = spec.get("blockDeviceMappings", [])
    yield from place.expect(bool(mappings), "spec.blockDeviceMappings", mappings, "an encrypted volume")
    for index, mapping in enumerate(mappings):
        encrypted = mapping.get("ebs", {}).get("encrypted")
        yield from place.expect(
            encrypted is True, f"spec.blockDeviceMappings[{index}].ebs.encrypted", encrypted, "true"
        )


def _pool(place: Place, spec: Document, classes: Mapping[str, Document], sizes: Sizes) -> Iterator[Problem]:
    template = spec["template"]["spec"]
    name = template.get("nodeClassRef", {}).get("name")
    yield from place.expect_one_of("spec.template.spec.nodeClassRef.name", name, sorted(classes))
    for index, taint in enumerate(template.get("taints", [])):
        yield from place.expect_one_of(
            f"spec.template.spec.taints[{index}].effect", taint.get("effect"), EFFECTS
        )
    limits = spec.get("limits")
    yield from place.expect(bool(limits), "spec.limits", limits, "limits: no pool without any")
    required = _required(template)
    for key in (FAMILY, CPU, CAPACITY):
        yield from place.expect(
            key in required, "spec.template.spec.requirements", sorted(required), f"one of {key}"
        )
    for family in required.get(FAMILY, []):
        words = f"a family of {SIZES_FILE}; add it"
        yield from place.expect(family in sizes.memory_gib_per_cpu, f"requirement {FAMILY}", family, words)
    for capacity in required.get(CAPACITY, []):
        yield from place.expect_one_of(f"requirement {CAPACITY}", capacity, ["spot", "on-demand"])
    if "spot" in required.get(CAPACITY, []):
        return
    # Whoever may not be on spot may not be moved, either.
    expires = template.get("expireAfter")
    words = "Never: with a scheduler goes the work in hand"
    yield from place.expect(expires == "Never", "spec.template.spec.expireAfter", expires, words)
    grace = template.get("terminationGracePeriod")
    words = "none: it would end a busy scheduler in spite of its annotation"
    yield from place.expect(grace is None, "spec.template.spec.terminationGracePeriod", grace, words)


def _required(template: Document) -> dict[str, list[str]]:
    return {
        requirement["key"]: requirement.get("values", [])
        for requirement in template.get("requirements", [])
        if requirement.get("operator") == "In"
    }


def groups_of(documents: Sequence[Document], sizes: Sizes) -> list[Group]:
    """The NodePools, as workers' pools see them."""
    made = []
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
        spot = "spot" in required.get(CAPACITY, ["spot"])
        made.append(
            Group(Place(_FILES["NodePool"], f"NodePool {name}"), name, labels, taints, known, maxima, spot)
        )
    return made
