"""The demo's job: read, parse and measure the whole standard library of the running Python.

Its input is about 1,800 uneven files, and its shape is that of many real jobs::

    find_sources ── measure_file ──► measure_package ──► rank_files ──► study_file ──► summarise
         1             1,800              ~125                1              4             1
                    (wide)                                          (a long, narrow tail)

Which files the tail studies is decided by what the wide part found. The tasks take and give
paths relative to the standard library, so that a worker on another machine reads its own copy.
"""

from __future__ import annotations

import ast
import dis
import io
import itertools
import math
import sysconfig
import token
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import CodeType
from typing import Any, Literal

import dask

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
STUDIED: dict[Size, int] = {"small": 2, "full": 4, "long": 96}
#: And how many of one package.
STUDIED_PER_PACKAGE = 2
#: A studied file is compared with at most so many of its package.
NEIGHBOURS = 60

#: Two functions this much alike are counted as copies of each other.
ALIKE_RATIO = 0.9
#: A function is compared by its runs of this many syntax nodes.
RUN_NODES = 5
#: Functions with fewer different runs are all alike, and say nothing.
LEAST_RUNS = 20

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_BLOCKS = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.Try,
    ast.TryStar,
    ast.With,
    ast.AsyncWith,
    ast.Match,
)
#: One more path through a function each (McCabe, "A Complexity Measure", 1976).
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
    ast.Assert,
)
_LAYOUT = {
    token.NEWLINE,
    token.INDENT,
    token.DEDENT,
    token.ENDMARKER,
    tokenize.NL,
    tokenize.ENCODING,
    tokenize.COMMENT,
}
#: What parsing raises for files that are not Python; Python's own tests hold some on purpose.
_UNPARSEABLE = (SyntaxError, ValueError, RecursionError, tokenize.TokenError)


@dataclass(frozen=True, slots=True)
class Measure:
    """Sizes of a piece of source; they add up, but for ``nesting``, of which the deepest counts."""

    files: int = 0
    unparseable: int = 0
    lines: int = 0
    tokens: int = 0
    comments: int = 0
    functions: int = 0
    classes: int = 0
    branches: int = 0
    nesting: int = 0

    def __add__(self, other: Measure) -> Measure:
        return Measure(
            files=self.files + other.files,
            unparseable=self.unparseable + other.unparseable,
            lines=self.lines + other.lines,
            tokens=self.tokens + other.tokens,
            comments=self.comments + other.comments,
            functions=self.functions + other.functions,
            classes=self.classes + other.classes,
            branches=self.branches + other.branches,
            nesting=max(self.nesting, other.nesting),
        )


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
class Study:
    """A closer look at one file.

    Attributes
    ----------
    path
        Relative to the standard library.
    most_complex
        The function with the highest cyclomatic complexity, and that.
    instructions
        Of the bytecode, all functions included.
    volume_bits
        Halstead's volume: tokens × log2(distinct tokens).
    compared
        Pairs of one function of this file and one of its package that are of like length.
    copies
        Pairs that are the same but for names and literals, or nearly.
    """

    path: str
    most_complex: tuple[str, int]
    instructions: int
    volume_bits: float
    compared: int
    copies: int


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


def measure_source(source: bytes) -> Measure:
    """Measure one file's source.

    A source that does not parse counts as unparseable, with its lines and nothing else.
    """
    lines = source.count(b"\n") + (not source.endswith(b"\n") and source != b"")
    try:
        tree = _parse(source)
        kinds = Counter(each.type for each in tokenize.tokenize(io.BytesIO(source).readline))
    except _UNPARSEABLE:
        return Measure(files=1, unparseable=1, lines=lines)
    functions = classes = branches = nesting = 0
    for node, depth in _walk(tree):
        functions += isinstance(node, _FUNCTIONS)
        classes += isinstance(node, ast.ClassDef)
        branches += _branches(node)
        nesting = max(nesting, depth)
    return Measure(
        files=1,
        lines=lines,
        tokens=sum(count for kind, count in kinds.items() if kind not in _LAYOUT),
        comments=kinds[tokenize.COMMENT],
        functions=functions,
        classes=classes,
        branches=branches,
        nesting=nesting,
    )


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
    suspects = [
        Suspect(path, tuple(each for each in package.paths[:NEIGHBOURS] if each != path))
        for package in ranking
        for path in package.paths[:STUDIED_PER_PACKAGE]
    ]
    return suspects[:top]


def study_source(path: str, source: bytes, neighbours: Iterable[bytes] = ()) -> Study:
    """Look closely at one file: complexity, bytecode, vocabulary, and copied functions.

    Each of its functions is compared with each of its neighbours', by the Jaccard index of
    their runs of syntax nodes, with names and literals left out: what a copy keeps when somebody
    renames its variables.

    Parameters
    ----------
    path
        The file's.
    source
        Its source, which must parse.
    neighbours
        The sources of the other files of its package; those that do not parse are left out.
    """
    tree = _parse(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, path, "exec", dont_inherit=True)
    words = [
        each.string for each in tokenize.tokenize(io.BytesIO(source).readline) if each.type not in _LAYOUT
    ]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    complexity = {node.name: 1 + sum(map(_branches, ast.walk(node))) for node in functions}
    own = _shapes(tree)
    pairs = itertools.chain(
        itertools.combinations(own, 2),
        itertools.product(own, [shape for each in neighbours for shape in _shapes_of(each)]),
    )
    compared = copies = 0
    for one, other in pairs:
        # The index cannot be higher than the ratio of their sizes.
        if ALIKE_RATIO * len(one) <= len(other) and ALIKE_RATIO * len(other) <= len(one):
            compared += 1
            shared = len(one & other)
            copies += shared >= ALIKE_RATIO * (len(one) + len(other) - shared)
    return Study(
        path=path,
        most_complex=max(complexity.items(), key=lambda item: (item[1], item[0]), default=("", 0)),
        instructions=sum(1 for each in _codes(code) for _ in dis.get_instructions(each)),
        volume_bits=len(words) * math.log2(max(1, len(set(words)))),
        compared=compared,
        copies=copies,
    )


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


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        # Python's tests are full of what the compiler warns about.
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Every node and how many blocks it is nested in; not recursive, as some tests nest deeply."""
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        inner = depth + isinstance(node, _BLOCKS)
        stack.extend(
            (child, depth if _is_elif(node, child) else inner) for child in ast.iter_child_nodes(node)
        )


def _is_elif(node: ast.AST, child: ast.AST) -> bool:
    """Whether ``child`` is the ``elif`` of ``node``: nested for the parser, not for a reader."""
    return (
        isinstance(node, ast.If)
        and isinstance(child, ast.If)
        and node.orelse == [child]
        and node.col_offset == child.col_offset
    )


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return int(isinstance(node, _BRANCHES))


def _shapes_of(source: bytes) -> list[frozenset[tuple[str, ...]]]:
    try:
        return _shapes(_parse(source))
    except _UNPARSEABLE:
        return []


def _shapes(tree: ast.AST) -> list[frozenset[tuple[str, ...]]]:
    """Per function, its runs of node kinds; without the functions too short to compare."""
    shapes = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds = [type(node).__name__ for node in ast.walk(function)]
            runs = frozenset(zip(*(kinds[start:] for start in range(RUN_NODES)), strict=False))
            if len(runs) >= LEAST_RUNS:
                shapes.append(runs)
    return shapes


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
