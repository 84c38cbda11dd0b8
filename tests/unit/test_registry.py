"""Providers by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace
from typing import Any

import pytest

from dask_tide.errors import ConfigError
from dask_tide.providers import registry


@pytest.fixture
def announced(monkeypatch):
    """Let packages announce these instead of what is installed."""

    def announce(**values):
        points = EntryPoints(
            EntryPoint(name, value, registry.GROUP)
            for name, several in values.items()
            for value in ([several] if isinstance(several, str) else several)
        )
        monkeypatch.setattr(registry, "entry_points", points.select)

    return announce


def load(name) -> Any:
    return registry.load(name)


def refusal(name) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        registry.load(name)
    assert raised.value.key == "tide.provider"
    assert raised.value.value == name
    return raised.value


def test_the_local_provider_is_announced_by_this_package():
    assert "local" in registry.names()


def test_by_entry_point(announced):
    announced(simple="types:SimpleNamespace", other="collections:OrderedDict")
    assert registry.names() == ["other", "simple"]
    assert load("simple") is SimpleNamespace


def test_by_dotted_name():
    assert load("types:SimpleNamespace") is SimpleNamespace
    assert load("collections:OrderedDict.fromkeys")("a") == {"a": None}


def test_an_unknown_name_lists_the_known_ones(announced):
    announced(local="types:SimpleNamespace", slurm="types:SimpleNamespace")
    assert refusal("kubernetes").expected == "one of 'local', 'slurm', or 'package.module:factory'"


def test_one_package_found_twice_is_no_matter(announced):
    announced(twice=["types:SimpleNamespace", "types:SimpleNamespace"])
    assert load("twice") is SimpleNamespace


def test_two_packages_with_one_name_are(announced):
    announced(twice=["types:SimpleNamespace", "collections:OrderedDict"])
    assert "collections:OrderedDict, types:SimpleNamespace" in refusal("twice").expected


def test_what_is_missing_is_told(announced):
    announced(cloud="no_such_package.cloud:Provider")
    error = refusal("cloud")
    assert "No module named 'no_such_package'" in error.expected
    assert isinstance(error.__cause__, ImportError)


@pytest.mark.parametrize(
    "name",
    [
        "types:Nothing",
        "types:",
        ":x",
        ":",
        "no.such:x",
        "types:Simple.Namespace",
        ".types:x",
        "types:__doc__",
    ],
)
def test_a_wrong_dotted_name_is_refused(name):
    assert (
        "a provider that can be imported" in refusal(name).expected or "a callable" in refusal(name).expected
    )


def test_a_missing_extra_is_told_with_how_to_get_it(announced):
    announced(kubernetes="no_such_package:Provider")
    assert "pip install '.[kubernetes]' in a clone" in refusal("kubernetes").expected
