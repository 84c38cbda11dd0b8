"""The API server, as far as the provider uses it: lightkube, with its errors made ours."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec
from lightkube import ApiError, AsyncClient
from lightkube.config.client_adapter import ExecAuth as LightkubeExecAuth
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.core.generic_client import WatchDriver
from lightkube.core.selector import build_selector
from lightkube.resources.apps_v1 import ReplicaSet
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from dask_tide.errors import (
    ConfigError,
    LaunchRejected,
    ProviderError,
    QuotaExceeded,
    Unauthorized,
    Unavailable,
    UnparseableReply,
    words,
)

from . import kubeconfig
from .exec_auth import ExecAuth
from .options import Options
from .patience import Patience

__all__ = ["FIELD_MANAGER", "Api", "Gone"]

#: How the API server names us in an object's managed fields.
FIELD_MANAGER = "dask-tide"


#: Labels and their values.
Selector = dict[str, Any]


class Gone(Exception):  # noqa: N818 -- what HTTP calls status 410
    """The resource version is too old (HTTP 410): list again."""


class Api:
    """The few calls there are.

    Parameters
    ----------
    options
        Where the API server is, and which namespace.
    patience
        How long a watch lasts, and may be silent.

    Attributes
    ----------
    namespace
        Which one it is.
    calls
        How many calls were made, by verb.

    Raises
    ------
    ConfigError
        If there is no such kubeconfig file or context, or it makes no sense.
    """

    def __init__(self, options: Options, patience: Patience) -> None:
        config = kubeconfig.read(options.kubeconfig, options.context)
        self._patience = patience
        try:
            self._client = AsyncClient(
                config=config, namespace=options.namespace, field_manager=FIELD_MANAGER, lazy=True
            )
            http: httpx2.AsyncClient = self._client._client._client
            if isinstance(http.auth, LightkubeExecAuth):
                http.auth = ExecAuth(config.user.exec)
        except (
            *(LightkubeConfigError, OSError, ssl.SSLError, AssertionError),
            *(ValueError, TypeError, httpx2.InvalidURL),  # no base64, a certificate without a key, no address
        ) as error:
            where = options.kubeconfig or "the kubeconfig that was found"
            raise ConfigError("tide.options.kubeconfig", where, f"valid credentials ({error})") from error
        self.namespace: str = self._client.namespace
        self.calls: Counter[str] = Counter()

    async def list(self, kind: Any, labels: Selector | None, fields: str) -> tuple[list[Any], str]:
        """All objects of a kind in the namespace, and the version of the list."""
        params = {
            "labelSelector": build_selector(labels) if labels else None,
            "fieldSelector": fields or None,
        }
        found: list[Any] = []
        version = ""
        with translated(f"listing {kind.__name__}s"):
            self.calls["list"] += 1
            # Not `AsyncClient.list`: it knows field selectors only as a mapping.
            request = self._client._client.prepare_request("list", res=kind, params=params)
            async for chunk_version, chunk in self._client._client.list_chunks(request):
                version = chunk_version or version
                found += chunk
        return found, version

    async def watch(
        self, kind: Any, labels: Selector | None, fields: str, version: str, *, silence_s: float
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """What happens after ``version``: ``(type, object)``, bookmarks included. When it ends, ask again.

        After a silence of ``silence_s`` the server counts as gone.

        Raises
        ------
        Gone
            The server no longer knows that version.
        ProviderError
            Anything else.
        """
        request = self._client._client.prepare_request(
            "list",
            res=kind,
            watch=True,
            params={
                "resourceVersion": version,
                # Without them the version of a quiet kind gets too old.
                "allowWatchBookmarks": "true",
                "timeoutSeconds": f"{self._patience.watch_s:.0f}",
                "labelSelector": build_selector(labels) if labels else None,
                "fieldSelector": fields or None,
            },
        )
        events = self._stream(request)
        self.calls["watch"] += 1
        try:
            while True:
                with translated(f"watching {kind.__name__}s"):
                    async with asyncio.timeout(silence_s):
                        event = await anext(events, None)
                if event is None:
                    return
                yield event
        finally:
            await events.aclose()

    async def _stream(self, request: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """One watch. lightkube's own asks for no bookmarks, and hides a refusal's words and a watch's end."""
        client: Any = self._client._client
        driver: Any = WatchDriver(request, client._client.build_request)
        response = await client.send(driver.get_request(timeout=client._watch_timeout), stream=True)
        try:
            if response.is_error:
                await response.aread()
            client.raise_for_status(response)
            async for line in response.aiter_lines():
                yield driver.process_one_line(line)
        finally:
            await response.aclose()

    async def scale(self, replicaset: str, replicas: int) -> str:
        """Set a ReplicaSet's number of pods: one PATCH of its scale, whatever the number.

        Returns the version of the ReplicaSet from then on.
        """
        self.calls["scale"] += 1
        with translated(f"scaling ReplicaSet {replicaset} to {replicas}"):
            scaled = await self._client.patch(
                ReplicaSet.Scale,
                replicaset,
                {"spec": {"replicas": replicas}},
                patch_type=PatchType.MERGE,
            )
        assert scaled.metadata is not None
        return str(scaled.metadata.resourceVersion)

    async def existing(self, replicaset: str) -> int:
        """How many pods a ReplicaSet has, asked now and not as a watch has shown it."""
        self.calls["existing"] += 1
        with translated(f"looking at ReplicaSet {replicaset}"):
            scale = await self._client.get(ReplicaSet.Scale, replicaset)
        return (scale.status.replicas if scale.status is not None else None) or 0

    async def annotate(self, pod: str, annotations: dict[str, str | None]) -> bool:
        """Set a pod's annotations; None removes one. Whether the pod was there."""
        self.calls["annotate"] += 1
        try:
            with translated(f"annotating pod {pod}"):
                await self._client.patch(
                    Pod,
                    pod,
                    {"metadata": {"annotations": annotations}},
                    patch_type=PatchType.MERGE,
                )
        except LaunchRejected as error:
            if isinstance(error.__cause__, ApiError) and error.__cause__.status.code == _NOT_FOUND:
                return False
            raise
        return True

    async def close(self) -> None:
        """Close all connections."""
        await self._client._client.close()  # type: ignore[no-untyped-call]


_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _GONE, _TOO_MANY, _SERVER = 401, 403, 404, 410, 429, 500
#: However long a gateway says that it wants to be left alone: it may be there again before.
_RETRY_MAX_S = 60.0


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise a client library's errors as ours, with the API server's own words."""
    try:
        yield
    except ApiError as error:
        raise _of_status(what, error) from error
    except httpx2.HTTPStatusError as error:  # not in the API server's format: a proxy's, say
        raise Unavailable(f"{what}: {_code(error.response)}", _retry_s(error.response)) from error
    except TimeoutError as error:
        raise Unavailable(f"{what}: the API server has gone silent") from error
    except (httpx2.TransportError, OSError) as error:
        raise Unavailable(f"{what}: {words(error)}") from error
    except LightkubeConfigError as error:  # a token's file that has gone
        raise Unauthorized(f"{what}: {error}") from error
    except (msgspec.MsgspecError, httpx2.HTTPError, httpx2.StreamError, LookupError, ValueError) as error:
        if (response := _refusal(error)) is not None:
            raise _of_code(response.status_code, f"{what}: {_code(response)}", _retry_s(response)) from error
        raise UnparseableReply(f"{what}: {error!r}") from error


def _of_status(what: str, error: ApiError) -> ProviderError | Gone:
    status, details = error.status, error.status.details
    response: httpx2.Response | None = error.response  # what a watch tells has none of its own
    if status.code == _GONE:
        return Gone(f"{what}: {status.message}")
    # A gateway's JSON is no Status: it has no code, or one that means something else.
    code = response.status_code if response is not None else status.code or 0
    message = status.message or (_code(response) if response is not None else "no reason given")
    retry_s = details.retryAfterSeconds if details is not None else None
    return _of_code(code, f"{what}: {message}", retry_s or _retry_s(response))


def _of_code(code: int, message: str, retry_s: float) -> ProviderError:
    if code in (_UNAUTHORIZED, _FORBIDDEN):
        if "exceeded quota" in message:
            return QuotaExceeded(message)
        return Unauthorized(message)
    if code == _TOO_MANY or code >= _SERVER:
        return Unavailable(message, float(retry_s))
    return LaunchRejected(message)


def _refusal(error: BaseException | None) -> httpx2.Response | None:
    """The answer that was no success, and then could not be read either; None: there is none."""
    while error is not None and not isinstance(error, httpx2.HTTPStatusError):
        error = error.__context__
    return error.response if error is not None else None


def _code(response: httpx2.Response) -> str:
    return f"HTTP {response.status_code}"


def _retry_s(response: httpx2.Response | None) -> float:
    """For how long it wants to be left alone, where it says so in seconds: HTTP also knows dates."""
    said = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(said) if said.isdecimal() else 0.0, _RETRY_MAX_S) or 1.0
