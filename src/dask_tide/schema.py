"""Schema: what may be written below ``tide``, what its values mean, and what is said of a wrong one.

The schema itself is ``tide-schema.yaml``.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import yaml
from dask.utils import parse_bytes, parse_timedelta

from dask_tide.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

__all__ = [
    "AIMS",
    "FORMATS",
    "check",
    "load_yaml",
    "merge",
    "nearest",
    "schema",
    "seconds",
    "size_bytes",
    "spell",
]


def load_yaml(name: str) -> dict[str, Any]:
    """A file of this package."""
    content: dict[str, Any] = yaml.safe_load(files("dask_tide").joinpath(name).read_text(encoding="utf-8"))
    return content


@functools.cache
def schema() -> dict[str, Any]:
    """The schema of what stands below ``tide``."""
    return load_yaml("tide-schema.yaml")


def spell(section: Any) -> dict[str, Any]:
    """Write known keys and pool names with ``-``, as Dask's configuration takes ``_`` for it.

    Names inside ``options`` and ``resources`` are not ours and stay. An empty section of a YAML file
    is None; it says nothing.

    Raises
    ------
    ConfigError
        It is no mapping, or a key is no text or is there in both spellings.
    """
    spelled = _spell(section, schema(), "tide")
    if not isinstance(spelled, dict):
        raise ConfigError("tide", spelled, "a mapping")
    return spelled


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Put mappings on top of one another, the last one on top. What is no mapping (null, say) replaces."""
    # dask.config.merge would equate '-' and '_' inside the provider's options, too.
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                merged[key] = merge(below, value)
            else:
                merged[key] = value
    return merged


def check(config: Mapping[str, Any]) -> None:
    """Raise :class:`~dask_tide.errors.ConfigError` for what is wrong; of several things, by the first key."""
    errors = [_explain(error) for error in _validator().iter_errors(config)]
    if errors:
        raise min(errors, key=lambda error: error.key)


# What values mean. It is also what the schema's formats check, so that what passes can be converted.


def seconds(value: str | float) -> float:
    """Seconds of a duration such as ``30s``; raises ValueError or KeyError."""
    # Dask reads "s" as one second, and the empty text not at all.
    if isinstance(value, str) and not re.match(r"\s*[0-9.]", value):
        raise ValueError(value)
    duration_s = float(parse_timedelta(value))
    if not math.isfinite(duration_s) or duration_s < 0:
        raise ValueError(value)
    return duration_s


def size_bytes(value: str | int) -> int:
    """Bytes of a size such as ``4 GiB``; raises ValueError."""
    # Dask reads "GiB" as one of them, and the empty text as one byte.
    if isinstance(value, str) and not re.match(r"\s*[0-9.]", value):
        raise ValueError(value)
    size = int(parse_bytes(value))
    if size < 0:
        raise ValueError(value)
    return size


#: What ``tide.aim`` means: seconds of a unit for which one is done a second sooner.
AIMS = {"thrifty": 0.0, "balanced": 30.0, "fast": 3600.0}

#: By their names in the schema; each may also raise what the conversions do.
FORMATS: Mapping[str, Callable[[Any], bool]] = {
    "aim": lambda value: value in AIMS if isinstance(value, str) else math.isfinite(value),
    "auto": lambda value: not isinstance(value, str) or value == "auto",
    "finite": lambda value: not isinstance(value, int | float) or math.isfinite(value),
    "timedelta": lambda value: value is None or seconds(value) >= 0,
    "timedelta-or-auto": lambda value: value == "auto" or seconds(value) >= 0,
    "positive-timedelta": lambda value: value is None or seconds(value) > 0,
    "size-or-auto": lambda value: value == "auto" or size_bytes(value) >= 0,
    "positive-size": lambda value: size_bytes(value) > 0,
    # DNS labels (RFC 1123, RFC 1035), short enough that `<cluster>-<pool>-<5 letters>` is one, too.
    "pool-name": lambda value: re.fullmatch(r"(?!-)[a-z0-9-]{1,20}(?<!-)", value) is not None,
    "cluster-name": lambda value: (
        value is None or re.fullmatch(r"[a-z][a-z0-9-]{0,35}(?<!-)", value) is not None
    ),
}


@functools.cache
def _validator() -> Validator:
    import jsonschema

    checker = jsonschema.FormatChecker(formats=())
    for name, passes in FORMATS.items():
        # A value of a wrong type fails here too: `type` has reported it, with the same key.
        checker.checks(name, raises=(AttributeError, KeyError, OverflowError, TypeError, ValueError))(passes)
    return jsonschema.Draft202012Validator(schema(), format_checker=checker)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Of these names the one that was meant, if one is close enough."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.65)), None)


def _explain(error: Any) -> ConfigError:
    """Make one of ours of a ``jsonschema.ValidationError``."""
    key = ".".join(["tide", *error.absolute_path])
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = min(name for name in error.instance if name not in known)
        near = nearest(unknown.replace("_", "-"), known)
        expected = f"a key that exists; did you mean {near!r}?" if near else f"one of {', '.join(known)}"
        return ConfigError(f"{key}.{unknown}", error.instance[unknown], expected)
    return ConfigError(key, error.instance, error.schema["title"])


def _spell(value: Any, part: Mapping[str, Any], key: str) -> Any:
    if "$ref" in part:
        part = schema()["$defs"][part["$ref"].rpartition("/")[2]]
    if isinstance(value, PurePath):
        return str(value)
    if part.get("type") != "object":
        return value
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    known = part.get("properties", {})
    spelled: dict[str, Any] = {}
    for given, item in value.items():
        if not isinstance(given, str):
            raise ConfigError(key, given, "keys that are text")
        hyphened = given.replace("_", "-")
        name = hyphened if hyphened in known or "propertyNames" in part else given
        if name in spelled:
            raise ConfigError(f"{key}.{name}", item, "one of '-' and '_' in it; both are there")
        below = known.get(name) or part.get("additionalProperties") or {}
        spelled[name] = _spell(item, below, f"{key}.{name}")
    return spelled
