"""TideAdaptive: this project's decisions over any Dask cluster class.

``cluster.adapt(Adaptive=TideAdaptive, minimum=0, maximum=40)``. Decisions are taken in the
scheduler, where the task graph is, by the same controller as everywhere; the object that
``adapt`` makes only reports the cluster's workers to it and does what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import numbers
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.protocol.pickle import dumps
from tornado.ioloop import PeriodicCallback

from dask_tide import config as configuration
from dask_tide.adaptive_service import NAME, POOL, AdaptiveService
from dask_tide.errors import ConfigError, words

logger = logging.getLogger("distributed.tide.adaptive")

_MAXIMUM = 10
#: After so long what ``scale_down`` has refused is tried again, doubled each time, and the longest pause.
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_told: set[str] = set()


def ignored(options: Mapping[str, object]) -> None:
    """Say once of each option that it is not ours (options accumulate from ``adapt`` to ``adapt``)."""
    for name in sorted(set(options) - _told):
        _told.add(name)
        logger.warning("adapt: option %s is not one of dask-tide's and is ignored", name)


class TideAdaptive:
    """Scales a cluster object by the controller's decisions. Made by ``cluster.adapt``.

    Parameters
    ----------
    cluster
        Has ``scale(n)`` and ``scale_down(names)``, and ``worker_spec`` or ``plan``.
    minimum, maximum
        Bounds, in what ``cluster.scale(n)`` counts: entries of ``worker_spec``; dask-jobqueue workers, as
        its documentation says (several make a job; ``maximum_jobs`` counts jobs). Without a maximum it is 10
        entries or jobs, or ``minimum`` if that is more. Both are kept as entries or jobs.
    interval
        Time between reports.
    **options
        Keys of the configuration section ``tide``, but for ``pools`` and ``provider``; stock
        ``Adaptive``'s are accepted and ignored.

    Attributes
    ----------
    periodic_callback
        Not None while it is active; Dask's representation of a cluster asks for it.
    error
        Why the scheduler cannot run the controller, once that is known.

    Raises
    ------
    ConfigError
        An option's value is wrong.
    """

    def __init__(
        self,
        cluster: Any,
        minimum: int | None = None,
        maximum: float | None = None,
        interval: Any = "200ms",
        **options: Any,
    ) -> None:
        self.cluster = cluster
        low = _count("minimum", minimum or 0)
        per_unit = self._template()["workers-per-unit"] if _takes_jobs(cluster) else 1
        self.minimum = -(-low // per_unit)
        if maximum is None or maximum == math.inf:
            self.maximum = max(_MAXIMUM, self.minimum)
            logger.info("adapt: no maximum was given, %d is taken", self.maximum)
        else:
            high = _count("maximum", maximum)
            self.maximum = high // per_unit or min(1, high)
            if low <= high:  # both may lie within one job
                self.minimum = min(self.minimum, self.maximum)
        ours = {key.replace("_", "-"): value for key, value in options.items()}
        known = configuration.top_level_keys() - {"pools", "provider"}
        ignored({key: value for key, value in options.items() if key.replace("_", "-") not in known})
        self._settings = {key: value for key, value in ours.items() if key in known}
        configuration.read(self._overrides())
        self.error: BaseException | None = None
        self._id = uuid.uuid4().hex
        self._said: set[str] = set()
        self._busy = False
        self._registered = False
        #: What does the last orders; a class may take minutes for it.
        self._acting: asyncio.Task[None] | None = None
        #: What ``scale`` and ``scale_down`` raised last, and how often the latter did in a row.
        self._refused, self._stuck = "", ""
        self._failures, self._resume_s = 0, 0.0
        self._loop = cluster.loop
        interval_s = parse_timedelta(interval, default="s")
        self.periodic_callback: PeriodicCallback | None = PeriodicCallback(self._tick, interval_s * 1000)
        self._loop.add_callback(self._begin)

    def _overrides(self) -> dict[str, Any]:
        pool = {"minimum": self.minimum, "maximum": self.maximum, "memory": 0, **self._template()}
        return {**self._settings, "provider": "delegate", "pools": {POOL: pool}}

    def stop(self, reason: str = "unknown") -> None:
        """Stop deciding; the workers stay. Synchronous; may be called again."""
        callback, self.periodic_callback = self.periodic_callback, None
        if callback is not None:
            self._loop.add_callback(callback.stop)
            self._loop.add_callback(self._detach)

    # -- in the cluster's event loop ----------------------------------------------------------------

    def _stopped(self) -> bool:
        return self.periodic_callback is None

    def _begin(self) -> None:
        if self.periodic_callback is not None:
            self.periodic_callback.start()

    async def _detach(self) -> None:
        if self._registered and self.cluster.status == Status.running:
            with contextlib.suppress(OSError):  # the scheduler has gone, and the controller with it
                await self.cluster.scheduler_comm.tide_detach(owner=self._id)

    async def _tick(self) -> None:
        if self._busy or self._stopped() or self.cluster.status != Status.running:
            return
        self._busy = True
        try:
            if not self._registered:
                await self._register()
                if self._stopped():  # meanwhile, when there was nothing to detach yet
                    await self._detach()
                    return
            await self._exchange()
        except OSError as error:
            logger.info("adapt: the scheduler does not answer: %s", error)
        except ConfigError as error:
            logger.error("adapt: the scheduler's controller does not take this object's reports: %s", error)
            self.error = error
            self.stop()
        finally:
            self._busy = False

    async def _register(self) -> None:
        """Put the controller into the scheduler, wherever that is."""
        service = AdaptiveService(self._id, self._overrides())
        try:
            await self.cluster.scheduler_comm.register_scheduler_plugin(
                plugin=dumps(service), name=NAME, idempotent=False
            )
        except OSError:
            raise
        except Exception as error:
            # Whatever the scheduler's side raised arrives here; without it there is nothing to do.
            if isinstance(error, ModuleNotFoundError):
                logger.error("adapt: dask-tide is not installed where the scheduler runs: %s", error)
            else:
                logger.error("adapt: the scheduler cannot run the controller: %s", error)
            self.error = error
            self.stop()
            raise
        self._registered = True

    async def _exchange(self) -> None:
        names = self._names()
        units = {name: self._failure(key) for name, key in names.items()}
        renamed = {str(key): name for name, key in names.items() if str(key) != name}
        refused = self._refused
        orders = await self.cluster.scheduler_comm.tide_exchange(
            owner=self._id,
            units=units,
            renamed=renamed,
            refused=refused,
            stuck=self._stuck,
            **self._template(),
        )
        if refused == self._refused:
            self._refused = ""
        if orders is None:  # what a scheduler that has been restarted replies: it knows no controller
            self._registered = False
            return
        if self._stopped():
            return
        for name, reason in orders["pinned"].items():
            if self._started(names[name]):  # until then its worker's name is not known, and may be its own
                self._say(f"unit {name} and others without a worker are not given back: {reason}")
        release = [names[name] for name in orders["release"] if name in names]
        if not (release or orders["units"] is not None):
            return
        idle = self._acting is None or self._acting.done()
        if idle and time.monotonic() >= self._resume_s:  # else they are given again
            self._acting = asyncio.create_task(self._act(release, orders["units"]))
            self._acting.add_done_callback(partial(self._acted, "scale_down" if release else "scale"))

    async def _act(self, release: list[Any], units: int | None) -> None:
        """Do what was ordered, beside the reports. Never cancelled: a ``SpecCluster`` would lose workers."""
        if release:
            await _maybe_await(self.cluster.scale_down(release))
        elif units is not None:
            try:
                await _maybe_await(_scale(self.cluster, units))
            except Exception:
                # A SpecCluster that could not have all has noted some, and begun none.
                await _maybe_await(_scale(self.cluster, len(self._names())))
                raise

    def _acted(self, verb: str, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()  # a class may raise anything
        text = "" if error is None else f"cluster.{verb}: {words(error)}"
        if text:
            self._say(text)
        if verb == "scale":
            self._refused = text  # the controller pauses
            return
        self._stuck = text
        self._failures = self._failures + 1 if text else 0
        pause_s = min(_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S) if text else 0.0
        self._resume_s = time.monotonic() + pause_s

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning("adapt: %s", message)

    def _names(self) -> dict[str, Any]:
        """The cluster's own keys by unit name: what the workers are called, which is mostly the key."""
        keys = self.cluster.worker_spec if hasattr(self.cluster, "worker_spec") else self.cluster.plan
        names: dict[str, Any] = {}
        for key in keys:
            name = self._name(key)
            names[str(key) if name in names else name] = key
        return names

    def _name(self, key: Any) -> str:
        # Those of a group are called by the key and a suffix; LocalCluster's keys are integers.
        if "group" in (getattr(self.cluster, "worker_spec", {}).get(key) or ()):
            return str(key)
        return str(getattr(self._started(key), "name", None) or key)

    def _started(self, key: Any) -> Any:
        """The object behind a key: a ``SpecCluster`` has it when its start has ended; None: not yet."""
        workers = getattr(self.cluster, "workers", None)
        return workers.get(key) if isinstance(workers, dict) else None

    def _failure(self, key: Any) -> str:
        status = getattr(self._started(key), "status", None)
        for ended in (Status.closed, Status.failed):
            if status == ended:
                return f"the cluster object's worker is {ended.name}"
        for before in (Status.created, Status.init):
            if status == before:  # its start has ended, and it has not started
                return "the cluster object's worker could not be started, and the log says why"
        return ""

    def _template(self) -> dict[str, Any]:
        """What a worker is like: as those are that have registered, else as the class will make them."""
        spec = getattr(self.cluster, "new_spec", None) or {}
        template: dict[str, Any] = {"workers-per-unit": max(1, len(spec.get("group", ())))}
        options = spec.get("options", {})
        threads = options.get("nthreads") or options.get("threads")
        if not threads and options.get("cores"):
            threads = options["cores"] // (options.get("processes") or 1)
        for worker in self.cluster.scheduler_info.get("workers", {}).values():
            threads = worker["nthreads"]
            if worker.get("resources"):
                template["resources"] = {name: float(n) for name, n in worker["resources"].items()}
            break
        template.setdefault("resources", {k: float(v) for k, v in (options.get("resources") or {}).items()})
        template["threads"] = max(1, int(threads or 1))
        return template


def _count(key: str, value: Any) -> int:
    # Other libraries' numbers, too.
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if number < 0 or not number.is_integer():
        raise ConfigError(key, value, "a whole number, 0 or more")
    return int(number)


def _takes_jobs(cluster: Any) -> bool:
    """Whether a cluster class counts workers unless it is told jobs, as dask-jobqueue's do."""
    return "jobs" in inspect.signature(cluster.scale).parameters


def _scale(cluster: Any, units: int) -> Any:
    """Ask a cluster class for units."""
    if _takes_jobs(cluster):
        return cluster.scale(jobs=units)
    return cluster.scale(units)


async def _maybe_await(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
