"""The recording provider keeps the contract: it is the reference implementation."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dask_tide.errors import Unavailable
from dask_tide.model import Pool
from dask_tide.providers.base import ProviderContext
from dask_tide.testing import RecordingProvider
from dask_tide.testing.contract import Platform, ProviderContract


class TestRecordingProvider(ProviderContract):
    pools: ClassVar = {
        **ProviderContract.pools,
        "pair": Pool("pair", memory_bytes=2**30, workers_per_unit=2),
    }

    def provider(self, context: ProviderContext) -> RecordingProvider:
        return RecordingProvider(context)

    async def vanish(self, platform: Platform, unit: str) -> None:
        assert isinstance(platform.provider, RecordingProvider)
        await platform.provider.kill(unit)

    def make_unable(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(platform.provider, RecordingProvider)
        platform.provider.unavailable = Unavailable("switched off")
