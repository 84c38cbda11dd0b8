"""Providers by name."""

from __future__ import annotations

import importlib
import operator
from importlib.metadata import entry_points

from dask_tide.errors import ConfigError

from .base import ProviderFactory

__all__ = ["GROUP", "installing", "load", "names"]

#: The entry point group where packages announce their providers.
GROUP = "dask_tide.providers"
#: Our own providers that need an extra of their name.
_EXTRAS = ("kubernetes",)


def names() -> list[str]:
    """Names of all providers that installed packages announce, sorted."""
    return sorted(entry_points(group=GROUP).names)


def installing(extra: str) -> str:
    """How to get an extra of this package, which is on no index yet."""
    return f"pip install '.[{extra}]' in a clone of dask-tide brings what is missing"


def load(name: str) -> ProviderFactory:
    """Find a provider.

    Parameters
    ----------
    name
        Name of an entry point of the group ``dask_tide.providers``, or ``package.module:factory``.

    Raises
    ------
    ConfigError
        There is none of that name, it cannot be imported, or it cannot be called.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return _load(name, module, attribute)
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not found:
        known = ", ".join(repr(known) for known in names())
        raise ConfigError("tide.provider", name, f"one of {known}, or 'package.module:factory'")
    if len(found) > 1:
        expected = f"a name that one package announces, here do {', '.join(sorted(found))}"
        raise ConfigError("tide.provider", name, expected)
    (point,) = found.values()
    return _load(name, point.module, point.attr)


def _load(name: str, module: str, attribute: str) -> ProviderFactory:
    # ImportError is more often a missing extra than a wrong name: pass on what is missing.
    try:
        factory = operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        hint = f"; {installing(name)}" if isinstance(error, ImportError) and name in _EXTRAS else ""
        raise ConfigError(
            "tide.provider", name, f"a provider that can be imported ({error}){hint}"
        ) from error
    if not callable(factory):
        raise ConfigError("tide.provider", name, f"a callable, not a {type(factory).__name__}")
    provider_factory: ProviderFactory = factory
    return provider_factory
