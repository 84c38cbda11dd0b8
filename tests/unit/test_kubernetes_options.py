"""What may be said at ``tide.options``, and what is said of a wrong value."""

from __future__ import annotations

import pytest

from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.options import Options


def test_nothing_need_be_said():
    assert Options.read({}) == Options()


def test_everything_that_may_be_said():
    values = {
        "namespace": "team-a",
        "kubeconfig": "~/.kube/other",
        "context": "prod",
        "annotate": False,
        "nodes": True,
        "on-close": "keep",
        "unschedulable-after": "5m",
    }
    read = Options.read(values)
    assert read == Options("team-a", "~/.kube/other", "prod", False, True, "keep", 300.0)
    assert Options.read({name.replace("-", "_"): value for name, value in values.items()}) == read


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("namespace", 5, "a text, or nothing"),
        ("namespace", "", "a text, or nothing"),
        ("annotate", "yes", "true or false"),
        ("nodes", 1, "true or false"),
        ("on-close", "delete", "one of 'release', 'keep'"),
        ("unschedulable-after", "soon", "a duration such as '30s'"),
        ("unschedulable-after", "s", "a duration such as '30s'"),
        ("unschedulable-after", -1, "a duration such as '30s'"),
        ("unschedulable-after", True, "a duration such as '30s'"),
        ("namespaces", "x", "one of the options namespace, kubeconfig,"),
    ],
)
def test_a_wrong_value(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        Options.read({name: value})
    assert str(caught.value).startswith(f"tide.options.{name}: got {value!r}, expected {expected}")
