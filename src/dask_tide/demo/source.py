"""Source: what the demo's tasks find out about a piece of Python."""

from __future__ import annotations

import ast
import dis
import io
import itertools
import math
import token
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType

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
