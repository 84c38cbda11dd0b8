"""What the ledger says of units that ended too soon, and of those that prepare."""

from __future__ import annotations

import pytest

from dask_tide.controller.ledger import Ledger
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import Observation, ObservedUnit


@pytest.mark.parametrize(
    ("registered", "said"),
    [(True, "after 3.0 s at work: out of memory"), (False, "out of memory")],
)
def test_one_that_had_started_is_not_said_to_have_failed_to(registered, said):
    ledger = Ledger(120.0)

    def look(now_s: float, phase: Phase, message: str = "") -> None:
        workers = {"a"} if registered and phase is Phase.STARTING else set()
        units = (ObservedUnit("a", "cpu", phase, message=message),)
        ledger.update(now_s, Observation(units), workers, set(), {"cpu": Pool("cpu")})

    ledger.asked("cpu", 1, 0.0)
    look(1.0, Phase.STARTING)
    look(4.0, Phase.FAILED, "out of memory")
    record = ledger.records["cpu"]
    assert (record.failed, record.failure) == (1, said), (
        "it counts: what has killed it would kill the next one"
    )


class _Pool:
    """One pool's units as they register and fail."""

    def __init__(self) -> None:
        self.ledger = Ledger(120.0)
        self.record = self.ledger.records["cpu"]
        self.units: dict[str, Phase] = {}

    def look(self, now_s: float, *, preparing: frozenset[str] = frozenset(), **phases: Phase) -> None:
        self.units |= phases
        units = tuple(ObservedUnit(name, "cpu", phase) for name, phase in self.units.items())
        there = {name for name, phase in self.units.items() if phase is Phase.STARTING}
        self.ledger.update(now_s, Observation(units), there, set(), {"cpu": Pool("cpu")}, preparing)

    @property
    def counted(self) -> tuple[int, int, int]:
        return self.record.registered, self.record.started, self.record.failed


def test_one_that_registers_and_dies_at_once_has_not_started():
    """Else it would be started again each second: there would never be two failures in a row."""
    pool = _Pool()
    pool.look(1.0, a=Phase.STARTING)
    assert pool.counted == (1, 1, 0)
    pool.look(2.0, a=Phase.FAILED)
    pool.look(3.0, b=Phase.STARTING)
    pool.look(4.0, b=Phase.FAILED)
    assert pool.counted == (2, 1, 2)
    pool.look(5.0, c=Phase.STARTING)
    pool.look(9.0)
    assert pool.counted == (3, 1, 2)
    pool.look(10.0)
    pool.look(11.0, d=Phase.STARTING)
    assert pool.counted == (4, 3, 2), "one has worked for a while: from now on registering is enough again"


def test_a_start_lasts_until_the_worker_has_prepared():
    pool = _Pool()
    pool.ledger.asked("cpu", 1, 0.0)
    pool.look(1.0, preparing=frozenset({"a"}), a=Phase.STARTING)
    assert (pool.record.registered, pool.record.boot_s) == (1, None)
    pool.look(6.0)
    pool.look(60.0)
    assert pool.record.boot_s == 6.0


def test_the_next_one_knows_what_was_spent():
    """A budget for the scheduler's life is not another one after each `cluster.adapt`."""
    earlier, later = Ledger(120.0), Ledger(120.0)
    earlier.spent = 12.5
    later.inherit(earlier)
    assert later.spent == 12.5


def test_a_unit_that_turns_out_to_be_called_otherwise_is_the_same_one():
    """Its boot time counts from when it was asked for, and there is one unit, not two."""
    ledger = Ledger(120.0)

    def look(now_s: float, name: str, *registered: str) -> tuple[str, ...]:
        seen = Observation((ObservedUnit(name, "cpu", Phase.PENDING),))
        return tuple(
            unit.name for unit in ledger.update(now_s, seen, {*registered}, set(), {"cpu": Pool("cpu")})
        )

    ledger.asked("cpu", 1, 0.0)
    assert look(1.0, "0") == ("0",)
    ledger.rename({"0": "vm-7"})
    assert look(9.0, "vm-7", "vm-7") == ("vm-7",)
    ledger.rename({"0": "vm-7"})
    assert look(10.0, "vm-7", "vm-7") == ("vm-7",)
    assert ledger.records["cpu"].boot_s == 9.0
