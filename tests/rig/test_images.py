"""Stores of images that nodes start with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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


def test_machines_boot_while_an_image_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_TIDE_RIG", str(tmp_path / "rig"))
    store, baked = tmp_path / "store", tmp_path / "baked"
    for folder, images_of in ((store, "old"), (baked, "new")):
        (folder / "layers").mkdir(parents=True)
        (folder / "meta.db").write_text(images_of)
    nodes = [tmp_path / f"n{number}" for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        booted = [threads.submit(images.copy, store, node) for node in nodes]
        images.renew(store, baked)
        for each in booted:
            each.result()
    assert {(node / "meta.db").read_text() for node in nodes} <= {"old", "new"}
    assert (store / "meta.db").read_text() == "new"
    assert not store.with_suffix(".new").exists()
