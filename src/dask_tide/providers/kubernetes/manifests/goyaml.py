"""YAML as Helm and kubectl read it (sigs.k8s.io/yaml, which is go-yaml 2).

What a scalar without quotes means is not the same to PyYAML: ``1e5`` is text to it, ``y`` too, and ``12:30``
a number. Of hexadecimal digests one in a hundred looks like a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

__all__ = ["dump_all", "number", "parse"]

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"[-+]?0([xX][0-9a-fA-F]+|[bB][01]+|[oO][0-7]+|[0-7]*)|[-+]?[1-9][0-9]*")
_OCTAL = re.compile(r"^([-+]?)0(?=[0-7])")
_NUMERIC, _BOOLEAN = "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"


def number(text: str) -> int | float | None:
    """The number that a scalar without quotes is; None: it is none."""
    if text[:1] not in set("+-.0123456789"):
        return None
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(digits):
        whole = int(_OCTAL.sub(r"\g<1>0o", digits), 0)
        if -(2**63) <= whole < 2**64:
            return whole
    if _FLOAT.fullmatch(digits) and math.isfinite(real := float(digits)):
        return real
    return None


class _Numeric:
    """What :func:`number` knows, as PyYAML asks for it: with a method ``match``."""

    @staticmethod
    def match(text: str) -> bool:
        return number(text) is not None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - so PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", _BOOLEAN)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012 - so PyYAML has it


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out: not every reader of manifests knows anchors."""
        return True


for _known in (_Loader, _Dumper):
    _known.add_implicit_resolver(_BOOLEAN, re.compile(r"[yYnN]$"), list("yYnN"))
    _known.add_implicit_resolver(_NUMERIC, _Numeric, list("+-.0123456789"))
_Loader.add_constructor(_NUMERIC, lambda _, node: number(str(node.value)))
# A mapping may be merged into another one, as with `<<: *defaults`.
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("<<$"), ["<"])


def parse(text: str) -> Any:
    """Read YAML, dates as the text that Kubernetes wants.

    Raises
    ------
    yaml.YAMLError
        It is none.
    """
    return yaml.load(text, Loader=_Loader)


def dump_all(objects: Iterable[Any]) -> str:
    """YAML of these objects, as so many documents; what is text stays text."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, explicit_start=True)
