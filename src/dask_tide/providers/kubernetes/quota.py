"""Quota: the most pods of a pool that the platform allows, for as long as its refusal is believed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from dask_tide.providers.base import Limit

from .patience import Patience
from .replicasets import ReplicaSetView

__all__ = ["Quota"]

logger = logging.getLogger("distributed.tide.kubernetes")

#: The same refusal has other numbers each time: how much is used.
_DIGITS = re.compile(r"\d+")


class Quota:
    """A refusal to create pods: by a ResourceQuota, a LimitRange, Pod Security or another admission.

    Each further one is believed for twice as long, until there are more pods than before, or none has come
    for as long again.

    Parameters
    ----------
    pool
        Its name.
    patience
        For how long a refusal is believed.
    clock
        Seconds that increase steadily.
    """

    def __init__(self, pool: str, *, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._patience = patience
        self._clock = clock
        self._limit: Limit | None = None
        self._until_s = 0.0
        self._believed_s = patience.quota_s
        #: How many there were when it was last refused.
        self._existing = 0
        self._told = ""

    def limit(self) -> Limit | None:
        """What was refused, while it is believed."""
        if self._limit is not None and self._clock() >= self._until_s:
            self._limit = None
        return self._limit

    def refused(self, view: ReplicaSetView, maximum: int) -> None:
        """A pod beyond these could not be created."""
        if (words := _DIGITS.sub("#", view.refusal)) != self._told:
            logger.warning("ReplicaSet %s: %s", view.name, view.refusal)
            self._told = words
        if self._clock() > self._until_s + self._believed_s:
            self._believed_s = self._patience.quota_s
        self._limit = Limit(self._pool, maximum, view.refusal)
        self._until_s = self._clock() + self._believed_s
        self._believed_s = min(2 * self._believed_s, self._patience.quota_max_s)
        self._existing = view.existing

    def counted(self, maximum: int) -> None:
        """There are so many, now that all that could be created have been seen."""
        if self._limit is not None:
            self._limit = Limit(self._pool, maximum, self._limit.message)

    def granted(self, view: ReplicaSetView) -> None:
        """Nothing is refused."""
        if view.existing > self._existing:
            self._believed_s, self._existing = self._patience.quota_s, view.existing
