"""What people ask for by hand."""

from __future__ import annotations

import pytest

from dask_tide.controller.wishes import Wishes
from dask_tide.errors import ConfigError
from dask_tide.model import Pool


def test_a_maximum_of_nothing_comes_back_after_a_size_by_hand():
    """Or else an automatic cluster would buy GPUs that were never to be there unasked."""
    pools = {"gpu": Pool("gpu", maximum=0)}
    wishes = Wishes(pools, wake=lambda: None)
    wishes.scale(3, "gpu")
    wishes.scale(5, "gpu")
    assert pools["gpu"].maximum == 5
    wishes.adapt(None, None, "gpu")
    assert pools["gpu"].maximum == 0
    assert not wishes.manual


def test_a_pools_maximum_may_be_raised_by_hand_but_not_the_limit_over_all():
    pools = {"cpu": Pool("cpu", maximum=1, workers_per_unit=2), "gpu": Pool("gpu", maximum=9)}
    wishes = Wishes(pools, wake=lambda: None, maximum=3)
    wishes.scale(3, "cpu")
    assert pools["cpu"].maximum == 3
    for wrong in (
        lambda: wishes.scale(4, "cpu"),
        lambda: wishes.floor(4, 1.0, "gpu", now_s=0.0, live={}),
    ):
        with pytest.raises(ConfigError, match=r"tide\.limits\.maximum"):
            wrong()
    wishes.floor(6, 1.0, "cpu", now_s=0.0, live={})
    assert wishes.floor_of("cpu", 0.5) == 3


@pytest.mark.parametrize(
    ("n", "live", "floors"),
    [
        (1, {}, (0, 1, 0)),  # a GPU is not bought for anybody who only waits
        (3, {"cpu": 1}, (0, 2, 0)),
        (1, {"gpu": 1}, (1, 0, 0)),  # that is one
        (3, {"gpu": 1}, (1, 1, 0)),
        (5, {}, (1, 2, 0)),
        (0, {"cpu": 1}, (0, 0, 0)),
    ],
)
def test_who_waits_without_naming_a_pool_means_any(n, live, floors):
    pools = {
        "gpu": Pool("gpu", maximum=1, resources=(("GPU", 1.0),)),
        "cpu": Pool("cpu", maximum=2, workers_per_unit=2),
        "none": Pool("none", maximum=0),
    }
    wishes = Wishes(pools, wake=lambda: None)
    wishes.floor(n, 1.0, None, now_s=0.0, live=live)
    assert tuple(wishes.floor_of(name, 0.5) for name in pools) == floors
    with pytest.raises(ConfigError, match="at most 5, what the maximum allows"):
        wishes.floor(6, 1.0, None, now_s=0.0, live=live)


def test_a_pool_set_by_hand_gives_no_more_to_who_waits():
    pools = {"one": Pool("one", maximum=4), "two": Pool("two", maximum=4)}
    wishes = Wishes(pools, wake=lambda: None)
    wishes.scale(1, "one")
    wishes.floor(3, 1.0, None, now_s=0.0, live={"one": 1})
    assert (wishes.floor_of("one", 0.5), wishes.floor_of("two", 0.5)) == (1, 2)


def test_nobodys_wait_ends_since_somebody_waits_for_fewer():
    pools = {"one": Pool("one", maximum=4), "two": Pool("two", maximum=4)}
    wishes = Wishes(pools, wake=lambda: None)
    wishes.floor(3, 60.0, "one", now_s=0.0, live={})
    wishes.floor(1, 1.0, None, now_s=0.0, live={"two": 1})
    assert (wishes.floor_of("one", 30.0), wishes.floor_of("two", 0.5)) == (3, 1)
    wishes.floor(0, 0.0, None, now_s=0.0, live={})
    assert (wishes.floor_of("one", 0.5), wishes.floor_of("two", 0.5)) == (0, 0)
