"""Command: with which arguments, environment and limits workers are started."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
from distributed.comm import get_address_host
from distributed.system import MEMORY_LIMIT

from dask_tide.model import Pool
from dask_tide.providers.base import ProviderContext

__all__ = [
    "PRELOADS",
    "forkserver_environment",
    "keys_in_memory",
    "terminate_bytes",
    "worker_arguments",
    "write_keys",
]

#: What each worker loads.
PRELOADS = ("dask_tide.preload", "dask_tide.providers.local.output")

#: How long a worker looks for its scheduler.
DEATH_TIMEOUT = "60s"

#: Where Dask looks for configuration files; no configuration values.
_FOLDERS = {"DASK_CONFIG", "DASK_ROOT_CONFIG"}

#: With one of these ``dask worker`` takes no ``--host``.
_INSTEAD_OF_HOST = ("--interface", "--listen-address")

#: What a ``Security`` has that may be a path, or a key or certificate itself.
_KEYS = ("tls_ca_file", "tls_worker_cert", "tls_worker_key", "tls_client_cert", "tls_client_key")


def worker_arguments(context: ProviderContext, pool: Pool, own: Sequence[str] = ()) -> list[str]:
    """Arguments of ``dask worker``, but for its name and the user's own options, which are ``own``."""
    arguments = [context.scheduler_address, "--no-nanny"]
    arguments += ["--nthreads", str(pool.threads), "--memory-limit", str(pool.memory_bytes)]
    if pool.resources:
        arguments += ["--resources", " ".join(f"{resource}={amount}" for resource, amount in pool.resources)]
    host = _host(context.scheduler_address)
    if host and not any(option.partition("=")[0] in _INSTEAD_OF_HOST for option in own):
        # Without it, a worker listens on all interfaces, which LocalCluster's do not either.
        arguments += ["--host", host]
    # As in LocalCluster, no worker has a dashboard; its HTTP server, for metrics, is there nonetheless, and
    # would listen on all interfaces.
    arguments += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    arguments += ["--local-directory", str(context.safe_folder / "scratch"), "--death-timeout", DEATH_TIMEOUT]
    # The option replaces the configured preloads, so they have to be repeated.
    configured = dask.config.get("distributed.worker.preload")
    for preload in [configured] if isinstance(configured, str) else configured:
        arguments += ["--preload", preload]
    for preload in PRELOADS:
        arguments += ["--preload", preload]
    return arguments


def terminate_bytes(pool: Pool) -> int:
    """Resident memory above which a worker is killed, as its nanny would; 0: never."""
    fraction: float | bool = dask.config.get("distributed.worker.memory.terminate")
    return int(fraction * min(pool.memory_bytes, MEMORY_LIMIT))


def forkserver_environment(context: ProviderContext, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment of the forkserver and its workers: what a nanny gives to its worker.

    Parameters
    ----------
    environment
        The user's own variables, which win over all others.
    """
    result = dict(os.environ)
    for key in ("distributed.nanny.pre-spawn-environ", "distributed.nanny.environ"):
        for name, value in dask.config.get(key).items():
            if value is not None:
                result.setdefault(name, str(value))
    if result.get("PYTHONHASHSEED") in (None, "0", "random"):
        # All workers must hash alike: https://github.com/dask/dask/issues/6640
        result["PYTHONHASHSEED"] = "6640"
    # What these say is in the configuration already, unless it was changed since: then they must not win.
    said = [name for name in result if name.startswith("DASK_") and name not in _FOLDERS]
    for name in said:
        del result[name]
    write_keys(context)
    config = dask.config.merge(dask.config.global_config, _tls_config(context))
    result["DASK_INTERNAL_INHERIT_CONFIG"] = dask.config.serialize(config)
    result.update(environment)
    return result


def keys_in_memory(context: ProviderContext) -> dict[Path, str]:
    """Keys and certificates that exist in memory only, by the files that workers read them from."""
    security: Any = context.security  # its attributes are not declared
    values = {field: getattr(security, field) for field in _KEYS}
    return {_key_file(context, field): value for field, value in values.items() if _is_key(value)}


def write_keys(context: ProviderContext) -> None:
    """Write those to private files, rather than to an environment that subprocesses inherit. Idempotent."""
    for file, key in keys_in_memory(context).items():
        if file.exists() and file.read_bytes() == key.encode():
            continue
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.unlink(missing_ok=True)
        # A new file, or none: in one that somebody else has put there he could read it.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as private:
            private.write(key.encode())


def _is_key(value: str | None) -> bool:
    return value is not None and "\n" in value


def _key_file(context: ProviderContext, field: str) -> Path:
    return context.safe_folder / "tls" / f"{context.cluster}-{field}.pem"


def _host(scheduler_address: str) -> str:
    """Host to listen on: where the scheduler is reached, if this machine has that address; else empty."""
    host = get_address_host(scheduler_address)
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return ""
    if address.is_loopback:
        return host
    return "" if address.is_unspecified or not _is_here(host) else host


def _is_here(address: str) -> bool:
    """Whether an interface of this machine has it, and not a gateway's or a balancer's before it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _tls_config(context: ProviderContext) -> dict[str, Any]:
    """Dask configuration that says what ``context.security`` does.

    Not options of ``dask worker``: those know no ciphers, and no client's role, which a task that uses
    the cluster (``worker_client``) needs.
    """
    security: Any = context.security  # its attributes are not declared

    def path(field: str) -> str | None:
        value: str | None = getattr(security, field)
        if value is None:
            return None
        return str(_key_file(context, field) if _is_key(value) else Path(value).absolute())

    versions = {None: None, ssl.TLSVersion.TLSv1_2: 1.2, ssl.TLSVersion.TLSv1_3: 1.3}
    tls: dict[str, Any] = {
        "ca-file": path("tls_ca_file"),
        "ciphers": security.tls_ciphers,
        "min-version": versions[security.tls_min_version],
        "max-version": versions[security.tls_max_version],
    }
    for role in ("worker", "client"):
        tls[role] = {"cert": path(f"tls_{role}_cert"), "key": path(f"tls_{role}_key")}
    return {"distributed": {"comm": {"require-encryption": security.require_encryption, "tls": tls}}}
