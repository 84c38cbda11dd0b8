"""OpenTofu's files, read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
from hcl2 import SerializationOptions
from lark.exceptions import LarkError

from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

_OPTIONS = SerializationOptions(with_comments=False)
_BLOCK = "__is_block__"


@dataclass(frozen=True)
class Block:
    """A block, such as ``resource "aws_sqs_queue" "this" {…}``.

    Attributes
    ----------
    name
        ``aws_sqs_queue.this``.
    """

    place: Place
    name: str
    body: Mapping[str, Any]

    @property
    def type(self) -> str:
        return self.name.split(".")[0]


@dataclass
class Module:
    """The files of one folder."""

    folder: Path
    name: str
    resources: dict[str, Block] = field(default_factory=dict)
    data: dict[str, Block] = field(default_factory=dict)
    variables: dict[str, Block] = field(default_factory=dict)
    outputs: dict[str, Block] = field(default_factory=dict)
    modules: dict[str, Block] = field(default_factory=dict)
    checks: dict[str, Block] = field(default_factory=dict)
    locals: dict[str, Place] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    #: Names of dynamic blocks, which their contents know.
    iterators: set[str] = field(default_factory=set)
    settings: list[Block] = field(default_factory=list)
    providers: list[Block] = field(default_factory=list)
    #: Every attribute's expression and where it stands.
    expressions: list[tuple[Place, str, str]] = field(default_factory=list)

    def default(self, expression: Any) -> Any:
        """What ``${var.x}`` is when nobody sets it; anything else is returned as it is."""
        found = re.fullmatch(r"\$\{var\.(\w+)\}", expression) if isinstance(expression, str) else None
        if found and found[1] in self.variables:
            expression = self.variables[found[1]].body.get("default")
        return plain(expression)


def plain(value: Any) -> Any:
    """Literals without the quotes that tell them from expressions."""
    if isinstance(value, str) and re.fullmatch(r'".*"', value, re.DOTALL):
        return value[1:-1]
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if key != _BLOCK}
    return value


def is_block(value: Any) -> bool:
    """Whether it was written ``name {…}``, not ``name = …``."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and _BLOCK in item for item in value)
    )


@cache
def _parsed(text: str) -> dict[str, Any]:
    """The parser takes its time, and tests read the same files again and again."""
    return hcl2.loads(text, serialization_options=_OPTIONS)


def read(tree: Tree, folder: Path) -> tuple[Module, list[Problem]]:
    """A folder's files, and those that are none."""
    module = Module(folder, tree.name(folder))
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.tf")):
        file = tree.name(path)
        try:
            content = _parsed(path.read_text(encoding="utf-8"))
        except LarkError as error:
            problems.append(Problem(file, "syntax", str(error).splitlines()[0], "HCL"))
            continue
        for kind, blocks in content.items():
            for block in blocks if isinstance(blocks, list) else []:
                _add(module, file, kind, block)
    return module, problems


def _add(module: Module, file: str, kind: str, block: dict[str, Any]) -> None:
    table: dict[str, dict[str, Block]] = {
        "resource": module.resources,
        "data": module.data,
        "variable": module.variables,
        "output": module.outputs,
        "module": module.modules,
    }
    if kind == "locals":
        for name, value in block.items():
            if name != _BLOCK:
                place = Place(file, f"local.{name}")
                module.locals[name], module.values[name] = place, value
                module.expressions += [(place, "value", text) for text in texts(value)]
        return
    labels, body = [], block
    while _BLOCK not in body:
        label = next(iter(body))
        labels.append(str(plain(label)))
        body = body[label]
    name = ".".join(labels)
    for dynamic in body.get("dynamic", []):
        module.iterators |= {str(plain(key)) for key in dynamic}
    place = Place(file, f"{kind} {name}".strip())
    made = Block(place, name, {key: value for key, value in body.items() if key != _BLOCK})
    if kind in table:
        table[kind][name] = made
    elif kind == "provider":
        module.providers.append(made)
    elif kind == "check":
        # Its data sources are its own, and their names the module's.
        for inner in body.get("data", []):
            _add(module, file, "data", inner)
        made = Block(place, name, {key: value for key, value in made.body.items() if key != "data"})
        module.checks[name] = made
    else:
        module.settings.append(made)
    module.expressions += [(place, key, text) for key, value in made.body.items() for text in texts(value)]


def texts(value: Any) -> Iterator[str]:
    """All expressions in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)


def code(text: str) -> str:
    """An expression without what stands in its strings, but with what is interpolated into them."""
    kept: list[str] = []
    inside: list[str] = []  # of what we are: `"` a string, `$` code in a string, `{` braces in code
    if text.startswith("${") and text.endswith("}"):
        text, inside = text[2:-1], []
    index = 0
    while index < len(text):
        here = text[index]
        if inside and inside[-1] == '"':
            if text.startswith("${", index):
                inside.append("$")
                kept.append(" ")
                index += 1
            elif here == "\\":
                index += 1
            elif here == '"':
                inside.pop()
                kept.append('"')
        elif here == '"':
            inside.append('"')
            kept.append('"')
        else:
            if here == "{":
                inside.append("{")
            elif here == "}" and inside and inside.pop() == "$":
                here = ""
            kept.append(here)
        index += 1
    return "".join(kept)
