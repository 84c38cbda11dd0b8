"""The configuration: defaults, spellings, units, and what is said about mistakes."""

from __future__ import annotations

import math
import pickle
import re
from importlib.resources import files
from pathlib import Path

import dask.config
import dask.system
import distributed.system
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dask_tide import config
from dask_tide.config import DEFAULTS, POOL_DEFAULTS, TideConfig, _register, read, validate
from dask_tide.errors import ConfigError
from dask_tide.model import Settings
from dask_tide.schema import FORMATS, load_yaml

SCHEMA = load_yaml("tide-schema.yaml")


@pytest.fixture(autouse=True)
def only_the_defaults():
    """What the developer's own files and variables say must not decide."""
    before = dict(dask.config.config)
    dask.config.config["tide"] = {}
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.fixture
def machine(monkeypatch):
    """Eight CPUs and 16 GiB."""
    monkeypatch.setattr(dask.system, "CPU_COUNT", 8)
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", 16 * 2**30)


def outcome(overrides) -> TideConfig | ConfigError:
    try:
        return read(overrides)
    except ConfigError as error:
        return error


def complaint(overrides) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        read(overrides)
    return raised.value


# Defaults


def test_defaults(machine):
    tide = read()
    assert (tide.provider, tide.name, tide.interval_s) == ("local", None, 0.25)
    assert list(tide.pools) == ["default"]
    pool = tide.pools["default"].pool
    assert (pool.threads, pool.minimum, pool.maximum, pool.price) == (1, 0, 8, 1.0)
    assert pool.memory_bytes == 2 * 2**30
    assert (pool.resources, pool.workers_per_unit) == ((), 1)
    assert (tide.boot_times, tide.options, tide.pools["default"].options) == ({}, {}, {})
    assert tide.settings == Settings(worth=30.0)
    assert (tide.drain_timeout_s, tide.departure_timeout_s) == (600.0, 20.0)
    assert (tide.folder, tide.journal.path, tide.idle_shutdown_s) == (None, None, None)
    assert (tide.journal.max_bytes, tide.journal.files) == (20 * 2**20, 2)


def test_defaults_are_registered_the_dask_way():
    dask.config.refresh()
    assert dask.config.get("tide.release.tail") == DEFAULTS["release"]["tail"]


def test_comments_about_a_pool_in_the_defaults_file_are_true():
    lines = files("dask_tide").joinpath("tide.yaml").read_text().splitlines()
    entries = [found[1] for line in lines if (found := re.match(r"  #   (\S.*)", line))]
    assert yaml.safe_load("\n".join(entries)) == POOL_DEFAULTS


# Schema


def test_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


def _objects(schema, where="tide"):
    """All mappings of the schema with known keys."""
    if "properties" in schema:
        yield where, schema
        for name, below in schema["properties"].items():
            yield from _objects(below, f"{where}.{name}")


OBJECTS = dict([*_objects(SCHEMA), *_objects(SCHEMA["$defs"]["pool"], "tide.pools.cpu")])


@pytest.mark.parametrize("where", OBJECTS)
def test_schema_is_closed_and_described(where):
    schema = OBJECTS[where]
    assert schema["additionalProperties"] is False
    for name, below in schema["properties"].items():
        assert below["description"], name
        named = SCHEMA["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
        assert named["title"], name


def test_schema_and_defaults_have_the_same_keys():
    def keys(value, where="tide"):
        yield where
        if isinstance(value, dict) and where in OBJECTS:
            for name, below in value.items():
                yield from keys(below, f"{where}.{name}")

    known = {f"{where}.{name}" for where, schema in OBJECTS.items() for name in schema["properties"]}
    given = {*keys(dict(DEFAULTS)), *keys(dict(POOL_DEFAULTS), "tide.pools.cpu")}
    assert known == given - {"tide", "tide.pools.cpu"}
    assert config.top_level_keys() == SCHEMA["properties"].keys()


def test_every_format_of_the_schema_is_checked():
    assert {value["format"] for value in SCHEMA["$defs"].values() if "format" in value} == set(FORMATS)


# Values


def test_units_are_converted():
    tide = read(
        {
            "provider": "slurm",
            "name": "night-run",
            "interval": 2,
            "aim": "thrifty",
            "pools": {
                "gpu": {
                    "threads": 4,
                    "memory": "64 GiB",
                    "resources": {"TPU": 2, "GPU": 1},
                    "workers-per-unit": 2,
                    "minimum": 1,
                    "maximum": 3,
                    "price": 2.5,
                    "boot-time": "1m",
                    "options": {"queue": "long"},
                }
            },
            "options": {"account": "a"},
            "release": {"keep": "30s", "idle-timeout": "1h", "tail": 0},
            "memory": {"want-below": 1, "fill-below": 0.5},
            "start": {"timeout": "10m", "backoff": "1s", "backoff-maximum": "2m"},
            "limits": {"maximum": 3, "budget-per-hour": 100, "budget-total": 0.5},
            "drain": {"timeout": "1m"},
            "departure": {"timeout": "100ms"},
            "folder": "~/tide",
            "journal": {"path": "/var/log/tide.jsonl", "max-bytes": "1 MB", "files": 5},
            "idle-shutdown": "1h",
        }
    )
    assert (tide.provider, tide.name, tide.interval_s, tide.options) == (
        "slurm",
        "night-run",
        2.0,
        {"account": "a"},
    )
    assert tide.boot_times == {"gpu": 60.0}
    template = tide.pools["gpu"]
    assert template.options == {"queue": "long"}
    assert template.pool.resources == (("GPU", 1.0), ("TPU", 2.0))
    assert (template.pool.memory_bytes, template.pool.boot_s) == (64 * 2**30, 60.0)
    assert (template.pool.minimum, template.pool.maximum, template.pool.price) == (1, 3, 2.5)
    assert tide.settings == Settings(
        keep_s=30.0,
        idle_timeout_s=3600.0,
        tail_s=0.0,
        memory_ratio=1.0,
        fill_ratio=0.5,
        start_timeout_s=600.0,
        backoff_s=1.0,
        backoff_max_s=120.0,
        maximum=3,
        budget_per_hour=100.0,
        budget_total=0.5,
    )
    assert (tide.drain_timeout_s, tide.departure_timeout_s, tide.idle_shutdown_s) == (60.0, 0.1, 3600.0)
    assert tide.folder == Path.home() / "tide"
    assert tide.journal.path == Path("/var/log/tide.jsonl")
    assert (tide.journal.max_bytes, tide.journal.files) == (10**6, 5)


@pytest.mark.parametrize(
    ("pool", "maximum"),
    [
        ({}, 8),
        ({"threads": 3}, 2),
        ({"threads": 2, "workers-per-unit": 2}, 2),
        ({"threads": 16}, 1),
        ({"minimum": 12}, 12),
        ({"maximum": 0}, 0),
    ],
)
def test_automatic_maximum_is_what_the_machine_has_room_for(machine, pool, maximum):
    assert read({"pools": {"cpu": pool}}).pools["cpu"].pool.maximum == maximum


def test_automatic_maximum_and_memory_elsewhere(machine):
    pools = read({"provider": "mine:Provider", "pools": {"a": {}, "b": {"minimum": 11}}}).pools
    assert (pools["a"].pool.maximum, pools["b"].pool.maximum) == (10, 11)
    assert pools["a"].pool.memory_bytes == 0


@pytest.mark.parametrize(("threads", "gib"), [(1, 2), (4, 8), (99, 16)])
def test_automatic_memory_is_the_threads_share(machine, threads, gib):
    assert read({"pools": {"cpu": {"threads": threads}}}).pools["cpu"].pool.memory_bytes == gib * 2**30


def test_whole_numbers_written_as_floats_become_whole():
    threads = read({"pools": {"cpu": {"threads": 2.0}}}).pools["cpu"].pool.threads
    assert (threads, type(threads)) == (2, int)


def test_a_path_may_be_a_path(tmp_path):
    assert read({"folder": tmp_path}).folder == tmp_path


# Where values come from


def test_named_pools_stand_instead_of_the_default_one():
    with dask.config.set({"tide.pools.cpu.maximum": 3}):
        assert list(read().pools) == ["cpu"]


def test_overrides_are_merged_over_dasks_configuration():
    with dask.config.set({"tide.pools.cpu": {"maximum": 3, "threads": 2}, "tide.options": {"a": 1}}):
        tide = read({"pools": {"cpu": {"maximum": 5}, "gpu": {"maximum": 1}}, "options": {"b": 2}})
    assert list(tide.pools) == ["cpu", "gpu"]
    assert (tide.pools["cpu"].pool.maximum, tide.pools["cpu"].pool.threads) == (5, 2)
    assert tide.options == {"a": 1, "b": 2}


def test_reading_changes_nothing():
    overrides = {"pools": {"cpu": {"workers_per_unit": 2}}}
    with dask.config.set({"tide.options": {"a": {}}}):
        before = dask.config.get("tide").copy()
        read(overrides).options["a"] = 3
        assert dask.config.get("tide") == before
    assert overrides == {"pools": {"cpu": {"workers_per_unit": 2}}}
    assert read().options == {}


@pytest.mark.parametrize("section", [None, {}, {"release": None, "pools": None, "options": None}])
def test_an_empty_section_says_nothing(section):
    dask.config.config["tide"] = section
    assert read() == read({"provider": "local"})
    assert read(section) == read()


def test_environment_variables():
    dask.config.config["tide"] = dask.config.collect_env(
        {
            "DASK_TIDE__POOLS__CPU__MAXIMUM": "8",
            "DASK_TIDE__POOLS__CPU__WORKERS_PER_UNIT": "2",
            "DASK_TIDE__POOLS__BIG_MEM__RESOURCES": "{'GPU': 1}",
            "DASK_TIDE__RELEASE__IDLE_TIMEOUT": "90s",
            "DASK_TIDE__LIMITS__BUDGET_TOTAL": "none",
        }
    )["tide"]
    tide = read()
    assert list(tide.pools) == ["cpu", "big-mem"]
    assert (tide.pools["cpu"].pool.maximum, tide.pools["cpu"].pool.workers_per_unit) == (8, 2)
    assert tide.pools["big-mem"].pool.resources == (("GPU", 1.0),)
    assert tide.settings.idle_timeout_s == 90.0


def test_names_that_are_not_ours_are_left_alone():
    given = {"job_extra-x": {"a_b": 1, "a-b": 2}}
    pools = {"cpu": {"options": given, "resources": {"a_b": 1, "a-b": 2}}}
    tide = read({"options": given, "pools": pools})
    assert tide.options == given
    assert tide.pools["cpu"].options == given
    assert dict(tide.pools["cpu"].pool.resources) == {"a_b": 1.0, "a-b": 2.0}


# Mistakes

MISTAKES = [
    ({"provider": ""}, "tide.provider", "", "text that is not empty"),
    ({"provider": 3}, "tide.provider", 3, "text that is not empty"),
    ({"name": "Big"}, "tide.name", "Big", "beginning with a letter"),
    ({"name": "a-"}, "tide.name", "a-", "beginning with a letter"),
    ({"name": "a\n"}, "tide.name", "a\n", "beginning with a letter"),
    ({"name": "a" * 37}, "tide.name", "a" * 37, "36 characters"),
    ({"interval": 0}, "tide.interval", 0, "a duration > 0"),
    ({"interval": "0 ms"}, "tide.interval", "0 ms", "a duration > 0"),
    ({"interval": None}, "tide.interval", None, "a duration > 0"),
    ({"interval": True}, "tide.interval", True, "a duration > 0"),
    ({"aim": "cheap"}, "tide.aim", "cheap", "thrifty, balanced, fast, or a number >= 0"),
    ({"aim": -1}, "tide.aim", -1, "a number >= 0"),
    ({"aim": True}, "tide.aim", True, "a number >= 0"),
    ({"aim": math.inf}, "tide.aim", math.inf, "a number >= 0"),
    ({"aim": None}, "tide.aim", None, "a number >= 0"),
    ({"pools": 3}, "tide.pools", 3, "a mapping from pool names"),
    ({"pools": ["cpu"]}, "tide.pools", ["cpu"], "a mapping from pool names"),
    ({"pools": {"cpu": 3}}, "tide.pools.cpu", 3, "a mapping"),
    ({"pools": {"CPU": {}}}, "tide.pools", "CPU", "pool names of lower-case letters"),
    ({"pools": {"-cpu": {}}}, "tide.pools", "-cpu", "pool names"),
    ({"pools": {"c" * 21: {}}}, "tide.pools", "c" * 21, "20 characters"),
    ({"pools": {1: {}}}, "tide.pools", 1, "keys that are text"),
    ({"options": [1]}, "tide.options", [1], "a mapping"),
    ({"release": {"keep": "soon"}}, "tide.release.keep", "soon", "or 'auto'"),
    ({"release": {"idle-timeout": "5 parsecs"}}, "tide.release.idle-timeout", "5 parsecs", "such as '30s'"),
    ({"release": {"tail": "-3s"}}, "tide.release.tail", "-3s", "a duration such as '30s'"),
    ({"release": {"tail": -3}}, "tide.release.tail", -3, "a duration such as '30s'"),
    ({"release": {"tail": "s"}}, "tide.release.tail", "s", "a duration"),
    ({"release": {"tail": ""}}, "tide.release.tail", "", "a duration"),
    ({"release": {"tail": math.inf}}, "tide.release.tail", math.inf, "a duration"),
    ({"release": {"tail": "1e400s"}}, "tide.release.tail", "1e400s", "a duration"),
    ({"release": {"tail": "3s\n5"}}, "tide.release.tail", "3s\n5", "a duration"),
    ({"memory": {"want-below": 0}}, "tide.memory.want-below", 0, "a number > 0 and <= 1"),
    ({"memory": {"fill-below": 1.5}}, "tide.memory.fill-below", 1.5, "a number > 0 and <= 1"),
    ({"memory": {"fill-below": "70%"}}, "tide.memory.fill-below", "70%", "a number > 0 and <= 1"),
    ({"start": {"backoff": 0}}, "tide.start.backoff", 0, "a duration > 0"),
    (
        {"start": {"backoff": "2m"}},
        "tide.start.backoff-maximum",
        "1m",
        "at least tide.start.backoff, which is 2m",
    ),
    ({"limits": {"maximum": -1}}, "tide.limits.maximum", -1, "a whole number >= 0, or null"),
    ({"limits": {"maximum": 1.5}}, "tide.limits.maximum", 1.5, "a whole number >= 0, or null"),
    ({"limits": {"budget-total": -1}}, "tide.limits.budget-total", -1, "a number >= 0, or null"),
    ({"limits": {"budget-total": math.inf}}, "tide.limits.budget-total", math.inf, "a number >= 0, or null"),
    ({"folder": 3}, "tide.folder", 3, "a path, or null"),
    ({"journal": {"max-bytes": "many"}}, "tide.journal.max-bytes", "many", "a size > 0"),
    ({"journal": {"max-bytes": "4 gigs"}}, "tide.journal.max-bytes", "4 gigs", "such as '4 GiB'"),
    ({"journal": {"max-bytes": "0.1 B"}}, "tide.journal.max-bytes", "0.1 B", "a size > 0"),
    ({"journal": {"files": 0}}, "tide.journal.files", 0, "a whole number >= 1"),
    ({"idle-shutdown": "never"}, "tide.idle-shutdown", "never", "or null"),
    (3, "tide", 3, "a mapping"),
]

POOL_MISTAKES = [
    ({"threads": 0}, "threads", 0, "a whole number >= 1"),
    ({"threads": "2"}, "threads", "2", "a whole number >= 1"),
    ({"threads": True}, "threads", True, "a whole number >= 1"),
    ({"memory": "4 gigs"}, "memory", "4 gigs", "a size such as '4 GiB', a whole number of bytes, or 'auto'"),
    ({"memory": -1}, "memory", -1, "or 'auto'"),
    ({"memory": 0.5}, "memory", 0.5, "a whole number of bytes"),
    ({"resources": {"GPU": 0}}, "resources.GPU", 0, "a number > 0"),
    ({"resources": {"GPU": "1"}}, "resources.GPU", "1", "a number > 0"),
    ({"resources": {"GPU": math.inf}}, "resources.GPU", math.inf, "a number > 0"),
    ({"resources": {"GPU": 10**400}}, "resources.GPU", 10**400, "a number > 0"),
    ({"resources": ["GPU"]}, "resources", ["GPU"], "a mapping from names to numbers > 0"),
    ({"resources": {"my GPU": 1}}, "resources", "my GPU", "names without spaces, '=' and ','"),
    ({"resources": {"GPU=1": 1}}, "resources", "GPU=1", "names without"),
    ({"resources": {"GPU,TPU": 1}}, "resources", "GPU,TPU", "names without"),
    ({"resources": {"": 1}}, "resources", "", "names without"),
    ({"workers-per-unit": 0}, "workers-per-unit", 0, "a whole number >= 1"),
    ({"workers_per_unit": 0}, "workers-per-unit", 0, "a whole number >= 1"),
    ({"minimum": -1}, "minimum", -1, "a whole number >= 0"),
    ({"maximum": "lots"}, "maximum", "lots", "a whole number >= 0, or 'auto'"),
    ({"maximum": -1}, "maximum", -1, "a whole number >= 0, or 'auto'"),
    ({"maximum": math.inf}, "maximum", math.inf, "a whole number >= 0, or 'auto'"),
    ({"maximum": None}, "maximum", None, "a whole number >= 0, or 'auto'"),
    ({"minimum": 5, "maximum": 3}, "minimum", 5, "at most tide.pools.cpu.maximum, which is 3"),
    ({"price": 0}, "price", 0, "a number > 0"),
    ({"boot-time": "0s"}, "boot-time", "0s", "a duration > 0"),
    ({"options": "fast"}, "options", "fast", "a mapping"),
    ({"workers-per-unit": 1, "workers_per_unit": 2}, "workers-per-unit", 2, "both are there"),
]


@pytest.mark.parametrize(
    ("overrides", "key", "value", "expected"),
    [
        *MISTAKES,
        *(({"pools": {"cpu": pool}}, f"tide.pools.cpu.{key}", *rest) for pool, key, *rest in POOL_MISTAKES),
    ],
)
def test_a_mistake_is_told_with_key_value_and_what_was_expected(overrides, key, value, expected):
    error = complaint(overrides)
    assert (error.key, error.value) == (key, value)
    assert expected in error.expected
    shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
    assert str(error) == f"{key}: got {shown}, expected {error.expected}"


def test_who_starts_workers_by_other_means_may_name_resources_as_dask_does():
    pools = {"workers": {"resources": {"my GPU": 1}}}
    assert read({"provider": "delegate", "pools": pools}).pools["workers"].pool.resources == (
        ("my GPU", 1.0),
    )


@pytest.mark.parametrize("key", ["tide.memory.want-below", "tide.interval", "tide.limits.budget-total"])
def test_not_a_number_is_a_mistake(key):
    with dask.config.set({key: math.nan}):
        assert complaint(None).key == key


def test_mistakes_in_dasks_configuration_are_told_like_those_in_overrides():
    with dask.config.set({"tide.pools.cpu.maximum": "lots"}):
        assert complaint(None).key == "tide.pools.cpu.maximum"


@pytest.mark.parametrize("key", ["tide", "tide.journal", "tide.pools", "tide.release"])
def test_what_stands_where_a_mapping_belongs_is_not_lost_when_dask_is_told_the_defaults(key):
    dask.config.config.pop("tide", None)
    dask.config.set({key: "my.jsonl"})
    _register()
    dask.config.defaults.pop()
    error = complaint({})
    assert (error.key, error.value) == (key, "my.jsonl")
    assert "a mapping" in error.expected


def test_sum_of_the_minimums_may_not_exceed_the_limit():
    pools = {"a": {"minimum": 2, "maximum": 2}, "b": {"minimum": 3, "maximum": 3}}
    error = complaint({"pools": pools, "limits": {"maximum": 4}})
    assert error.key == "tide.limits.maximum"
    assert error.expected == "at least 5, the sum of the pools' minimums"
    assert read({"pools": pools, "limits": {"maximum": 5}}).settings.maximum == 5


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        ({"pools": {"cpu": {"maximun": 8}}}, "tide.pools.cpu.maximun", "did you mean 'maximum'?"),
        ({"pools": {"cpu": {"worker_per_unit": 8}}}, "tide.pools.cpu.worker_per_unit", "'workers-per-unit'"),
        ({"drain": {"qqq": 8}}, "tide.drain.qqq", "one of timeout"),
        ({"maximum": 8}, "tide.maximum", "one of aim, departure, drain, "),
    ],
)
def test_an_unknown_key_brings_a_hint(overrides, key, hint):
    error = complaint(overrides)
    assert (error.key, error.value) == (key, 8)
    assert hint in error.expected


@given(where=st.sampled_from(sorted(OBJECTS)), name=st.text(min_size=1), value=st.integers() | st.none())
def test_any_unknown_key_is_named(where, name, value):
    if name.replace("_", "-") in OBJECTS[where]["properties"]:
        return
    overrides = {name: value}
    for section in reversed(where.split(".")[1:]):
        overrides = {section: overrides}
    error = complaint(overrides)
    assert (error.key, error.value) == (f"{where}.{name}", value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda below: (
            st.lists(below, max_size=2)
            | st.dictionaries(
                st.sampled_from([*POOL_DEFAULTS, *DEFAULTS, *DEFAULTS["limits"]]), below, max_size=3
            )
        ),
        max_leaves=5,
    )
)
def test_anything_is_read_or_refused(overrides):
    tide = outcome(overrides)
    if isinstance(tide, ConfigError):
        assert tide.key.startswith("tide")
    else:
        assert all(0 <= template.pool.minimum <= template.pool.maximum for template in tide.pools.values())
        assert 0 < tide.interval_s < math.inf


@given(st.sampled_from([*SCHEMA["$defs"]["pool"]["properties"]]), st.text() | st.integers() | st.floats())
def test_any_value_of_a_pool_is_read_or_refused(key, value):
    tide = outcome({"pools": {"cpu": {key: value}}})
    if isinstance(tide, ConfigError):
        assert tide.key == f"tide.pools.cpu.{key}"


def test_an_error_survives_pickling():
    error = complaint({"pools": {"cpu": {"maximum": -1}}})
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.key, copy.value, copy.expected, str(copy)) == (error.key, -1, error.expected, str(error))


def test_validate_also_looks_for_the_provider():
    validate({"provider": "types:SimpleNamespace"})
    with pytest.raises(ConfigError, match=r"tide\.provider: got 'nowhere:Provider'"):
        validate({"provider": "nowhere:Provider"})
    with pytest.raises(ConfigError, match=r"tide\.drain\.timeout: got 'x'"):
        validate({"provider": "nowhere:Provider", "drain": {"timeout": "x"}})
