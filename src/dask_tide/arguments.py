"""What a TideCluster is asked for, and the site that follows from it."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.config
from distributed.security import Security

from dask_tide import config as configuration
from dask_tide.errors import ConfigError
from dask_tide.providers.registry import load
from dask_tide.schema import nearest, spell
from dask_tide.sites import Elsewhere, Here, Site

__all__ = ["Arguments"]

#: The providers whose scheduler runs beside the workers, not in this process: a `dask_tide.sites.Host`. Its
#: module says which arguments it has beside the common ones.
_HOSTS = {"kubernetes": ("dask_tide.providers.kubernetes.cluster", "KubernetesHost")}
#: What a scheduler elsewhere has no use for, and its default.
_HERE_ONLY = {"host": None, "scheduler_port": 0, "protocol": None, "security": None}
_HIGHEST_PORT = 65_535


@dataclass(frozen=True)
class Arguments:
    """The arguments of a TideCluster, which says what they mean.

    Attributes
    ----------
    provider, name
        None: what the configuration says.
    pool
        Keys of the configuration for the one pool; None is what was not said.
    pools
        Instead of ``pool``: several, by name.
    server
        Of the scheduler: ``host``, ``scheduler_port``, ``protocol``, ``dashboard_address``, ``security``.
    settings
        All others: keys of the configuration, and the provider's own.
    """

    provider: str | None
    name: str | None
    pool: Mapping[str, Any]
    pools: Mapping[str, Mapping[str, Any]] | None
    server: Mapping[str, Any]
    settings: Mapping[str, Any]

    def site(self, shut_down: Callable[[], Awaitable[object]]) -> tuple[Site, str]:
        """Make the site, on which nothing is started yet, and the cluster's name.

        Parameters
        ----------
        shut_down
            See :class:`~dask_tide.sites.Here`.

        Raises
        ------
        ConfigError
            An argument is wrong, or two do not go together.
        """
        if self.pools is not None:
            if not isinstance(self.pools, Mapping):
                raise ConfigError("pools", self.pools, "a mapping from pool names to mappings")
            if self._limits:
                expected = "these limits inside the pools, not beside them"
                raise ConfigError("pools", sorted(self._limits), expected)
        provider = self.provider or dask.config.get("tide.provider", "local")
        return self._elsewhere(provider) if provider in _HOSTS else self._here(provider, shut_down)

    @property
    def _limits(self) -> dict[str, Any]:
        return {key: value for key, value in self.pool.items() if value is not None}

    def _here(self, provider: str, shut_down: Callable[[], Awaitable[object]]) -> tuple[Site, str]:
        overrides = self._overrides(provider, self.settings)
        if self.pools is not None:
            overrides["pools"] = {key: dict(value) for key, value in self.pools.items()}
        elif self._limits:
            names = list(configuration.read(overrides).pools)
            if len(names) > 1:
                raise ConfigError("pools", names, "one pool, or the limits inside the pools")
            overrides["pools"] = {names[0]: self._limits}
        config = configuration.read(overrides)
        load(config.provider)
        # One name for the cluster, its units and its folder.
        overrides["name"] = config.name or _new_name()
        dashboard = self.server["dashboard_address"]
        options: dict[str, Any] = {
            "host": self.server["host"] or "127.0.0.1",
            "port": self.server["scheduler_port"],
            "protocol": self.server["protocol"],
            "dashboard": dashboard is not None,
            # The HTTP server runs without a dashboard too, and would take the usual port.
            "dashboard_address": dashboard or "127.0.0.1:0",
        }
        return Here(overrides, options, self.server["security"] or Security(), shut_down), overrides["name"]

    def _elsewhere(self, provider: str) -> tuple[Site, str]:
        for key, default in _HERE_ONLY.items():
            if self.server[key] != default:
                expected = f"nothing with provider {provider!r}, which decides that"
                raise ConfigError(key, self.server[key], expected)
        module, attribute = _HOSTS[provider]
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            expected = f"a provider that can be imported; pip install 'dask-tide[{provider}]' ({error})"
            raise ConfigError("provider", provider, expected) from error
        own = {key: value for key, value in self.settings.items() if key in found.ARGUMENTS}
        others = {key: value for key, value in self.settings.items() if key not in own}
        overrides = self._overrides(provider, others, found.ARGUMENTS)
        name = configuration.read(overrides).name or _new_name()
        host = getattr(found, attribute)(
            name,
            pool=self._limits,
            pools=self.pools,
            settings={key: value for key, value in overrides.items() if key not in ("provider", "name")},
            dashboard=_port(self.server["dashboard_address"]),
            **own,
        )
        return Elsewhere(host), name

    def _overrides(
        self, provider: str, settings: Mapping[str, Any], more: Iterable[str] = ()
    ) -> dict[str, Any]:
        """The settings, as a configuration section ``tide``; ``more`` are others that exist."""
        arguments = {
            "minimum",
            "maximum",
            "threads_per_worker",
            "memory_limit",
            "resources",
            "pools",
            "host",
        }
        known = {key.replace("-", "_") for key in configuration.top_level_keys()} | arguments | set(more)
        for key, value in settings.items():
            if key not in known:
                near = nearest(key, known)
                hint = f"did you mean {near!r}?" if near else f"one of {', '.join(sorted(known))}"
                raise ConfigError(key, value, f"an argument that exists; {hint}")
        overrides = spell({key.replace("_", "-"): value for key, value in settings.items()})
        overrides["provider"] = provider
        if self.name is not None:
            overrides["name"] = self.name
        return overrides


def _new_name() -> str:
    return f"tide-{secrets.token_hex(3)}"


def _port(address: str | None) -> int | None:
    """Port of the dashboard on this machine."""
    if address is None:
        return None
    port = str(address).rpartition(":")[2]
    if not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise ConfigError("dashboard_address", address, "a port of this machine, such as ':8787', or nothing")
    return int(port)
