"""Reflector (client-go's name): a local copy of all objects of a kind, kept by one watch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from dask_tide.errors import ProviderError, Unauthorized, Unavailable, UnparseableReply

from .api import Api, Gone, Selector
from .patience import Patience

__all__ = ["Reflector"]

logger = logging.getLogger("distributed.tide.kubernetes")

T = TypeVar("T")

#: A watch that lasted so long stood; one that ends at once, again and again, must not be a tight loop.
_STOOD_S = 5.0


class Reflector(Generic[T]):
    """Lists once, then watches; lists again when the server has forgotten the version (HTTP 410).

    Parameters
    ----------
    api
        The API server.
    kind
        Class of the objects, of :mod:`.objects`.
    read
        What to keep of an object; None: nothing, as if it were not there.
    changed
        Called after each change with the object's name, what was kept of it before, and what is now.
    patience
        How long to wait after an error.
    labels, fields
        Which objects: label selector, field selector.
    bookmarks
        Whether the API server sends them for this kind: not for Events, which it does not cache.
    """

    def __init__(
        self,
        api: Api,
        kind: Any,
        read: Callable[[Any], T | None],
        changed: Callable[[str, T | None, T | None], None],
        *,
        patience: Patience,
        labels: Selector | None = None,
        fields: str = "",
        bookmarks: bool = True,
    ) -> None:
        self._api = api
        self._kind = kind
        self._read = read
        self._changed = changed
        self._patience = patience
        self._labels = labels
        self._fields = fields
        self._silence_s = patience.silence_s + (0.0 if bookmarks else patience.watch_s)
        self._kept: dict[str, T] = {}
        self._task: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()
        self._listed_s = 0.0
        #: Why the copy may be old; None: it is as new as the watch.
        self.error: ProviderError | None = Unavailable(f"{kind.__name__}s have not been listed yet")
        #: How often everything was listed.
        self.lists = 0

    @property
    def objects(self) -> Mapping[str, T]:
        """What was kept of each object, by name."""
        return self._kept

    def start(self) -> None:
        """Begin to list and to watch; in a running event loop. Idempotent."""
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._run(), name=f"dask-tide-watch-{self._kind.__name__}")

    async def stop(self) -> None:
        """Stop watching. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def settled(self) -> None:
        """Wait until the first list has come, or could not be had."""
        await self._synced.wait()

    async def _run(self) -> None:
        version, failures = "", 0
        while True:
            began_s = time.monotonic()
            try:
                if not version:
                    version = await self._list()
                async with aclosing(self._watch(version)) as versions:
                    async for version in versions:  # noqa: B007 -- where the next watch begins
                        failures = 0
            except Gone as error:
                logger.info("%s; listing again", error)
                version = ""
            except ProviderError as error:
                # A watch says nothing when it stands again, a list does.
                version = ""
                self._unwell(error)
            except Exception as error:
                # Not one that is expected; but a copy that silently stays as it is would be worse.
                logger.exception("Watching %ss failed", self._kind.__name__)
                version = ""
                self._unwell(UnparseableReply(f"watching {self._kind.__name__}s: {error!r}"))
            if self._listed_s + self._patience.resync_s <= time.monotonic():
                version = ""
            if time.monotonic() - began_s >= _STOOD_S and self.error is None:
                failures = 0
            if self.error is not None or time.monotonic() - began_s < _STOOD_S:
                await asyncio.sleep(self._pause_s(failures))
                failures += 1

    def _pause_s(self, failures: int) -> float:
        patience = self._patience
        refused = isinstance(self.error, Unauthorized)
        first_s = patience.refused_s if refused else patience.failed_s
        most_s = patience.refused_max_s if refused else patience.failed_max_s
        return float(min(most_s, first_s * 2 ** min(failures, 20)))

    async def _list(self) -> str:
        self.lists += 1
        self._listed_s = time.monotonic()
        found, version = await self._api.list(self._kind, self._labels, self._fields)
        names = {item.metadata.name for item in found}
        for name in [name for name in self._kept if name not in names]:
            self._keep(name, None)
        for item in found:
            self._keep(item.metadata.name, self._read(item))
        self._well()
        return version

    async def _watch(self, version: str) -> AsyncGenerator[str, None]:
        """The version after each event; a new watch begins where the last one was."""
        watch = self._api.watch(self._kind, self._labels, self._fields, version, silence_s=self._silence_s)
        async with aclosing(watch) as events:
            async for type_, item in events:
                if type_ != "BOOKMARK":
                    name = item.metadata.name
                    self._keep(name, None if type_ == "DELETED" else self._read(item))
                yield item.metadata.resourceVersion

    def _keep(self, name: str, now: T | None) -> None:
        before = self._kept.get(name)
        if now is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = now
        if before is not now:
            self._changed(name, before, now)

    def _well(self) -> None:
        if self.error is not None and self.lists > 1:
            logger.info("%ss are watched again", self._kind.__name__)
        self.error = None
        self._synced.set()

    def _unwell(self, error: ProviderError) -> None:
        if self.error is None or not self._synced.is_set():
            logger.warning("%s", error)
        self.error = error
        self._synced.set()
