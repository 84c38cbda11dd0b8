"""The chart's values: defaults, schema, and what the schema cannot say.

The files are the chart's own. :func:`read` treats values as Helm does: mappings are merged into the
defaults, lists and everything else replace them, and null takes a default away.
"""

from __future__ import annotations

import functools
import json
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from dask_tide.errors import ConfigError
from dask_tide.schema import nearest

from .golang import plain
from .goyaml import parse

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

__all__ = ["app_version", "buffers", "check_name", "check_namespace", "defaults", "pools", "read", "watched"]

#: As in :mod:`dask_tide.schema`: `<name>-<pool>-<5 letters>` must be the name of a pod, which has 63.
_RELEASE = re.compile(r"[a-z]([a-z0-9-]{0,34}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_POOL = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
#: As cron has them; there is no month 0.
_MONTHS = [*("", "jan", "feb", "mar", "apr", "may", "jun"), *("jul", "aug", "sep", "oct", "nov", "dec")]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


def read(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merge values into the chart's defaults and check them.

    Parameters
    ----------
    given
        As in a file for ``helm install --values``; without a key the default stands.

    Raises
    ------
    ConfigError
        A key is unknown, or a value is not what the schema says, or two do not go together.
    """
    values: dict[str, Any] = _over(defaults(), plain(given or {}))
    errors = [_explain(error) for error in _validator().iter_errors(values)]
    if errors:
        raise min(errors, key=lambda error: error.key)
    for name, pool in pools(values).items():
        if _POOL.fullmatch(name) is None:
            expected = (
                "a name of lower-case letters, digits and '-', not '-' at an end, 20 characters at the most"
            )
            raise ConfigError(f"pools.{name}", name, expected)
        if pool["minimum"] > pool["maximum"]:
            expected = f"at most maximum, which is {pool['maximum']}"
            raise ConfigError(f"pools.{name}.minimum", pool["minimum"], expected)
    _check_buffers(values)
    options = (values.get("tide") or {}).get("options") or {}
    if (prices := options.get("prices")) and not values["nodes"]["read"]:
        expected = "nothing without nodes.read=true, as nodes say of which type they are"
        raise ConfigError("tide.options.prices", prices, expected)
    policy = values["networkPolicy"]
    if policy["enabled"] and policy.get("egress") is not None and policy.get("apiServer") is None:
        expected = (
            "rules by which the scheduler reaches the API server, since networkPolicy.egress shuts it in: "
            "addresses and ports are what `kubectl --namespace default get service,endpoints kubernetes` "
            "shows (docs/chart.md, 'Networks')"
        )
        raise ConfigError("networkPolicy.apiServer", None, expected)
    tls = values["security"]["tls"]
    if tls["enabled"] and tls["source"] == "secret" and not tls.get("secretName"):
        expected = "the name of a Secret, since security.tls.source is secret"
        raise ConfigError("security.tls.secretName", None, expected)
    return values


def _check_buffers(values: Mapping[str, Any]) -> None:
    known = pools(values)
    for name, buffer in buffers(values).items():
        key, times = f"buffer.pools.{name}", buffer.get("schedule") or []
        if name not in known:
            raise ConfigError(key, name, f"the name of a pool: {', '.join(known)}")
        if (buffer.get("units") is None) == (not times):
            raise ConfigError(key, buffer, "either units or a schedule")
        _check_times(f"{key}.schedule", times)
        _check_priority(values, name, known[name].get("priorityClassName"))


def _check_times(key: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """What the API server would refuse when half of the objects are there, and what would fight."""
    times = [(" ".join(entry["at"].split()), entry.get("timeZone") or "Etc/UTC") for entry in entries]
    for at, zone in times:
        if not _is_zone(zone):
            raise ConfigError(key, zone, "as timeZone the name of one, such as Europe/Berlin")
        for low, high in re.findall(r"([0-9a-z]+)-([0-9a-z]+)", at.lower()):
            if _cron_number(low) > _cron_number(high):
                raise ConfigError(key, f"{low}-{high}", "ranges that end after they begin")
    if len(set(times)) < len(times):
        raise ConfigError(key, times, "times that differ")


def _cron_number(text: str) -> int:
    """What a number, a month or a weekday of a CronJob's time comes to."""
    for names in (_MONTHS, _WEEKDAYS):
        if text in names:
            return names.index(text)
    return int(text)


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        # On a machine without a database of time zones there are none; the API server will tell.
        return not zoneinfo.available_timezones()
    return True


def _check_priority(values: Mapping[str, Any], pool: str, chosen: str | None) -> None:
    """Workers must be able to push placeholders out."""
    own = (values.get("priorityClasses") or {}).get(chosen) or {}
    least = values["buffer"]["priority"]
    if not values["buffer"].get("priorityClassName") and own.get("value", 0) <= least:
        expected = f"a class with a value above buffer.priority, which is {least}; it has {own['value']}"
        raise ConfigError(f"pools.{pool}.priorityClassName", chosen, expected)


def check_name(name: str) -> None:
    """Raise :class:`~dask_tide.errors.ConfigError` unless this can be the cluster's name."""
    if _RELEASE.fullmatch(name) is None:
        expected = (
            "lower-case letters, digits and '-', beginning with a letter and not ending with '-', "
            "36 characters at the most"
        )
        raise ConfigError("name", name, expected)


def check_namespace(namespace: str) -> None:
    """Raise :class:`~dask_tide.errors.ConfigError` unless this can be a namespace's name (RFC 1123)."""
    if _NAMESPACE.fullmatch(namespace) is None:
        expected = "lower-case letters, digits and '-', not '-' at an end, 63 characters at the most"
        raise ConfigError("namespace", namespace, expected)


def pools(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the pools by name, each with the defaults for what it does not say.

    Parameters
    ----------
    values
        With the chart's defaults.
    """
    given = {name: pool for name, pool in (values.get("pools") or {}).items() if pool is not None}
    layers = {name: (values["poolDefaults"], given[name]) for name in sorted(given)}
    return {
        name: {key: value for layer in both for key, value in layer.items() if value is not None}
        for name, both in (layers or {"default": (values["poolDefaults"], {})}).items()
    }


def buffers(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the buffers by their pools' names; those that are null do not exist."""
    given = values["buffer"].get("pools") or {}
    return {name: given[name] for name in sorted(given) if given[name] is not None}


def watched(values: Mapping[str, Any]) -> bool:
    """Whether the status page or the metrics are for somebody outside of the release.

    Parameters
    ----------
    values
        With the chart's defaults.
    """
    return any(values[key].get("enabled") for key in ("ingress", "serviceMonitor"))


def defaults() -> dict[str, Any]:
    """The chart's ``values.yaml``, a new copy."""
    content: dict[str, Any] = plain(parse(_text("values.yaml")))
    return content


@functools.cache
def app_version() -> str:
    """The chart's ``appVersion``, which is the default tag of the image."""
    return str(parse(_text("Chart.yaml"))["appVersion"])


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **given}
    for key in base.keys() & given.keys():
        if given[key] is None:
            del merged[key]
        elif isinstance(base[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = _over(base[key], given[key])
    return merged


@functools.cache
def _text(name: str) -> str:
    return files(__package__).joinpath("chart", name).read_text(encoding="utf-8")


@functools.cache
def _validator() -> Validator:
    import jsonschema

    # Go's `$` is the very end of a text; Python's stands before a last line feed as well.
    schema = _text("values.schema.json").replace('$"', r'\\Z"')
    return jsonschema.Draft7Validator(json.loads(schema))


def _explain(error: ValidationError) -> ConfigError:
    """Make one of ours of it; what was expected is the `title` of the schema that it did not meet."""
    path = [str(part) for part in error.absolute_path]
    schema: Any = error.schema
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        known = sorted(schema["properties"])
        unknown = min(name for name in instance if name not in known)
        near = nearest(unknown, known)
        expected = f"a key that exists; did you mean {near!r}?" if near else f"one of {', '.join(known)}"
        return ConfigError(".".join([*path, unknown]), instance[unknown], expected)
    if error.validator == "required":
        missing = min(name for name in schema["required"] if name not in instance)
        return ConfigError(".".join([*path, missing]), None, "a value; it has no other default")
    if "propertyNames" in error.absolute_schema_path:
        path.append(str(instance))
    return ConfigError(".".join(path) or "values", instance, schema["title"])
