"""A provider whose platform is crowded: units beyond its places are pending and never start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dask_tide.model import Phase
from dask_tide.providers.base import Observation, ObservedUnit, ProviderContext, unit_name
from dask_tide.providers.local import LocalProvider


class CrowdedProvider(LocalProvider):
    """Local processes; its option ``places`` says how many of them there is room for."""

    def __init__(self, context: ProviderContext) -> None:
        options = dict(context.options)
        self._places = int(options.pop("places"))
        self._cluster = context.cluster
        self._pending: dict[str, str] = {}
        super().__init__(replace(context, options=options))

    async def observe(self) -> Observation:
        observation = await super().observe()
        pending = tuple(
            ObservedUnit(name, pool, Phase.PENDING, message="no place is free")
            for name, pool in self._pending.items()
        )
        return replace(observation, units=observation.units + pending)

    async def scale_up(self, pool: str, n: int) -> None:
        await super().scale_up(pool, min(n, self._places))
        for _ in range(n - len((await self.observe()).units)):
            self._pending[unit_name(self._cluster, pool)] = pool

    async def scale_down(self, units: Sequence[str]) -> None:
        for name in units:
            self._pending.pop(name, None)
        await super().scale_down(units)
