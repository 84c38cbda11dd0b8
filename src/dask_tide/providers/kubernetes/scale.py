"""Scale: a pool's ReplicaSet, to which one says a number and which picks the pods itself.

A ReplicaSet that has to choose takes pods in this order: without a node, pending, not ready, with
the lowest deletion cost. So a pod that must go is made unready (its drained worker parks) and
gets a negative cost first; then the number is lowered, counted from the pods that there are at
that moment; then it is looked which have gone. (Marks alone do not suffice: a marked ready pod
stayed where an unready busy one was beside it.)

Pods that do not run yet come before any that does. They are waited for; those that nobody has
started after a while are given up together with the others, and asked for again by whoever wants
them: nothing is lost, and the machine that the drained worker held may be what they waited for.

A ReplicaSet replaces a pod that has ended at once, and so without end where a kubelet refuses all
that it is given. Given back, such a pod is one fewer, too: who wants another one asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable

from dask_tide.errors import LaunchRejected, ProviderError, QuotaExceeded, Unavailable
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import Limit

from .api import Api
from .going import Going, some
from .marks import Marks
from .number import Number
from .patience import Patience
from .pods import Rank
from .pool_pods import PoolPods
from .quota import Quota
from .replicasets import ReplicaSetView
from .rivals import Rivals

__all__ = ["PoolScale"]

logger = logging.getLogger("distributed.tide.kubernetes")

#: How often the ReplicaSet's controller is told again to delete pods.
ATTEMPTS = 4
#: How far the watch of pods may be behind that of ReplicaSets.
_SEEN_S = 0.5


class PoolScale:
    """The number of pods of one pool.

    Parameters
    ----------
    pool
        As it is configured: an admission policy may enforce its maximum.
    replicaset
        The ReplicaSet's name.
    api
        The API server.
    pods
        The pool's.
    marks
        Annotations of victims; None: pods may not be patched.
    wake
        Called when what the controller should know has changed.
    patience
        How long to wait for what.
    clock
        Seconds that increase steadily.

    Attributes
    ----------
    rivals
        Who else scales it.
    going
        Its pods that are to go.
    """

    def __init__(
        self,
        pool: Pool,
        replicaset: str,
        api: Api,
        pods: PoolPods,
        *,
        marks: Marks | None,
        wake: Callable[[], None],
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool.name
        self.replicaset = replicaset
        self._pods = pods
        self._maximum = pool.maximum
        #: That the platform enforces it, once it has said so.
        self._enforced: Limit | None = None
        self._marks = marks
        self._wake = wake
        self._patience = patience
        self._lock = asyncio.Lock()
        #: The uids of pods for which it has been lowered: once for each.
        self._forgone: set[str] = set()
        self._cancelling = 0
        self._clock = clock
        self.going = Going(pods, patience=patience, clock=clock)
        self._quota = Quota(self.pool, patience=patience, clock=clock)
        self.rivals = Rivals(self.pool, replicaset, patience=patience, clock=clock)
        self._number = Number(replicaset, api, self.rivals)
        self._yielding: asyncio.Task[None] | None = None
        #: Pods that went although others had been picked.
        self.misses = 0

    # -- what there is ------------------------------------------------------------------------

    @property
    def view(self) -> ReplicaSetView | None:
        """The ReplicaSet as the watch shows it; None: there is no such one."""
        return self._number.view

    @property
    def wanted(self) -> int:
        """The number of pods that was last asked for, by whomever."""
        return self._number.wanted

    def active(self) -> set[str]:
        """Names of the pods that the ReplicaSet counts."""
        return self._pods.active()

    def requested(self) -> int:
        """How many pods were asked for and do not exist yet."""
        return max(0, self.wanted - self._cancelling - len(self.active()))

    def seen(self, view: ReplicaSetView | None) -> None:
        """Take what the watch shows of the ReplicaSet."""
        self._number.seen(view)
        self._pods.changed()  # what waits for pods may wait for how many there are
        if view is None:
            return
        if view.refusal:
            self._refused(view)
        else:
            self._quota.granted(view)
        self._wake()

    def pods_changed(self) -> None:
        """Some pod of the pool has changed."""
        self._pods.changed()

    def limit(self) -> Limit | None:
        """The quota that was met, while it is believed; or the maximum, where the platform enforces it."""
        return self._quota.limit() or self._enforced

    def frozen(self) -> str:
        """Why nothing may be done about the pool; empty: something may."""
        return self._number.frozen()

    # -- more -------------------------------------------------------------------------------------

    async def up(self, n: int) -> None:
        """See to it that ``n`` pods exist: those that are being deleted count, failed ones do not."""
        pods = self._pods.now()
        ending = sum(
            1 for name, pod in pods.items() if pod.unit.phase is Phase.STOPPING or name in self.going.due
        )
        counted = self.active() - self.going.due
        # A higher number would save those that are about to be deleted.
        await self._pods.until(lambda: not self.going.due & self.active(), self._patience.delete_s)
        async with self._lock:
            if frozen := self.frozen():
                raise LaunchRejected(frozen)
            if (limit := self._quota.limit()) is not None and n > limit.maximum:
                raise QuotaExceeded(limit.message)
            active = self.active()
            failed = sum(
                1 for name in active - self.going.leaving.keys() if pods[name].unit.phase is Phase.FAILED
            )
            # Of those that have gone meanwhile nobody knew when `n` was said; at the worst it is said again.
            replicas = n - ending - len(counted - active) + failed
            if replicas > max(self.wanted, len(active)):
                await self._raise(replicas)

    async def _raise(self, replicas: int) -> None:
        """Ask for so many, or for as many as an admission policy allows."""
        try:
            await self._number.set(replicas)
        except LaunchRejected as error:
            if replicas <= self._maximum:
                raise
            self._enforced = Limit(self.pool, self._maximum, str(error))
            if self._maximum > max(self.wanted, len(self.active())):
                await self._number.set(self._maximum)

    # -- fewer ----------------------------------------------------------------------------------

    async def down(self, names: Collection[str]) -> Collection[str]:
        """Let exactly these pods go, whose workers have parked or were never at work, or which have ended.

        Returns
        -------
        Those that stay: they are at work meanwhile, or do not run yet and others went instead.

        Raises
        ------
        Unavailable
            Some are still there: ask again.
        """
        victims = set(names) & self.active()
        self.going.say(victims)
        await self._forgo(names)
        if not victims:
            return ()
        if frozen := self.frozen():
            raise Unavailable(frozen)
        await self._all_made()
        kept = await self._spared(victims)
        kept |= {name for name in victims if self.going.has_started(name)}
        victims = victims & self.active() - kept
        if victims and self.active() - victims - self.going.due:
            await self._prepare(victims)
        survived: set[str] = set()
        for _ in range(ATTEMPTS):
            await self._all_made()
            survived = await self._lower(victims, kept)
            if not survived:
                break
        await self._forgo(names)  # some may have ended meanwhile
        if self._marks is not None:
            self._marks.spare(kept)
        if survived:
            raise Unavailable(f"pods of {self.replicaset} are still there: {some(survived)}")
        self.going.stay(kept)
        return kept

    async def _all_made(self) -> None:
        """Wait for pods that are just being made: they stay, and a number that is lowered counts those."""
        await self._pods.until(lambda: not self.requested(), _SEEN_S)

    async def _spared(self, victims: set[str]) -> set[str]:
        """Wait for pods that go anyway, as fewer have been asked for; returns victims that stay for those."""
        before = self.active() - self.going.due
        surplus = len(before) - self.wanted
        if surplus <= 0 or not self.going.waiting(victims):
            return set()
        await self._pods.until(
            lambda: len(self.active() - self.going.due) <= self.wanted, self._patience.delete_s
        )
        instead = before - self.active() - victims
        return set(self.going.waiting(victims)[: min(surplus, len(instead))])

    async def _prepare(self, victims: set[str]) -> None:
        """Wait until the ReplicaSet will pick these."""
        if self._marks is not None:
            # Of those that do not run yet it matters only if others do not, either.
            ranks = {self._pods[name].rank for name in self.active() - victims - self.going.due}
            first = min(ranks | {Rank.UNREADY})
            if first is Rank.PENDING:
                # One without a node may have one before the ReplicaSet's controller looks.
                first = Rank.NOWHERE
            marked = [name for name in victims if self._pods[name].rank >= first]
            done = await self._marks.victims(marked)
            # Not before the watch shows them: the ReplicaSet's controller knows pods from one, too.
            await self._pods.until(lambda: not any(map(self._pods.unmarked, done)), self._patience.delete_s)
        parking = [name for name in victims if self.going.leaving.get(name)]
        await self._pods.until(lambda: not any(map(self._pods.ready, parking)), self._patience.park_s)

        def starting() -> bool:
            first = self.going.before(victims & self.active())
            return any(self._pods[name].rank is not Rank.NOWHERE for name in first)

        await self._pods.until(lambda: not starting(), self._patience.start_s)

    async def _lower(self, victims: set[str], kept: set[str]) -> set[str]:
        """Ask for so many fewer pods as may go, and wait; returns which have not.

        Those that stay are added to ``kept``: they are at work meanwhile, or do not run yet and others went
        instead, which is as good.
        """
        going: set[str] = set()
        try:
            async with self._lock:
                await self._all_seen()
                kept |= {name for name in victims if self.going.has_started(name)}
                going = (victims - kept) & self.active()
                if not going:
                    return set()
                staying = self.active() - self.going.due - going - self.going.given_up(going)
                self.going.due |= going
                await self._number.set(len(staying))
                self._forgone |= self._uids(going)
            # As long as some go it is only slow.
            left = len(going) + 1
            while 0 < len(self.active() & going) < left:
                left = len(self.active() & going)
                await self._pods.until(lambda: len(self.active() & going) < left, self._patience.delete_s)  # noqa: B023 -- awaited here
        finally:
            self.going.due -= going
        survived = self.active() & going
        self._forgone -= self._uids(survived)
        missed = staying - self.active() - self.going.leaving.keys()
        if survived and missed:
            self.misses += len(missed)
            logger.warning("Pods %s went instead of %s", some(missed), some(survived))
            kept |= set(self.going.waiting(survived)[: len(missed)])
        return survived - kept

    async def _forgo(self, names: Collection[str]) -> None:
        """Ask for one fewer for each of these that has ended: the ReplicaSet makes others by itself.

        Not for more than go before those that may be at work: who took their place may be.

        Raises
        ------
        Unavailable
            As :meth:`_all_seen`.
        """
        self._forgone &= self._uids(self._pods.now())
        if not self._ended(names):
            return
        async with self._lock:
            await self._all_seen()
            ended = self._ended(names)
            replicas = max(self.wanted - len(ended), len(self.active()) - self.going.free())
            if replicas < self.wanted and not self.frozen():
                await self._number.set(replicas)
            self._forgone |= ended

    def _ended(self, names: Iterable[str]) -> set[str]:
        """The uids of those that have ended, and for which the number was not lowered."""
        found = (pod for name in names if (pod := self._pods.now().get(name)) is not None)
        ended = {pod.uid for pod in found if pod.unit.phase is Phase.FAILED and not pod.active}
        return ended - self._forgone

    def _uids(self, names: Iterable[str]) -> set[str]:
        pods = self._pods.now()
        return {pods[name].uid for name in names if name in pods}

    async def cancel(self, count: int) -> None:
        """Ask for ``count`` fewer pods of those that do not exist yet.

        Raises
        ------
        Unavailable
            As :meth:`_all_seen`.
        """
        # From now on, so that nobody cancels them again.
        self._cancelling += count
        try:
            async with self._lock:
                await self._all_seen()
                replicas = max(len(self.active()), self.wanted - count)
                if replicas < self.wanted and not self.frozen():
                    await self._number.set(replicas)
        finally:
            self._cancelling -= count

    async def _all_seen(self) -> None:
        """Wait until the watch has shown as many pods as the ReplicaSet has.

        Raises
        ------
        Unavailable
            It has others: workers, perhaps, that would go instead.
        """
        give_up_s = self._clock() + self._patience.delete_s
        # Watches may hang for minutes where the API server that they came from is gone.
        while (unseen := await self._number.existing() - len(self.active())) > 0:
            if self._clock() > give_up_s:
                raise Unavailable(f"{unseen} pods of {self.replicaset} are not seen: the watch is late")
            seen = len(self.active())
            await self._pods.until(lambda: len(self.active()) != seen, _SEEN_S)  # noqa: B023 -- awaited here

    async def none(self) -> None:
        """Let all pods go. Nobody comes after this who would say it again."""
        async with self._lock:
            for attempt in range(ATTEMPTS):
                try:
                    if self.view is not None and (self.wanted or self.active()):
                        await self._number.set(0)
                    break
                except Unavailable as error:
                    if attempt == ATTEMPTS - 1:
                        raise
                    await asyncio.sleep(error.retry_after_s)
        await self._pods.until(lambda: not self.active(), self._patience.delete_s)

    # -- no room ----------------------------------------------------------------------------------

    def _refused(self, view: ReplicaSetView) -> None:
        """A pod could not be created: ask for no more than there are, and again after a while.

        The ReplicaSet's controller tries at ever longer intervals; told anew, it tries at once.
        """
        if self._yielding is not None and not self._yielding.done():
            return
        if view.replicas <= len(self.active()):
            return
        self._quota.refused(view, self._pods.existing())
        self._yielding = asyncio.create_task(self._yield(), name=f"dask-tide-yield-{self.pool}")

    async def _yield(self) -> None:
        # The last pods that could be created may not have been seen yet.
        await asyncio.sleep(_SEEN_S)
        async with self._lock:
            self._quota.counted(self._pods.existing())
            existing = len(self.active())
            if self.wanted > existing and not self.frozen():
                try:
                    await self._number.set(existing)
                except ProviderError as error:  # the refusal stands, and is seen again
                    logger.info("%s", error)
        self._wake()

    async def stop(self) -> None:
        """End what is under way by itself. Idempotent."""
        if self._yielding is not None:
            self._yielding.cancel()
            await asyncio.gather(self._yielding, return_exceptions=True)
