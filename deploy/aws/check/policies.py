"""IAM's policies, read: statements, and what IAM knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.aws.check.hcl import Block, Module, plain, texts
from deploy.aws.check.problems import Place
from deploy.aws.check.tree import Tree

FILE = "schema/iam.json"


@dataclass(frozen=True)
class Statement:
    """One statement of a policy.

    Attributes
    ----------
    key
        Where it stands.
    principals
        Pairs of a kind and a name; none in the policy of a role.
    conditions
        Their tests and values by what they test.
    excludes
        The keys that say what it is *not* about.
    """

    place: Place
    key: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    principals: tuple[tuple[str, str], ...]
    conditions: Mapping[str, tuple[str, tuple[str, ...]]]
    excludes: tuple[str, ...]

    @property
    def administers_key(self) -> bool:
        """The account's own administrators, in the policy of a key: there `*` is the key."""
        names = [name for kind, name in self.principals if kind == "AWS"]
        own = bool(names) and all(re.fullmatch(r".*account_id\}:root", name) for name in names)
        return self.actions == ("kms:*",) and own and len(names) == len(self.principals)


@dataclass(frozen=True)
class Facts:
    """What there is in IAM, as far as it is used, and what some policies cannot do without."""

    actions: frozenset[str]
    kinds: Mapping[str, list[str]]
    formats: Mapping[str, str]
    conditions: Mapping[str, str | None]
    tags: Mapping[str, str | None]
    needed: Mapping[str, Mapping[str, Any]]
    managed: Mapping[str, bool]

    @classmethod
    def read(cls, tree: Tree) -> Facts:
        facts = json.loads(tree.text(FILE))
        actions = frozenset(
            f"{service}:{name}" for service, names in facts["actions"].items() for name in names
        )
        names = ("resources", "formats", "conditions", "tags", "needed", "managed")
        return cls(actions, *(facts[name] for name in names))

    def tag(self, name: str) -> str | None:
        """A tag as the table has it: its last part may be the cluster's name."""
        general = re.sub(r"/\$\{[^}]*\}$", "/…", name)
        return general if general in self.tags else None


def statements(module: Module, block: Block) -> Iterator[Statement]:
    """Those of an ``aws_iam_policy_document``."""
    for index, said in enumerate(block.body.get("statement", [])):
        body = plain(said)
        yield Statement(
            block.place,
            f"statement {body.get('sid', index)}",
            str(body.get("effect", "Allow")),
            several(body.get("actions")),
            tuple(text for each in several(body.get("resources")) for text in _resolved(module, each)),
            tuple(
                (str(principal["type"]), name)
                for principal in body.get("principals", [])
                for name in several(principal["identifiers"])
            ),
            {
                expanded(module, str(tested["variable"])): (str(tested["test"]), several(tested["values"]))
                for tested in body.get("condition", [])
            },
            tuple(name for name in body if name.startswith("not_")),
        )


def _resolved(module: Module, expression: str) -> list[str]:
    """What an expression for resources stands for, with locals in their places; `for`, too.

    Over a list that is written out there is one for each, else one for all.
    """
    found = re.fullmatch(r"\$\{local\.(\w+)\}", expression)
    if found and found[1] in module.values:
        return [each for text in texts(module.values[found[1]]) for each in _resolved(module, plain(text))]
    found = re.fullmatch(r'\$\{\[for (\w+) in (.+?) : "(.*)"\]\}', expression)
    if not found:
        return [expanded(module, expression)]
    if not found[2].startswith("["):
        return [expanded(module, found[3])]
    kinds = re.findall(r'"([^"]*)"', found[2])
    return [expanded(module, found[3].replace(f"${{{found[1]}}}", kind)) for kind in kinds]


def expanded(module: Module, text: str) -> str:
    """A text with what its locals say."""

    def said(found: re.Match[str]) -> str:
        value = plain(module.values.get(found[1]))
        return value if isinstance(value, str) and not value.startswith("${") else found[0]

    return re.sub(r"\$\{local\.(\w+)\}", said, text)


def several(value: Any) -> tuple[str, ...]:
    """One text or several, as several."""
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value or ())
