"""Units of somebody else's cluster class: what it is told to have, and names that it gives again."""

from __future__ import annotations

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
