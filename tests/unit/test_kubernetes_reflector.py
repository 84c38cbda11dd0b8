"""A reflector against an API server that ends watches, forgets versions, refuses, or talks nonsense."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from waiting import until

from dask_tide.errors import ProviderError, Unauthorized, Unavailable, UnparseableReply
from dask_tide.providers.kubernetes.api import Gone
from dask_tide.providers.kubernetes.objects import Metadata, Pod
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.reflector import Reflector

PATIENCE = Patience(failed_s=0.01, failed_max_s=0.04, refused_s=0.01, refused_max_s=0.04)


def item(name, version):
    return Pod(metadata=Metadata(name=name, resourceVersion=str(version)))


class Server:
    """Lists what it has; each watch does the next thing that it was told to, the last one for ever."""

    def __init__(self, *watches):
        self.items = {"a": 1}
        self.watches = list(watches)
        self.calls: Counter[str] = Counter()
        self.versions = []
        self.list_error = None
        self.changed = []

    async def list(self, kind, labels, fields):
        self.calls["list"] += 1
        if self.list_error is not None:
            raise self.list_error
        return [item(name, version) for name, version in self.items.items()], str(max(self.items.values()))

    async def watch(self, kind, labels, fields, version, *, silence_s):
        self.calls["watch"] += 1
        self.silence_s = silence_s
        self.versions.append(version)
        for event in self.watches.pop(0) if self.watches else [None]:
            if event is None:
                await asyncio.Event().wait()
            if isinstance(event, Exception):
                raise event
            yield event

    @asynccontextmanager
    async def reflected(self, patience=PATIENCE, read=lambda pod: pod.metadata.resourceVersion, **options):
        reflector = Reflector(
            self,  # type: ignore[arg-type]  # all of it that is called
            Pod,
            read,
            lambda *change: self.changed.append(change),
            patience=patience,
            **options,
        )
        reflector.start()
        await reflector.settled()
        try:
            yield reflector
        finally:
            await reflector.stop()


async def test_what_happens_is_kept_and_told():
    server = Server([("ADDED", item("b", 2)), ("MODIFIED", item("a", 3)), ("DELETED", item("b", 4)), None])
    async with server.reflected() as reflector:
        await until(lambda: len(server.changed) == 4, "all is seen")
        assert server.changed == [("a", None, "1"), ("b", None, "2"), ("a", "1", "3"), ("b", "2", None)]
        assert reflector.objects == {"a": "3"}
        assert reflector.error is None


async def test_a_watch_that_ends_goes_on_where_it_was_bookmarks_included():
    server = Server([("BOOKMARK", item("", 7))], [("ADDED", item("b", 9))], [None])
    async with server.reflected():
        await until(lambda: server.calls["watch"] == 3, "it is watched again")
        assert server.versions == ["1", "7", "9"]
        assert server.calls["list"] == 1


@pytest.mark.parametrize("bookmarks", [True, False])
async def test_without_bookmarks_silence_is_no_sign_until_the_server_should_have_ended_the_watch(bookmarks):
    server, patience = Server([None]), Patience()
    async with server.reflected(patience, bookmarks=bookmarks):
        await until(lambda: server.calls["watch"], "it is watched")
        assert (server.silence_s > patience.watch_s) is not bookmarks
        assert server.silence_s > 2 * 60, "two bookmarks"


async def test_now_and_then_everything_is_listed_anew():
    server = Server([("MODIFIED", item("a", 2))], [("MODIFIED", item("a", 3))])
    async with server.reflected(replace(PATIENCE, resync_s=0.0)) as reflector:
        server.items = {"a": 4, "b": 4}  # no watch says so
        await until(lambda: dict(reflector.objects) == {"a": "4", "b": "4"}, "the second list")
        assert reflector.error is None
    assert set(server.versions) <= {"1", "4"}


async def test_a_version_that_is_gone_is_listed_again():
    server = Server([Gone("too old")], [None])
    async with server.reflected() as reflector:
        server.items = {"b": 5}
        await until(lambda: reflector.objects == {"b": "5"}, "it is listed again")
        assert server.changed == [("a", None, "1"), ("a", "1", None), ("b", None, "5")]
        assert reflector.error is None


async def test_a_connection_that_breaks_is_an_error_until_the_next_list():
    server = Server([Unavailable("away")], [None])
    async with server.reflected() as reflector:
        server.list_error = Unavailable("still away")
        await until(lambda: reflector.error is server.list_error, "it is known")
        assert reflector.objects == {"a": "1"}
        server.list_error = None
        await until(lambda: reflector.error is None, "it is well again")


@pytest.mark.parametrize(
    "watch",
    [[], [Unavailable("502")], [Gone("too old")], [Unauthorized("may not watch")], [ValueError("nonsense")]],
    ids=["ends at once", "fails at once", "always gone", "refused", "nonsense"],
)
async def test_no_tight_loop_when_every_watch(watch):
    """Pauses of 0.05, 0.1, 0.2, … s: four attempts at the most in the first second."""
    server = Server(*[watch] * 100)
    patience = replace(PATIENCE, failed_s=0.05, failed_max_s=10.0, refused_s=0.05, refused_max_s=10.0)
    async with server.reflected(patience=patience):
        await asyncio.sleep(1.0)
        assert server.calls["watch"] <= 5
        assert server.calls["list"] <= 5


async def test_an_error_that_nobody_expected_does_not_leave_an_old_copy_for_a_new_one():
    def read(pod):
        raise ZeroDivisionError("a bug")

    server = Server()
    async with server.reflected(read=read) as reflector:
        assert isinstance(reflector.error, UnparseableReply)
        assert "a bug" in str(reflector.error)
        await until(lambda: server.calls["list"] >= 3, "it is tried again")


async def test_who_waits_for_the_first_list_is_told_why_it_did_not_come():
    server = Server([None])
    server.list_error = Unauthorized('cannot list resource "pods"')
    async with server.reflected() as reflector:
        assert reflector.error is server.list_error
        server.list_error = None

        def well() -> bool:
            error: ProviderError | None = reflector.error
            return error is None

        await until(well, "the right was given")
