"""TideCluster: a Dask cluster that is only a scheduler until somebody computes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import logging
import math
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar, cast

from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.scheduler import Scheduler
from distributed.security import Security
from distributed.utils import Log, Logs, NoOpAwaitable, silence_logging_cmgr

from dask_tide.arguments import Arguments
from dask_tide.controller.loop import Controller
from dask_tide.errors import ConfigError
from dask_tide.model import Unit
from dask_tide.sites import Here

T = TypeVar("T")

logger = logging.getLogger("distributed.tide.cluster")

#: ``wait_for_workers`` keeps the workers it waited for this long, so that work can reach them.
_FLOOR_S = 15.0
#: Pause between attempts to hear from a scheduler again that was lost.
_AGAIN_S = 1.0
#: For giving up a start that somebody has interrupted.
_GIVE_UP_S = 60.0
_DASHBOARD = "127.0.0.1:8787"


class TideCluster(Cluster):
    """A scheduler, and exactly the workers that the work can use.

    The scheduler runs in this process; with ``provider="kubernetes"`` in a pod beside its workers. All that
    is made there goes when the cluster closes, and by itself when this process has ended without that.

    Parameters
    ----------
    provider
        What starts workers: ``"local"`` (processes of this machine), ``"kubernetes"`` (pods), another
        installed provider's name, or ``"package.module:factory"``.
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
        ``price``, ``spot``, ``workers-per-unit``, ``boot-time``, ``options``; with Kubernetes the
        chart's).
    name
        The cluster's name, a DNS label.
    host, scheduler_port, protocol, dashboard_address, security
        As for ``LocalCluster``. Listens on loopback unless told otherwise, whatever the provider: for workers
        on other machines give a ``host``, and ``security=True``: without TLS, of which a warning tells,
        whoever can connect runs code as you.
    asynchronous, loop
        As for any Dask cluster class.
    silence_logs
        Level below which this process's Dask logs are not shown while the cluster lives; False: all.
    namespace, kubeconfig, context
        With Kubernetes: where. By default as ``kubectl`` has it; in a pod without ``$KUBECONFIG``, that
        pod's namespace.
    image
        With Kubernetes: of scheduler and workers. There is none by default; ``values`` may say it, too.
    values
        With Kubernetes: values of the Helm chart, for all there is no argument for. ``pools`` may have the
        chart's keys (``nodeSelector``, ``tolerations``, ...), too.
    idle_timeout
        With Kubernetes: the cluster ends by itself when for so long nobody was connected and there was no
        work (``"10m"``); None: never.
    timeout
        With Kubernetes: for the scheduler to come up (``"5m"``).
    **settings
        Any other key of the configuration section ``tide``, with underscores for hyphens:
        ``release={"keep": "30s"}``, ``idle_shutdown="1h"``, ``journal={"path": "journal.jsonl"}``. With
        Kubernetes not ``departure`` and ``readiness``, which follow from the pools.

    Raises
    ------
    ConfigError
        A value is wrong. Nothing was started.
    ProviderError
        The scheduler could not be started elsewhere, in the platform's own words. Nothing is left of it.

    Examples
    --------
    >>> with TideCluster(maximum=8) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    >>> TideCluster("kubernetes", image="registry.example/dask-tide:1", maximum=40)  # doctest: +SKIP
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
        dashboard_address: str | None = _DASHBOARD,
        security: Security | bool | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: int | str | bool = logging.WARNING,
        **settings: Any,
    ) -> None:
        # So that __del__ works if what follows raises.
        self.status = Status.closed
        arguments = Arguments(
            provider,
            name,
            pool={
                "minimum": minimum,
                "maximum": maximum,
                "threads": threads_per_worker,
                "memory": memory_limit,
                "resources": resources,
            },
            pools=pools,
            server={
                "host": host,
                "scheduler_port": scheduler_port,
                "protocol": protocol,
                "dashboard_address": dashboard_address,
                "security": security,
            },
            settings=settings,
            known=_ARGUMENTS,
        )
        self._site, name = arguments.site(self._close)
        self.security = self._site.security
        self._silence_logs = _check_level(silence_logs)
        self._exit_stack = contextlib.ExitStack()
        self._starting: asyncio.Future[None] | None = None
        #: How many wait for the start, and whether one of them has what was started.
        self._waiting, self._taken = 0, False
        self._closing: asyncio.Future[None] | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, name=name)
        self._clusters.add(self)
        if not self.called_from_running_loop:
            self._loop_runner.start()
            try:
                self.sync(self._begin)
            except BaseException:
                if self.status is Status.starting:  # interrupted: nothing may be left of it
                    with contextlib.suppress(TimeoutError):
                        self.sync(self._close, callback_timeout=_GIVE_UP_S)
                self._loop_runner.stop()
                raise

    # -- life -----------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.status = Status.starting
        if self._silence_logs:
            self._exit_stack.enter_context(silence_logging_cmgr(level=self._silence_logs))
        try:
            self.scheduler_comm = await self._site.start()
            self._adaptive = TideAdapting(self)
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
            if self._site.gives_up:
                self._starting.cancel()
            await asyncio.wait([self._starting])
        self.status = Status.closing
        # Cluster._close would stop adapting, which is a wish for manual mode.
        self._adaptive = None
        try:
            await self._site.close()
        finally:
            self._exit_stack.close()
            await super()._close()

    def sync(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As any Dask cluster class has it."""
        self._check_open()
        return super().sync(func, *args, **kwargs)

    def _check_open(self) -> None:
        if self.status is Status.closed:
            raise RuntimeError(f"cluster {self.name} is closed: make a new one")

    def close(self, timeout: float | None = None) -> Any:
        """Stop all workers and the scheduler."""
        awaitable = super().close(timeout)
        if not self.asynchronous:
            self._loop_runner.stop()
        return awaitable

    def __await__(self) -> Generator[Any, None, TideCluster]:
        async def start() -> TideCluster:
            await self._begin()
            return self

        return start().__await__()

    async def _begin(self) -> None:
        if self._starting is None and self.status in (Status.created, Status.starting):
            self._starting = asyncio.ensure_future(self._start())
        if self._starting is None:
            return
        self._waiting += 1
        try:
            await asyncio.shield(self._starting)
            self._taken = True
        except asyncio.CancelledError:
            # Nobody has it who could close it, and it would keep itself alive.
            if self._waiting == 1 and not self._taken and self._site.gives_up:
                await self._close()
            raise
        finally:
            self._waiting -= 1

    async def _watch_worker_status(self, comm: Any) -> None:
        """As Dask's, and again with a scheduler that was started anew (elsewhere; here it cannot be)."""
        await super()._watch_worker_status(comm)
        scheduler: Any = self.scheduler_comm
        while self.status is Status.running and self._site.gives_up:
            try:
                comm = await scheduler.live_comm()
                comm.name = "Cluster worker status"
                await comm.write({"op": "subscribe_worker_status"})
                self.scheduler_info = SchedulerInfo(await comm.read())
            except (OSError, TimeoutError):
                if await self._site.ended():
                    logger.warning("Cluster %s has ended: what it held is lost. Make a new one.", self.name)
                    return
                await asyncio.sleep(_AGAIN_S)
                continue
            self._watch_worker_status_comm = comm
            await super()._watch_worker_status(comm)

    # -- size -----------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, if it runs in this process."""
        return self._site.scheduler

    @property
    def controller(self) -> Controller:
        """The controller in this cluster's scheduler, if that runs in this process."""
        return self._site.controller

    @property
    def dashboard_link(self) -> str:
        """Where the dashboard is; empty if it is not shown."""
        link = self._site.dashboard_link
        return super().dashboard_link if link is None else link

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
        asked = self._call(self._site.scale, n, pool)
        return asked or (NoOpAwaitable() if self.asynchronous else None)

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
        self._call(self._site.adapt, minimum, limit, pool)
        self._adaptive = TideAdapting(self)
        return self._adaptive

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it in the cluster's event loop, where alone the site may be asked."""
        self._check_open()
        if self.called_from_running_loop:
            return function(*args)

        async def call() -> Any:
            result = function(*args)
            return await result if inspect.isawaitable(result) else result

        return self.sync(call)

    async def _wait_for_workers(
        self,
        n_workers: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109  (Dask's signature)
    ) -> None:
        async def floor() -> None:
            asked = self._site.floor(n_workers, _FLOOR_S)
            if asked is not None:
                await asked

        async def ask() -> None:
            while True:
                await asyncio.sleep(_FLOOR_S / 3)
                await floor()

        await floor()
        asking = asyncio.create_task(ask())
        try:
            await super()._wait_for_workers(n_workers, timeout)
        finally:
            asking.cancel()

    @property
    def workers(self) -> dict[str, Unit]:
        """The units there are, by name; of a scheduler elsewhere those that have a worker."""
        return {} if self.status is Status.closed else self._site.units(self.scheduler_info["workers"])

    # -- why --------------------------------------------------------------------------------------

    def explain(self, lines: int = 20) -> Any:
        """Why workers came, stayed or went, or why nothing happened: plain sentences.

        Awaitable, where the cluster is asynchronous and its scheduler elsewhere; as :meth:`tide_status`.

        Parameters
        ----------
        lines
            How many of the last things that happened to tell.
        """
        if self.status is Status.closed and isinstance(self._site, Here):
            return self._site.explain(lines)  # what it remembers; its event loop has ended
        return self._call(self._site.explain, lines)

    def tide_status(self) -> Any:
        """How things stand: pools, units, the last decisions, what was spent (price × seconds)."""
        return self._call(self._site.status)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs: Logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=False)
        if cluster:
            logs["Cluster"] = Log(await self._site.log())
        if workers:
            # Not by `worker_logs`, which raises when one of them leaves meanwhile.
            told = await cast(Any, self.scheduler_comm).broadcast(
                msg={"op": "get_logs", "n": None},
                workers=None if workers is True else workers,
                on_error="ignore",
            )
            logs |= {address: Log("\n".join(line for _, line in lines)) for address, lines in told.items()}
        return logs


_ARGUMENTS = inspect.signature(TideCluster).parameters.keys() - {"settings"}


def _check_level(level: Any) -> Any:
    """Of logs: a number, a name, or nothing."""
    known = logging.getLevelNamesMapping()
    if not (level.upper() in known if isinstance(level, str) else isinstance(level, int | None)):
        raise ConfigError("silence_logs", level, "a level such as logging.WARNING or 'warning', or False")
    return level


class TideAdapting:
    """What ``cluster.adapt`` returns: whether the cluster decides itself, and how to stop that."""

    def __init__(self, cluster: TideCluster) -> None:
        self._cluster = cluster

    @property
    def periodic_callback(self) -> object | None:
        """Something while the cluster decides itself; Dask's notebook widget asks for it."""
        return None if self._cluster._site.manual else self

    def stop(self, reason: str = "") -> None:
        """Manual mode with as many units as there are."""
        self._cluster._call(self._cluster._site.freeze)


class _NoThreads(ThreadPoolExecutor):
    """Does at once what it is given: at the interpreter's end no thread looks up the API server's name."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 -- whoever waits for it gets it
            future.set_exception(error)
        return future


@atexit.register
def _close_clusters() -> None:
    for cluster in list(TideCluster._clusters):
        if cluster.status in (Status.closed, Status.created):
            continue
        if cluster._site.gives_up:
            try:
                _close_elsewhere(cluster)
            except Exception as error:  # noqa: BLE001 -- the others are to be closed all the same
                logger.warning("Cluster %s could not be closed at the end: %r", cluster.name, error)
        else:
            with contextlib.suppress(TimeoutError, RuntimeError):
                cluster.close(timeout=cluster._site.close_s)


def _close_elsewhere(cluster: TideCluster) -> None:
    """Not by `close`: Dask's passes over any RuntimeError, so that nobody would hear of what stays."""
    loop: Any = cluster.loop
    if not loop.asyncio_loop.is_running():
        raise RuntimeError("its event loop has ended")
    loop.asyncio_loop.set_default_executor(_NoThreads())
    cluster.sync(cluster._close, callback_timeout=cluster._site.close_s)
    cluster._loop_runner.stop()
