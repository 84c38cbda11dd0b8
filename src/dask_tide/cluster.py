"""TideCluster: a Dask cluster that is only a scheduler until somebody computes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import difflib
import logging
import math
import secrets
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.scheduler import Scheduler
from distributed.security import Security
from distributed.utils import Log, Logs, NoOpAwaitable, silence_logging_cmgr

from dask_tide import config as configuration
from dask_tide.controller import handlers
from dask_tide.controller.attach import attach
from dask_tide.controller.explain import story
from dask_tide.controller.loop import Controller
from dask_tide.errors import ConfigError
from dask_tide.model import Unit
from dask_tide.providers.registry import load

T = TypeVar("T")

#: ``wait_for_workers`` keeps the workers it waited for this long, so that work can reach them.
_FLOOR_S = 15.0


class TideCluster(Cluster):
    """A scheduler in this process, and exactly the workers that the work can use.

    Parameters
    ----------
    provider
        What starts workers: ``"local"`` (processes of this machine), another installed
        provider's name, or ``"package.module:factory"``.
    minimum, maximum
        Bounds on the number of units. With several ``pools``, set them there.
    threads_per_worker
        Threads of one worker.
    memory_limit
        Memory of one worker: bytes, a text such as ``"4 GiB"``, ``"auto"``, or 0 for no limit.
    resources
        Abstract resources of one worker, for tasks that are annotated with them.
    pools
        Instead of the five above: several kinds of workers, by name, each a mapping with the keys
        of the configuration (``threads``, ``memory``, ``resources``, ``minimum``, ``maximum``,
        ``price``, ``workers-per-unit``, ``boot-time``, ``options``).
    name
        The cluster's name, a DNS label.
    host, scheduler_port, protocol, dashboard_address, security
        As for ``LocalCluster``. Listens on loopback unless told otherwise, whatever the provider: for workers
        on other machines give a ``host``.
    asynchronous, loop
        As for any Dask cluster class.
    silence_logs
        Level below which this process's Dask logs are not shown while the cluster lives; False: all.
    **settings
        Any other key of the configuration section ``tide``, with underscores for hyphens:
        ``release={"keep": "30s"}``, ``idle_shutdown="1h"``, ``journal={"path": "journal.jsonl"}``.

    Raises
    ------
    ConfigError
        A value is wrong. Nothing was started.

    Examples
    --------
    >>> with TideCluster(maximum=8) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    """

    _clusters: ClassVar[weakref.WeakSet[TideCluster]] = weakref.WeakSet()

    def __init__(  # noqa: PLR0913  (LocalCluster's arguments)
        self,
        provider: str | None = None,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
        threads_per_worker: int | None = None,
        memory_limit: int | str | None = None,
        resources: Mapping[str, float] | None = None,
        pools: Mapping[str, Mapping[str, Any]] | None = None,
        name: str | None = None,
        host: str | None = None,
        scheduler_port: int = 0,
        protocol: str | None = None,
        dashboard_address: str | None = "127.0.0.1:8787",
        security: Security | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: int | bool = logging.WARNING,
        **settings: Any,
    ) -> None:
        # So that __del__ works if what follows raises.
        self.status = Status.closed
        pool = {
            "minimum": minimum,
            "maximum": maximum,
            "threads": threads_per_worker,
            "memory": memory_limit,
            "resources": None if resources is None else dict(resources),
        }
        self._overrides = _overrides(provider, name, pool, pools, settings)
        config = configuration.read(self._overrides)
        load(config.provider)
        # One name for the cluster, its units and its folder.
        self._overrides["name"] = config.name or f"tide-{secrets.token_hex(3)}"
        self._scheduler_options: dict[str, Any] = {
            "host": host or "127.0.0.1",
            "port": scheduler_port,
            "protocol": protocol,
            "dashboard": dashboard_address is not None,
            # The HTTP server runs without a dashboard too, and would take the usual port.
            "dashboard_address": dashboard_address or "127.0.0.1:0",
        }
        self.security = security or Security()
        self._silence_logs = silence_logs
        self._exit_stack = contextlib.ExitStack()
        self._scheduler: Scheduler | None = None
        self._controller: Controller | None = None
        self._starting: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, name=self._overrides["name"])
        self._clusters.add(self)
        if not self.called_from_running_loop:
            self._loop_runner.start()
            try:
                self.sync(self._start)
            except BaseException:
                self._loop_runner.stop()
                raise

    # -- life -----------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.status = Status.starting
        if self._silence_logs:
            self._exit_stack.enter_context(silence_logging_cmgr(level=self._silence_logs))
        try:
            self._scheduler = await Scheduler(security=self.security, **self._scheduler_options)
            connection_args = self.security.get_connection_args("client")
            self.scheduler_comm = rpc(self.scheduler.address, connection_args=connection_args)
            self._controller = attach(self.scheduler, self._overrides, shut_down=self._close)
            self._adaptive = TideAdapting(self._controller)
            await super()._start()
        except BaseException:
            self.status = Status.failed
            if self._closing is None:  # else that waits for this to end
                await self._close()
            raise

    async def _close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close_all())
        # Whoever asks second waits for the first, and must not end it by giving up.
        await asyncio.shield(self._closing)

    async def _close_all(self) -> None:
        if self._starting is not None and self.status is Status.starting:
            # What a start is about to make could not be closed now.
            await asyncio.wait([self._starting])
        self.status = Status.closing
        # Cluster._close would stop adapting, which is a wish for manual mode.
        self._adaptive = None
        if self._controller is not None:
            await self._controller.close()
        if self._scheduler is not None:
            await self._scheduler.close(reason="cluster-close")
        self._exit_stack.close()
        await super()._close()

    def close(self, timeout: float | None = None) -> Any:
        """Stop all workers and the scheduler."""
        awaitable = super().close(timeout)
        if not self.asynchronous:
            self._loop_runner.stop()
        return awaitable

    def __await__(self) -> Generator[Any, None, TideCluster]:
        async def start() -> TideCluster:
            if self._starting is None and self.status is Status.created:
                self._starting = asyncio.ensure_future(self._start())
            if self._starting is not None:
                await asyncio.shield(self._starting)
            return self

        return start().__await__()

    # -- size -----------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, which runs in this process."""
        if self._scheduler is None:
            raise RuntimeError("the cluster has not been started")
        return self._scheduler

    @property
    def controller(self) -> Controller:
        """The controller in this cluster's scheduler."""
        if self._controller is None:
            raise RuntimeError("the cluster has not been started")
        return self._controller

    def scale(self, n: int, pool: str | None = None) -> Any:
        """Manual mode: keep exactly ``n`` units, whatever the work, until :meth:`adapt` is called.

        Workers that must go finish the tasks that they run and hand over their results first.

        Parameters
        ----------
        n
            How many.
        pool
            In which pool; the first one by default.
        """
        self._call(self.controller.scale, n, pool)
        return NoOpAwaitable() if self.asynchronous else None

    def adapt(  # type: ignore[override]
        self,
        Adaptive: object = None,  # noqa: N803  (the name is Dask's)
        *,
        minimum: int | None = None,
        maximum: float | None = None,
        pool: str | None = None,
        **options: Any,
    ) -> TideAdapting:
        """Automatic mode, which a new cluster is in; with other limits if given.

        Parameters
        ----------
        Adaptive
            For other cluster classes' sake; this one always decides itself.
        minimum, maximum
            Bounds on the number of units of ``pool``; those that are not given stay.
        pool
            The first one by default.
        """
        from dask_tide.adaptive import TideAdaptive, ignored

        if Adaptive not in (None, TideAdaptive):
            raise ConfigError("Adaptive", Adaptive, "nothing: a TideCluster decides itself")
        if options:
            ignored(options)
        # Dask's other classes say "no maximum" with infinity; here the one that was set stays.
        limit: Any = None if maximum == math.inf else maximum
        self._call(self.controller.adapt, minimum, limit, pool)
        self._adaptive = TideAdapting(self.controller)
        return self._adaptive

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Call it in the controller's event loop, where alone the controller may be touched."""
        if self.called_from_running_loop:
            return function(*args)

        async def call() -> T:
            return function(*args)

        result: T = self.sync(call)
        return result

    async def _wait_for_workers(
        self,
        n_workers: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109  (Dask's signature)
    ) -> None:
        async def ask() -> None:
            while True:
                await asyncio.sleep(_FLOOR_S / 3)
                self.controller.floor(n_workers, _FLOOR_S)

        self.controller.floor(n_workers, _FLOOR_S)
        asking = asyncio.create_task(ask())
        try:
            await super()._wait_for_workers(n_workers, timeout)
        finally:
            asking.cancel()

    @property
    def workers(self) -> dict[str, Unit]:
        """The units there are, by name."""
        if self._controller is None or self._controller.snapshot is None or self.status is Status.closed:
            return {}
        return {unit.name: unit for unit in self._controller.snapshot.units}

    # -- why --------------------------------------------------------------------------------------

    def explain(self, lines: int = 20) -> str:
        """Why workers came, stayed or went, or why nothing happened: plain sentences.

        Parameters
        ----------
        lines
            How many of the last things that happened to tell.
        """
        return self._call(handlers.explain, self.controller, lines)

    def tide_status(self) -> dict[str, Any]:
        """How things stand: pools, units, the last decisions, what was spent (price × seconds)."""
        return self._call(handlers.status, self.controller)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs: Logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
        if cluster:
            logs["Cluster"] = Log("\n".join(story(self.controller.journal.recent)))
        return logs


class TideAdapting:
    """What ``cluster.adapt`` returns: whether the cluster decides itself, and how to stop that."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    @property
    def periodic_callback(self) -> object | None:
        """Something while the cluster decides itself; Dask's notebook widget asks for it."""
        return None if self._controller.manual else self

    def stop(self, reason: str = "") -> None:
        """Manual mode with as many units as there are."""
        self._controller.freeze()


def _overrides(
    provider: str | None,
    name: str | None,
    pool: dict[str, Any],
    pools: Mapping[str, Mapping[str, Any]] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The arguments, as a configuration section ``tide``."""
    given = {key: value for key, value in pool.items() if value is not None}
    arguments = {"minimum", "maximum", "threads_per_worker", "memory_limit", "resources", "pools", "host"}
    known = {key.replace("-", "_") for key in configuration.top_level_keys()} | arguments
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(sorted(known))}"
            raise ConfigError(key, value, f"an argument that exists; {hint}")
    if pools is not None and not isinstance(pools, Mapping):
        raise ConfigError("pools", pools, "a mapping from pool names to mappings")
    overrides = {key.replace("_", "-"): value for key, value in settings.items()}
    if provider is not None:
        overrides["provider"] = provider
    if name is not None:
        overrides["name"] = name
    if pools is not None:
        if given:
            raise ConfigError("pools", sorted(given), "these limits inside the pools, not beside them")
        overrides["pools"] = {key: dict(value) for key, value in pools.items()}
    elif given:
        names = list(configuration.read(overrides).pools)
        if len(names) > 1:
            raise ConfigError("pools", names, "one pool, or the limits inside the pools")
        overrides["pools"] = {names[0]: given}
    return overrides


@atexit.register
def _close_clusters() -> None:
    clusters: Iterator[TideCluster] = iter(list(TideCluster._clusters))
    for cluster in clusters:
        if cluster.status not in (Status.closed, Status.created):
            with contextlib.suppress(TimeoutError, RuntimeError):
                cluster.close(timeout=5)
