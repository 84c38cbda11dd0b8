"""Types of the programs' arguments: wrong ones are refused before anything is started."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress

__all__ = ["at_least", "gibibytes", "pair", "seconds"]


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers that are not smaller."""

    def number(given: str) -> int:
        if not given.isdecimal() or int(given) < least:
            raise argparse.ArgumentTypeError(f"got {given!r}, expected a whole number, {least} or more")
        return int(given)

    return number


def seconds(given: str) -> float:
    """A time that can be waited for."""
    with suppress(ValueError):
        if 0 <= (value := float(given)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"got {given!r}, expected seconds, 0 or more")


def gibibytes(given: str) -> float:
    """A size that a machine can have."""
    with suppress(ValueError):
        if 0 < (value := float(given)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"got {given!r}, expected GiB, more than 0")


def pair(given: str) -> tuple[str, str]:
    """A key and its value."""
    key, equals, value = given.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"got {given!r}, expected KEY=VALUE")
    return key, value
