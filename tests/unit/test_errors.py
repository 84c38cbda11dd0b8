"""What an error tells, and what it does not."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import pytest

from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.manifests import values
from dask_tide.providers.local.options import Options

SECRET = "swordfish"


def assert_nothing_told(error: BaseException | None) -> None:
    while error is not None:
        assert SECRET not in "".join(traceback.format_exception(error))
        assert SECRET not in repr(vars(error))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("notebook", "key"),
    [
        ({"token": [SECRET]}, "notebook.token"),
        ({"token": {"value": SECRET}}, "notebook.token"),
        ({"Token": SECRET}, "notebook.Token"),
        ([{"token": SECRET}], "notebook"),
    ],
)
def test_a_token_of_the_chart_is_not_shown(notebook: Any, key: str) -> None:
    """It was, where its type was wrong: in a terminal, a log of CI, a bug report."""
    with pytest.raises(ConfigError) as error:
        values.read({"image": {"repository": "r"}, "notebook": notebook})
    assert error.value.key == key
    assert "(not shown)" in str(error.value)
    assert_nothing_told(error.value)


def test_a_variable_that_is_a_secret_by_its_name_is_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        Options().updated("tide.options", {"environment": {"AWS_SECRET_ACCESS_KEY": [SECRET]}})
    assert_nothing_told(error.value)
    with pytest.raises(ConfigError, match=r"environment\.REGION: got \['here'\]"):
        Options().updated("tide.options", {"environment": {"REGION": ["here"]}})


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("a.password", SECRET, "(not shown)"),
        ("apiKey", SECRET, "(not shown)"),
        ("a", {"b": [{"token": SECRET, "c": 1}]}, {"b": [{"token": "(not shown)", "c": 1}]}),
        ("security.tls.secretName", "mine", "mine"),
        ("imagePullSecrets", [1], [1]),
        ("notebook.token", None, None),
        ("tokens.maximum", 3, 3),
        ("a", (1, 2), (1, 2)),
    ],
)
def test_secrets_are_known_by_their_names(key: str, value: object, shown: object) -> None:
    error = pickle.loads(pickle.dumps(ConfigError(key, value, "something else")))
    assert error.value == shown
    assert f"got {shown!r}" in str(error)
