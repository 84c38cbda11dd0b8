"""What a provider is told, and told again. It is a stand-in that refuses once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from waiting import until

from dask_tide.controller.ledger import Ledger
from dask_tide.controller.supply import Supply
from dask_tide.errors import Unavailable


class Platform:
    """It is busy when it is first asked to stop a unit that has a name."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def scale_down(self, units: Sequence[str]) -> Collection[str]:
        self.asked.append(list(units))
        if self.asked.count(["cpu-a"]) == 1 and list(units) == ["cpu-a"]:
            raise Unavailable("busy")
        return ()


async def test_what_has_no_name_yet_is_not_given_up_twice_because_of_what_has_one():
    """By the second time others may have been asked for, which nobody wants to give up."""
    platform = Platform()
    supply = Supply(Ledger(120.0), clock=lambda: 0.0, tell=lambda *_: None)
    supply.provider = platform  # type: ignore[assignment]  # all of it that is called
    supply.give_back("cpu", ["cpu?0", "cpu-a", "cpu?1"])
    await until(lambda: not supply._stopping, "all is done")
    assert platform.asked == [["cpu?0", "cpu?1"], ["cpu-a"], ["cpu-a"]]
