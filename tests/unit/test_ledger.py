"""What the ledger says of units that ended too soon."""

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
