"""A cluster class's arguments, as values of the chart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dask.config
from dask.utils import parse_bytes

from dask_tide import config as configuration
from dask_tide.errors import ConfigError
from dask_tide.schema import merge, spell

__all__ = ["ARGUMENTS", "make_values", "named", "split_options"]

#: What a cluster class may be told beside what all of them know.
ARGUMENTS = ("namespace", "kubeconfig", "context", "image", "values", "idle_timeout", "timeout")

#: Sections of one's own configuration that are about the scheduler, wherever it is.
_SENT = ("interval", "aim", "forecast", "release", "memory", "start", "limits", "drain", "idle-shutdown")
#: Options that say where the cluster is, and are arguments of the cluster class, too.
_WHERE = ("namespace", "kubeconfig", "context")
#: Options that the chart writes itself, and the values that say them.
_VALUES = {"nodes": "nodes.read", "annotate": "admission.enabled"}
#: What they are called in the configuration and in the chart.
_KEYS = {"boot-time": "bootTime", "boot_time": "bootTime"}
#: A container's `resources` have no other keys; all others are Dask's own.
_CONTAINER_KEYS = frozenset({"requests", "limits"})
_MI = 2**20
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Mi|Gi|Ti|M|G|T)")


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that say where the cluster is, and all others: one's own configuration's, and ``given`` on top.

    Raises
    ------
    ConfigError
        One is said elsewhere.
    """
    mine = spell(dask.config.get("tide", {}))
    # Those of another provider are nothing to this one.
    layers = [mine.get("options", {}) if mine.get("provider") == "kubernetes" else {}, given]
    options = merge(*({str(key).replace("_", "-"): value for key, value in one.items()} for one in layers))
    for key in sorted(options.keys() & _VALUES.keys()):
        expected = f"nothing: the value {_VALUES[key]} of the chart says it"
        raise ConfigError(f"tide.options.{key}", options[key], expected)
    where = {key: options.pop(key) for key in _WHERE if key in options}
    return where, options


def make_values(
    *,
    pool: Mapping[str, Any],
    pools: Mapping[str, Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
    image: str | None,
    values: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Make values of what may be said otherwise.

    Parameters
    ----------
    pool
        Keys of the one pool, where there are no ``pools``.
    pools
        Pools by name, with keys of the configuration or of the chart.
    settings
        Keys of the configuration section ``tide``, hyphened.
    image
        Reference of an image.
    values
        The chart's values; what the others say wins.

    Raises
    ------
    ConfigError
        Two do not go together, or a size cannot be read.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError("values", values, "a mapping, the values of the chart")
    own = spell(dask.config.get("tide", {}))
    mine = {name: _pool(name, entry) for name, entry in own.get("pools", {}).items()}
    base: dict[str, Any] = merge({"pools": mine}, values or {})
    theirs = base.get("pools")
    if theirs is not None and not isinstance(theirs, Mapping):
        raise ConfigError("values.pools", theirs, "a mapping from pool names to mappings")
    sent = {key: own.get(key, configuration.DEFAULTS[key]) for key in _SENT}
    layers: list[Mapping[str, Any]] = [{"tide": _differences(sent, configuration.DEFAULTS)}, base]
    layers.append(
        {"tide": {key: value for key, value in settings.items() if key not in ("provider", "name")}}
    )
    layers.append({"pools": {name: _pool(name, entry) for name, entry in (pools or {}).items()}})
    if pool:
        names = [name for name, entry in (theirs or {}).items() if entry is not None]
        if len(names) > 1:
            raise ConfigError("pools", names, "one pool, or the limits inside the pools")
        only = names[0] if names else "default"
        layers.append({"pools": {only: _pool(only, pool)}})
    if image is not None:
        layers.append({"image": _image(image)})
    return merge(*layers)


@contextlib.contextmanager
def named(values: Mapping[str, Any] | None) -> Iterator[None]:
    """An error about what stands in ``values`` names that argument; the others' keys are the chart's, too."""
    try:
        yield
    except ConfigError as error:
        found: Any = values
        for part in error.key.split("."):
            found = found.get(part, values) if isinstance(found, Mapping) else values
        if found is values or found != error.value:
            raise
        raise ConfigError(f"values.{error.key}", error.value, error.expected) from error


def _pool(name: str, entry: object) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"pools.{name}", entry, "a mapping")
    translated: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "memory":
            translated["memory"] = _memory(f"pools.{name}.memory", value)
        elif key == "resources" and isinstance(value, Mapping) and not set(value) <= _CONTAINER_KEYS:
            translated["daskResources"] = dict(value)
        else:
            translated[_KEYS.get(str(key), str(key))] = value
    return translated


def _memory(key: str, value: object) -> str:
    """Make a quantity of Kubernetes' of a size as Dask writes it."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return value
    expected = "an amount with a unit, such as '4 GiB' or 4Gi: a pod needs to know"
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "auto":
        raise ConfigError(key, value, expected)
    try:
        size = int(parse_bytes(value))
    except ValueError:
        size = 0
    if size < _MI:
        raise ConfigError(key, value, expected)
    return f"{-(-size // _MI)}Mi"


def _image(reference: str) -> dict[str, Any]:
    """Split a reference; a digest is a tag as far as the chart knows."""
    if not isinstance(reference, str) or not re.fullmatch(r"\S*[^\s/:]", reference):
        raise ConfigError("image", reference, "an image's reference, such as registry/name:tag")
    repository, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        return {"repository": reference, "tag": "latest"}
    return {"repository": repository, "tag": tag}


def _differences(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if below := _differences(value, default):
                different[key] = below
        elif value != default:
            different[key] = value
    return different
