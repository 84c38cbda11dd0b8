"""What OpenTofu's expressions refer to: whether it is there, and whether all that is there is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.aws.check.hcl import Module, code
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.provider import FILE
from deploy.aws.check.tree import Tree

_NAME = r"[A-Za-z_][\w-]*"
#: `var.x`, `module.x[0].y`, `data.aws_y.z.arn`, `aws_y.z["k"].arn`: a root and two or three steps.
_REFERENCE = re.compile(
    rf"(?<![\w.])(var|local|module|data|each|aws_\w+)"
    rf"\.({_NAME})(?:\[[^\]]*\])?(?:\.({_NAME}))?(?:\[[^\]]*\])?(?:\.({_NAME}))?"
)

_CALL = re.compile(r"(?<![\w.])([a-z]\w*)\(")
#: Of functions that configurations such as ours use.
_TABLE = "schema/opentofu.json"


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Undefined references, and variables and locals that nothing uses."""
    functions = set(json.loads(tree.text(_TABLE))["functions"])
    attributes = {
        name: {*facts["attributes"], *facts["arguments"]}
        for name, facts in json.loads(tree.text(FILE))["types"].items()
    }
    for module in modules.values():
        used: set[str] = set()
        for place, key, text in module.expressions:
            for name in _CALL.findall(code(text)):
                words = f"a function of OpenTofu's in {_TABLE}; if it is none of a misspelling, add it"
                yield from place.expect(name in functions or key == "type", key, f"{name}(…)", words)
            for found in _REFERENCE.finditer(code(text)):
                used.add(f"{found[1]}.{found[2]}")
                yield from _resolve(place, key, found, module, modules, attributes)
        for name, variable in module.variables.items():
            yield from variable.place.expect(f"var.{name}" in used, "use", name, "somewhere in the module")
        for name, place in module.locals.items():
            yield from place.expect(f"local.{name}" in used, "use", name, "somewhere in the module")


def _resolve(
    place: Place,
    key: str,
    found: re.Match[str],
    module: Module,
    modules: Mapping[Path, Module],
    attributes: Mapping[str, set[str]],
) -> Iterator[Problem]:
    root, first, second, third = found.groups()
    if root == "var":
        yield from place.expect_one_of(key, f"var.{first}", [f"var.{name}" for name in module.variables])
    elif root == "local":
        yield from place.expect_one_of(key, f"local.{first}", [f"local.{name}" for name in module.locals])
    elif root == "module":
        yield from place.expect_one_of(key, f"module.{first}", [f"module.{name}" for name in module.modules])
        if first in module.modules and second is not None:
            source = str(module.modules[first].body.get("source", "")).strip('"')
            target = modules.get((module.folder / source).resolve())
            outputs = [] if target is None else list(target.outputs)
            yield from place.expect_one_of(
                key, f"module.{first}.{second}", [f"module.{first}.{o}" for o in outputs]
            )
    elif root == "data":
        yield from _object(place, key, "data", f"{first}.{second}", third, set(module.data), attributes)
    elif root == "each":
        yield from place.expect_one_of(key, f"each.{first}", ["each.key", "each.value"])
    else:
        yield from _object(
            place, key, "resource", f"{root}.{first}", second, set(module.resources), attributes
        )


def _object(
    place: Place,
    key: str,
    kind: str,
    name: str,
    attribute: str | None,
    there: set[str],
    attributes: Mapping[str, set[str]],
) -> Iterator[Problem]:
    yield from place.expect_one_of(key, name, sorted(there))
    known = attributes.get(f"{kind}.{name.partition('.')[0]}")
    if attribute is not None and known is not None:
        yield from place.expect_one_of(
            key, f"{name}.{attribute}", [f"{name}.{item}" for item in sorted(known)]
        )
