"""Tally: unfinished tasks, counted as they change, so that a tick never walks them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dask.utils import parse_timedelta
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_tide.model import Resources, Work

from .bindings import Bindings, restricted
from .clock import now_s
from .durations import LONGEST_S, Durations
from .levels import Levels

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, TaskGroup, TaskState, WorkerState

logger = logging.getLogger("distributed.tide.tally")

#: States of tasks that have not finished; all others count as finished or not begun.
_UNFINISHED = frozenset({"waiting", "queued", "no-worker", "processing"})
#: Instead of their TaskGroups, for tasks whose keys are names of their own (`file_17`): one kind of work.
_OWN_NAMES = ""
#: If no heartbeat has told of more tasks than that which are given out, all kinds of tasks may have begun.
_UNKNOWN = 1000
#: Sending a function for the first time, and importing what it needs, may take that: no sign that it is long.
_FIRST_S = 0.1
#: More kinds of work than this would make decisions and journals slow and large.
_KINDS = 256


class _Class:
    """Tasks of one TaskGroup with the same restrictions, and how many are in which state."""

    __slots__ = (
        "bound",
        "counts",
        "example",
        "group",
        "hint_s",
        "key",
        "levels",
        "name",
        "needs",
        "prefix",
        "progress_s",
    )

    def __init__(
        self, key: Any, ts: TaskState, name: str, needs: Resources, bound: bool, hint_s: float | None
    ) -> None:
        self.key = key
        self.group = str(ts.group.name)
        self.prefix = ts.prefix
        #: Under which its durations are remembered.
        self.name = name
        self.example = str(ts.key)
        self.needs = needs
        self.bound = bound
        self.hint_s = hint_s
        self.counts = {"waiting": 0, "queued": 0, "no-worker": 0, "processing": 0}
        self.levels = Levels()
        #: When the first of the running tasks was given out, or the last one finished.
        self.progress_s = 0.0


class Tally(SchedulerPlugin):
    """Counts unfinished tasks by (TaskGroup, restrictions).

    Plain and restricted tasks may share a TaskGroup, so its own counts do not tell who can run
    where. The cost of a transition is measured in ``benchmarks/``.

    Parameters
    ----------
    scheduler
        Whose tasks.
    wake
        Called when a task that could run has no worker, and when a worker comes or goes.
    on_restart
        Called when a client restarts the cluster.
    on_close
        Awaited when the scheduler closes.
    on_worker
        Called with a worker that has registered.
    """

    name = "tide"

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        wake: Callable[[], None],
        on_restart: Callable[[], None],
        on_close: Callable[[], Any],
        on_worker: Callable[[WorkerState], None] = lambda _: None,
    ) -> None:
        self._scheduler = scheduler
        self._tasks = scheduler.tasks
        self._wake = wake
        self._on_restart = on_restart
        self._on_close = on_close
        self._on_worker = on_worker
        self._class_of: dict[Any, _Class] = {}
        #: Levels of tasks that wait for others, or are about to: one more than the deepest of those.
        self._depth: dict[Any, int] = {}
        self._plain: dict[TaskGroup | str, _Class] = {}
        self._restricted: dict[Any, _Class] = {}
        self._bad_hints: set[str] = set()
        #: By TaskPrefix name, but for tasks with names of their own.
        self.durations = Durations()
        #: Of those: by name, for tasks that are submitted again, and of all together.
        self._own_durations = Durations()
        self.bindings = Bindings()
        self._count_anew()

    # -- what Dask calls ------------------------------------------------------------------

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        tasks = self._class_of.get(key)
        if tasks is not None:
            self._leave(tasks, key, start, finish, kwargs)
            if finish not in _UNFINISHED:
                del self._class_of[key]
                self._depth.pop(key, None)
                if not any(tasks.counts.values()):
                    self._drop(tasks)
                return
        elif finish not in _UNFINISHED:
            self._depth.pop(key, None)
            return
        # Restrictions may change on the way (a P2P shuffle binds its outputs to workers).
        now = self._classify(ts := self._tasks[key])
        if now.bound:
            self.bindings.add(ts)
        if finish == "processing":
            if not now.counts["processing"]:
                now.progress_s = now_s()
        elif finish == "waiting":
            self._wait(now, ts)
        else:
            self._wake()
        now.counts[finish] += 1
        if now is not tasks:
            self._class_of[key] = now
            if tasks is not None and not any(tasks.counts.values()):
                self._drop(tasks)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._on_worker(scheduler.workers[worker])
        self._wake()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._wake()

    def restart(self, scheduler: Scheduler) -> None:
        # The scheduler clears its tasks without transitions.
        self._count_anew()
        self._on_restart()

    async def close(self) -> None:
        await self._on_close()

    # -- what the controller asks -----------------------------------------------------------

    def work(self, at_s: float, elsewhere: Iterable[WorkerState] = ()) -> tuple[Work, ...]:
        """The unfinished tasks, O(task groups, seceded tasks, and tasks of the workers ``elsewhere``).

        Where there are very many groups (keys without a name in common make one each), those alike in
        what decides are one.

        Parameters
        ----------
        at_s
            The time.
        elsewhere
            Workers that no provider of ours started.
        """
        seceded: dict[_Class, int] = defaultdict(int)
        active = {
            tasks
            for classes in (self._plain, self._restricted)
            for tasks in classes.values()
            if tasks.counts["processing"]
        }
        begun: set[_Class] = set()
        unknown = 0
        for ws in self._scheduler.workers.values():
            for ts in ws.long_running:
                if (tasks := self._class_of.get(ts.key)) is not None:
                    seceded[tasks] += 1
            if len(begun) == len(active):
                continue
            # What waits behind others on its worker has proven nothing; heartbeats tell what runs.
            running = [ts for ts in ws.executing if ts.processing_on is ws]
            if not running:
                unknown += len(ws.processing)
                if unknown > _UNKNOWN:
                    begun = active
                    continue
            for ts in running or ws.processing:
                if (tasks := self._class_of.get(ts.key)) is not None:
                    begun.add(tasks)
        others: dict[_Class, int] = defaultdict(int)
        for ws in elsewhere:
            for ts in restricted(ws):
                if (tasks := self._class_of.get(ts.key)) is not None:
                    others[tasks] += 1
        work = [
            Work(
                group=tasks.group,
                example=tasks.example,
                needs=tasks.needs,
                bound=tasks.bound,
                waiting=tasks.counts["waiting"],
                ready=tasks.counts["queued"] + tasks.counts["no-worker"],
                processing=(given := max(0, tasks.counts["processing"] - seceded.get(tasks, 0))),
                duration_s=(duration_s := self._duration_s(tasks)),
                stalled_s=_stalled_s(tasks, at_s, duration_s) if given and tasks in begun else 0.0,
                levels=tasks.levels.shape() if tasks.counts["waiting"] else (),
                elsewhere=min(given, others.get(tasks, 0)),
            )
            for classes in (self._plain, self._restricted)
            for tasks in classes.values()
        ]
        return tuple(work if len(work) <= _KINDS else _merged(work))

    @property
    def unfinished(self) -> int:
        return len(self._class_of)

    # -- inside -------------------------------------------------------------------------------

    def _count_anew(self) -> None:
        self._class_of.clear()
        self._depth.clear()
        self._plain.clear()
        self._restricted.clear()
        self.bindings.clear()
        # By priority, so that mostly each comes after those that it waits for.
        for ts in sorted(
            (ts for ts in self._tasks.values() if ts.state in _UNFINISHED), key=lambda ts: ts.priority or ()
        ):
            tasks = self._classify(ts)
            tasks.counts[ts.state] += 1
            tasks.progress_s = now_s()
            self._class_of[ts.key] = tasks
            if ts.state == "waiting":
                self._wait(tasks, ts)
            if tasks.bound:
                self.bindings.add(ts)

    def _classify(self, ts: TaskState) -> _Class:
        group: TaskGroup | str = ts.group
        name = ts.prefix.name
        if ts.key == name and self._measured_s(name) is None and ts.prefix.duration_average < 0:
            group = name = _OWN_NAMES
        if not (ts.resource_restrictions or ts.worker_restrictions or ts.host_restrictions or ts.annotations):
            try:
                return self._plain[group]
            except KeyError:
                tasks = self._plain[group] = _Class(group, ts, name, (), False, None)
                return tasks
        needs = tuple(sorted((str(name), float(n)) for name, n in (ts.resource_restrictions or {}).items()))
        bound = bool(ts.worker_restrictions or ts.host_restrictions) and not ts.loose_restrictions
        hint_s = self._hint(ts)
        key = (group, needs, bound, hint_s)
        if (known := self._restricted.get(key)) is None:
            known = self._restricted[key] = _Class(key, ts, name, needs, bound, hint_s)
        return known

    def _wait(self, tasks: _Class, ts: TaskState) -> None:
        if ts.waiting_on:
            tasks.levels.add(self._depth.get(ts.key) or self._deepen(ts))
        else:
            # It goes on at once.
            self._depth.pop(ts.key, None)

    def _deepen(self, ts: TaskState) -> int:
        """Find the level of a task that waits, and first of all that it waits for and that have none yet.

        The scheduler lets tasks wait in any order, often the last ones first.
        """
        depths, path = self._depth, [ts]
        while path:
            last = path[-1]
            unknown, deepest = [], -1
            for other in last.waiting_on or [each for each in last.dependencies if not each.who_has]:
                depth = depths.get(other.key)
                if depth is None and other.state == "released":
                    unknown.append(other)
                elif depth is None:
                    deepest = max(deepest, 0)
                elif depth > deepest:
                    deepest = depth
            if unknown:
                path += unknown
                continue
            depths[last.key] = deepest + 1
            path.pop()
            while path and path[-1] is not ts and path[-1].key in depths:
                path.pop()
        return depths[ts.key]

    def _drop(self, tasks: _Class) -> None:
        self._plain.pop(tasks.key, None)
        self._restricted.pop(tasks.key, None)

    def _hint(self, ts: TaskState) -> float | None:
        """The user's own estimate: ``dask.annotate(duration="2 hours")``."""
        given = (ts.annotations or {}).get("duration")
        if given is None:
            return None
        try:
            return _finite(parse_timedelta(given, default="s"))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            if str(given) not in self._bad_hints:
                self._bad_hints.add(str(given))
                logger.warning(
                    "Annotation duration=%r of task %s is ignored: expected seconds or, say, '2 hours'",
                    given,
                    ts.key,
                )
            return None

    def _leave(self, tasks: _Class, key: Any, start: str, finish: str, about: dict[str, Any]) -> None:
        tasks.counts[start] -= 1
        if tasks.bound:
            self.bindings.remove(key)
        if start == "waiting":
            if (depth := self._depth.pop(key, None)) is not None:
                tasks.levels.remove(depth)
        elif start == "processing":
            tasks.progress_s = now_s()
            if finish == "memory":
                self._measure(tasks, key, about.get("startstops"))

    def _measure(self, tasks: _Class, key: Any, startstops: Any) -> None:
        for step in startstops or ():
            if step["action"] == "compute":
                duration_s = step["stop"] - step["start"]
                if tasks.name not in (_OWN_NAMES, key):
                    self.durations.add(tasks.name, duration_s)
                    continue
                for name in {tasks.name, str(key)}:
                    self._own_durations.add(name, duration_s)

    def _measured_s(self, name: str) -> float | None:
        measured_s = self.durations.get(name)
        return self._own_durations.get(name) if measured_s is None else measured_s

    def _duration_s(self, tasks: _Class) -> float | None:
        if tasks.hint_s is not None:
            return tasks.hint_s
        measured_s = self._measured_s(tasks.name)
        if measured_s is not None:
            return measured_s
        # The operator's distributed.scheduler.default-task-durations.
        configured = tasks.prefix.duration_average
        return configured if configured >= 0 else None


def _finite(duration: Any) -> float:
    if not 0 <= (duration_s := float(duration)) <= LONGEST_S:
        raise ValueError(duration)
    return duration_s


def _stalled_s(tasks: _Class, at_s: float, duration_s: float | None) -> float:
    """For how long they have been running with none of them ending, as far as that is evidence."""
    return max(0.0, at_s - tasks.progress_s - (_FIRST_S if duration_s is None else 0.0))


def _merged(work: list[Work]) -> list[Work]:
    """One for all that need the same and take about as long, or of whose durations nothing is known."""
    alike: dict[Any, list[Work]] = defaultdict(list)
    for one in work:
        about = math.frexp(max(one.duration_s or 0.0, one.stalled_s))[1]
        alike[one.needs, one.bound, one.duration_s is None, about].append(one)
    return [_sum(several) for several in alike.values()]


def _sum(several: list[Work]) -> Work:
    first = several[0]
    tasks = sum(one.runnable + one.waiting for one in several)
    known_s = [(one.runnable + one.waiting) * one.duration_s for one in several if one.duration_s is not None]
    return Work(
        group=first.group,
        example=first.example,
        needs=first.needs,
        bound=first.bound,
        waiting=sum(one.waiting for one in several),
        ready=sum(one.ready for one in several),
        processing=sum(one.processing for one in several),
        duration_s=sum(known_s) / max(1, tasks) if known_s else None,
        stalled_s=max(one.stalled_s for one in several),
        elsewhere=sum(one.elsewhere for one in several),
    )
