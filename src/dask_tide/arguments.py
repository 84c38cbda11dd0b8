"""What a TideCluster is asked for, and the site that follows from it."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.config
from distributed.security import Security
from distributed.utils import clean_dashboard_address

from dask_tide import config as configuration
from dask_tide.errors import ConfigError, words
from dask_tide.providers.kubernetes.arguments import ARGUMENTS as KUBERNETES
from dask_tide.providers.registry import installing, load
from dask_tide.schema import nearest, spell
from dask_tide.sites import Elsewhere, Here, Site

__all__ = ["Arguments"]

#: The providers whose scheduler runs beside the workers, not in this process: a `dask_tide.sites.Host`, by
#: module and name, and the arguments that it has beside the common ones.
_HOSTS = {"kubernetes": ("dask_tide.providers.kubernetes.cluster", "KubernetesHost", KUBERNETES)}
#: What other cluster classes call it, or have for it.
_INSTEAD = {"n_workers": "did you mean 'minimum', or cluster.scale(n)?"}
#: What a scheduler elsewhere has no use for, and its default.
_HERE_ONLY = {"host": None, "scheduler_port": 0, "protocol": None, "security": None}
_HIGHEST_PORT = 65_535
#: Protocols whose servers of Dask's listen on all interfaces, whatever host they are told.
_EVERYWHERE = ("ws", "wss")


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
    known
        Names of the cluster class's arguments.
    """

    provider: str | None
    name: str | None
    pool: Mapping[str, Any]
    pools: Mapping[str, Mapping[str, Any]] | None
    server: Mapping[str, Any]
    settings: Mapping[str, Any]
    known: Collection[str]

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
        if not isinstance(provider, str):
            raise ConfigError("provider", provider, "a name")
        return self._elsewhere(provider) if provider in _HOSTS else self._here(provider, shut_down)

    @property
    def _limits(self) -> dict[str, Any]:
        return {key: value for key, value in self.pool.items() if value is not None}

    def _here(self, provider: str, shut_down: Callable[[], Awaitable[object]]) -> tuple[Site, str]:
        overrides = self._overrides(provider, self.settings)
        if self.pools is not None:
            overrides["pools"] = self.pools
        elif self._limits:
            names = list(configuration.read(overrides).pools)
            if len(names) > 1:
                raise ConfigError("pools", names, "one pool, or the limits inside the pools")
            overrides["pools"] = {names[0]: self._limits}
        config = configuration.read(overrides)
        load(config.provider)
        # One name for the cluster, its units and its folder.
        overrides["name"] = config.name or _new_name()
        site = Here(overrides, self._server(), _security(self.server["security"]), shut_down)
        return site, overrides["name"]

    def _server(self) -> dict[str, Any]:
        """Options of a scheduler in this process."""
        for key in ("host", "protocol"):
            if not isinstance(self.server[key], str | None):
                raise ConfigError(key, self.server[key], "a text, or nothing")
        if self.server["protocol"] in _EVERYWHERE and self.server["host"] is None:
            expected = "another one, or a host: it listens on all interfaces, whatever that is"
            raise ConfigError("protocol", self.server["protocol"], expected)
        port = str(self.server["scheduler_port"])
        if not _is_port(port):
            raise ConfigError(
                "scheduler_port", self.server["scheduler_port"], "a port, 0 to 65535; 0: any that is free"
            )
        dashboard = self.server["dashboard_address"]
        if dashboard is not None:
            _check_dashboard(dashboard)
        return {
            "host": self.server["host"] or "127.0.0.1",
            "port": int(port),
            "protocol": self.server["protocol"],
            "dashboard": dashboard is not None,
            # The HTTP server runs without a dashboard too, and would take the usual port.
            "dashboard_address": dashboard or "127.0.0.1:0",
        }

    def _elsewhere(self, provider: str) -> tuple[Site, str]:
        for key, default in _HERE_ONLY.items():
            if self.server[key] != default:
                expected = f"nothing with provider {provider!r}, which decides that"
                raise ConfigError(key, self.server[key], expected)
        module, attribute, arguments = _HOSTS[provider]
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            expected = f"a provider that can be imported ({error}); {installing(provider)}"
            raise ConfigError("provider", provider, expected) from error
        own = {key: value for key, value in self.settings.items() if key in arguments}
        others = {key: value for key, value in self.settings.items() if key not in own}
        overrides = self._overrides(provider, others, arguments)
        name = configuration.read(overrides).name or _new_name()
        host = getattr(found, attribute)(
            name,
            pool=self._limits,
            pools=self.pools,
            settings={key: value for key, value in overrides.items() if key not in ("provider", "name")},
            dashboard=_forwarded(self.server["dashboard_address"]),
            **own,
        )
        return Elsewhere(host), name

    def _overrides(
        self, provider: str, settings: Mapping[str, Any], more: Iterable[str] = ()
    ) -> dict[str, Any]:
        """The settings, as a configuration section ``tide``; ``more`` are other arguments that exist."""
        keys = {key.replace("-", "_") for key in configuration.top_level_keys()}
        for key, value in settings.items():
            if key not in keys:
                raise ConfigError(key, value, _instead(key, {*keys, *self.known, *more}))
        overrides = spell({key.replace("_", "-"): value for key, value in settings.items()})
        overrides["provider"] = provider
        if self.name is not None:
            overrides["name"] = self.name
        return overrides


def _new_name() -> str:
    return f"tide-{secrets.token_hex(3)}"


def _instead(key: str, known: Collection[str]) -> str:
    """What is expected of a user who has given an argument that does not exist."""
    for provider, (_, _, theirs) in _HOSTS.items():
        if key in theirs:
            return f"nothing; it is for provider={provider!r}"
    near = nearest(key, known)
    hint = f"did you mean {near!r}?" if near else f"one of {', '.join(sorted(known))}"
    return f"an argument that exists; {_INSTEAD.get(key, hint)}"


def _is_port(text: str) -> bool:
    return text.isdecimal() and int(text) <= _HIGHEST_PORT


def _forwarded(address: str | None) -> int | None:
    """Port of this machine where the dashboard of a scheduler elsewhere is seen."""
    if address is None:
        return None
    port = str(address).rpartition(":")[2]
    if not _is_port(port):
        raise ConfigError("dashboard_address", address, "a port of this machine, such as ':8787', or nothing")
    return int(port)


def _check_dashboard(address: Any) -> None:
    """Refuse what Dask takes for an address and cannot listen at, or takes another port for."""
    try:
        ports = [part["port"] for part in clean_dashboard_address(address)]
    except (NameError, TypeError, ValueError):  # it has not looked for another type
        ports = [-1]
    if not all(0 <= port <= _HIGHEST_PORT for port in ports):
        raise ConfigError("dashboard_address", address, "an address such as ':8787', or nothing")


def _security(given: Any) -> Security:
    """TLS as LocalCluster has it: True makes credentials that live as long as the cluster."""
    if given is True:
        try:
            given = Security.temporary()
        except ImportError as error:
            expected = f"a Security, or the package cryptography; {installing('kubernetes')}"
            raise ConfigError("security", given, expected) from error
    security = given or Security()
    if not isinstance(security, Security):
        raise ConfigError("security", given, "a distributed.Security, True or nothing")
    try:
        security.get_listen_args("scheduler")
    except OSError as error:
        raise ConfigError(
            "security", given, f"keys and certificates that can be read ({words(error)})"
        ) from error
    return security
