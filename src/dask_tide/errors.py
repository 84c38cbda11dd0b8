"""Everything dask-tide raises on purpose.

::

    TideError
    ├── ConfigError              the configuration is wrong (also a ValueError)
    ├── DrainRefused             a worker could not be drained and is back at work
    ├── JournalError             a journal cannot be read
    └── ProviderError            a provider could not do what it was asked
        ├── Unavailable          try again in ``retry_after_s``; nothing is known meanwhile
        ├── CapacityExhausted    the platform has no room for another unit just now
        ├── QuotaExceeded        the platform forbids another unit
        ├── Unauthorized         the platform refuses us
        ├── LaunchRejected       the platform rejects this request; asking again will not help
        └── UnparseableReply     the platform answered something we cannot read

A provider translates its client library's exceptions into these: none of the
library's own leave the provider.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "HIDDEN",
    "CapacityExhausted",
    "ConfigError",
    "DrainRefused",
    "JournalError",
    "LaunchRejected",
    "ProviderError",
    "QuotaExceeded",
    "TideError",
    "Unauthorized",
    "Unavailable",
    "UnparseableReply",
    "words",
]


#: Characters of a wrong value that a message shows: it may be a whole file.
_LONGEST = 200

#: Stands for a wrong value that is nobody else's business: messages are logged, and sent in bug reports.
HIDDEN = "(not shown)"

#: Names of what is so, as they end: ``notebook.token``, ``AWS_SECRET_ACCESS_KEY``, but not ``secretName``.
_SECRET = re.compile(r"(token|passw(or)?d|passphrase|secret|(access|api|private)[_-]?key)$", re.IGNORECASE)


class TideError(Exception):
    """The root of all errors of this project."""


class ConfigError(TideError, ValueError):
    """A configuration value is wrong.

    Parameters
    ----------
    key
        Where it stands, dotted: ``tide.pools.cpu.maximum``.
    value
        What stands there; without what is a secret by its name.
    expected
        What should stand there, in words.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        value = _shown(key, value)
        super().__init__(f"{key}: got {_shorten(repr(value))}, expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.expected)


def _shown(key: str, value: object) -> object:
    """A value without the secrets in it."""
    if value is not None and _SECRET.search(key):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: _shown(str(name), item) for name, item in value.items()}
    return [_shown("", item) for item in value] if isinstance(value, list) else value


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class DrainRefused(TideError):
    """A worker was not drained; it has been put back to work."""


class JournalError(TideError):
    """A journal cannot be read."""


class ProviderError(TideError):
    """A provider could not do what it was asked."""


class Unavailable(ProviderError):
    """The platform does not answer: nothing is known, so nothing may be concluded.

    Parameters
    ----------
    message
        The platform's own words.
    retry_after_s
        Seconds to wait before asking again.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CapacityExhausted(ProviderError):
    """The platform has no room for another unit just now."""


class QuotaExceeded(ProviderError):
    """The platform forbids another unit."""


class Unauthorized(ProviderError):
    """The platform refuses us."""


class LaunchRejected(ProviderError):
    """The platform rejects this request; asking again will not help."""


class UnparseableReply(ProviderError):
    """The platform answered something we cannot read."""


def words(error: BaseException) -> str:
    """What an error says; its type's name where it says nothing, as a ``TimeoutError`` does."""
    return str(error) or type(error).__name__
