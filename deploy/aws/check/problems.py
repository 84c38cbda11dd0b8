"""What is wrong in a file, in words that say where and what was expected."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    file
        Relative to ``deploy/aws``, where it lives there.
    key
        Where in the file: ``InstanceGroup dask-workers: spec.taints[0]``.
    value
        What stands there.
    expected
        What should.
    """

    file: str
    key: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.value}: expected {self.expected}"


@dataclass(frozen=True)
class Place:
    """A file, and the object in it that checks are about."""

    file: str
    subject: str = ""

    def problem(self, key: str, value: object, expected: str) -> Problem:
        return Problem(self.file, f"{self.subject}: {key}" if self.subject else key, repr(value), expected)

    def expect(self, holds: bool, key: str, value: object, expected: str) -> Iterator[Problem]:
        if not holds:
            yield self.problem(key, value, expected)

    def expect_one_of(self, key: str, value: object, allowed: Collection[Any]) -> Iterator[Problem]:
        words = "one of " + ", ".join(str(item) for item in allowed)
        yield from self.expect(value in allowed, key, value, words)


@dataclass
class Report:
    """All that was found, and what could not be looked at."""

    problems: list[Problem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
