"""OpenTofu's resources against the part of the aws provider's schema that we use.

``python -m deploy.aws.check.provider aws-schema-….json.gz`` takes that part out of the whole again, after a
new type or a new version.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.aws.check.hcl import Block, Module, is_block, plain, read, texts
from deploy.aws.check.kops_cluster import TAG, TAG_IS_FOR
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

FILE = "schema/aws-provider.json"
_OUTPUT = ("description", "value", "sensitive", "depends_on", "precondition")
_VARIABLE = ("description", "type", "default", "validation", "sensitive", "nullable")
#: OpenTofu's own arguments, which every block of its kind has.
_META = {"count", "for_each", "provider", "depends_on", "lifecycle"}


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Unknown, misspelt and missing arguments, and versions that are not pinned."""
    schema = json.loads(tree.text(FILE))
    for module in modules.values():
        for kind, blocks in (("resource", module.resources), ("data", module.data)):
            for block in blocks.values():
                known = schema["types"].get(f"{kind}.{block.type}")
                words = (
                    f"a type of {FILE}; if it is none of a misspelling, take it out of the provider's schema"
                )
                yield from block.place.expect(known is not None, "type", block.type, words)
                if known is not None:
                    yield from _arguments(block.place, "", block.body, known["arguments"], _META)
        for call in module.modules.values():
            yield from _call(call, module, modules)
        yield from _described(module)
        yield from _versions(module, schema["version"])


def _arguments(
    place: Place, path: str, body: Mapping[str, Any], known: Mapping[str, Any], meta: set[str]
) -> Iterator[Problem]:
    given = dict(body)
    for dynamic in given.pop("dynamic", []):
        for name, block in dynamic.items():
            if isinstance(block, dict):
                given[str(plain(name))] = block["content"]
    for name, value in given.items():
        if name in meta or name == "__is_block__":
            continue
        key = f"{path}{name}"
        if name not in known:
            yield place.problem(
                key, plain(value), f"an argument of the provider's: {', '.join(sorted(known))}"
            )
        elif "block" in known[name]:
            yield from place.expect(is_block(value), key, plain(value), "a block")
            for index, block in enumerate(value if is_block(value) else []):
                inner = f"{key}[{index}]." if len(value) > 1 else f"{key}."
                yield from _arguments(place, inner, block, known[name]["block"], set())
        else:
            yield from place.expect(not is_block(value), key, plain(value), "an argument, not a block")
    for name, facts in known.items():
        if facts.get("required") and name not in given:
            yield place.problem(f"{path}{name}", None, "a value: the provider requires it")


def _call(call: Block, module: Module, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    source = str(plain(call.body.get("source", "")))
    target = modules.get((module.folder / source).resolve())
    yield from call.place.expect(
        target is not None, "source", source, "a folder of ours, with OpenTofu files"
    )
    if target is None:
        return
    given = set(call.body) - _META - {"source"}
    for name in sorted(given - set(target.variables)):
        words = f"a variable of {target.name}: {', '.join(sorted(target.variables))}"
        yield call.place.problem(name, plain(call.body[name]), words)
    for name, variable in target.variables.items():
        holds = name in given or "default" in variable.body
        yield from call.place.expect(holds, name, None, f"a value: {target.name} requires it")


def _described(module: Module) -> Iterator[Problem]:
    for blocks, known in ((module.outputs, _OUTPUT), (module.variables, _VARIABLE)):
        for block in blocks.values():
            for name in block.body:
                yield from block.place.expect_one_of(name, name, known)
    for block in module.outputs.values():
        yield from block.place.expect("value" in block.body, "value", block.body.get("value"), "a value")
    for block in [*module.resources.values(), *module.modules.values()]:
        each = any("each." in text for text in texts(block.body))
        words = "an argument of the block: each.key and each.value are of it"
        yield from block.place.expect(not each or "for_each" in block.body, "for_each", None, words)
    for block in [*module.variables.values(), *module.outputs.values()]:
        holds = bool(plain(block.body.get("description")))
        yield from block.place.expect(holds, "description", block.body.get("description"), "a sentence")
    for block in module.variables.values():
        yield from block.place.expect("type" in block.body, "type", block.body.get("type"), "a type")


def _versions(module: Module, checked: str) -> Iterator[Problem]:
    settings = [block for block in module.settings if block.place.subject == "terraform"]
    if not settings:
        yield Place(f"{module.name}/versions.tf").problem(
            "terraform", None, "required_version, required_providers"
        )
        return
    [block] = settings
    required = plain(block.body.get("required_version"))
    yield from block.place.expect(bool(required), "required_version", required, "a version")
    providers = plain(block.body.get("required_providers", [{}]))
    version = str(providers[0].get("aws", {}).get("version"))
    for given in module.providers:
        tags = plain(given.body.get("default_tags", [{}]))[0].get("tags", {})
        words = f"${{var.cluster_name}}: {TAG_IS_FOR}"
        holds = tags.get(TAG) == "${var.cluster_name}"
        yield from given.place.expect(holds, f"default_tags.tags.{TAG}", tags, words)
    if module.providers:
        words = f"{checked}, whose schema {FILE} is part of"
        yield from block.place.expect(version == checked, "required_providers.aws.version", version, words)
    else:
        bounded = bool(re.fullmatch(r">= [\d.]+, < [\d.]+", version))
        yield from block.place.expect(
            bounded, "required_providers.aws.version", version, "two bounds: >= …, < …"
        )


def taken(whole: Mapping[str, Any], used: Sequence[str], version: str) -> str:
    """The part of the provider's schema for these types, one a line."""

    def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, facts in sorted(given.items()):
            made[name] = {"required": True} if facts["req"] else {}
            if "block" in facts:
                made[name]["block"] = arguments(facts["block"])
        return made

    lines = []
    for name in sorted(used):
        attributes = [attribute for attribute in whole[name]["attrs"] if not attribute.endswith("_input")]
        part = {"arguments": arguments(whole[name]["args"]), "attributes": attributes}
        lines.append(f"    {json.dumps(name)}: {json.dumps(part, sort_keys=True)}")
    head = f'{{\n  "provider": "hashicorp/aws",\n  "version": {json.dumps(version)},\n  "types": {{\n'
    return head + ",\n".join(lines) + "\n  }\n}\n"


def main(source: Path) -> None:
    """Write the part that is used into the file."""
    tree = Tree()
    version = re.search(r"(\d+\.\d+\.\d+)", source.name)
    assert version is not None, "the file's name has the provider's version"
    with gzip.open(source) as stream:
        whole = json.load(stream)
    used: set[str] = set()
    for folder in tree.modules():
        module, _ = read(tree, folder)
        used |= {f"resource.{block.type}" for block in module.resources.values()}
        used |= {f"data.{block.type}" for block in module.data.values()}
    tree.path(FILE).write_text(taken(whole, sorted(used), version[1]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
