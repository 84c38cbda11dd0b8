"""The demo's job: read, parse and measure the whole standard library of the running Python.

Its input is about 1,800 uneven files, and its shape is that of many real jobs::

    find_sources ── measure_file ──► measure_package ──► rank_files ──► study_file ──► summarise
         1             1,800              ~125                1              4             1
                    (wide)                                          (a long, narrow tail)

Which files the tail studies is decided by what the wide part found. The tasks take and give
paths relative to the standard library, so that a worker on another machine reads its own copy.
"""

from __future__ import annotations

import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import dask

from .source import Measure, Study, measure_source, study_source

Size = Literal["small", "full", "long"]

#: The stages' functions in the order of their work; each is one TaskGroup of the scheduler.
STAGES: dict[str, str] = {
    "find_sources": "find the files",
    "measure_file": "measure each file",
    "measure_package": "combine per package",
    "rank_files": "rank the files",
    "study_file": "study the hardest",
    "summarise": "sum up",
}

#: What ``size="small"`` reads: enough to need more than one worker, little enough for a test.
SMALL = ("asyncio", "collections", "email", "idlelib", "json", "logging", "unittest", "test/test_asyncio")
#: How many files the tail studies.
STUDIED: dict[Size, int] = {"small": 2, "full": 4, "long": 300}
#: And of one package so many, or its share if that is more.
STUDIED_PER_PACKAGE = 2
#: A studied file is compared with at most so many of its package.
NEIGHBOURS = 60


@dataclass(frozen=True, slots=True)
class FileMeasure:
    """One file, by its path relative to the standard library."""

    path: str
    measure: Measure


@dataclass(frozen=True, slots=True)
class PackageMeasure:
    """One package: its sum, and its files, those with the most branches first."""

    name: str
    measure: Measure
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A file to be studied, and the files of its package to compare it with."""

    path: str
    neighbours: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the whole job found out."""

    packages: int
    total: Measure
    largest_packages: tuple[tuple[str, Measure], ...] = ()
    studies: tuple[Study, ...] = field(default=())


def stdlib() -> Path:
    """The standard library of the Python that runs this."""
    return Path(sysconfig.get_path("stdlib"))


def find_sources(size: Size = "full") -> list[str]:
    """List the ``.py`` files of the standard library, sorted, relative to it."""
    root = stdlib()
    roots = [root / name for name in SMALL] if size == "small" else [root]
    found = (path.relative_to(root) for top in roots for path in top.rglob("*.py"))
    # What was installed beside the standard library is not part of it.
    return sorted(
        path.as_posix() for path in found if not {"site-packages", "dist-packages"} & set(path.parts)
    )


def package_of(path: str) -> str:
    """Dotted name of the package that a file is in.

    >>> package_of("email/mime/text.py"), package_of("abc.py")
    ('email.mime', '(top level)')
    """
    return ".".join(PurePosixPath(path).parent.parts) or "(top level)"


def measure_file(path: str) -> FileMeasure:
    """Measure one file of the standard library."""
    return FileMeasure(path, measure_source((stdlib() / path).read_bytes()))


def measure_package(name: str, files: Sequence[FileMeasure]) -> PackageMeasure:
    """Add up a package's files and rank them."""
    ranking = sorted(files, key=lambda file: (-file.measure.branches, file.path))
    total = sum((file.measure for file in files), Measure())
    return PackageMeasure(name, total, tuple(file.path for file in ranking))


def rank_files(packages: Sequence[PackageMeasure], top: int) -> list[Suspect]:
    """The ``top`` hardest files: a few of each package, of the hardest package first."""
    ranking = sorted(packages, key=lambda package: (-package.measure.branches, package.name))
    of_one = max(STUDIED_PER_PACKAGE, -(-top // max(1, len(packages))))
    suspects = [
        Suspect(path, tuple(each for each in package.paths[:NEIGHBOURS] if each != path))
        for package in ranking
        for path in package.paths[:of_one]
    ]
    return suspects[:top]


def study_file(ranking: Sequence[Suspect], place: int) -> Study | None:
    """Look closely at the file in this place of the ranking, if there is one that parses."""
    if place >= len(ranking):
        return None
    suspect, root = ranking[place], stdlib()
    source = (root / suspect.path).read_bytes()
    if measure_source(source).unparseable:
        return None
    return study_source(suspect.path, source, ((root / path).read_bytes() for path in suspect.neighbours))


def summarise(packages: Sequence[PackageMeasure], studies: Sequence[Study | None], top: int = 3) -> Answer:
    """Add everything up."""
    largest = sorted(packages, key=lambda package: (-package.measure.lines, package.name))[:top]
    return Answer(
        packages=len(packages),
        total=sum((package.measure for package in packages), Measure()),
        largest_packages=tuple((package.name, package.measure) for package in largest),
        studies=tuple(study for study in studies if study is not None),
    )


def build(paths: Sequence[str], studied: int) -> Any:
    """The job as a :class:`dask.delayed.Delayed`, for ``client.compute``.

    Parameters
    ----------
    paths
        What :func:`find_sources` gave, on a worker.
    studied
        How many files the tail looks at closely.

    Returns
    -------
    Delayed
        Of an :class:`Answer`.
    """
    measure, combine, rank, study, sum_up = (
        dask.delayed(function, pure=True)
        for function in (measure_file, measure_package, rank_files, study_file, summarise)
    )
    files: defaultdict[str, list[Any]] = defaultdict(list)
    for path in paths:
        files[package_of(path)].append(measure(path))
    packages = [combine(name, measured) for name, measured in files.items()]
    studied = min(studied, len(paths))
    ranking = rank(packages, studied)
    return sum_up(packages, [study(ranking, place) for place in range(studied)])
