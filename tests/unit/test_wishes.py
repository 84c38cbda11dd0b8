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
        lambda: wishes.floor(4, 1.0, "gpu", now_s=0.0),
    ):
        with pytest.raises(ConfigError, match=r"tide\.limits\.maximum"):
            wrong()
    wishes.floor(6, 1.0, "cpu", now_s=0.0)
    assert wishes.floor_of("cpu", 0.5) == 3
