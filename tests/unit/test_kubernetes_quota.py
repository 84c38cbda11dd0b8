"""Quotas: for how long a refusal is believed."""

from __future__ import annotations

import pytest

from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.replicasets import ReplicaSetView

pytest.importorskip("lightkube")
from dask_tide.providers.kubernetes.quota import Quota


class Refusals:
    """A quota that refuses a pod beyond the third, and a clock."""

    def __init__(self) -> None:
        self.s = 100.0
        self.quota = Quota("cpu", patience=Patience(), clock=lambda: self.s)

    def believed_s(self) -> float:
        """For how long another refusal is believed, which has passed then."""
        view = ReplicaSetView("r-cpu", "cpu", 1, 4, 3, "", "exceeded quota: pods", "dask-tide")
        self.quota.refused(view, 3)
        began_s = self.s
        while self.quota.limit() is not None:
            self.s += 1
        return self.s - began_s


def test_each_further_refusal_is_believed_for_twice_as_long():
    refusals = Refusals()
    assert [refusals.believed_s() for _ in range(6)] == [30, 60, 120, 240, 300, 300]


def test_one_after_a_long_time_says_nothing_of_the_earlier_ones():
    refusals = Refusals()
    assert [refusals.believed_s() for _ in range(3)] == [30, 60, 120]
    refusals.s += 3600
    assert [refusals.believed_s() for _ in range(2)] == [30, 60]
