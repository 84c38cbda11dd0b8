"""Where a cluster's scheduler runs, in this process or elsewhere, and how the controller in it is asked.

A :class:`~dask_tide.TideCluster` has one of the two, and is the same for its user. A request of :class:`Here`
is answered at once; one of :class:`Elsewhere` is awaited.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from distributed.comm import get_address_host, parse_address
from distributed.core import rpc
from distributed.scheduler import Scheduler
from distributed.security import Security

from dask_tide.controller import handlers
from dask_tide.controller.attach import attach
from dask_tide.controller.explain import story
from dask_tide.controller.loop import Controller
from dask_tide.errors import ConfigError, words
from dask_tide.model import Phase, Unit

T = TypeVar("T")

__all__ = ["Elsewhere", "Here", "Host", "Site"]

logger = logging.getLogger("distributed.tide.cluster")

#: How often a scheduler that ends when it is left alone hears that it is not, and the bounds of that.
_SIGNS, _RAREST_S, _OFTENEST_S = 5, 10.0, 0.5
#: How many of them may get lost.
_LOST = 4
#: What is said of an address that cannot be listened at.
_ADDRESS = (errno.EACCES, errno.EADDRINUSE, errno.EADDRNOTAVAIL)


class Site(Protocol):
    """Where the scheduler runs."""

    security: Security
    #: What a cluster that closes while this starts does: give the start up, or wait for it first.
    gives_up: bool
    #: For the end of the process.
    close_s: float

    async def start(self) -> Any:
        """Start the scheduler and return an RPC to it."""

    async def close(self) -> None:
        """End the scheduler and all units. Idempotent, also after a start that failed."""

    async def ended(self) -> bool:
        """Whether the scheduler is known to be gone for good, though nobody has closed the cluster."""

    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def controller(self) -> Controller: ...
    @property
    def dashboard_link(self) -> str | None:
        """None: as Dask makes it of the scheduler's address."""

    @property
    def manual(self) -> bool: ...
    def units(self, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, Unit]: ...
    def scale(self, n: int, pool: str | None) -> Awaitable[None] | None: ...
    def adapt(self, minimum: int | None, maximum: int | None, pool: str | None) -> Awaitable[None] | None: ...
    def freeze(self) -> Awaitable[None] | None: ...
    def floor(self, n_workers: int, seconds: float) -> Awaitable[None] | None: ...
    def explain(self, lines: int) -> Awaitable[str] | str: ...
    def status(self) -> Awaitable[dict[str, Any]] | dict[str, Any]: ...
    async def log(self) -> str: ...


class Here:
    """A scheduler in this process.

    Parameters
    ----------
    overrides
        For :func:`dask_tide.controller.attach.attach`.
    options
        Of the scheduler.
    security
        TLS, if any.
    shut_down
        Awaited when there has been no work for the idle shutdown's time.
    """

    gives_up = False
    close_s = 5.0

    def __init__(
        self,
        overrides: Mapping[str, Any],
        options: Mapping[str, Any],
        security: Security,
        shut_down: Callable[[], Awaitable[object]],
    ) -> None:
        self.security = security
        self._overrides, self._options, self._shut_down = overrides, options, shut_down
        self._scheduler: Scheduler | None = None
        self._controller: Controller | None = None

    async def start(self) -> Any:
        try:
            scheduler = Scheduler(security=self.security, **self._options)
        except OSError as error:
            if not isinstance(error, socket.gaierror) and error.errno not in _ADDRESS:
                raise
            expected = f"an address to listen at for the dashboard ({words(error)})"
            raise ConfigError("dashboard_address", self._options["dashboard_address"], expected) from error
        try:
            self._scheduler = await scheduler
        except RuntimeError as error:  # Dask's, which says only that it has failed
            raise self._refusal(error.__cause__) or error from error.__cause__
        if _is_open(self._scheduler):
            logger.warning(
                "The scheduler listens at %s without TLS: whoever can connect to it can run code as you."
                " TideCluster(security=True) lets in its own clients only.",
                self._scheduler.listen_address,
            )
        connection_args = self.security.get_connection_args("client")
        comm = rpc(self._scheduler.address, connection_args=connection_args)
        self._controller = attach(self._scheduler, self._overrides, shut_down=self._shut_down)
        return comm

    def _refusal(self, cause: BaseException | None) -> ConfigError | None:
        """Which of the options a scheduler could not start with, if it is one of them."""
        host, port, protocol = (self._options[key] for key in ("host", "port", "protocol"))
        match cause:
            case OSError(errno=errno.EADDRINUSE | errno.EACCES) if port:
                return ConfigError("scheduler_port", port, f"a port that can be had ({words(cause)})")
            case OSError():
                return ConfigError("host", host, f"an address of this machine ({words(cause)})")
            case TypeError() | ValueError() if protocol:
                return ConfigError("protocol", protocol, f"one that can be used here ({words(cause)})")
            case TypeError() if self.security.require_encryption:
                return ConfigError("security", self.security, f"keys and certificates ({words(cause)})")
        return None

    async def close(self) -> None:
        try:
            if self._controller is not None:
                await self._controller.close()
        finally:
            if self._scheduler is not None:
                await self._scheduler.close(reason="cluster-close")

    async def ended(self) -> bool:
        return False

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            raise RuntimeError("the cluster has not been started")
        return self._scheduler

    @property
    def controller(self) -> Controller:
        if self._controller is None:
            raise RuntimeError("the cluster has not been started")
        return self._controller

    @property
    def dashboard_link(self) -> str | None:
        return None if self._options["dashboard"] else ""

    @property
    def manual(self) -> bool:
        return self.controller.manual

    def units(self, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, Unit]:
        if self._controller is None or self._controller.snapshot is None:
            return {}
        return {unit.name: unit for unit in self._controller.snapshot.units}

    def scale(self, n: int, pool: str | None) -> None:
        self.controller.scale(n, pool)

    def adapt(self, minimum: int | None, maximum: int | None, pool: str | None) -> None:
        self.controller.adapt(minimum, maximum, pool)

    def freeze(self) -> None:
        self.controller.freeze()

    def floor(self, n_workers: int, seconds: float) -> None:
        self.controller.floor(n_workers, seconds)

    def explain(self, lines: int) -> str:
        return handlers.explain(self.controller, lines)

    def status(self) -> dict[str, Any]:
        return handlers.status(self.controller)

    async def log(self) -> str:
        return "\n".join(story(self.controller.journal.recent))


def _is_open(scheduler: Scheduler) -> bool:
    """Whether other machines may reach it, without a certificate."""
    # A server of WebSockets listens everywhere, whatever it says.
    scheme, _ = parse_address(scheduler.listen_address)
    if scheme != "tcp":
        return scheme == "ws"
    return not ipaddress.ip_address(get_address_host(scheduler.listen_address)).is_loopback


class Host(Protocol):
    """What makes a scheduler elsewhere, for :class:`Elsewhere`."""

    name: str
    security: Security
    dashboard_link: str
    #: The scheduler ends when for so long nobody is connected; None: it does not.
    idle_timeout_s: float | None
    #: What is to be told about the making.
    said: list[str]

    async def start(self) -> str:
        """Make it, wait until it listens and return its address."""

    async def close(self) -> None:
        """Remove everything, also after a start that failed."""

    async def ended(self) -> bool:
        """Whether it is known to be gone, by itself or by somebody else."""


class Elsewhere:
    """A scheduler that somebody else runs; it has this project's handlers.

    Parameters
    ----------
    host
        What makes it.
    """

    gives_up = True
    close_s = 20.0

    def __init__(self, host: Host) -> None:
        self._host = host
        self.security = host.security
        self.manual = False
        self._comm: Any = None
        self._staying: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Future[Any]] = set()

    async def start(self) -> Any:
        address = await self._host.start()
        self._comm = rpc(address, connection_args=self.security.get_connection_args("client"))
        if self._host.idle_timeout_s is not None:
            self._staying = asyncio.create_task(self._stay(self._host.idle_timeout_s))
        return self._comm

    async def _stay(self, idle_timeout_s: float) -> None:
        interval_s = min(max(idle_timeout_s / _SIGNS, _OFTENEST_S), _RAREST_S)
        while True:
            try:
                await self._comm.tide_stay(seconds=_LOST * interval_s)
            except (OSError, TimeoutError) as error:
                logger.debug("The scheduler has not heard that we are there: %s", error)
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        for task in (self._staying, *self._requests):
            if task is not None:
                task.cancel()
        await self._host.close()

    async def ended(self) -> bool:
        if not await self._host.ended():
            return False
        if self._staying is not None:
            self._staying.cancel()
        return True

    @property
    def scheduler(self) -> Scheduler:
        raise RuntimeError("the scheduler is not in this process: ask it with client.run_on_scheduler")

    @property
    def controller(self) -> Controller:
        raise RuntimeError("the controller is in the scheduler, which is not in this process")

    @property
    def dashboard_link(self) -> str:
        return self._host.dashboard_link

    @property
    def _remote(self) -> Any:
        if self._comm is None:
            raise RuntimeError("the cluster has not been started")
        return self._comm

    def units(self, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, Unit]:
        """Those with a worker, which is what is told without being asked."""
        names = sorted(str(worker["name"]) for worker in workers.values())
        return {name: Unit(name=name, pool=self._pool(name), phase=Phase.RUNNING) for name in names}

    def _pool(self, unit: str) -> str:
        return unit.removeprefix(f"{self._host.name}-").rpartition("-")[0]

    # A request is on its way when the method returns, whether or not somebody waits for the answer.

    def scale(self, n: int, pool: str | None) -> Awaitable[None]:
        async def scale() -> None:
            await self._ask(self._remote.tide_scale(n=n, pool=pool))
            self.manual = True

        return self._begin(scale())

    def adapt(self, minimum: int | None, maximum: int | None, pool: str | None) -> Awaitable[None]:
        async def adapt() -> None:
            await self._ask(self._remote.tide_adapt(minimum=minimum, maximum=maximum, pool=pool))
            self.manual = False

        return self._begin(adapt())

    def freeze(self) -> Awaitable[None]:
        async def freeze() -> None:
            live = (Phase.REQUESTED, Phase.PENDING, Phase.STARTING, Phase.RUNNING)
            for name, pool in (await self._remote.tide_status())["pools"].items():
                await self._ask(
                    self._comm.tide_scale(
                        n=sum(pool["units"].get(phase.value, 0) for phase in live), pool=name
                    )
                )
            self.manual = True

        return self._begin(freeze())

    def floor(self, n_workers: int, seconds: float) -> Awaitable[None]:
        return self._begin(self._ask(self._remote.tide_floor(n=n_workers, seconds=seconds)))

    def explain(self, lines: int) -> Awaitable[str]:
        return self._begin(self._remote.tide_explain(lines=lines))

    def status(self) -> Awaitable[dict[str, Any]]:
        return self._begin(self._remote.tide_status())

    async def log(self) -> str:
        told: str = await self._remote.tide_explain(lines=1000)
        return "\n".join([*self._host.said, told])

    async def _ask(self, request: Awaitable[dict[str, Any]]) -> None:
        handlers.raise_for(await request)

    def _begin(self, request: Coroutine[Any, Any, T]) -> Awaitable[T]:
        future = asyncio.ensure_future(request)
        self._requests.add(future)
        future.add_done_callback(self._requests.discard)
        return future
