"""What can go wrong in the cloud, switched on and off while it runs."""

from __future__ import annotations

import fnmatch
import random
from dataclasses import dataclass, field


@dataclass
class Faults:
    """The faults that are on.

    Attributes
    ----------
    stock_outs
        What EC2 has none of: globs of ``type/zone/market``.
    throttled
        What is answered with `RequestLimitExceeded`: globs of ``service:Operation``.
    boot_s
        How long an instance takes from its launch to its kubelet's start, on average.
    boot_spread
        By how much of that it may be shorter or longer.
    joins
        Whether new instances become nodes.
    """

    boot_s: float = 5.0
    boot_spread: float = 0.2
    joins: bool = True
    stock_outs: list[str] = field(default_factory=list)
    throttled: list[str] = field(default_factory=list)
    chance: random.Random = field(default_factory=random.Random)

    def out_of_stock(self, kind: str, zone: str, market: str) -> bool:
        """Whether EC2 has none of a type in a zone at a market."""
        return _matches(f"{kind}/{zone}/{market}", self.stock_outs)

    def throttles(self, service: str, operation: str) -> bool:
        """Whether a call is refused because there are too many."""
        return _matches(f"{service}:{operation}", self.throttled)

    def sample_boot_s(self) -> float:
        """How long the next instance takes."""
        return self.boot_s * self.chance.uniform(1 - self.boot_spread, 1 + self.boot_spread)


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
