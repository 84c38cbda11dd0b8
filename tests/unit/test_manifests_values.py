"""The chart's values as Python reads them: defaults, nulls, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from typing import Any

import pytest
import yaml
from dask.utils import byte_sizes, timedelta_sizes
from hypothesis import given
from hypothesis import strategies as st

from dask_tide import config
from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes.manifests import values as chart
from dask_tide.providers.kubernetes.manifests.golang import compact, plain, pretty
from dask_tide.providers.kubernetes.manifests.goyaml import dump_all, parse
from dask_tide.providers.kubernetes.options import Options
from dask_tide.schema import merge, seconds, size_bytes

SCHEMA: dict[str, Any] = json.loads(chart._text("values.schema.json"))


def complaint(values) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        chart.read(values)
    return raised.value


def described(schema, path="values"):
    """Each schema within this one, with its path."""
    yield path, schema
    for key in ("properties", "definitions"):
        for name, below in schema.get(key, {}).items():
            yield from described(below, f"{path}.{name}" if key == "properties" else f"values.{name}")
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(key), dict):
            yield from described(schema[key], f"{path}.<{key}>")


# Defaults and schema


def test_the_defaults_are_valid():
    assert chart.read() == chart.read({}) == plain(chart.defaults())


def test_every_schema_says_what_it_expects():
    assert [
        path for path, schema in described(SCHEMA) if "$ref" not in schema and "title" not in schema
    ] == []


def test_no_mapping_of_ours_takes_unknown_keys():
    open_ = {
        path
        for path, schema in described(SCHEMA)
        if schema.get("type") == "object" and schema.get("additionalProperties", True) is True
    }
    # What is passed through to Kubernetes or Helm.
    assert open_ == {
        "values.global",
        "values.object",
        "values.objects.<items>",
        "values.objectsOrNull.<items>",
    }


def test_every_value_has_a_default_and_every_default_a_schema():
    def keys(schema, path=""):
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        for name, below in schema.get("properties", {}).items():
            yield f"{path}{name}"
            yield from keys(below, f"{path}{name}.")

    def set_(given, path=""):
        for name, below in given.items():
            yield f"{path}{name}"
            if isinstance(below, dict):
                yield from set_(below, f"{path}{name}.")

    known, given = set(keys(SCHEMA)), set(set_(chart.defaults()))
    within_ours = {key for key in given if key in known or "." not in key}
    assert within_ours <= known
    # `tide` is Dask's; of Kubernetes' resources only some are set by default.
    missing = {key for key in known - given if not key.startswith("tide.") and ".resources." not in key}
    assert missing == {"global", "enabled"}


def test_every_default_is_documented():
    """On its line or above it; what is Kubernetes' own or switches a section may follow those that are."""
    known = {"enabled", "annotations", "requests", "limits", "nodeSelector", "tolerations", "affinity"}
    known |= {"topologySpreadConstraints", "runtimeClassName", "env", "envFrom", "volumes", "volumeMounts"}
    known |= {"podLabels", "podAnnotations", "priorityClassName", "resources", "interval", "scheduler"}
    known |= {"terminationGracePeriodSeconds", "service", "read", "repository", "duration", "renewBefore"}
    before = ""
    for line in chart._text("values.yaml").splitlines():
        key, colon, _ = line.strip().partition(":")
        if colon and not key.startswith(("#", "karpenter", "cluster-autoscaler")):
            documented = "#" in line or before.startswith("#")
            assert documented or (line.startswith(" ") and key in known), f"nothing says what {key} is"
        before = line.strip()


def test_the_section_tide_has_the_keys_that_dask_tide_has():
    theirs = yaml.safe_load(files("dask_tide").joinpath("tide-schema.yaml").read_text())
    ours = SCHEMA["properties"]["tide"]["properties"]
    # The chart writes these itself; the last two are of workers.
    written = {"provider", "name", "pools", "departure", "readiness"}
    assert set(theirs["properties"]) - written == set(ours)
    for name, section in ours.items():
        if name != "options":  # whose keys are the provider's
            assert set(section.get("properties", ())) == set(theirs["properties"][name].get("properties", ()))
    fields = {field.name.removesuffix("_s").replace("_", "-") for field in dataclasses.fields(Options)}
    # Where it is the scheduler knows, and the rest of these is said by other values.
    assert set(ours["options"]["properties"]) == fields - {
        *("namespace", "kubeconfig", "context"),
        *("annotate", "nodes"),
    }


def test_a_pool_takes_what_the_defaults_of_pools_take():
    definitions = SCHEMA["definitions"]
    assert set(definitions["pool"]["properties"]) == set(definitions["poolDefaults"]["properties"])


# Merging, as Helm does it


def test_mappings_are_merged_lists_are_replaced_and_null_takes_away():
    values = chart.read(
        {
            "scheduler": {"podAnnotations": {"karpenter.sh/do-not-disrupt": None, "more": "x"}},
            "notebook": {"args": ["jupyter", "server"]},
        }
    )
    assert values["scheduler"]["podAnnotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "more": "x",
    }
    assert values["scheduler"]["terminationGracePeriodSeconds"] == 30
    assert values["notebook"]["args"] == ["jupyter", "server"]


def test_the_last_file_wins():
    first = {"pools": {"cpu": {"threads": 2, "maximum": 3}}, "nodes": {"read": True}}
    assert merge(first, {"pools": {"cpu": {"maximum": 4}}, "nodes": None}) == {
        "pools": {"cpu": {"threads": 2, "maximum": 4}},
        "nodes": None,
    }


def test_what_is_read_does_not_change_what_was_given_or_the_defaults():
    given = {"poolDefaults": {"env": [{"name": "A"}]}}
    chart.read(given)["poolDefaults"]["env"].append("more")
    assert given == {"poolDefaults": {"env": [{"name": "A"}]}}
    assert chart.read()["poolDefaults"]["env"] == []


def test_pools_take_from_the_defaults_what_they_do_not_say():
    values = chart.read(
        {
            "poolDefaults": {"threads": 4, "minimum": 1, "podLabels": {"team": "x"}},
            "pools": {"b": {"minimum": 0, "image": None}, "a": {"podLabels": {"unit": "y"}}, "gone": None},
        }
    )
    pools = chart.pools(values)
    assert list(pools) == ["a", "b"]
    assert (pools["b"]["threads"], pools["b"]["minimum"]) == (4, 0)
    assert pools["a"]["podLabels"] == {"unit": "y"}
    assert "image" not in pools["b"]


@pytest.mark.parametrize("pools", [{}, None, {"gone": None}])
def test_without_pools_there_is_one(pools):
    assert list(chart.pools(chart.read({"pools": pools}))) == ["default"]


# Mistakes


@pytest.mark.parametrize(
    ("given", "key", "value", "expected"),
    [
        ({"polls": {}}, "polls", {}, "did you mean 'pools'?"),
        ({"pools": {"cpu": {"maximun": 4}}}, "pools.cpu.maximun", 4, "did you mean 'maximum'?"),
        ({"security": {"tls": {"x": 1}}}, "security.tls.x", 1, "one of certManager, enabled"),
        ({"pools": {"cpu": {"memory": 4}}}, "pools.cpu.memory", 4, "an amount with a unit"),
        ({"pools": {"cpu": {"memory": "4"}}}, "pools.cpu.memory", "4", "an amount with a unit"),
        ({"pools": {"cpu": {"threads": 0}}}, "pools.cpu.threads", 0, "a whole number >= 1"),
        ({"pools": {"cpu": {"threads": 1.5}}}, "pools.cpu.threads", 1.5, "a whole number >= 1"),
        ({"pools": {"cpu": {"daskResources": {"GPU": 0}}}}, "pools.cpu.daskResources.GPU", 0, "a number > 0"),
        (
            {"pools": {"c": {"daskResources": {"A B": 1}}}},
            "pools.c.daskResources.A B",
            "A B",
            "names without",
        ),
        ({"pools": {"c": {"podLabels": {"a": True}}}}, "pools.c.podLabels.a", True, "text"),
        ({"pools": {"c": {"tolerations": {}}}}, "pools.c.tolerations", {}, "a list of mappings"),
        ({"pools": {"a_b": {}}}, "pools.a_b", "a_b", "lower-case letters, digits and '-'"),
        ({"pools": {"a" * 21: {}}}, "pools." + "a" * 21, "a" * 21, "20 characters"),
        ({"pools": {"a": {"minimum": 11}}}, "pools.a.minimum", 11, "at most maximum, which is 10"),
        ({"poolDefaults": {"threads": None}}, "poolDefaults.threads", None, "a value"),
        ({"security": {"tls": {"source": "file"}}}, "security.tls.source", "file", "generated, secret or"),
        ({"security": {"tls": {"source": "secret"}}}, "security.tls.secretName", None, "name of a Secret"),
        ({"ingress": {"path": "dask"}}, "ingress.path", "dask", "begins with /"),
        ({"tide": {"relase": {}}}, "tide.relase", {}, "did you mean 'release'?"),
        ({"tide": {"interruption": {"watch": "gcp"}}}, "tide.interruption.watch", "gcp", "aws or null"),
        ({"buffer": {"pools": {"cpu": {"units": 1}}}}, "buffer.pools.cpu", "cpu", "a pool: default"),
        ({"buffer": {"pools": {"default": {}}}}, "buffer.pools.default", {}, "either units or a schedule"),
        ({"buffer": {"pools": {"default": {"units": -1}}}}, "buffer.pools.default.units", -1, ">= 0"),
        ({"buffer": {"priority": 0}}, "buffer.priority", 0, "from -10 to -1"),
        ({"buffer": {"priority": -11}}, "buffer.priority", -11, "from -10 to -1"),
        (
            {"buffer": {"pools": {"default": {"schedule": [{"at": "noon", "units": 1}]}}}},
            "buffer.pools.default.schedule.0.at",
            "noon",
            "a time as cron has it",
        ),
        ({"tide": {"options": {"prices": {"a": 1}}}}, "tide.options.prices", {"a": 1}, "nodes.read=true"),
        ({"priorityClasses": {"buffer": {"value": 1}}}, "priorityClasses.buffer", "buffer", "not buffer"),
        (
            {
                "buffer": {"priority": -5, "pools": {"default": {"units": 1}}},
                "poolDefaults": {"priorityClassName": "low"},
                "priorityClasses": {"low": {"value": -5}},
            },
            "pools.default.priorityClassName",
            "low",
            "above buffer.priority, which is -5; it has -5",
        ),
        ({"tide": {"aim": "cheap"}}, "tide.aim", "cheap", "thrifty, balanced, fast"),
        (
            {"tide": {"options": {"anotate": True}}},
            "tide.options.anotate",
            True,
            "one of machine-within, on-close",
        ),
        ({"tide": {"options": {"on-close": "x"}}}, "tide.options.on-close", "x", "release or keep"),
        ({"tide": {"release": {"keep": "long"}}}, "tide.release.keep", "long", "a duration such as 90s"),
        ({"tide": {"memory": {"fill-below": 7}}}, "tide.memory.fill-below", 7, "at most 1"),
        ({"tide": {"limits": {"maximum": -1}}}, "tide.limits.maximum", -1, "a whole number >= 0"),
        ({"tide": {"provider": "local"}}, "tide.provider", "local", "one of aim, drain"),
        ({"priorityClasses": {"a": {}}}, "priorityClasses.a.value", None, "a value"),
        ({"image": "me/mine:1"}, "image", "me/mine:1", "a mapping"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(given, key, value, expected):
    error = complaint(given)
    assert (error.key, error.value) == (key, value)
    assert expected in error.expected


@pytest.mark.parametrize("priority", [-10, -1])
def test_placeholders_are_below_workers_and_not_expendable(priority):
    assert chart.read({"buffer": {"priority": priority}})["buffer"]["priority"] == priority


@pytest.mark.parametrize("unit", ["", *timedelta_sizes])
def test_durations_have_dasks_units_and_no_others(unit):
    for written in (f"2{unit}", f"2.5 {unit} "):
        assert seconds(written) > 0
        assert chart.read({"tide": {"interval": written}})["tide"]["interval"] == written
    assert complaint({"tide": {"interval": f"2{unit}x"}}).key == "tide.interval"


@pytest.mark.parametrize("unit", byte_sizes)
def test_sizes_have_dasks_units_and_no_others(unit):
    for written in (f"2{unit}", f"2.5 {unit.upper()} "):
        assert size_bytes(written) > 0
        assert chart.read({"tide": {"journal": {"max-bytes": written}}})
    assert complaint({"tide": {"journal": {"max-bytes": f"2{unit}x"}}}).key == "tide.journal.max-bytes"


def test_prices_reach_the_provider_that_checks_them():
    prices = {"m5.xlarge": 0.192, "m5.*/eu-west-1a/spot": 0.07}
    values = {"tide": {"options": {"prices": prices}}, "nodes": {"read": True}}
    assert chart.read(values)["tide"]["options"]["prices"] == prices


@pytest.mark.parametrize("name", ["", "0a", "a_b", "A", "a.b", "a-", "-a", "a" * 37])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        chart.check_name(name)


@pytest.mark.parametrize("name", ["a", "a-0", "a" * 36])
def test_a_good_name_is_one_for_the_scheduler_as_well(name):
    chart.check_name(name)
    assert config.read({"name": name}).name == name


# Text as Go writes it


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.5, "0.5"),
        (1e-5, "0.00001"),
        (1.25e-7, "1.25e-7"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (True, "true"),
        (None, "null"),
        ({"b": [], "a": {}}, '{"a":{},"b":[]}'),
        ('é<\u2028"\n', '"é<\\u2028\\"\\n"'),
    ],
)
def test_json_is_written_as_go_writes_it(value, text):
    assert compact(value) == text


def test_pretty_json_is_indented_and_safe_for_html():
    assert pretty({"a": [1, {"b": "<&>"}]}) == (
        '{\n  "a": [\n    1,\n    {\n      "b": "\\u003c\\u0026\\u003e"\n    }\n  ]\n}'
    )


def test_yaml_becomes_json_as_helm_makes_it():
    assert plain(parse("{on: 1.0, 2: [2.5, 1e-05, 1E5, 2.5e2, '1e5', 1e5m], when: 2026-11-23}")) == {
        "true": 1,
        "2": [2.5, 0.00001, 100_000, 250, "1e5", "1e5m"],
        "when": "2026-11-23",
    }


@given(st.text(alphabet="0123456789eExXobB+-._:ynYN~=<tTZ ", max_size=12))
def test_what_is_text_is_written_as_text(text):
    assert parse(dump_all([{"text": text}])) == {"text": text}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1) | st.booleans())
def test_what_is_a_number_is_written_as_one(value):
    read = parse(dump_all([{"value": value}]))["value"]
    assert read == value
    assert type(read) is type(value)
