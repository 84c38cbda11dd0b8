"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from .workloads import WORKLOADS

__all__ = ["SMALL", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How much of everything.

    Attributes
    ----------
    boots
        How many seconds machines boot, on average: the workloads run once for each.
    workloads
        Which ones, by their names.
    pace
        Of workloads: :class:`benchmarks.aws.workloads.User` says what it means.
    first
        How often somebody comes with a first task.
    many
        Pods on fake machines.
    """

    boots: tuple[float, ...] = (60.0, 180.0)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    pace: float = 1.0
    first: int = 10
    many: int = 2000


#: To see whether it works.
SMALL = Settings(boots=(10.0,), pace=0.2, first=3, many=80)
