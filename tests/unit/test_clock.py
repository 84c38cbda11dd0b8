"""The controller's clock."""

from __future__ import annotations

import time

from dask_tide.controller.clock import now_s


def test_it_is_the_time_and_nobody_sets_it_back(monkeypatch):
    assert abs(now_s() - time.time()) < 3600
    before = now_s()
    monkeypatch.setattr(time, "time", lambda: before - 3600)
    assert now_s() >= before
