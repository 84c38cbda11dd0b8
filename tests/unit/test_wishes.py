"""What people ask for by hand."""

from __future__ import annotations

from dask_tide.controller.wishes import Wishes
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
