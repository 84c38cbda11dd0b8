"""What a provider is told, and told again. It is a stand-in that refuses once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from waiting import until

from dask_tide.controller.ledger import Ledger
from dask_tide.controller.supply import Supply
from dask_tide.errors import Unavailable


class Platform:
    """It is busy when it is first asked to stop a unit that has a name; or whatever ``first`` is."""

    def __init__(self, first: Exception | None = None) -> None:
        self.asked: list[list[str]] = []
        self._first = first or Unavailable("busy")

    async def scale_down(self, units: Sequence[str]) -> Collection[str]:
        self.asked.append(list(units))
        if self.asked.count(["cpu-a"]) == 1 and list(units) == ["cpu-a"]:
            raise self._first
        return ()


async def test_what_has_no_name_yet_is_not_given_up_twice_because_of_what_has_one():
    """By the second time others may have been asked for, which nobody wants to give up."""
    platform = Platform()
    supply = Supply(Ledger(120.0), clock=lambda: 0.0, tell=lambda *_: None)
    supply.provider = platform  # type: ignore[assignment]  # all of it that is called
    supply.give_back("cpu", ["cpu?0", "cpu-a", "cpu?1"])
    await until(lambda: not supply._stopping, "all is done")
    assert platform.asked == [["cpu?0", "cpu?1"], ["cpu-a"], ["cpu-a"]]


async def test_what_a_provider_should_not_raise_leaves_no_unit_for_ever():
    platform, told = Platform(KeyError("its library's own")), []
    supply = Supply(Ledger(120.0), clock=lambda: 0.0, tell=lambda *what: told.append(what))
    supply.provider = platform  # type: ignore[assignment]  # all of it that is called
    supply.give_back("cpu", ["cpu-a"])
    await until(lambda: not supply._stopping, "all is done")
    assert platform.asked == [["cpu-a"], ["cpu-a"]]
    [(_, _, reason)] = told
    assert 'cpu-a could not be stopped: "its library\'s own"' in str(reason)
