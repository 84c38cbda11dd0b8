"""Need: how many units of a pool there is a use for, and for how long one without a use is worth keeping."""

from __future__ import annotations

from typing import NamedTuple

from dask_tide.model import Code, PoolState, Settings, Why, why

from . import sizing, window
from .demand import Demand
from .stock import Stock
from .victims import Results

NONE = Results()


class Homeless(NamedTuple):
    """Results for which a pool is to have room.

    Attributes
    ----------
    at_risk
        Results for which there is no room: only spot machines hold them.
    stranded
        The same of units that are about to go, where nobody else could receive them.
    to_move
        The same, where somebody has come for them and others are on their way.
    """

    at_risk: Results = NONE
    stranded: Results = NONE
    to_move: Results = NONE


#: What a fresh process costs at the least beside its boot: what its first tasks import and cache.
_WARM_S = 0.5


class Need:
    """The use that there is for the units of one pool.

    Parameters
    ----------
    state
        The pool.
    settings
        The policy's.
    stock
        What there is.
    demand
        What the work asks for.
    homeless
        Results that it is to take.
    now_s
        The moment.
    used
        What there was a use for before, as :class:`~dask_tide.model.PoolMemory` has it.

    Attributes
    ----------
    used
        The same, with this moment's.
    """

    def __init__(
        self,
        state: PoolState,
        settings: Settings,
        stock: Stock,
        demand: Demand,
        homeless: Homeless,
        *,
        now_s: float,
        used: window.Needs,
    ) -> None:
        self.state = state
        self.pool = state.pool
        self.settings = settings
        self.stock = stock
        self.demand = demand
        self._homeless = homeless
        self._boot_s = state.unit_boot_s
        #: Bytes of results in this pool, and the units they need.
        self._held_bytes, self._for_results = self._results() if demand.unfinished else (0, 0)
        # Units that are found have been of use to somebody.
        before = used or ((now_s, stock.live),)
        self._since_s = now_s - self._patience_s()
        self.used = window.after(before, now_s, self.units_now(), self._patience_s())

    def _results(self) -> tuple[int, int]:
        stock = self.stock
        if not stock.worker_bytes:
            return stock.held_bytes, 0
        of_worker = stock.worker_bytes - self.state.baseline_bytes
        units = sizing.for_results(
            held_bytes=stock.held_bytes,
            capacity_bytes=of_worker * self.pool.workers_per_unit,
            ratio=self.settings.memory_ratio,
        )
        return stock.held_bytes, units

    def _to_take(self, results: Results) -> int:
        """Units with which there is room for so much more; those that are on their way count."""
        if not results.keys:
            return 0
        stock = self.stock
        capacity_bytes = stock.capacity_bytes(self.pool, self.settings.fill_ratio)
        more = -(-results.held_bytes // capacity_bytes) if capacity_bytes > 0 else 1
        return stock.live - stock.coming_later - stock.unplaced + max(1, more)

    # -- how many -----------------------------------------------------------------------

    def target(self) -> tuple[int, Why | None]:
        """How many live units to have, at the least, and why."""
        demand, have = self.demand, self.stock.live
        if self.state.manual is not None:
            return self.state.manual, why(Code.MANUAL, want=self.state.manual, have=have)
        wishes: list[tuple[int, Why | None]] = [
            (self._in_time(self.pool.minimum), why(Code.MINIMUM, want=self.pool.minimum, have=have)),
            (self._in_time(self.state.floor), why(Code.FLOOR, want=self.state.floor, have=have)),
        ]
        size = sizing.worthwhile(
            demand,
            self.stock,
            boot_s=self._boot_s,
            cold_boot_s=self.state.cold_boot_s,
            room=self.state.room,
            worth=self.settings.worth,
            patience_s=self._patience_s(),
        )
        numbers = {
            "runnable": demand.runnable,
            "slots": demand.slots,
            "have": have,
            "want": demand.usable,
        }
        full = self.stock.paused
        more = why(Code.DEMAND_BESIDE, full=full, **numbers) if full else why(Code.DEMAND, **numbers)
        # A paused unit takes no tasks; another one must.
        wishes.append((size.units + self.stock.paused if demand.runnable else 0, more))
        room = why(Code.MEMORY, used_bytes=self._held_bytes, have=have, want=self._for_results)
        wishes.append((self._for_results, room))
        homeless = self._homeless
        for code, results in ((Code.SAFE_COPY, homeless.at_risk), (Code.RESCUE, homeless.stranded)):
            wishes.append((self._to_take(results), why(code, keys=results.keys)))
        target, reason = max(wishes, key=lambda wish: wish[0])
        if target <= have:
            # Not launching needs a reason only where the work could use more.
            return target, size.why if demand.usable + self.stock.paused > have else None
        return target, reason

    def _in_time(self, least: int) -> int:
        """Of so many units that there are to be, with or without work, those to ask for now.

        One that is taken away empty is followed by another one, and not by two.
        """
        return max(min(least, self.stock.live), least - self.stock.vacating)

    def units(self) -> int:
        """Units that there is a use for now, or soon enough."""
        if self.state.manual is not None:
            return self.state.manual
        # What is soon may be soon again and again.
        later = min(self.demand.later, window.longest_need(self.used, self._since_s)) if self._soon() else 0
        return max(self.units_now(), later)

    def units_now(self) -> int:
        """Units that there is a use for now."""
        demand = self.demand
        usable = demand.usable + (self.stock.paused if demand.unfinished else 0)
        results = max(map(self._to_take, self._homeless))
        return max(usable, self._for_results, results, self.pool.minimum, self.state.floor)

    def _soon(self) -> bool:
        """Whether the tasks that wait may run before an idle unit has cost as much as a new one."""
        in_s = self.demand.later_in_s(self.stock.ready * self.pool.threads_per_unit)
        return in_s is not None and in_s <= self._patience_s()

    # -- for how long -------------------------------------------------------------------

    def _patience_s(self) -> float:
        """For how long an idle unit is kept for tasks that wait: a new one would cost as much.

        That is a machine's boot, too, where machines come for units: let go, they would take it with them.
        """
        return max(self.keep_s(), self.state.cold_boot_s or 0.0)

    def keep_s(self) -> float:
        """How long an idle unit is worth keeping when nothing is known of its next use.

        Ski rental: until it has cost as much as starting it again would, boot and drain (Karlin et al.
        1988: never more than twice the cost of the best decision in hindsight). It costs until it is gone,
        so its own drain begins that much earlier.
        """
        keep_s = self.settings.keep_s
        if keep_s is None:
            keep_s = max(_WARM_S, self._boot_s, self._machine_s())
        return min(keep_s, self.settings.idle_timeout_s)

    def _machine_s(self) -> float:
        """For how long units must keep a machine that the platform would take away too early."""
        if self.settings.machine_idle_s is None or self.state.cold_boot_s is None:
            return 0.0
        return self.state.cold_boot_s - self.settings.machine_idle_s

    def window_s(self) -> float:
        """For how long units must have been too many before any is released."""
        demand = self.demand
        if demand.unfinished and demand.later <= demand.usable:
            # The graph is known and cannot use them any more.
            return min(self.settings.tail_s, self.keep_s())
        return self.keep_s()
