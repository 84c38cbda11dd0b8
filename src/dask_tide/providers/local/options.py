"""Options of the local provider: ``tide.options`` and ``tide.pools.<name>.options``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_tide.errors import ConfigError

__all__ = ["Options"]


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
            For an unknown option or a wrong type.
        """
        environment, worker_options = dict(self.environment), self.worker_options
        for name, value in values.items():
            where = f"{key}.{name}"
            # Dask treats a hyphen and an underscore in its configuration as the same.
            if name == "environment":
                environment |= _environment(where, value)
            elif name.replace("_", "-") == "worker-options":
                worker_options = _strings(where, value)
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
        environment[str(name)] = str(text)
    return environment


def _strings(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ConfigError(key, value, "a list of strings such as ['--lifetime', '1h']")
