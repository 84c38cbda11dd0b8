"""Plain frozen values: what the parts of dask-tide say to one another."""

from .actions import Action, Drain, Hold, Launch, Release
from .pools import Pool, Resources
from .reasons import Code, Why, why
from .snapshot import Memory, PoolMemory, PoolState, Settings, Snapshot
from .units import BOOTING, EXISTING, LIVE, TRANSITIONS, Phase, Unit, owner_of
from .work import Work
from .workers import Worker

__all__ = [
    "BOOTING",
    "EXISTING",
    "LIVE",
    "TRANSITIONS",
    "Action",
    "Code",
    "Drain",
    "Hold",
    "Launch",
    "Memory",
    "Phase",
    "Pool",
    "PoolMemory",
    "PoolState",
    "Release",
    "Resources",
    "Settings",
    "Snapshot",
    "Unit",
    "Why",
    "Work",
    "Worker",
    "owner_of",
    "why",
]
