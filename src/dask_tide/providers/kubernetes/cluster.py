"""What ``TideCluster(provider="kubernetes")`` makes in a namespace, how it is reached, and how it goes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from distributed.comm.core import connect
from distributed.core import send_recv
from distributed.security import Security
from distributed.utils import format_dashboard_link

from dask_tide.config import duration_s
from dask_tide.errors import ConfigError, ProviderError, Unavailable, words

from .api import Api
from .arguments import make_values, named, split_options
from .belongings import Belongings, may_make_policies
from .ephemeral import make_ephemeral
from .kubeconfig import own_namespace
from .manifests import Manifest, make_all, make_release
from .manifests.values import read as read_values
from .manifests.values import watched
from .options import Options
from .patience import Patience
from .port_forward import PortForward
from .resources import Resources
from .startup import Trouble, find_trouble, newest

__all__ = ["KubernetesHost"]

logger = logging.getLogger("distributed.tide.kubernetes")

_COMM, _DASHBOARD = 8786, 8787
_IDLE_TIMEOUT, _TIMEOUT = "10m", "5m"
#: For how long a trouble that may pass (a registry's hiccup, pods that just end) is borne.
_PATIENCE_S = 15.0
_LOOK_S = 0.25
#: One attempt to connect; the next one asks the platform first.
_CONNECT_S = 5.0
#: After the end of the time limit: for the last attempt, and for saying that the cluster stays.
_MARGIN_S = 60.0
_NO_POLICIES = (
    "You may not create admission policies, which are in no namespace. So the scheduler may not change pods: "
    "idle workers are not marked for node autoscalers, and the maximum is only the scheduler's own."
)


class KubernetesHost:
    """A scheduler and its pools in a namespace, made with a user's rights, for as long as they are used.

    Parameters
    ----------
    name
        The cluster's name.
    pool, pools, settings
        See :func:`.arguments.make_values`.
    dashboard
        Port of this machine where the dashboard is to be seen, if it is free; None: not at all.
    namespace, kubeconfig, context
        Where; by default see :func:`.kubeconfig.read`.
    image
        For scheduler and workers; it needs dask-tide.
    values
        Values of the Helm chart.
    idle_timeout
        The cluster ends by itself when for so long nobody was connected and there was no work; None: never.
    timeout
        For the scheduler to come up.

    Raises
    ------
    ConfigError
        An argument is wrong. Nothing was made.
    """

    def __init__(  # noqa: PLR0913  (those of TideCluster)
        self,
        name: str,
        *,
        pool: Mapping[str, Any],
        pools: Mapping[str, Mapping[str, Any]] | None,
        settings: Mapping[str, Any],
        dashboard: int | None,
        namespace: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        image: str | None = None,
        values: Mapping[str, Any] | None = None,
        idle_timeout: str | float | None = _IDLE_TIMEOUT,
        timeout: str | float = _TIMEOUT,
    ) -> None:
        self.name = name
        self.dashboard_link = ""
        where, options = split_options(settings.get("options") or {})
        namespace = where.get("namespace") if namespace is None else namespace
        kubeconfig = where.get("kubeconfig") if kubeconfig is None else kubeconfig
        context = where.get("context") if context is None else context
        if options:
            settings = {**settings, "options": options}
        else:
            settings = {key: value for key, value in settings.items() if key != "options"}
        self.idle_timeout_s = (
            None if idle_timeout is None else duration_s("idle_timeout", idle_timeout, positive=True)
        )
        self._timeout_s = duration_s("timeout", timeout, positive=True)
        self._dashboard_port = dashboard
        self._values = make_values(pool=pool, pools=pools, settings=settings, image=image, values=values)
        for key, value in (("namespace", namespace), ("kubeconfig", kubeconfig), ("context", context)):
            if value is not None and not (isinstance(value, str | os.PathLike) and os.fspath(value)):
                raise ConfigError(key, value, "a text, or nothing")
        path = None if kubeconfig is None else os.fspath(kubeconfig)
        ours = own_namespace(path, context)
        #: Whether this process is in a pod of the cluster that it uses; a kubeconfig may lead elsewhere.
        self._inside = ours is not None
        if ours is not None:
            self._let_in(ours)
        self._api = Api(Options(namespace=namespace, kubeconfig=path, context=context), Patience())
        self.namespace = self._api.namespace
        self._resources = Resources(self._api)
        # Checks all values; policies are added or left out once it is known whether the user may make them.
        with named(values):
            self._release = make_release(name, self.namespace, self._values, replicas=0)
            self.security = self._make_security()
        self._belongings = Belongings(self._resources, self._selector({}), self._called())
        self._forwards: list[PortForward] = []
        self._no_answer = ""
        self.said: list[str] = []

    # -- making -----------------------------------------------------------------------------------

    async def start(self) -> str:
        """Make everything, wait until the scheduler listens, and return its address from here.

        Raises
        ------
        ProviderError
            It did not come up; in the platform's own words. :meth:`close` removes what was made.
        """
        deadline_s = time.monotonic() + self._timeout_s
        await self._make()
        address = await self._reach(deadline_s)
        await self._belongings.stay()
        await self._show_dashboard()
        return address

    async def _make(self) -> None:
        admission = (self._values.get("admission") or {}).get("enabled")
        if admission is None:
            admission = await may_make_policies(self._resources)
            if not admission:
                self._say(_NO_POLICIES)
            values = {**self._values, "admission": {"enabled": admission}}
            certificates = self._release.certificates
            self._release = make_release(self.name, self.namespace, values, tls=certificates, replicas=0)
        objects = make_ephemeral(
            make_all(self._release),
            idle_timeout_s=self.idle_timeout_s,
            deadline_s=self._timeout_s + _MARGIN_S,
        )
        await self._belongings.make(objects)

    def _let_in(self, namespace: str) -> None:
        """The network policy keeps all but this cluster's pods out; we are another pod."""
        here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        values = read_values(self._values)
        policy = dict(self._values.get("networkPolicy") or {})
        for key in ("clients", "dashboard"):
            # Where the dashboard is for an ingress or a monitor, and nobody is named, anybody may see it.
            if key == "clients" or policy.get(key) or not watched(values):
                policy[key] = [*(policy.get(key) or ()), {"namespaceSelector": here}]
        self._values["networkPolicy"] = policy

    def _make_security(self) -> Security:
        certificates = self._release.certificates
        if not self._release.tls["enabled"]:
            return Security()
        if certificates is None:
            expected = "generated: only then are the certificates known here"
            raise ConfigError("security.tls.source", self._release.tls["source"], expected)
        return Security(
            require_encryption=True,
            tls_ca_file=certificates.ca,
            tls_client_cert=certificates.certificate,
            tls_client_key=certificates.key,
        )

    # -- reaching ---------------------------------------------------------------------------------

    async def _reach(self, deadline_s: float) -> str:
        protocol = "tls" if self._release.tls["enabled"] else "tcp"
        if self._inside:
            address = f"{protocol}://{self.name}-scheduler.{self.namespace}.svc:{_COMM}"
        else:
            address = f"{protocol}://127.0.0.1:{await self._forward(_COMM)}"
        trouble, since_s = Trouble("", None), time.monotonic()
        while True:
            try:
                pod = await self._scheduler()
                running = pod is not None and _runs(pod)
                if running and await self._serves(address):
                    return address
                seen = self._unreachable() if running else await self._trouble(pod)
            except Unavailable as error:
                seen = Trouble(f"Unreachable: {error}", None)
            if seen.kind != trouble.kind:
                since_s = time.monotonic()
            trouble, now_s = seen, time.monotonic()
            if now_s > deadline_s or (
                trouble.patience_s is not None and now_s - since_s >= trouble.patience_s
            ):
                waited = f"within {self._timeout_s:g} s" if now_s > deadline_s else "and will not"
                said = trouble.words or "nothing is known why"
                raise trouble.error(f"{self._called()}: its scheduler did not come up {waited}: {said}")
            await asyncio.sleep(_LOOK_S)

    def _unreachable(self) -> Trouble:
        """Why one that runs does not answer, as far as it was tried."""
        forward = self._forwards[0] if self._forwards else None
        said = (forward and forward.error) or self._no_answer
        if forward is not None and forward.forbidden:
            return Trouble(f"Forbidden: you may not create pods/portforward ({said})", _PATIENCE_S)
        return Trouble(f"Unreachable: it runs, but cannot be reached from here: {said}" if said else "", None)

    async def _scheduler(self) -> Manifest | None:
        """The scheduler's pod, None if there is none now."""
        labels = {"app.kubernetes.io/component": "scheduler"}
        return newest(await self._resources.list("v1", "Pod", labels=self._selector(labels)))

    async def _trouble(self, pod: Manifest | None) -> Trouble:
        return await find_trouble(self._resources, f"{self.name}-scheduler", pod, _PATIENCE_S)

    async def _serves(self, address: str) -> bool:
        """Whether the controller answers; a scheduler listens before it reads its configuration."""
        arguments = self.security.get_connection_args("client")
        try:
            async with asyncio.timeout(_CONNECT_S):
                comm = await connect(address, timeout=_CONNECT_S, **arguments)
                try:
                    return isinstance(await send_recv(comm, op="tide_status"), dict)
                finally:
                    comm.abort()
        except (OSError, TimeoutError) as error:
            self._no_answer = words(error)
            return False

    async def _forward(self, port: int, local: int = 0) -> int:
        forward = PortForward(self._resources.http, self.namespace, self._find, port)
        self._forwards.append(forward)
        await forward.start(local)
        return forward.port

    async def _find(self) -> str:
        pod = await self._scheduler()
        if pod is None or not _runs(pod):
            raise LookupError("the scheduler's pod does not run")
        return str(pod["metadata"]["name"])

    async def _show_dashboard(self) -> None:
        if self._dashboard_port is None:
            return
        if self._inside:
            host = f"{self.name}-scheduler.{self.namespace}.svc"
            port = _DASHBOARD
        else:
            host, port = "127.0.0.1", await self._forward(_DASHBOARD, self._dashboard_port)
        link = format_dashboard_link(host, port)
        if prefix := self._release.dashboard_prefix:
            link = link.removesuffix("/status") + f"{prefix}/status"
        self.dashboard_link = link

    # -- ending -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Delete everything that was made, and wait until it is gone. Idempotent."""
        forwards, self._forwards = self._forwards, []
        try:
            await self._belongings.delete()
        except ProviderError as error:
            left = f"kubectl --namespace {self.namespace} delete job {self.name}-scheduler"
            ends = (
                ""
                if self.idle_timeout_s is None
                else " It ends by itself when it has been idle for long enough."
            )
            logger.error("%s could not be deleted; %s does it.%s (%s)", self._called(), left, ends, error)
        finally:
            await asyncio.gather(*(forward.close() for forward in forwards), return_exceptions=True)
            await self._api.close()

    async def ended(self) -> bool:
        """Whether it is known to be gone, by itself or by somebody else."""
        try:
            return await self._belongings.ended()
        except ProviderError:
            return False

    # -- saying -----------------------------------------------------------------------------------

    def _selector(self, more: Mapping[str, str]) -> str:
        return ",".join(f"{key}={value}" for key, value in {**self._release.labels(), **more}.items())

    def _called(self) -> str:
        return f"Cluster {self.name} in namespace {self.namespace}"

    def _say(self, sentence: str) -> None:
        self.said.append(sentence)
        logger.info("%s: %s", self._called(), sentence)


def _runs(pod: Manifest) -> bool:
    containers = pod.get("status", {}).get("containerStatuses", ())
    # Others may have been injected.
    return any(
        "running" in container.get("state", {})
        for container in containers
        if container["name"] == "scheduler"
    )
