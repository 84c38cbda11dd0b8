"""The scheduler's side of TideAdaptive: a controller whose provider is a cluster object elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from dask_tide import config as configuration
from dask_tide.controller import observe
from dask_tide.controller.attach import attach
from dask_tide.controller.ledger import Ledger
from dask_tide.errors import ConfigError
from dask_tide.providers.delegate import DelegateProvider

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

#: The only pool, and what the scheduler calls the plugin.
POOL, NAME = "workers", "tide-adaptive"


class Names:
    """Whether a worker's name tells its unit: cluster classes for virtual machines name their workers anew.

    Such a unit is called by its key until its start has ended, and its worker may register before that.
    Others (``SSHCluster``, ``SubprocessCluster``) do not tell what their workers are called.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By key, as last reported.
        self._own: dict[str, str] = {}
        #: Names may differ from the keys.
        self._anew = False
        self.ledger: Ledger | None = None

    def learn(self, renamed: dict[str, str]) -> None:
        """Take down what units whose name is not their key are called."""
        self._own = renamed
        self._anew = self._anew or bool(renamed)
        if self.ledger is not None:
            self.ledger.rename(renamed)

    def pinned(self, units: Collection[str]) -> dict[str, str]:
        """Why some of these units may not be given back: a worker that is nobody's may be theirs."""
        if not self._anew and self.ledger is not None and self.ledger.records[POOL].registered:
            return {}  # others have been found by their keys
        unsure = set(units).difference(self._own.values())
        if not unsure:
            return {}
        owners = observe.owners(self._scheduler, units)
        strangers = (
            ws for ws, unit in zip(self._scheduler.workers.values(), owners, strict=True) if not unit
        )
        if (stranger := next(strangers, None)) is None:
            return {}
        return dict.fromkeys(unsure, f"worker {stranger.name} belongs to no unit by its name and may be its")


class AdaptiveService(SchedulerPlugin):
    """The scheduler's side: a controller whose provider is a cluster object elsewhere.

    Parameters
    ----------
    owner
        Identifies the TideAdaptive that made it; a later one takes over.
    overrides
        The configuration.
    """

    name = NAME

    def __init__(self, owner: str, overrides: dict[str, Any]) -> None:
        self._owner = owner
        self._overrides = overrides
        #: Once it has started: what is known of the cluster object's units.
        self.ledger: Ledger | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Called by the scheduler when the plugin arrives there."""
        old = scheduler.extensions.get("tide")
        if old is not None:
            if not isinstance(old.provider, DelegateProvider):
                raise RuntimeError("this scheduler has a dask-tide controller of its own")
            await old.close()
        names = Names(scheduler)
        delegate = DelegateProvider(POOL, names.pinned)
        controller = attach(scheduler, self._overrides, provider=delegate)
        self.ledger = names.ledger = controller.ledger
        before = scheduler.plugins.get(NAME)
        if isinstance(before, AdaptiveService) and before.ledger is not None:
            # `adapt` has been called again. Units that have had their workers must not seem to wait for a
            # place, and those that were being given back still have to be.
            await delegate.scale_down(self.ledger.inherit(before.ledger))
        template = dict(self._overrides["pools"][POOL])

        async def tide_exchange(
            owner: str,
            units: dict[str, str],
            renamed: dict[str, str],
            refused: str,
            stuck: str,
            **told: Any,
        ) -> dict[str, Any]:
            if owner != self._owner:
                raise ConfigError("owner", owner, "the last object that cluster.adapt has made")
            if any(template.get(key) != value for key, value in told.items()):
                template.update(told)
                told_so_far = {**self._overrides, "pools": {POOL: template}}
                controller.reshape(configuration.read(told_so_far).pools[POOL].pool)
            names.learn(renamed)
            orders = delegate.exchange(units, renamed, refused=refused, stuck=stuck)
            controller.ledger.stays(orders.pinned)
            return {
                "units": orders.units,
                "release": list(orders.release),
                "pinned": dict(orders.pinned),
            }

        async def tide_detach(owner: str) -> None:
            if owner == self._owner:
                await controller.close()

        for handler in (tide_exchange, tide_detach):
            scheduler.handlers[handler.__name__] = handler
