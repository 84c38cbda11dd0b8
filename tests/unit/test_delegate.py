"""Units of somebody else's cluster class: what it is told to have, and names that it gives again."""

from __future__ import annotations

import pytest

from dask_tide.errors import LaunchRejected
from dask_tide.model import Phase
from dask_tide.providers.delegate import DelegateProvider


async def phases(provider: DelegateProvider) -> dict[str, Phase]:
    return {unit.name: unit.phase for unit in (await provider.observe()).units}


async def test_what_is_asked_for_while_others_go_is_not_started_in_their_stead():
    provider = DelegateProvider("cpu")
    provider.exchange({"0": "", "1": "", "2": ""})
    await provider.scale_down(["0", "1"])
    # The three count: two that go, and one; and there are to be two more.
    await provider.scale_up("cpu", 5)
    assert provider.exchange({"0": "", "1": "", "2": ""}).release == ("0", "1")
    await provider.scale_up("cpu", 5)
    assert provider.exchange({"2": ""}).units == 3


async def test_a_name_that_is_given_again_is_another_unit():
    provider = DelegateProvider("cpu")
    provider.exchange({"0": ""})
    await provider.scale_down(["0"])
    assert await phases(provider) == {"0": Phase.STOPPING}
    # Between two looks it has gone and has come back.
    provider.exchange({})
    provider.exchange({"0": ""})
    assert await phases(provider) == {}
    assert await phases(provider) == {"0": Phase.PENDING}


async def test_what_is_to_go_and_has_got_another_name_goes_all_the_same():
    provider = DelegateProvider("cpu")
    provider.exchange({"0": ""})
    await provider.scale_down(["0"])
    assert provider.exchange({"vm-7": ""}, {"0": "vm-7"}).release == ("vm-7",)
    assert await phases(provider) == {"vm-7": Phase.STOPPING}


async def test_what_may_have_a_worker_after_all_does_not_go():
    """It may have registered between the decision and the order."""
    pinned: dict[str, str] = {}
    provider = DelegateProvider("cpu", lambda units: {unit: pinned[unit] for unit in units if unit in pinned})
    provider.exchange({"0": "", "1": "", "2": "it has failed"})
    await provider.scale_down(["0", "1", "2"])
    pinned |= dict.fromkeys("012", "worker x may be its")
    pinned.pop("1")
    orders = provider.exchange({"0": "", "1": "", "2": "it has failed"})
    assert (orders.release, orders.pinned) == (("1", "2"), {"0": "worker x may be its"})
    units = {unit.name: unit for unit in (await provider.observe()).units}
    assert (units["0"].phase, units["0"].pinned) == (Phase.PENDING, "worker x may be its")


async def test_what_was_asked_for_is_on_its_way_until_it_is_reported():
    """It was asked for again, and said again, in each tick until the next report."""
    provider = DelegateProvider("cpu")
    provider.exchange({})
    await provider.scale_up("cpu", 3)
    assert (await provider.observe()).requested == {"cpu": 3}
    assert provider.exchange({}).units == 3
    # The cluster class is busy, and has no more than one so far.
    assert provider.exchange({"0": ""}).units == 3
    assert (await provider.observe()).requested == {"cpu": 2}
    # One has failed, and is to be forgotten.
    provider.exchange({"0": "", "x": "out of memory"})
    await provider.scale_down(["x"])
    assert (await provider.observe()).requested == {"cpu": 2}
    # One is no longer wanted, and the one that is there goes.
    await provider.scale_down(["cpu?1"])
    await provider.scale_down(["0"])
    assert (await provider.observe()).requested == {"cpu": 1}
    orders = provider.exchange({"0": ""})
    assert (orders.units, orders.release) == (None, ("0",))
    assert provider.exchange({}).units == 1
    assert provider.exchange({"1": ""}).units is None
    assert (await provider.observe()).requested == {}
    # What ends by itself is the controller's matter.
    assert provider.exchange({}).units is None


async def test_what_was_refused_is_told_to_whoever_asks_for_it_next():
    """The class is asked later, and elsewhere: that it could not is known only then."""
    provider = DelegateProvider("cpu")
    provider.exchange({})
    await provider.scale_up("cpu", 2)
    assert provider.exchange({}).units == 2
    assert provider.exchange({}, refused="no more devices").units is None
    assert (await provider.observe()).requested == {}
    with pytest.raises(LaunchRejected, match="no more devices"):
        await provider.scale_up("cpu", 2)
    await provider.scale_up("cpu", 2)
    assert provider.exchange({}).units == 2
    # Who has no use for it any more is not told later, when it says nothing.
    provider.exchange({}, refused="no more devices")
    await provider.observe()
    await provider.observe()
    await provider.scale_up("cpu", 1)


async def test_why_a_unit_does_not_stop_is_told():
    provider = DelegateProvider("cpu")
    provider.exchange({"0": "", "1": ""})
    await provider.scale_down(["0"])
    assert provider.exchange({"0": "", "1": ""}, stuck="not now").release == ("0",)
    assert [unit.message for unit in (await provider.observe()).units] == ["not now", ""]
