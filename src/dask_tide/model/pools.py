"""Pools: workers that are alike."""

from __future__ import annotations

import math

import msgspec

#: Amounts of Dask's abstract resources, sorted by name: ``(("GPU", 1.0),)``.
Resources = tuple[tuple[str, float], ...]


class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    """Workers that are alike: one template, one minimum, one maximum, one price.

    Attributes
    ----------
    name
        A DNS label, as Kubernetes wants it.
    threads
        Threads of one worker.
    memory_bytes
        Memory limit of one worker; 0 where it is not known.
    resources
        Abstract resources of one worker.
    workers_per_unit
        How many workers one unit (process group, pod, batch job) runs.
    minimum, maximum
        Bounds on the number of units.
    price
        Cost of one unit for one second.
    boot_s
        How long a unit takes from being asked for to its worker's registration where a machine has
        room for it, as far as known before the first was measured; seconds.
    spot
        Its machines may be taken away at short notice: results do not stay there for long.
    """

    name: str
    threads: int = 1
    memory_bytes: int = 0
    resources: Resources = ()
    workers_per_unit: int = 1
    minimum: int = 0
    maximum: int = 1
    price: float = 1.0
    boot_s: float = 1.0
    spot: bool = False

    @property
    def threads_per_unit(self) -> int:
        return self.threads * self.workers_per_unit

    def slots_per_unit(self, needs: Resources) -> int:
        """How many tasks that need ``needs`` one unit runs at a time; 0: never any.

        A task takes a thread beside the resources it asks for.
        """
        have = dict(self.resources)
        slots = self.threads
        for name, amount in needs:
            if amount > 0:
                # Of an amount that is next to nothing there is no end, and no whole number says so.
                slots = math.floor(min(slots, have.get(name, 0.0) / amount))
        return slots * self.workers_per_unit
