"""The pods of one pool, as the watch shows them: what is asked of them, and what is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from dask_tide.model import Phase

from .marks import VICTIM
from .pods import DELETION_COST, PodView

__all__ = ["PoolPods"]


class PoolPods:
    """The pods of one pool.

    Parameters
    ----------
    now
        The pods as they are now, by name.
    """

    def __init__(self, now: Callable[[], Mapping[str, PodView]]) -> None:
        self.now = now
        self._changed = asyncio.Event()

    def __getitem__(self, name: str) -> PodView:
        return self.now()[name]

    def active(self) -> set[str]:
        """Names of the pods that the ReplicaSet counts."""
        return {name for name, pod in self.now().items() if pod.active}

    def existing(self) -> int:
        """How many pods there are, those that are being deleted included: they need their room, too."""
        return sum(1 for pod in self.now().values() if pod.active or pod.unit.phase is Phase.STOPPING)

    def ready(self, name: str) -> bool:
        """Whether it is there and its worker is at work."""
        pod = self.now().get(name)
        return pod is not None and pod.active and pod.ready

    def unmarked(self, name: str) -> bool:
        """Whether it is there and nothing says that it is to go."""
        pod = self.now().get(name)
        return pod is not None and pod.active and pod.annotations.get(DELETION_COST) != VICTIM[DELETION_COST]

    def changed(self) -> None:
        """Some pod of the pool has changed: what is waited for may be so."""
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for what changes with the pods; not for longer than that."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
