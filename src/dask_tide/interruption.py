"""Interruption: a worker asks its machine whether that is about to be taken away.

For spot machines where nothing else tells (no Karpenter, no node termination handler); off by default.
Amazon EC2 announces the end of a spot instance two minutes before, at an address that only its own
processes reach, in ``/latest/meta-data/spot/instance-action`` (IMDSv2: with a token; 404 until then).
From a pod it is reached only where the instance's hop limit is 2 or more.

The nanny asks, whatever its worker computes. It tells the scheduler (``tide_notice``), where the
controller empties the unit and asks for another one. A scheduler without the controller knows no such
thing, and a controller may not know the worker: then that departs as if it had got SIGTERM
(:mod:`dask_tide.departure`).

``tide.interruption.watch`` says whether to ask (``aws``), and whom; ``null``: nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Nanny
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from dask_tide.errors import ConfigError

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
_NOT_FOUND, _UNAUTHORIZED = 404, 401

_watching: dict[Nanny, asyncio.Task[None]] = {}


def join(nanny: Nanny) -> None:
    """Watch for a notice, in the event loop of the nanny; where none is to be watched for, do nothing.

    Raises
    ------
    ConfigError
        If a key of ``tide.interruption`` makes no sense.
    """
    watch: Any = dask.config.get("tide.interruption.watch", None)
    url: Any = dask.config.get("tide.interruption.url", DEFAULT_URL)
    interval: Any = dask.config.get("tide.interruption.interval", DEFAULT_INTERVAL)
    if watch is None:
        return
    if watch != "aws":
        raise ConfigError("tide.interruption.watch", watch, "'aws' or null")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ConfigError("tide.interruption.url", url, f"a URL such as {DEFAULT_URL!r}")
    try:
        interval_s = float(parse_timedelta(interval))
    except (KeyError, TypeError, ValueError):
        interval_s = 0.0
    if not interval_s > 0:
        raise ConfigError("tide.interruption.interval", interval, "a duration > 0 such as '5s'")
    watching = _watch(nanny, _Metadata(url.rstrip("/")), interval_s)
    _watching[nanny] = asyncio.create_task(watching, name="tide-interruption")


def leave(nanny: Nanny) -> None:
    """Undo :func:`join`; where it was not done, do nothing."""
    if (task := _watching.pop(nanny, None)) is not None:
        task.cancel()


class _Metadata:
    """The instance's metadata service."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = AsyncHTTPClient()
        self._token = ""

    async def notice(self) -> str:
        """What is announced, in words; empty: nothing.

        Raises
        ------
        OSError, HTTPClientError
            It does not answer, or not as it should.
        """
        if not self._token:
            self._token = await self._fetch(
                _TOKEN, "PUT", "X-aws-ec2-metadata-token-ttl-seconds", str(_VALID_S)
            )
        try:
            answer = await self._fetch(_ACTION, "GET", "X-aws-ec2-metadata-token", self._token)
        except HTTPClientError as error:
            if error.code == _UNAUTHORIZED:
                self._token = ""
            if error.code in (_NOT_FOUND, _UNAUTHORIZED):
                return ""
            raise
        try:
            announced = json.loads(answer)
            return f"EC2 will {announced['action']} its spot instance at {announced['time']}"
        except (KeyError, TypeError, ValueError):
            return f"EC2 announces for its spot instance: {answer[:200]}"

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


async def _watch(nanny: Nanny, metadata: _Metadata, interval_s: float) -> None:
    trouble = said = ""
    known_s = 0.0
    while True:
        try:
            words = await metadata.notice()
        except (OSError, HTTPClientError) as error:
            if str(error) != trouble:  # once, not every five seconds
                logger.warning("The instance's metadata cannot be read: %s", error)
            trouble, words = str(error), ""
        if words and words != said:
            logger.warning("Worker %s: %s", nanny.name, words)
            said = words
        # Again and again: a scheduler that starts anew in these two minutes knows nothing of it.
        if words:
            heard = await _tell(nanny, words)
            known_s = time.monotonic() if heard or not known_s else known_s
            if heard is None or time.monotonic() > known_s + _UNKNOWN_S:
                signal.raise_signal(signal.SIGTERM)
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
