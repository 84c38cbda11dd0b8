"""What OpenTofu's expressions refer to: whether it is there, and whether all that is there is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.aws.check.hcl import Module, code, plain
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.provider import FILE
from deploy.aws.check.tree import Tree

_NAME = r"[A-Za-z_][\w-]*"
#: `var.x`, `module.x[0].y`, `data.aws_y.z.arn`, `aws_y.z["k"].arn`: a root and two or three steps.
_REFERENCE = re.compile(
    rf"(?<![\w.])(var|local|module|data|each|aws_\w+)"
    rf"\.({_NAME})(?:\[[^\]]*\])?(?:\.({_NAME}))?(?:\[[^\]]*\])?(?:\.({_NAME}))?"
)

#: A name that is no attribute, no key and no function.
_WORD = re.compile(r"(?<![\w.\"-])([A-Za-z_][\w-]*)(?![\w-]|\s*(?:=(?!=)|\())")
_LOOP = re.compile(r"\bfor\s+(\w+)(?:\s*,\s*(\w+))?\s+in\b")
_KEYWORDS = {"null", "true", "false", "for", "in", "if"}
_ROOTS = {"var", "local", "module", "data", "each", "count", "self", "path"}
#: Arguments whose names are others: types, and attributes of the block itself.
_OF_OTHER_WORDS = ("type", "lifecycle", "depends_on", "providers")
#: How long a list is, is known before what is in it.
_LENGTH = re.compile(r"\blength\([^()]*\)")
#: What is known before anything is made.
_KNOWN = {"var", "local", "each"}
_CALL = re.compile(r"(?<![\w.])([a-z]\w*)\(")
#: Of functions that configurations such as ours use.
_TABLE = "schema/opentofu.json"


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Undefined references, and variables, locals and data that nothing uses."""
    functions = set(json.loads(tree.text(_TABLE))["functions"])
    attributes = {
        name: {*facts["attributes"], *facts["arguments"]}
        for name, facts in json.loads(tree.text(FILE))["types"].items()
    }
    for module in modules.values():
        used: set[str] = set()
        shapes = {name: _attributes(str(block.body.get("type"))) for name, block in module.variables.items()}
        for place, key, text in module.expressions:
            if text.startswith(("${", '"')):  # else it is a key
                yield from _names(place, key, code(text), module)
            for name, attribute in re.findall(r"\bvar\.(\w+)\.(\w+)", code(text)):
                if shape := shapes.get(name):
                    known = [f"var.{name}.{each}" for each in shape]
                    yield from place.expect_one_of(key, f"var.{name}.{attribute}", known)
            for name in _CALL.findall(code(text)):
                words = f"a function of OpenTofu's in {_TABLE}; if it is none of a misspelling, add it"
                yield from place.expect(name in functions or key == "type", key, f"{name}(…)", words)
            for found in _REFERENCE.finditer(code(text)):
                used |= {f"{found[1]}.{found[2]}", f"{found[1]}.{found[2]}.{found[3]}"}
                yield from _resolve(place, key, found, module, modules, attributes)
        yield from _counts(module, modules)
        for root, blocks in (("var", module.variables), ("data", module.data)):
            for name, block in blocks.items():
                holds = f"{root}.{name}" in used
                yield from block.place.expect(holds, "use", name, "somewhere in the module")
        for name, place in module.locals.items():
            yield from place.expect(f"local.{name}" in used, "use", name, "somewhere in the module")


def _counts(module: Module, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """Numbers of resources that could not be planned: what decides is known only once others are made."""
    words = "a number that is known before anything is made: the length of a list, say"
    for place, key, text in module.expressions:
        if key != "count":
            continue
        deciding = list(_REFERENCE.finditer(_LENGTH.sub("", code(text))))
        for found in deciding:
            yield from place.expect(found[1] in _KNOWN, key, found[0], words)
        names = {found[2] for found in deciding if found[1] == "var"}
        for caller in modules.values():
            for call in caller.modules.values():
                source = str(plain(call.body.get("source")))
                if (caller.folder / source).resolve() == module.folder.resolve():
                    for name in sorted(names & call.body.keys()):
                        for found in _REFERENCE.finditer(code(str(call.body[name]))):
                            given = f"var.{name}, which is {found[0]} in {call.place.file}"
                            yield from place.expect(found[1] in _KNOWN, key, given, words)


def _attributes(kind: str) -> list[str]:
    """Those of a variable's type that is an object."""
    return re.findall(r"(\w+)\s*=", kind) if kind.startswith("${object(") else []


def _names(place: Place, key: str, text: str, module: Module) -> Iterator[Problem]:
    """Names that stand by themselves, and what stands before a dot."""
    if key in _OF_OTHER_WORDS:
        return
    loops = {name for pair in _LOOP.findall(text) for name in pair}
    for found in _WORD.finditer(text):
        dotted = text[found.end() :].startswith((".", "["))
        known = _ROOTS if dotted else _KEYWORDS
        holds = found[1] in known | loops | module.iterators or found[1].startswith("aws_")
        words = "a name that there is: of a variable, say, as var.…; a text stands in quotes"
        yield from place.expect(holds, key, found[1], words)


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
