"""Stores of images that nodes start with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig import images
from rig.folders import locked


def test_what_a_killed_bake_left_goes_unless_somebody_bakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path))
    stores = tmp_path / "stores"
    for name in ("baked", "killed.part/io.containerd", "killed.part.run", "busy.part", "busy.part.run"):
        (stores / name).mkdir(parents=True)
    with locked(images._lock(stores / "busy")):
        images._throw_away_old(stores)
        assert {path.name for path in stores.iterdir()} == {"baked", "busy.part", "busy.part.run"}
    images._throw_away_old(stores)
    assert [path.name for path in stores.iterdir()] == ["baked"]
