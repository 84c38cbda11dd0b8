"""Objects against the schemas of their CustomResourceDefinitions, made strict.

The API server drops what a schema does not know, and kOps does so without a word; here an unknown key is
an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from deploy.aws.check.problems import Place, Problem


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(part) for key, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema and "additionalProperties" not in schema:
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return made


@cache
def read(path: Path) -> dict[str, Draft202012Validator]:
    """Validators of a CustomResourceDefinition's versions, by ``apiVersion``."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    group = definition["spec"]["group"]
    made = {}
    for version in definition["spec"]["versions"]:
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        made[f"{group}/{version['name']}"] = Draft202012Validator(schema)
    return made


def check(
    place: Place, document: dict[str, Any], validators: dict[str, Draft202012Validator]
) -> Iterator[Problem]:
    """What in an object is not as its schema has it."""
    api_version = document.get("apiVersion")
    if api_version not in validators:
        yield from place.expect_one_of("apiVersion", api_version, sorted(validators))
        return
    # Without defaults and `format`, which is a comment there.
    for error in validators[api_version].iter_errors(json.loads(json.dumps(document))):
        yield place.problem(_key(error), error.instance, _expected(error))


def _key(error: ValidationError) -> str:
    key = ""
    for part in error.absolute_path:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    return key or "."


def _expected(error: ValidationError) -> str:
    if error.validator == "additionalProperties":
        known = set(cast("dict[str, Any]", error.schema)["properties"])
        unknown = sorted(set(cast("dict[str, Any]", error.instance)) - known)
        return f"no key {', '.join(unknown)}: the schema has {', '.join(sorted(known))}"
    if error.validator == "type":
        return f"the type {error.validator_value}"
    return error.message
