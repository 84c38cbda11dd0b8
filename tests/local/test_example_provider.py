"""The example of a provider of one's own keeps the contract, and works in a cluster."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dask_tide.providers.base import Provider, ProviderContext
from dask_tide.testing.contract import Platform, ProviderContract, process_of

_FILE = Path(__file__).parents[2] / "examples" / "own_provider.py"


def _example() -> Any:
    spec = importlib.util.spec_from_file_location(_FILE.stem, _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestExampleProvider(ProviderContract):
    def provider(self, context: ProviderContext) -> Provider:
        provider: Provider = _example().Processes(context)
        return provider

    async def vanish(self, platform: Platform, unit: str) -> None:
        for ws in platform.workers([unit])[unit]:
            process_of(ws).kill()

    def make_unable(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args, **kwargs):
            raise OSError("Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", fail)


async def test_a_cluster_with_it(atide, monkeypatch):
    monkeypatch.syspath_prepend(str(_FILE.parent))
    cluster = await atide(provider="own_provider:Processes", maximum=2)
    async with cluster.get_client() as client:
        assert await client.submit(lambda: 6 * 7) == 42


def test_it_is_about_thirty_lines():
    inside = _FILE.read_text().partition("class Processes:")[2].splitlines()
    assert len([line for line in inside if line.strip()]) <= 40
