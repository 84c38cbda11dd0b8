"""Options of the local provider: ``tide.options`` and ``tide.pools.<name>.options``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_tide.errors import ConfigError

__all__ = ["Options"]

#: Options of ``dask worker`` with which a worker has another name than its unit, or another scheduler.
_OURS = ("--name", "--nworkers", "--scheduler-file")


@dataclass(frozen=True)
class Options:
    """What may be said about the processes of workers.

    Attributes
    ----------
    environment
        ``environment``: variables of the workers' environment. A pool's are added to those of all pools.
    worker_options
        ``worker-options``: further options of ``dask worker``. A pool's replace those of all pools.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    worker_options: tuple[str, ...] = ()

    def updated(self, key: str, values: Mapping[str, Any]) -> Options:
        """Take over what the configuration says at ``key``.

        Raises
        ------
        ConfigError
            For an unknown option, a wrong type, or what no process or no unit's worker can be given.
        """
        environment, worker_options = dict(self.environment), self.worker_options
        for name, value in values.items():
            where = f"{key}.{name}"
            # Dask treats a hyphen and an underscore in its configuration as the same.
            if name == "environment":
                environment |= _environment(where, value)
            elif name.replace("_", "-") == "worker-options":
                worker_options = _worker_options(where, value)
            else:
                raise ConfigError(where, value, "one of the options 'environment' and 'worker-options'")
        return Options(environment, worker_options)


def _environment(key: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, value, "names of variables with their values")
    environment = {}
    for name, text in value.items():
        # YAML reads OMP_NUM_THREADS: 2 as a number, and `on` as a boolean, of which the spelling is lost.
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ConfigError(f"{key}.{name}", text, "a string or a number")
        if str(name) == "" or "=" in str(name) or not _passes(str(name)):
            raise ConfigError(key, name, "names of variables: not empty, without '=' and NUL")
        if not _passes(str(text)):
            raise ConfigError(f"{key}.{name}", text, "a text without NUL that the locale can encode")
        environment[str(name)] = str(text)
    return environment


def _passes(text: str) -> bool:
    """Whether it can be passed to a process."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _worker_options(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ConfigError(key, value, "a list of strings such as ['--lifetime', '1h']")
    for option in (part.partition("=")[0] for part in value):
        if option in _OURS:
            raise ConfigError(key, value, f"nothing about {option}: whose a worker is depends on that")
    return tuple(map(str, value))
