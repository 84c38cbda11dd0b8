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
        "machine-within": "15m",
        "prices": {"m5.xlarge": 0.2, "m5.*/spot": 0.07, "c5.large/eu-west-1a/spot": 0},
    }
    read = Options.read(values)
    assert read == Options(
        namespace="team-a",
        kubeconfig="~/.kube/other",
        context="prod",
        annotate=False,
        nodes=True,
        prices={"m5.xlarge/*/*": 0.2, "m5.*/*/spot": 0.07, "c5.large/eu-west-1a/spot": 0.0},
        on_close="keep",
        unschedulable_after_s=300.0,
        machine_within_s=900.0,
    )
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


@pytest.mark.parametrize(
    ("prices", "key", "expected"),
    [
        (3, "prices", "a mapping from 'TYPE'"),
        ({"m5/a/spot/x": 1}, "prices.m5/a/spot/x", "'TYPE', 'TYPE/MARKET' or 'TYPE/ZONE/MARKET'"),
        ({"m5//spot": 1}, "prices.m5//spot", "'TYPE', 'TYPE/MARKET' or 'TYPE/ZONE/MARKET'"),
        ({"m5": "cheap"}, "prices.m5", "a number >= 0"),
        ({"m5": -1}, "prices.m5", "a number >= 0"),
        ({"m5": float("inf")}, "prices.m5", "a number >= 0"),
    ],
)
def test_wrong_prices(prices, key, expected):
    with pytest.raises(ConfigError) as caught:
        Options.read({"nodes": True, "prices": prices})
    assert str(caught.value).startswith(f"tide.options.{key}: got ")
    assert expected in str(caught.value)


def test_of_prices_the_most_exact_one_comes_first_however_they_were_written():
    prices = {"*": 9, "m5.*": 5, "m5.xlarge": 2, "m5.xlarge/spot": 1}
    for order in (prices, dict(sorted(prices.items())), dict(reversed(prices.items()))):
        read = list(Options.read({"nodes": True, "prices": order}).prices.values())
        assert read == [1, 2, 5, 9]


def test_prices_need_nodes():
    with pytest.raises(ConfigError, match=r"nothing without tide\.options\.nodes: true"):
        Options.read({"prices": {"m5": 1}})
