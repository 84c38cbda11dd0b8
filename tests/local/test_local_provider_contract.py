"""The local provider keeps the contract."""

from __future__ import annotations

import subprocess
from typing import ClassVar

import pytest

from dask_tide.model import Pool
from dask_tide.providers.base import ProviderContext
from dask_tide.providers.local import LocalProvider
from dask_tide.testing.contract import Platform, ProviderContract, process_of


class TestLocalProvider(ProviderContract):
    pools: ClassVar = {
        **ProviderContract.pools,
        "pair": Pool("pair", memory_bytes=2**30, workers_per_unit=2),
    }

    def provider(self, context: ProviderContext) -> LocalProvider:
        return LocalProvider(context)

    async def vanish(self, platform: Platform, unit: str) -> None:
        for ws in platform.workers([unit])[unit]:
            process_of(ws).kill()

    def make_unable(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args, **kwargs):
            raise OSError("Resource temporarily unavailable")

        # Its forkserver has ended, and another one cannot be started.
        assert isinstance(platform.provider, LocalProvider)
        platform.provider._launcher._process.kill()
        platform.provider._launcher._process.wait()
        monkeypatch.setattr(subprocess, "Popen", fail)
