"""Interruption: a worker asks its machine whether that is about to be taken away.

For spot machines where nothing else tells (no Karpenter, no node termination handler); off by default.
Amazon EC2 announces the end of a spot instance two minutes before, at an address that only its own
processes reach, in ``/latest/meta-data/spot/instance-action`` (IMDSv2: with a token; 404 until then).
From a pod it is reached only where the instance's hop limit is 2 or more.

The nanny asks, whatever its worker computes. It tells the scheduler (``tide_notice``), where the
controller empties the unit and asks for another one. A scheduler without the controller knows no such
thing, and a controller may not know the worker: then that departs as if it had got SIGTERM
(:mod:`dask_tide.departure`). So it does in any case once no more time is left than a departure may take: a
task that outlasted the machine would count as having killed its worker.

``tide.interruption.watch`` says whether to ask (``aws``), and whom; ``null``: nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Nanny
from distributed.core import Status
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from dask_tide import sigterm
from dask_tide.errors import ConfigError
from dask_tide.sigterm import DEFAULT_TIMEOUT

__all__ = ["join", "leave"]

# Below `distributed`, since Dask shows no other logger's INFO.
logger = logging.getLogger("distributed.tide.interruption")

DEFAULT_URL = "http://169.254.169.254"
#: AWS recommends to ask every 5 seconds.
DEFAULT_INTERVAL = "5s"
_TOKEN = "/latest/api/token"
_ACTION = "/latest/meta-data/spot/instance-action"
#: It answers at once, or is not there.
_ANSWER_S = 2.0
#: The longest that a token may be valid; it is asked for again when it has expired.
_VALID_S = 21600
#: A controller that does not know the worker for so long has nothing to do with it; one that has just started
#: will.
_UNKNOWN_S = 15.0
#: From the notice to the end, where that is not said, or is in the past or further away than it can be: the
#: machine's clock is wrong then.
_NOTICE_S = 120.0
_LONGEST_NOTICE_S = 600.0
#: How long a departure may take beyond its deadline to tell the scheduler, and to close.
_CLOSING_S = 5.0
_NOT_FOUND, _UNAUTHORIZED = 404, 401

_watching: dict[Nanny, asyncio.Task[None]] = {}
#: Event loops of processes that have been told to depart.
_departing: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def join(nanny: Nanny) -> None:
    """Watch for a notice, in the event loop of the nanny; where none is to be watched for, do nothing.

    Raises
    ------
    ConfigError
        If a key of ``tide.interruption`` makes no sense, or ``tide.departure.timeout``.
    """
    watch: Any = dask.config.get("tide.interruption.watch", None)
    url: Any = dask.config.get("tide.interruption.url", DEFAULT_URL)
    if watch is None:
        return
    if watch != "aws":
        raise ConfigError("tide.interruption.watch", watch, "'aws' or null")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ConfigError("tide.interruption.url", url, f"a URL such as {DEFAULT_URL!r}")
    interval_s = _seconds("tide.interruption.interval", DEFAULT_INTERVAL)
    departure_s = _seconds("tide.departure.timeout", DEFAULT_TIMEOUT, least=0.0) + _CLOSING_S
    watching = _watch(nanny, _Metadata(url.rstrip("/")), interval_s, departure_s)
    _watching[nanny] = asyncio.create_task(watching, name="tide-interruption")


def leave(nanny: Nanny) -> None:
    """Undo :func:`join`; where it was not done, do nothing."""
    if (task := _watching.pop(nanny, None)) is not None:
        task.cancel()


def _seconds(key: str, default: str, least: float = 1e-3) -> float:
    """A duration of the configuration."""
    said: Any = dask.config.get(key, default)
    try:
        seconds = float(parse_timedelta(said))
    except (KeyError, TypeError, ValueError):
        seconds = -1.0
    if not seconds >= least:
        raise ConfigError(key, said, f"a duration > 0 such as {default!r}")
    return seconds


@dataclass(frozen=True, slots=True)
class _Notice:
    """What is announced, in words, and how long it is until then."""

    words: str
    left_s: float = _NOTICE_S

    @classmethod
    def read(cls, answer: str) -> _Notice:
        """What the metadata service has answered."""
        try:
            announced = json.loads(answer)
            words = f"EC2 will {announced['action']} its spot instance at {announced['time']}"
        except (KeyError, TypeError, ValueError):
            return cls(f"EC2 announces for its spot instance: {answer[:200]}")
        try:
            left_s = (datetime.fromisoformat(announced["time"]) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return cls(words)
        return cls(words, left_s) if 0 < left_s <= _LONGEST_NOTICE_S else cls(words)


class _Metadata:
    """The instance's metadata service."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = AsyncHTTPClient()
        self._token = ""

    async def notice(self) -> _Notice | None:
        """What is announced, if anything.

        Raises
        ------
        Exception
            It does not answer, or not as it should; what the HTTP client raises then may be of any kind.
        """
        if not self._token:
            self._token = await self._fetch(
                _TOKEN, "PUT", "X-aws-ec2-metadata-token-ttl-seconds", str(_VALID_S)
            )
            if not (self._token.isascii() and self._token.isprintable()):
                raise self._other(self._token)
        try:
            answer = await self._fetch(_ACTION, "GET", "X-aws-ec2-metadata-token", self._token)
        except HTTPClientError as error:
            if error.code == _UNAUTHORIZED:
                self._token = ""
            if error.code in (_NOT_FOUND, _UNAUTHORIZED):
                return None
            raise
        if not answer or answer.startswith("<"):
            raise self._other(answer)
        return _Notice.read(answer)

    def _other(self, answer: str) -> ValueError:
        return ValueError(f"something else answers at {self._url}: {answer[:60]!r}")

    def forget(self) -> None:
        """Ask for another token: this one may be none."""
        self._token = ""

    async def _fetch(self, path: str, method: str, header: str, value: str) -> str:
        request = HTTPRequest(
            self._url + path,
            method,
            {header: value},
            body="" if method == "PUT" else None,
            request_timeout=_ANSWER_S,
            connect_timeout=_ANSWER_S,
        )
        return (await self._client.fetch(request)).body.decode(errors="replace").strip()


async def _watch(nanny: Nanny, metadata: _Metadata, interval_s: float, departure_s: float) -> None:
    """Wait for a notice, and see to it that the worker has left by then."""
    notice = await _noticed(metadata, interval_s)
    logger.warning("Worker %s: %s", nanny.name, notice.words)
    began_s = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(max(_ANSWER_S, notice.left_s - departure_s)):
            await _insist(nanny, notice.words, interval_s)
    # A second SIGTERM would end at once what has begun to depart, or is about to end anyway. It is the
    # process's, which may have other nannies.
    loop = asyncio.get_running_loop()
    if nanny.status in (Status.init, Status.running) and loop not in _departing:
        _departing.add(loop)
        logger.warning("Worker %s leaves by itself.", nanny.name)
        sigterm.hurry(notice.left_s - (time.monotonic() - began_s) - _CLOSING_S)
        signal.raise_signal(signal.SIGTERM)


async def _noticed(metadata: _Metadata, interval_s: float) -> _Notice:
    """The notice, once there is one."""
    trouble = ""
    while True:
        try:
            if (notice := await metadata.notice()) is not None:
                return notice
        except Exception as error:  # noqa: BLE001 - of any kind, and whoever stops asking hears of no notice
            metadata.forget()
            if str(error) != trouble:  # once, not every five seconds
                logger.warning("The instance's metadata cannot be read: %s", error)
            trouble = str(error)
        await asyncio.sleep(interval_s)


async def _insist(nanny: Nanny, words: str, interval_s: float) -> None:
    """Tell the scheduler, until it turns out that nobody there will empty the worker.

    Again and again: a scheduler that starts anew in these two minutes knows nothing of it.
    """
    known_s = time.monotonic()
    while (known := await _tell(nanny, words)) is not None:
        if known:
            known_s = time.monotonic()
        elif time.monotonic() > known_s + _UNKNOWN_S:
            return
        await asyncio.sleep(interval_s)


async def _tell(nanny: Nanny, words: str) -> bool | None:
    """Tell the scheduler; whether it knows this worker, None if it does not know what a notice is."""
    try:
        heard = await nanny.scheduler.tide_notice(worker=str(nanny.name), message=words)
    except OSError as error:
        logger.warning("The scheduler does not answer: %s", error)
        return True
    if heard is None:  # Dask's answer to what it does not know
        logger.info("The scheduler does not know what a notice is: the worker leaves by itself.")
        return None
    return bool(heard)
