"""Which API server, and as whom: a kubeconfig as kubectl finds it, or a pod's ServiceAccount."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml
from lightkube import KubeConfig
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from dask_tide.errors import HIDDEN, ConfigError

__all__ = ["own_namespace", "read"]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT = Path("~/.kube/config")
_KEY = "tide.options.kubeconfig"
_NOT_SO = "nothing: that is not supported"
#: Keys that change to whom one speaks, or as whom, and what is expected instead.
_ODD = {
    "clusters": {
        "proxy-url": "nothing: set HTTPS_PROXY instead",
        "tls-server-name": _NOT_SO,
    },
    "users": dict.fromkeys(("as", "as-uid", "as-groups", "as-user-extra", "auth-provider"), _NOT_SO),
}
#: Versions of the protocol of programs that say a token.
_EXEC = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
_SAYS_WHO = ("token", "token_file", "client_cert", "client_cert_data", "client_key", "client_key_data")
#: Paths in a kubeconfig are relative to its folder.
_PATHS = {"clusters": ("certificate_auth",), "users": ("client_cert", "client_key", "token_file")}


def read(kubeconfig: str | None = None, context: str | None = None) -> Any:
    """The API server's address and our credentials, as lightkube has them.

    Parameters
    ----------
    kubeconfig, context
        A file, and a context in it. Without a file those of ``$KUBECONFIG``, merged as kubectl does it, else
        in a pod its ServiceAccount (if no context is named), else ``~/.kube/config``.

    Raises
    ------
    ConfigError
        There is no such file or context, or it makes no sense.
    """
    config = _find(kubeconfig, context)[0]
    try:
        found = config.get(context)
        _refuse_odd(config, found)
        return found
    except LightkubeConfigError as error:
        known = ", ".join(config.contexts) or "no context at all"
        raise ConfigError("tide.options.context", context, f"one of {known} ({error})") from error
    except KeyError as error:
        expected = f"one that has {error}, which its context {context or config.current_context} names"
        raise ConfigError(_KEY, kubeconfig, expected) from error


def _refuse_odd(config: KubeConfig, found: Any) -> None:
    """Complain of what lightkube would pass over: another server, perhaps, or with more rights."""
    odd: dict[tuple[str, str], tuple[str, Any]] = getattr(config, "odd", {})
    for entry in (("clusters", found.context.cluster), ("users", found.context.user)):
        if entry in odd:
            key, value = odd[entry]
            expected = _ODD[entry[0]].get(key) or f"one of {', '.join(_EXEC)}"
            raise ConfigError(f"{_KEY}: {entry[0]}.{entry[1]}.{key}", _harmless(key, value), expected)


def _harmless(key: str, value: Any) -> Any:
    """What may be shown of a value: names, but no token, and no proxy's password."""
    if key == "proxy-url" and isinstance(value, str):
        return re.sub(r"^([\w+.-]+://)?.*@", r"\1", value, flags=re.DOTALL)
    names = value if isinstance(value, list) else [value]
    return value if all(isinstance(name, str) for name in names) else HIDDEN


def own_namespace(kubeconfig: str | None = None, context: str | None = None) -> str | None:
    """Namespace of the pod that this is, if what :func:`read` finds is its ServiceAccount."""
    return _find(kubeconfig, context)[1]


def _find(kubeconfig: str | None, context: str | None) -> tuple[KubeConfig, str | None]:
    """All that may be chosen from; with the pod's namespace if it is the ServiceAccount's."""
    if kubeconfig is not None:
        return _merge([Path(kubeconfig)]), None
    if paths := [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]:
        # kubectl, too, passes over those that do not exist.
        return _merge([path for path in paths if path.expanduser().is_file()] or paths), None
    if context is None and (_ACCOUNT / "token").is_file() and "KUBERNETES_SERVICE_HOST" in os.environ:
        return KubeConfig.from_service_account(_ACCOUNT), (_ACCOUNT / "namespace").read_text().strip()
    if not _DEFAULT.expanduser().is_file():
        raise ConfigError(_KEY, None, f"a pod's ServiceAccount, $KUBECONFIG or {_DEFAULT}: there is none")
    return _merge([_DEFAULT]), None


def _merge(paths: list[Path]) -> KubeConfig:
    """The first file that says something is heard."""
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}}
    odd: dict[tuple[str, str], tuple[str, Any]] = {}
    current: str | None = None
    for path in paths:
        config = _parse(path.expanduser().absolute())
        current = current or config.current_context
        for kind, entries in merged.items():
            for name, entry in getattr(config, kind).items():
                if name not in entries and (kind, name) in config.odd:
                    odd[kind, name] = config.odd[kind, name]
                entries.setdefault(name, entry)
    return _Config(**merged, current_context=current, odd=odd)


class _Config(KubeConfig):
    """With what lightkube does not know of: keys and values, by kind and name of the entry."""

    def __init__(self, *, odd: dict[tuple[str, str], tuple[str, Any]], **parts: Any) -> None:
        super().__init__(**parts)
        self.odd = odd


def _tidy(config: KubeConfig) -> None:
    """As kubectl has it what is empty is nothing, and data go before a file."""
    for user in config.users.values():
        for key in _SAYS_WHO:
            setattr(user, key, getattr(user, key) or None)
    for cluster in config.clusters.values():
        if cluster.certificate_auth_data:
            cluster.certificate_auth = None


def _what(error: Exception) -> str:
    """What is wrong with a file, and where, without what is written there."""
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            return f"{type(error).__name__}, line {mark.line + 1}, column {mark.column + 1}"
        case yaml.YAMLError():
            return type(error).__name__
        case UnicodeDecodeError():
            return f"{type(error).__name__}, byte {error.start}: {error.reason}"
    return repr(error)


def _load(path: Path) -> tuple[KubeConfig, dict[tuple[str, str], tuple[str, Any]]] | ConfigError:
    """A file, and what is odd in it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        # Each of them may be missing, or null.
        lists = {kind: content.get(kind) or [] for kind in ("clusters", "users", "contexts")}
        config = KubeConfig.from_dict({**content, **lists})
        odd = {
            (kind, str(entry["name"])): (key, said)
            for kind, keys in _ODD.items()
            for entry in lists[kind]
            for key in keys
            if (said := (entry[kind.removesuffix("s")] or {}).get(key))
        }
        return config, odd
    except (
        *(OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.MsgspecError),
        *(AttributeError, KeyError, TypeError),
    ) as error:
        # To be raised elsewhere, so that its cause, which has lines of the file, does not come along.
        return ConfigError(_KEY, str(path), f"a kubeconfig file ({_what(error)})")


def _parse(path: Path) -> _Config:
    loaded = _load(path)
    if isinstance(loaded, ConfigError):
        raise loaded
    config, odd = loaded
    _tidy(config)
    for kind, keys in _PATHS.items():
        for entry in getattr(config, kind).values():
            for key in keys:
                if value := getattr(entry, key):
                    setattr(entry, key, str(path.parent / value))
    for name, user in config.users.items():
        if user.exec is None:
            continue
        if user.exec.apiVersion not in _EXEC:
            odd["users", name] = ("exec.apiVersion", user.exec.apiVersion)
        if os.sep in user.exec.command:
            user.exec.command = str(path.parent / user.exec.command)
    return _Config(
        clusters=config.clusters,
        users=config.users,
        contexts=config.contexts,
        current_context=config.current_context,
        odd=odd,
    )
