"""Small words to write snapshots with, and a world in which decisions come true."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import msgspec

from dask_tide.model import (
    Action,
    Drain,
    Hold,
    Launch,
    Memory,
    Phase,
    Pool,
    PoolState,
    Release,
    Settings,
    Snapshot,
    Unit,
    Work,
    Worker,
)
from dask_tide.policy import decide

GB = 10**9
RUNNING, PENDING, STARTING, DRAINING = Phase.RUNNING, Phase.PENDING, Phase.STARTING, Phase.DRAINING
NOTHING = Memory()


def pool(name="cpu", *, maximum=100, boot_s=1.0, state=None, **fields) -> PoolState:
    """A pool whose boot time is known; ``state`` are the fields of its state."""
    for key, value in fields.items():
        if key == "resources":
            fields[key] = tuple(sorted(value.items()))
    return PoolState(Pool(name, maximum=maximum, **fields), **({"boot_s": boot_s} | (state or {})))


def units(n, phase=RUNNING, *, of="cpu", start=0, **fields) -> tuple[Unit, ...]:
    return tuple(Unit(f"{of}-u{i}", of, phase, **fields) for i in range(start, start + n))


def worker(unit="", *, tasks=0, threads=1, name=None, **fields) -> Worker:
    name = name or unit or "foreign"
    return Worker(f"tcp://{name}", name, unit, threads, tasks=tasks, **fields)


def workers_of(some_units, *, tasks=0, **fields) -> tuple[Worker, ...]:
    """One worker for each of these units that runs."""
    return tuple(worker(u.name, tasks=tasks, **fields) for u in some_units if u.phase in (RUNNING, DRAINING))


def busy(n, *, of="cpu", start=0, tasks=1, **fields) -> tuple[tuple[Unit, ...], tuple[Worker, ...]]:
    """Running units, each with a busy worker."""
    running = units(n, of=of, start=start)
    return running, workers_of(running, tasks=tasks, **fields)


def idle(n, *, of="cpu", start=0, **fields) -> tuple[tuple[Unit, ...], tuple[Worker, ...]]:
    """Running units, each with an idle worker."""
    return busy(n, of=of, start=start, tasks=0, **fields)


def work(group="inc", *, needs=None, **fields) -> Work:
    return Work(group, f"{group}-0", tuple(sorted((needs or {}).items())), **fields)


def snapshot(*pools, units=(), workers=(), work=(), now_s=0.0, spent=0.0, **settings) -> Snapshot:
    """A world; further keywords are the settings'."""
    return Snapshot(
        now_s, Settings(**settings), pools or (pool(),), tuple(units), tuple(workers), tuple(work), spent
    )


def together(*parts) -> dict[str, tuple]:
    """Units and workers of several of the builders above, as keywords for :func:`snapshot`."""
    return {
        "units": tuple(itertools.chain.from_iterable(some_units for some_units, _ in parts)),
        "workers": tuple(itertools.chain.from_iterable(some_workers for _, some_workers in parts)),
    }


def decided(world, memory=NOTHING) -> tuple[Action, ...]:
    return decide(world, memory)[0]


def after_a_while(world, *, earlier=NOTHING, for_s=1000.0) -> tuple[Action, ...]:
    """What is decided when the world stays as it is until every window has passed."""
    _, memory = decide(world, earlier)
    return decided(msgspec.structs.replace(world, now_s=world.now_s + for_s), memory)


def the(actions, kind, of="cpu"):
    """The one action of this kind in that pool."""
    (found,) = (a for a in actions if isinstance(a, kind) and a.pool == of)
    return found


def launched(actions) -> dict[str, int]:
    """Units launched, by pool."""
    return {a.pool: a.count for a in actions if isinstance(a, Launch)}


def let_go(actions, of=None) -> set[str]:
    """Names of the units that are released or drained."""
    return {
        unit
        for action in actions
        if isinstance(action, Drain | Release) and of in (None, action.pool)
        for unit in action.units
    }


def held(actions, of="cpu") -> str:
    """Why nothing is done in that pool."""
    return the(actions, Hold, of).why.code


@dataclass
class Task:
    """A task of the world's."""

    group: str
    duration_s: float
    needs: tuple[tuple[str, float], ...] = ()
    left_s: float = 0.0


@dataclass
class World:
    """A cluster in which time is a number: what is decided comes true, and tasks take their time.

    Attributes
    ----------
    pools
        The pools; their ``boot_s`` is also the real one.
    settings
        The policy's.
    known
        Whether the durations of tasks are known before one has finished.
    tick_s
        Time from one decision to the next.
    """

    pools: tuple[PoolState, ...]
    settings: Settings = field(default_factory=Settings)
    known: bool = False
    tick_s: float = 0.25
    now_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    ages: dict[str, float] = field(default_factory=dict)
    unit_pool: dict[str, str] = field(default_factory=dict)
    phases: dict[str, Phase] = field(default_factory=dict)
    running: dict[str, list[Task]] = field(default_factory=dict)
    queue: list[Task] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    progress_s: dict[str, float] = field(default_factory=dict)
    history: list[tuple[Action, ...]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    starts: int = 0
    unit_seconds: float = 0.0

    def submit(self, n, duration_s, group="inc", needs=None) -> None:
        wanted = tuple(sorted((needs or {}).items()))
        self.queue += [Task(group, duration_s, wanted, duration_s) for _ in range(n)]
        if self.known:
            self.measured[group] = duration_s

    def snapshot(self) -> Snapshot:
        groups: dict[tuple, list[int]] = {}
        for task in self.queue:
            groups.setdefault((task.group, task.needs), [0, 0])[0] += 1
        for task in itertools.chain.from_iterable(self.running.values()):
            groups.setdefault((task.group, task.needs), [0, 0])[1] += 1
        return Snapshot(
            now_s=self.now_s,
            settings=self.settings,
            pools=self.pools,
            units=tuple(
                Unit(name, self.unit_pool[name], phase, self.ages[name])
                for name, phase in self.phases.items()
            ),
            workers=tuple(
                worker(name, threads=self._pool(name).threads, tasks=len(self.running[name]))
                for name, phase in self.phases.items()
                if phase is RUNNING
            ),
            work=tuple(
                Work(
                    group,
                    group,
                    needs,
                    ready=ready,
                    processing=processing,
                    duration_s=self.measured.get(group),
                    stalled_s=self.now_s - self.progress_s[group] if processing else 0.0,
                )
                for (group, needs), (ready, processing) in groups.items()
            ),
        )

    def tick(self) -> tuple[Action, ...]:
        """Decide, let it come true, and let a tick pass."""
        world = self.snapshot()
        actions, self.memory = decide(world, self.memory)
        self.history.append(actions)
        for action in actions:
            if isinstance(action, Launch):
                for _ in range(action.count):
                    self._start(action.pool)
            elif isinstance(action, Drain | Release):
                for name in action.units:
                    assert not self.running[name], f"{name} is busy"
                    del self.phases[name]
        self.sizes.append(len(self.phases))
        self.unit_seconds += len(self.phases) * self.tick_s
        self._pass(self.tick_s)
        return actions

    def run(self, for_s) -> None:
        for _ in range(math.ceil(for_s / self.tick_s)):
            self.tick()

    @property
    def unfinished(self) -> int:
        return len(self.queue) + sum(map(len, self.running.values()))

    @property
    def turns(self) -> int:
        """How often the cluster changed from growing to shrinking or back."""
        steps = [b - a for a, b in itertools.pairwise([0, *self.sizes]) if b != a]
        return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(steps))

    def _pool(self, unit) -> Pool:
        return next(s.pool for s in self.pools if s.pool.name == self.unit_pool[unit])

    def _start(self, pool_name) -> None:
        name = f"{pool_name}-{self.starts:04d}"
        self.starts += 1
        self.unit_pool[name], self.phases[name], self.ages[name] = pool_name, STARTING, 0.0
        self.running[name] = []

    def _pass(self, seconds) -> None:
        self.now_s += seconds
        boots = {state.pool.name: state.boot_s or state.pool.boot_s for state in self.pools}
        for name, phase in self.phases.items():
            self.ages[name] += seconds
            if phase is STARTING and self.ages[name] >= boots[self.unit_pool[name]]:
                self.phases[name] = RUNNING
        for tasks in self.running.values():
            for task in list(tasks):
                task.left_s -= seconds
                if task.left_s <= 1e-9:
                    tasks.remove(task)
                    self.measured[task.group] = task.duration_s
                    self.progress_s[task.group] = self.now_s
        for name, phase in self.phases.items():
            if phase is RUNNING:
                self._fill(name)

    def _fill(self, name) -> None:
        shape = self._pool(name)
        for task in list(self.queue):
            if len(self.running[name]) >= shape.threads:
                break
            alike = sum(1 for other in self.running[name] if other.needs == task.needs)
            if alike < shape.slots_per_unit(task.needs):
                self.queue.remove(task)
                if not any(t.group == task.group for t in itertools.chain(*self.running.values())):
                    self.progress_s[task.group] = self.now_s
                self.running[name].append(task)
