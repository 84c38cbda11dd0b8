"""Victims: which units go first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from dask_tide.model import BOOTING, Phase, Settings, Snapshot, Unit, Worker


@dataclass(frozen=True)
class Candidate:
    """A unit that may go, with its registered workers."""

    unit: Unit
    workers: tuple[Worker, ...]

    @property
    def booting(self) -> bool:
        return self.unit.phase in BOOTING and not self.workers

    @property
    def idle(self) -> bool:
        return all(worker.idle for worker in self.workers)

    @property
    def tasks(self) -> int:
        return sum(worker.tasks for worker in self.workers)

    @property
    def only_copies(self) -> int:
        """Results that must be copied before it goes; all it holds where that was not looked up."""
        return sum(w.held_keys if w.only_copies is None else w.only_copies for w in self.workers)

    @property
    def bytes_to_move(self) -> int:
        return sum(w.held_bytes for w in self.workers if w.only_copies != 0)

    @property
    def pinned(self) -> str:
        return next((w.pinned for w in self.workers if w.pinned), "")


def candidates(snapshot: Snapshot, pool: str) -> list[Candidate]:
    """Live units of ``pool``, in the order in which they should go.

    Not yet started; idle, with the fewest only-copies, on the machine that is closest to being
    empty; then busy ones, with the fewest tasks first.
    """
    workers: dict[str, list[Worker]] = {}
    for worker in snapshot.workers:
        workers.setdefault(worker.unit, []).append(worker)
    found = [
        Candidate(unit, tuple(workers.get(unit.name, ())))
        for unit in snapshot.units
        if unit.pool == pool and unit.phase in BOOTING | {Phase.RUNNING}
    ]
    on_machine = Counter(unit.machine for unit in snapshot.units if unit.phase is Phase.RUNNING)
    return sorted(
        found,
        key=lambda c: (
            not c.booting,
            -_LATENESS.get(c.unit.phase, 0),
            not c.idle,
            c.tasks,
            c.only_copies,
            on_machine[c.unit.machine],
            c.unit.name,
        ),
    )


# Of units that have not started, the one that is furthest from starting goes first.
_LATENESS = {Phase.REQUESTED: 2, Phase.PENDING: 2, Phase.STARTING: 1}


class Room:
    """Whether the workers that stay have room for the results of those that go."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        draining = {unit.name for unit in snapshot.units if unit.phase is not Phase.RUNNING}
        self._room: dict[str, float] = {
            worker.address: max(0.0, settings.fill_ratio * worker.limit_bytes - worker.held_bytes)
            if worker.limit_bytes
            else math.inf
            for worker in snapshot.workers
            if worker.status == "running" and (not worker.unit or worker.unit not in draining)
        }
        self._moving = 0

    def admit(self, candidate: Candidate) -> bool:
        """Let ``candidate`` go if what it and the earlier ones hold fits into the others."""
        own = [worker.address for worker in candidate.workers]
        left = {address: room for address, room in self._room.items() if address not in own}
        moving = self._moving + candidate.bytes_to_move
        if candidate.only_copies and not left:
            return False
        if moving and moving > math.fsum(room for room in left.values()):
            return False
        self._room = left
        self._moving = moving
        return True
