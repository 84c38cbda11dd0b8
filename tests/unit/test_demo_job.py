"""The demo's job: what it measures, and the shape of its graph."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter

import dask
import pytest

from dask_tide.demo.job import (
    NEIGHBOURS,
    STAGES,
    STUDIED,
    FileMeasure,
    PackageMeasure,
    build,
    find_sources,
    measure_file,
    measure_package,
    package_of,
    rank_files,
    stdlib,
)
from dask_tide.demo.source import Measure, measure_source, study_source

SOURCE = b"""\
# A comment.
class Sum:
    def add(self, a, b):
        if a and b or not a:
            for each in b:
                with each:
                    a += each
        elif a:
            return a
        else:
            a = [x for x in b if x]
        return a if b else (lambda: b)


async def nothing():
    pass
"""

LONG = """\
def {name}({one}, {two}):
    total = 0
    for {one} in {two}:
        if {one} > {literal} and {two}:
            total += {one} * {literal}
        while total > len({two}):
            total -= print({one}, {two}) or {literal}
    try:
        return {{ {one}: [{two}, total] }}
    except ValueError as error:
        raise KeyError({one}) from error
"""
BODY = "class C:\n" + "\n".join(f"    a{n} = [b{n}, (c{n}, -d{n})]" for n in range(30))


def test_measures_every_kind():
    assert measure_source(SOURCE) == Measure(
        files=1,
        lines=16,
        # Counted by hand: each name, number and operator.
        tokens=67,
        comments=1,
        functions=3,
        classes=1,
        # if, `and`, `or`, for, elif, the comprehension's for, the conditional expression
        branches=7,
        # if, for, with: an elif is no deeper than its if
        nesting=3,
    )


def test_an_unparseable_source_counts_as_that_and_stops_nothing():
    bad = [b"def f(:\n    pass\n", b"x = '\xff'\n", b"a\0b", b"if 1:\n        a\n    b\n", b"(" * 300]
    for source in bad:
        assert measure_source(source) == Measure(files=1, unparseable=1, lines=source.count(b"\n") or 1)


def test_an_empty_source_has_no_line():
    assert measure_source(b"") == Measure(files=1)


def test_deep_nesting_does_not_exhaust_the_stack():
    # As deep as the parser takes; a recursive walk would need more frames than Python has.
    chain = "a" + ".b" * 800
    assert measure_source(chain.encode()).unparseable == 0


def test_measures_of_real_files_agree_with_counting_directly():
    for path in ("json/decoder.py", "asyncio/events.py", "abc.py"):
        source = (stdlib() / path).read_bytes()
        kinds = Counter(type(node).__name__ for node in ast.walk(ast.parse(source)))
        comments = sum(
            each.type == tokenize.COMMENT for each in tokenize.tokenize(io.BytesIO(source).readline)
        )
        measure = measure_file(path).measure
        assert measure.lines == len(source.splitlines())
        assert measure.functions == kinds["FunctionDef"] + kinds["AsyncFunctionDef"] + kinds["Lambda"]
        assert measure.classes == kinds["ClassDef"]
        assert measure.comments == comments


def test_the_input_is_the_standard_library_and_nothing_installed():
    paths = find_sources("full")
    assert paths == sorted(set(paths))
    assert {"abc.py", "json/decoder.py"} <= set(paths)
    assert not any("site-packages" in path for path in paths)
    assert set(find_sources("small")) < set(paths)


def test_packages():
    assert [package_of(path) for path in ("abc.py", "json/decoder.py", "email/mime/text.py")] == [
        "(top level)",
        "json",
        "email.mime",
    ]


def test_a_package_is_the_sum_of_its_files_hardest_first():
    files = [
        FileMeasure("p/a.py", Measure(files=1, lines=10, branches=2, nesting=4)),
        FileMeasure("p/c.py", Measure(files=1, lines=5, branches=7, nesting=1)),
        FileMeasure("p/b.py", Measure(files=1, unparseable=1, branches=2)),
    ]
    assert measure_package("p", files) == PackageMeasure(
        "p", Measure(files=3, unparseable=1, lines=15, branches=11, nesting=4), ("p/c.py", "p/a.py", "p/b.py")
    )


def test_the_ranking_takes_a_few_of_each_package_and_bounds_what_they_are_compared_with():
    many = tuple(f"big/{n}.py" for n in range(NEIGHBOURS + 10))
    small = PackageMeasure("small", Measure(branches=5), ("small/a.py",))
    big = PackageMeasure("big", Measure(branches=9), many)
    ranking = rank_files([small, big], 3)
    assert [suspect.path for suspect in ranking] == ["big/0.py", "big/1.py", "small/a.py"]
    assert ranking[1].neighbours == many[:1] + many[2:NEIGHBOURS]
    assert ranking[2].neighbours == ()


def test_copies_are_found_whatever_the_names():
    one = LONG.format(name="one", one="a", two="b", literal="1")
    two = LONG.format(name="two", one="item", two="items", literal="2_000")
    other = f"def other():\n    {BODY.replace(chr(10), chr(10) + '    ')}\n"
    study = study_source("x.py", (one + two + other).encode())
    # One path, and one more each: for, if, `and`, while, `or`, except.
    assert (study.copies, study.most_complex) == (1, ("two", 7))
    assert study_source("x.py", one.encode()).copies == 0
    study = study_source("x.py", one.encode(), [two.encode(), other.encode(), b"def broken(:"])
    assert study.copies == 1


def test_a_study_is_deterministic_and_counts_bytecode_and_words():
    study = study_source("x.py", b"a = a\n")
    assert study == study_source("x.py", b"a = a\n")
    # Three words of two kinds: 3 × log2(2).
    assert study.volume_bits == pytest.approx(3.0)
    assert study.instructions >= 4
    assert study.most_complex == ("", 0)


def test_the_graph_has_one_task_per_file_one_per_package_and_a_narrow_tail():
    paths = ["abc.py", "ast.py", "json/decoder.py"]
    graph = dict(build(paths, 2).__dask_graph__())
    kinds = Counter(str(key).rsplit("-", 5)[0] for key in graph)
    assert kinds == {
        "measure_file": 3,
        "measure_package": 2,
        "rank_files": 1,
        "study_file": 2,
        "summarise": 1,
    }
    assert set(kinds) < set(STAGES)


def test_the_answer_is_the_sum_of_all_files():
    paths = [path for path in find_sources("small") if path.startswith(("json/", "logging/"))]
    (answer,) = dask.compute(build(paths, STUDIED["small"]), scheduler="sync")
    assert answer.total == sum((measure_file(path).measure for path in paths), Measure())
    assert answer.packages == 2
    assert [name for name, _ in answer.largest_packages] == ["logging", "json"]
    logging = [path for path in paths if path.startswith("logging/")]
    hardest = sorted(logging, key=lambda path: -measure_file(path).measure.branches)
    assert [study.path for study in answer.studies] == hardest[:2]
