"""The configuration: Dask's own, section ``tide``, checked and put into the project's values.

Importing this module registers the defaults (``tide.yaml``), as Dask's packages do. :func:`read`
checks what is set against ``tide-schema.yaml`` before anything is started: what is wrong is a
:class:`~dask_tide.errors.ConfigError` that names the key, the value and what was expected.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import dask.config
import dask.system
import distributed.system
import yaml
from dask.utils import parse_bytes, parse_timedelta

from dask_tide.errors import ConfigError
from dask_tide.model import Pool, Settings
from dask_tide.providers.base import Template
from dask_tide.providers.registry import load

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

T = TypeVar("T")

__all__ = [
    "DEFAULTS",
    "POOL_DEFAULTS",
    "JournalConfig",
    "TideConfig",
    "duration_s",
    "read",
    "top_level_keys",
    "validate",
]


def _load_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("dask_tide").joinpath(name).read_text(encoding="utf-8"))
    return content


#: What ``tide.yaml`` says below ``tide``.
DEFAULTS: Mapping[str, Any] = _load_yaml("tide.yaml")["tide"]

#: What a pool has where its entry says nothing. Not in the YAML itself: Dask merges mappings, so a
#: pool there would stand beside the user's own.
POOL_DEFAULTS: Mapping[str, Any] = {
    "threads": 1,
    "memory": "auto",
    "resources": {},
    "workers-per-unit": 1,
    "minimum": 0,
    "maximum": "auto",
    "price": 1,
    "spot": False,
    "boot-time": None,
    "options": {},
}

#: Less is a unit that was forgotten: 4 for 4 GiB.
_SMALLEST_MEMORY = 2**20
#: ``maximum: auto`` where the size of the platform is not known: finite, and small enough for a mistake.
_MAXIMUM_ELSEWHERE = 10
_PRIOR = "500ms"

dask.config.update_defaults({"tide": DEFAULTS})


@dataclass(frozen=True)
class JournalConfig:
    """Where the journal goes.

    Attributes
    ----------
    path
        The newest file; None: in the cluster's folder.
    max_bytes
        A file that has grown to this size is closed.
    files
        How many are kept.
    """

    path: Path | None
    max_bytes: int
    files: int


@dataclass(frozen=True)
class TideConfig:
    """The configuration, checked.

    Attributes
    ----------
    provider
        Name of an entry point, or ``package.module:factory``.
    name
        The cluster's name, a DNS label; None: a new one is to be made.
    interval_s
        Time between ticks when nothing happens.
    pools
        By name, in the order given; at least one.
    boot_times
        Boot times in seconds that the user gave, by pool name. A pool that is not in here has a
        ``boot_s`` that says nothing: the provider's is to be taken.
    options
        The provider's own.
    settings
        The policy's.
    drain_timeout_s
        After so long a worker that is being drained goes back to work.
    departure_timeout_s
        How long the drain of a worker that was told to end may take.
    folder
        For logs and the like; None: a new private one is to be made.
    journal
        Where the journal goes.
    idle_shutdown_s
        Close the scheduler after so long without unfinished work; None: never.
    """

    provider: str
    name: str | None
    interval_s: float
    pools: dict[str, Template]
    boot_times: dict[str, float]
    options: dict[str, Any]
    settings: Settings
    drain_timeout_s: float
    departure_timeout_s: float
    folder: Path | None
    journal: JournalConfig
    idle_shutdown_s: float | None


def read(overrides: Mapping[str, Any] | None = None) -> TideConfig:
    """Read the section ``tide`` of Dask's configuration.

    Parameters
    ----------
    overrides
        The same nested keys, with or without some of them; they win. Mappings are merged, as
        Dask does it. Keys may be written with ``_`` for ``-``.

    Raises
    ------
    ConfigError
        A key is unknown, or a value is of the wrong type, unit or size, or two do not go together.

    Examples
    --------
    >>> read({"pools": {"cpu": {"threads": 2, "maximum": 8}}}).pools["cpu"].pool.maximum
    8
    """
    config = dict(DEFAULTS)
    for layer in (dask.config.get("tide", {}), overrides):
        spelled = _spell(layer, _schema(), "tide")
        if not isinstance(spelled, dict):
            raise ConfigError("tide", spelled, "a mapping")
        config = _merge(config, spelled)
    errors = [_explain(error) for error in _validator().iter_errors(config)]
    if errors:
        raise min(errors, key=lambda error: error.key)
    return _build(config)


def top_level_keys() -> frozenset[str]:
    """Keys that may stand directly below ``tide``."""
    return frozenset(DEFAULTS)


def validate(overrides: Mapping[str, Any] | None = None) -> None:
    """Raise what :func:`read` would raise, and where the provider cannot be found."""
    load(read(overrides).provider)


def _build(config: Mapping[str, Any]) -> TideConfig:
    pools: dict[str, Template] = {}
    boot_times: dict[str, float] = {}
    for name, given in (config["pools"] or {"default": {}}).items():
        entry = {**POOL_DEFAULTS, **given}
        pools[name] = Template(
            _pool(name, entry, local=config["provider"] == "local"), dict(entry["options"])
        )
        if entry["boot-time"] is not None:
            boot_times[name] = _seconds(entry["boot-time"])

    journal = config["journal"]
    return TideConfig(
        provider=config["provider"],
        name=config["name"],
        interval_s=_seconds(config["interval"]),
        pools=pools,
        boot_times=boot_times,
        options=dict(config["options"]),
        settings=_settings(config, sum(template.pool.minimum for template in pools.values())),
        drain_timeout_s=_seconds(config["drain"]["timeout"]),
        departure_timeout_s=_seconds(config["departure"]["timeout"]),
        folder=_path(config["folder"]),
        journal=JournalConfig(_path(journal["path"]), _bytes(journal["max-bytes"]), int(journal["files"])),
        idle_shutdown_s=_optional(_seconds, config["idle-shutdown"]),
    )


def _pool(name: str, entry: Mapping[str, Any], *, local: bool) -> Pool:
    threads, workers = int(entry["threads"]), int(entry["workers-per-unit"])
    minimum = int(entry["minimum"])
    cpus = dask.system.CPU_COUNT

    if entry["memory"] != "auto":
        memory_bytes = _bytes(entry["memory"])
        if 0 < memory_bytes < _SMALLEST_MEMORY:
            expected = "at least 1 MiB, with a unit ('4 GiB'), or 0 for no limit"
            raise ConfigError(f"tide.pools.{name}.memory", entry["memory"], expected)
    else:  # LocalCluster's rule
        memory_bytes = int(distributed.system.MEMORY_LIMIT * min(1, threads / cpus)) if local else 0

    if entry["maximum"] != "auto":
        maximum = int(entry["maximum"])
        if minimum > maximum:
            key = f"tide.pools.{name}"
            raise ConfigError(f"{key}.minimum", minimum, f"at most {key}.maximum, which is {maximum}")
    else:
        maximum = max(1, minimum, cpus // (threads * workers) if local else _MAXIMUM_ELSEWHERE)

    boot_s = {} if entry["boot-time"] is None else {"boot_s": _seconds(entry["boot-time"])}
    return Pool(
        name=name,
        threads=threads,
        memory_bytes=memory_bytes,
        resources=tuple(sorted((resource, float(amount)) for resource, amount in entry["resources"].items())),
        workers_per_unit=workers,
        minimum=minimum,
        maximum=maximum,
        price=float(entry["price"]),
        spot=bool(entry["spot"]),
        **boot_s,
    )


def _settings(config: Mapping[str, Any], minimum: int) -> Settings:
    release, memory, start, limits = (config[key] for key in ("release", "memory", "start", "limits"))
    settings = Settings(
        keep_s=None if release["keep"] == "auto" else _seconds(release["keep"]),
        idle_timeout_s=_seconds(release["idle-timeout"]),
        machine_idle_s=_optional(_seconds, release["machine-idle"]),
        tail_s=_seconds(release["tail"]),
        memory_ratio=float(memory["want-below"]),
        fill_ratio=float(memory["fill-below"]),
        prior_s=_prior(config),
        start_timeout_s=_seconds(start["timeout"]),
        backoff_s=_seconds(start["backoff"]),
        backoff_max_s=_seconds(start["backoff-maximum"]),
        maximum=_optional(int, limits["maximum"]),
        budget_per_hour=_optional(float, limits["budget-per-hour"]),
        budget_total=_optional(float, limits["budget-total"]),
    )
    if settings.backoff_max_s < settings.backoff_s:
        expected = f"at least tide.start.backoff, which is {start['backoff']}"
        raise ConfigError("tide.start.backoff-maximum", start["backoff-maximum"], expected)
    if settings.maximum is not None and settings.maximum < minimum:
        expected = f"at least {minimum}, the sum of the pools' minimums"
        raise ConfigError("tide.limits.maximum", limits["maximum"], expected)
    return settings


def _prior(config: Mapping[str, Any]) -> float:
    prior = config["forecast"]["prior"]
    if prior != "auto":
        return _seconds(prior)
    if config["provider"] != "kubernetes":
        return 0.0
    # Dask's own assumption, where it still has one.
    return _seconds(dask.config.get("distributed.scheduler.unknown-task-duration", _PRIOR))


# Conversions. They are also what the schema's formats check, so that what passes can be converted.


def _seconds(value: str | float) -> float:
    # Dask reads "s" as one second, and the empty text not at all.
    if isinstance(value, str) and not re.match(r"\s*[0-9.]", value):
        raise ValueError(value)
    seconds = float(parse_timedelta(value))
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(value)
    return seconds


def duration_s(key: str, value: object, *, positive: bool = False) -> float:
    """Seconds of a duration that stands outside of the schema; raises ConfigError."""
    with contextlib.suppress(KeyError, ValueError):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            seconds = _seconds(value)
            if seconds > 0 or not positive:
                return seconds
    raise ConfigError(key, value, f"a duration such as '30s'{', more than 0' if positive else ''}")


def _bytes(value: str | int) -> int:
    # Dask reads "GiB" as one of them, and the empty text as one byte.
    if isinstance(value, str) and not re.match(r"\s*[0-9.]", value):
        raise ValueError(value)
    size = int(parse_bytes(value))
    if size < 0:
        raise ValueError(value)
    return size


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()


def _optional(convert: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else convert(value)


# The schema.

_FORMATS: Mapping[str, Callable[[Any], bool]] = {
    "auto": lambda value: not isinstance(value, str) or value == "auto",
    "finite": lambda value: not isinstance(value, int | float) or math.isfinite(value),
    "timedelta": lambda value: value is None or _seconds(value) >= 0,
    "timedelta-or-auto": lambda value: value == "auto" or _seconds(value) >= 0,
    "positive-timedelta": lambda value: value is None or _seconds(value) > 0,
    "size-or-auto": lambda value: value == "auto" or _bytes(value) >= 0,
    "positive-size": lambda value: _bytes(value) > 0,
    # DNS labels (RFC 1123, RFC 1035), short enough that `<cluster>-<pool>-<5 letters>` is one, too.
    "pool-name": lambda value: re.fullmatch(r"(?!-)[a-z0-9-]{1,20}(?<!-)", value) is not None,
    "cluster-name": lambda value: (
        value is None or re.fullmatch(r"[a-z][a-z0-9-]{0,35}(?<!-)", value) is not None
    ),
}


@functools.cache
def _schema() -> dict[str, Any]:
    return _load_yaml("tide-schema.yaml")


@functools.cache
def _validator() -> Validator:
    import jsonschema

    checker = jsonschema.FormatChecker(formats=())
    for name, check in _FORMATS.items():
        # A value of a wrong type fails here too: `type` has reported it, with the same key.
        checker.checks(name, raises=(AttributeError, KeyError, OverflowError, TypeError, ValueError))(check)
    return jsonschema.Draft202012Validator(_schema(), format_checker=checker)


def _explain(error: Any) -> ConfigError:
    """Make one of ours of a ``jsonschema.ValidationError``."""
    key = ".".join(["tide", *error.absolute_path])
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = min(name for name in error.instance if name not in known)
        near = difflib.get_close_matches(unknown.replace("_", "-"), known, n=1)
        expected = f"a key that exists; did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
        return ConfigError(f"{key}.{unknown}", error.instance[unknown], expected)
    return ConfigError(key, error.instance, error.schema["title"])


def _spell(value: Any, schema: Mapping[str, Any], key: str) -> Any:
    """Write known keys and pool names with ``-``, as Dask's configuration takes ``_`` for it.

    Names inside ``options`` and ``resources`` are not ours and stay. An empty section of a YAML file
    is None; it says nothing.
    """
    if "$ref" in schema:
        schema = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, PurePath):
        return str(value)
    if schema.get("type") != "object":
        return value
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    known = schema.get("properties", {})
    spelled: dict[str, Any] = {}
    for given, item in value.items():
        if not isinstance(given, str):
            raise ConfigError(key, given, "keys that are text")
        hyphened = given.replace("_", "-")
        name = hyphened if hyphened in known or "propertyNames" in schema else given
        if name in spelled:
            raise ConfigError(f"{key}.{name}", item, "one of '-' and '_' in it; both are there")
        below = known.get(name) or schema.get("additionalProperties") or {}
        spelled[name] = _spell(item, below, f"{key}.{name}")
    return spelled


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    # dask.config.merge would equate '-' and '_' inside the provider's options, too.
    merged = dict(old)
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(before := merged.get(key), Mapping):
            merged[key] = _merge(before, value)
        else:
            merged[key] = value
    return merged
