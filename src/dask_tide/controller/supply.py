"""Supply: the provider, as the controller deals with it.

Every call has a time limit. What the platform refuses is believed for a while, so that nothing is asked for
in a tight loop; what it does not answer is unknown; and what it must hear is said until it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from dask_tide.errors import CapacityExhausted, ProviderError, QuotaExceeded, Unavailable, words
from dask_tide.model import Code, Unit, Why, Worker, why
from dask_tide.providers.base import NAMELESS, Closing, Limit, Marking, Observation, Provider

from .ledger import Ledger

__all__ = ["Supply"]

logger = logging.getLogger("distributed.tide.controller")

#: How long a provider may take to answer.
_PROVIDER_S = 60.0
#: For how long a limit is believed that the platform met when it was asked for more.
_BELIEVE_S = 30.0
#: Pauses between two attempts to give units back: the first one, doubled each time, and the longest one.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Supply:
    """Units from a provider, and what it has said of them.

    Parameters
    ----------
    ledger
        Told of what is asked for and what is given back.
    clock
        Seconds since 1970.
    tell
        Called with what should be in the journal: pool, unit, reason.

    Attributes
    ----------
    provider
        Who starts and stops them; None: not yet, or no longer.
    frozen
        Why nothing may be done about a pool, by pool, as last observed.
    prices
        What a unit costs before one has run, by pool, where the platform knows.
    rejected
        Launches that the platform would not have, by pool.
    """

    def __init__(
        self, ledger: Ledger, *, clock: Callable[[], float], tell: Callable[[str, str, Why], None]
    ) -> None:
        self.provider: Provider | None = None
        self.frozen: Mapping[str, str] = {}
        self.prices: Mapping[str, float] = {}
        self.rejected: Counter[str] = Counter()
        self._ledger = ledger
        self._now_s = clock
        self._tell = tell
        #: Limits that the last observation shows.
        self._limits: Mapping[str, Limit] = {}
        #: Limits that were met when more was asked for, and until when they are believed.
        self._met: dict[str, tuple[Limit, float]] = {}
        #: Why the platform is left alone, and until when.
        self._blind, self._blind_until_s = "", 0.0
        self._stopping: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop every unit. Idempotent."""
        provider, self.provider = self.provider, None
        for task in self._stopping:
            task.cancel()
        if provider is not None:
            await provider.close()

    # -- what there is --------------------------------------------------------------------------

    async def observe(self) -> tuple[Observation | None, str]:
        """What the platform shows; or None, and why it shows nothing."""
        assert self.provider is not None
        if self._now_s() < self._blind_until_s:
            return None, self._blind
        try:
            async with asyncio.timeout(_PROVIDER_S):
                return await self.provider.observe(), ""
        except TimeoutError:
            return None, f"no answer within {_PROVIDER_S:g} s"
        except ProviderError as error:
            if isinstance(error, Unavailable):
                self._look_away(error)
            return None, words(error)

    def _look_away(self, error: Unavailable) -> None:
        """Leave a platform that does not answer alone for as long as it wants."""
        self._blind, self._blind_until_s = words(error), self._now_s() + error.retry_after_s

    def take(self, observation: Observation | None) -> None:
        """Take what an observation says of pools; None: the platform did not answer."""
        if observation is not None:
            self.frozen, self.prices = observation.frozen, observation.prices
            self._limits = {limit.pool: limit for limit in observation.limits}

    def limit(self, pool: str, now_s: float) -> Limit | None:
        """The lower one of the limits that are seen and that were met; None: there is none."""
        met, until_s = self._met.get(pool, (None, 0.0))
        seen = self._limits.get(pool)
        if met is None or until_s <= now_s:
            return seen
        return seen if seen is not None and seen.maximum < met.maximum else met

    # -- more -----------------------------------------------------------------------------------

    async def launch(self, pool: str, existing: int, count: int) -> bool:
        """Ask for ``count`` units beside those that exist; whether the platform has heard it."""
        assert self.provider is not None
        try:
            async with asyncio.timeout(_PROVIDER_S):
                self._ledger.asked(pool, count, self._now_s())
                await self.provider.scale_up(pool, existing + count)
        except TimeoutError:
            self._failed(pool, f"the provider did not answer within {_PROVIDER_S:g} s")
        except ProviderError as error:
            self._failed(pool, words(error))
            if isinstance(error, CapacityExhausted | QuotaExceeded):
                self._met[pool] = Limit(pool, existing, str(error)), self._now_s() + _BELIEVE_S
            elif isinstance(error, Unavailable):
                self._look_away(error)
            else:
                self.rejected[pool] += 1
                self._ledger.records[pool].failure = str(error)
        else:
            return True
        return False

    def _failed(self, pool: str, message: str) -> None:
        self._tell(pool, "", why(Code.PROVIDER, message=message))
        logger.warning("Pool %s: %s", pool, message)

    # -- fewer ----------------------------------------------------------------------------------

    def give_back(self, pool: str, units: list[str], *, closing: bool = False) -> None:
        """Tell the provider to stop these units, until it has heard; if ``closing``, they close already."""
        self._ledger.released(units)
        provider: object = self.provider
        if closing and isinstance(provider, Closing):
            provider.let_close(units)
        # Said again, those without a name would be others: not because of those that have one.
        nameless = [unit for unit in units if NAMELESS in unit]
        for part in (nameless, [unit for unit in units if NAMELESS not in unit]):
            if part:
                task = asyncio.create_task(self._stop(pool, part))
                self._stopping.add(task)
                task.add_done_callback(self._stopping.discard)

    async def _stop(self, pool: str, units: list[str]) -> None:
        pause_s = _PAUSE_S
        while (provider := self.provider) is not None:
            try:
                async with asyncio.timeout(_PROVIDER_S):
                    kept = await provider.scale_down(units) or ()
            except Exception as error:
                # Nobody waits for this task: whatever a provider raises, its units are not left for ever.
                if not isinstance(error, TimeoutError | ProviderError):
                    logger.exception("The provider raised what it should not")
                self._failed(pool, f"{', '.join(units)} could not be stopped: {words(error)}")
            else:
                self._ledger.stays(kept)
                for unit in kept:
                    self._tell(pool, unit, why(Code.STAYED))
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    # -- neither --------------------------------------------------------------------------------

    def mark(self, workers: Iterable[Worker], units: Iterable[Unit]) -> None:
        """Tell a provider that wants to know which units are in use, and which are about to go."""
        provider: object = self.provider
        if isinstance(provider, Marking):
            protected: dict[str, bool] = {}
            for worker in workers:
                if worker.unit:
                    used = bool(worker.tasks or worker.held_keys or worker.pinned)
                    protected[worker.unit] = used or protected.get(worker.unit, False)
            provider.mark(protected, [unit.name for unit in units if unit.doomed])
