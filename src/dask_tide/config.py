"""The configuration: Dask's own, section ``tide``, checked and put into the project's values.

Importing this module registers the defaults (``tide.yaml``), as Dask's packages do. :func:`read`
checks what is set against the schema (:mod:`dask_tide.schema`) before anything is started: what is wrong is a
:class:`~dask_tide.errors.ConfigError` that names the key, the value and what was expected.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dask.config
import dask.system
import distributed.system

from dask_tide.errors import ConfigError
from dask_tide.model import Pool, Settings
from dask_tide.providers.base import Template
from dask_tide.providers.registry import load
from dask_tide.schema import AIMS, check, load_yaml, merge, seconds, size_bytes, spell

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


#: What ``tide.yaml`` says below ``tide``.
DEFAULTS: Mapping[str, Any] = load_yaml("tide.yaml")["tide"]

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


def _ill_formed(given: Any, defaults: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """What stands where a mapping belongs, and its key."""
    if not isinstance(given, Mapping):
        if given is not None:
            yield key, given
        return
    for name, default in defaults.items():
        for spelt in {name, name.replace("-", "_")} & given.keys():
            if isinstance(default, Mapping):
                yield from _ill_formed(given[spelt], default, f"{key}.{spelt}")


def _register() -> None:
    """Tell Dask the defaults; it puts mappings in the place of what is none, which would hide that."""
    wrong = dict(_ill_formed(dask.config.get("tide", None), DEFAULTS, "tide"))
    dask.config.update_defaults({"tide": DEFAULTS})
    dask.config.set(wrong)


_register()


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
    learn_prior
        Whether what was measured may say that tasks whose like never was last longer than ``settings`` say.
    drain_timeout_s
        After so long a worker that is being drained goes back to work.
    departure_timeout_s
        How long the drain of a worker that was told to end may take.
    folder
        For logs and the like, and what is to be known after a restart; None: a new private one is to be made.
    journal
        Where the journal goes.
    idle_shutdown_s
        Close the scheduler after so long without unfinished work or other use; None: never.
    """

    provider: str
    name: str | None
    interval_s: float
    pools: dict[str, Template]
    boot_times: dict[str, float]
    options: dict[str, Any]
    settings: Settings
    learn_prior: bool
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
        Dask does it, but for the pools of the provider ``delegate``, which are these alone. Keys may be
        written with ``_`` for ``-``.

    Raises
    ------
    ConfigError
        A key is unknown, or a value is of the wrong type, unit or size, or two do not go together.

    Examples
    --------
    >>> read({"pools": {"cpu": {"threads": 2, "maximum": 8}}}).pools["cpu"].pool.maximum
    8
    """
    return _read(dask.config.get("tide", {}), overrides)


def read_section(section: Mapping[str, Any]) -> TideConfig:
    """As :func:`read`, of this section alone: another process will read it."""
    return _read(section)


def _read(*layers: Any) -> TideConfig:
    spelled = [*map(spell, layers)]
    config = merge(DEFAULTS, *spelled)
    if config["provider"] == "delegate":
        # Whoever has a cluster class tells its one pool; those that are configured are another provider's.
        config["pools"] = next(filter(None, (layer.get("pools") for layer in reversed(spelled))), {})
    check(config)
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
        if config["provider"] != "delegate":  # its workers are told by somebody else
            _check_resources(f"tide.pools.{name}.resources", entry["resources"])
        pools[name] = Template(
            _pool(name, entry, local=config["provider"] == "local"), dict(entry["options"])
        )
        if entry["boot-time"] is not None:
            boot_times[name] = seconds(entry["boot-time"])

    journal = config["journal"]
    settings = _settings(config, sum(template.pool.minimum for template in pools.values()))
    return TideConfig(
        provider=config["provider"],
        name=config["name"],
        interval_s=seconds(config["interval"]),
        pools=pools,
        boot_times=boot_times,
        options=dict(config["options"]),
        settings=settings,
        learn_prior=config["forecast"]["prior"] == "auto" and settings.prior_s > 0,
        drain_timeout_s=seconds(config["drain"]["timeout"]),
        departure_timeout_s=seconds(config["departure"]["timeout"]),
        folder=_path("tide.folder", config["folder"]),
        journal=JournalConfig(
            _path("tide.journal.path", journal["path"]),
            size_bytes(journal["max-bytes"]),
            int(journal["files"]),
        ),
        idle_shutdown_s=_optional(seconds, config["idle-shutdown"]),
    )


def _check_resources(key: str, resources: Mapping[str, Any]) -> None:
    """What `dask worker --resources` could not read would end each worker at its start."""
    for name in resources:
        if re.fullmatch(r"[^\s=,]+", name) is None:
            raise ConfigError(key, name, "names without spaces, '=' and ','")


def _pool(name: str, entry: Mapping[str, Any], *, local: bool) -> Pool:
    threads, workers = int(entry["threads"]), int(entry["workers-per-unit"])
    minimum = int(entry["minimum"])
    cpus = dask.system.CPU_COUNT

    if entry["memory"] != "auto":
        memory_bytes = size_bytes(entry["memory"])
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

    boot_s = {} if entry["boot-time"] is None else {"boot_s": seconds(entry["boot-time"])}
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
        keep_s=None if release["keep"] == "auto" else seconds(release["keep"]),
        idle_timeout_s=seconds(release["idle-timeout"]),
        machine_idle_s=_optional(seconds, release["machine-idle"]),
        tail_s=seconds(release["tail"]),
        memory_ratio=float(memory["want-below"]),
        fill_ratio=float(memory["fill-below"]),
        prior_s=_prior(config),
        worth=_worth(config),
        start_timeout_s=seconds(start["timeout"]),
        backoff_s=seconds(start["backoff"]),
        backoff_max_s=seconds(start["backoff-maximum"]),
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


def _worth(config: Mapping[str, Any]) -> float:
    aim = config["aim"]
    return AIMS[aim] if isinstance(aim, str) else float(aim)


def _prior(config: Mapping[str, Any]) -> float:
    prior = config["forecast"]["prior"]
    if prior != "auto":
        return seconds(prior)
    if config["provider"] != "kubernetes":
        return 0.0
    # Dask's own assumption, where it still has one.
    return seconds(dask.config.get("distributed.scheduler.unknown-task-duration", _PRIOR))


def duration_s(key: str, value: object, *, positive: bool = False) -> float:
    """Seconds of a duration that stands outside of the schema; raises ConfigError."""
    with contextlib.suppress(KeyError, ValueError):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            found_s = seconds(value)
            if found_s > 0 or not positive:
                return found_s
    raise ConfigError(key, value, f"a duration such as '30s'{', more than 0' if positive else ''}")


def _path(key: str, value: str | None) -> Path | None:
    if value is None:
        return None
    if "\0" in value:
        raise ConfigError(key, value, "a path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(key, value, f"a path of somebody who has a home ({error})") from error


def _optional(convert: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else convert(value)
