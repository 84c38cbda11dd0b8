"""The demo's place on Kubernetes: a cluster of its own in a namespace, or a release of the chart."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from distributed import Client
from distributed.comm.core import connect
from distributed.security import Security
from distributed.utils import LoopRunner, sync

from dask_tide.errors import ConfigError, LaunchRejected, Unauthorized, Unavailable
from dask_tide.providers.kubernetes.api import Api
from dask_tide.providers.kubernetes.options import Options
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.port_forward import PortForward
from dask_tide.providers.kubernetes.resources import Resources
from dask_tide.providers.kubernetes.startup import newest

from .place import Place

__all__ = ["Installed", "new_cluster", "worker_nodes"]

#: Small workers, which fit into any cluster beside what is there.
MEMORY = "1 GiB"
VALUES = {"poolDefaults": {"resources": {"requests": {"cpu": "250m"}}}}
#: If the demo itself is killed, everything is gone after this.
IDLE_TIMEOUT = "3m"
#: For an image that has to be pulled, and a node that may have to be booted for the scheduler.
TIMEOUT_S = 600.0

_COMM = 8786
_CONNECT_S, _SETTLE_S, _LOOK_S = 5.0, 120.0, 0.5
#: Rights that were just given need so long until they hold.
_FORBIDDEN_S = 15.0
_REPELS = ("NoSchedule", "NoExecute")


def new_cluster(place: Place, maximum: int) -> Any:
    """A TideCluster of the demo's own."""
    from dask_tide import TideCluster

    return TideCluster(
        "kubernetes",
        name=f"demo-{secrets.token_hex(2)}",
        namespace=place.namespace,
        kubeconfig=place.kubeconfig,
        context=place.context,
        image=place.image,
        minimum=0,
        maximum=maximum,
        threads_per_worker=1,
        memory_limit=MEMORY,
        values=VALUES,
        idle_timeout=IDLE_TIMEOUT,
        timeout=TIMEOUT_S,
        dashboard_address="127.0.0.1:0",
        # Lines in the middle of the live view would tear it.
        silence_logs=logging.ERROR,
    )


def worker_nodes(place: Place) -> int | None:
    """How many nodes there are for ordinary pods; None if the user may not know.

    Raises
    ------
    ConfigError
        There is no such kubeconfig or context.
    ProviderError
        The API server does not answer.
    """

    async def count() -> int | None:
        api = Api(_options(place), Patience())
        try:
            nodes = await Resources(api).list("v1", "Node")
        except Unauthorized:
            return None
        finally:
            await api.close()
        return sum(map(_takes_pods, nodes))

    return asyncio.run(count())


def _takes_pods(node: dict[str, Any]) -> bool:
    spec, conditions = node["spec"], node.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not any(taint["effect"] in _REPELS for taint in spec.get("taints", ()))


def _options(place: Place) -> Options:
    return Options(namespace=place.namespace, kubeconfig=place.kubeconfig, context=place.context)


class Installed:
    """A release of the chart, reached from outside of the cluster as if it were a cluster object.

    Parameters
    ----------
    place
        With a release.

    Raises
    ------
    ConfigError
        There is no such kubeconfig or context.
    """

    def __init__(self, place: Place) -> None:
        assert place.release is not None
        self.name = place.release
        self._options = _options(place)
        self._runner = LoopRunner(asynchronous=False)

    def __enter__(self) -> Self:
        self._runner.start()
        try:
            sync(self._runner.loop, self._open)
        except BaseException:
            self._runner.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        sync(self._runner.loop, self._close)
        self._runner.stop()

    @contextmanager
    def get_client(self) -> Iterator[Client]:
        """A client of the release's scheduler; it waits until there are no workers, as far as they go.

        Raises
        ------
        Unavailable
            Nothing listens there within the time limit.
        Unauthorized
            The user may not reach it.
        ConfigError
            A pool of it keeps workers that nobody needs.
        """
        address = sync(self._runner.loop, self._reach)
        with Client(address, security=self._security, loop=self._runner.loop) as client:
            self._settle(client)
            yield client

    def _settle(self, client: Client) -> None:
        """Wait for the worker to go that Kubernetes starts for each pool of a new release."""
        end_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < end_s:
            status: Any = client.sync(client.scheduler.tide_status)  # type: ignore[union-attr]
            if kept := {name: pool["minimum"] for name, pool in status["pools"].items() if pool["minimum"]}:
                raise ConfigError("release", self.name, f"one whose pools have minimum 0, not {kept}")
            # Before its first decision it knows of none yet.
            if status["decisions"] and not status["units"]:
                return
            time.sleep(_LOOK_S)

    async def _open(self) -> None:
        self._api = Api(self._options, Patience())
        try:
            self._resources = Resources(self._api)
            self._security = await self._certificates()
            self._forward = PortForward(self._resources.http, self._api.namespace, self._find, _COMM)
            await self._forward.start()
        except BaseException:
            await self._api.close()
            raise

    async def _close(self) -> None:
        await self._forward.close()
        await self._api.close()

    async def _reach(self) -> str:
        """Wait until the scheduler listens; a client of Dask's gives up when its pod is not ready yet."""
        protocol = "tls" if self._security.require_encryption else "tcp"
        address = f"{protocol}://127.0.0.1:{self._forward.port}"
        arguments = self._security.get_connection_args("client")
        begun_s = time.monotonic()
        end_s = begun_s + TIMEOUT_S
        while True:
            try:
                comm = await connect(address, timeout=_CONNECT_S, **arguments)
            except (OSError, TimeoutError) as error:
                if self._forward.forbidden and time.monotonic() > begun_s + _FORBIDDEN_S:
                    raise Unauthorized(
                        f"release {self.name}: you may not create pods/portforward ({self._forward.error})"
                    ) from error
                if time.monotonic() > end_s:
                    why = self._forward.error or str(error)
                    raise Unavailable(
                        f"the scheduler of release {self.name} does not answer: {why}"
                    ) from error
                await asyncio.sleep(_LOOK_S)
            else:
                await comm.close()
                return address

    async def _certificates(self) -> Security:
        """Those that the scheduler's own pod has."""
        deployment = await self._get("apps/v1", "Deployment", f"{self.name}-scheduler")
        volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"].get("volumes", ())}
        if "tls" not in volumes:
            return Security()
        secret = await self._get("v1", "Secret", volumes["tls"]["secret"]["secretName"])
        ca, certificate, key = (
            base64.b64decode(secret["data"][each]).decode() for each in ("ca.crt", "tls.crt", "tls.key")
        )
        return Security(
            require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=key
        )

    async def _get(self, version: str, kind: str, name: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self._api.namespace}
        found = await self._resources.get({"apiVersion": version, "kind": kind, "metadata": metadata})
        if found is None:
            raise LaunchRejected(
                f"no release {self.name} of the chart in namespace {self._api.namespace}: no {kind} {name}"
            )
        return found

    async def _find(self) -> str:
        labels = {
            "app.kubernetes.io/name": "dask-tide",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": "scheduler",
        }
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        pod = newest(await self._resources.list("v1", "Pod", labels=selector))
        if pod is None:
            raise LookupError("the scheduler has no pod")
        return str(pod["metadata"]["name"])
