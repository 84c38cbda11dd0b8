"""Level *plane*: a control plane on loopback, with fake nodes; it needs no root.

etcd, API server, controller manager and scheduler are the real ones. Nodes and their pods are only objects,
which kwok keeps in the states that a kubelet would report: thousands of pods cost nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rig import binaries, credentials
from rig.clients import Api, ApiError, Kubectl
from rig.credentials import Authority
from rig.folders import RigError, default_name, runs
from rig.keeper import Kept
from rig.servers import ARGUMENTS, Options, Place

__all__ = ["SERVERS", "Options", "Place", "Plane", "own_name"]

SERVERS = tuple(ARGUMENTS)
READY_S = 90.0


class Plane:
    """A running control plane: ``with Plane.start() as plane: plane.kubectl("get", "nodes")``.

    Parameters
    ----------
    kept
        Its keeper.
    place
        Where its servers listen.
    options
        What was chosen.
    """

    def __init__(self, kept: Kept, place: Place, options: Options) -> None:
        self.kept = kept
        self.place = place
        self.options = options
        self.folder = kept.folder
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubectl = Kubectl(self.kubeconfig)

    @classmethod
    def start(cls, name: str | None = None, *, bound: bool = True, options: Options | None = None) -> Self:
        """Start a control plane and wait until it serves.

        Parameters
        ----------
        name
            Its name, one cluster each on this machine; by default one of this process's own.
        bound
            Whether it ends with this process, even by ``kill -9``; else with :meth:`stop` only.
        options
            What else can be chosen.

        Raises
        ------
        RigError
            If a server does not start; with the end of its log.
        """
        binaries.ensure(*SERVERS, "kubectl")
        kept = Kept.begin(name or own_name(), bound=bound)
        try:
            plane = cls(kept, Place(), options or Options())
            plane.bring_up()
        except BaseException:
            kept.quit()
            raise
        return plane

    @classmethod
    def attach(cls, name: str | None = None) -> Self:
        """The running control plane of this name; by default the one started by hand in this checkout.

        Raises
        ------
        RigError
            If it does not run.
        """
        folder = runs() / (name or default_name())
        kept = Kept(folder)
        if not kept.runs():
            raise RigError(f"no cluster {folder.name!r} runs; start one with: make cluster")
        state = json.loads((folder / "plane.json").read_text())
        place = state["place"] | {"enter": tuple(state["place"]["enter"])}
        options = state["options"] | {
            name: tuple(state["options"][name]) for name in ("apiserver", "controller_manager")
        }
        return cls(kept, Place(**place), Options(**options))

    def stop(self) -> None:
        """End it; nothing of it is left."""
        self.kept.quit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def authority(self) -> Authority:
        return Authority(self.folder / "pki")

    def api(self) -> Api:
        """A new client of the bare API, as the cluster's admin."""
        return Api(self.kubeconfig)

    def run(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start a process in the plane's network that ends with it; ``logs/<name>.log`` has its output."""
        home = {"HOME": str(self.folder)}  # nothing is written to the user's
        return self.kept.start(name, [*self.place.enter, *command], home | dict(environment or {}))

    def bring_up(self) -> None:
        """Start the servers; for :meth:`start` and for the level *nodes*."""
        self._write_credentials()
        self._run_server("etcd")
        self.start_apiserver()
        # Only now: they end when they find no API server at their start.
        self._run_server("kube-controller-manager")
        self._run_server("kube-scheduler")
        state = {"place": asdict(self.place), "options": asdict(self.options)}
        (self.folder / "plane.json").write_text(json.dumps(state))
        self.kept.wait_for(self._has_service_account, "a service account for pods", READY_S)

    def _write_credentials(self) -> None:
        authority = Authority.make(self.folder / "pki")
        names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc", self.place.address]
        authority.issue("apiserver", "kube-apiserver", names=list(dict.fromkeys(names)))
        admin = authority.issue("admin", "admin", ["system:masters"])
        credentials.kubeconfig(self.kubeconfig, self.place.outside, authority.certificate, admin)
        for server in ("kube-controller-manager", "kube-scheduler"):
            credentials.kubeconfig(
                self.folder / "pki" / f"{server}.kubeconfig",
                self.place.inside,
                authority.certificate,
                authority.issue(server, f"system:{server}"),
            )
        credentials.kubeconfig(
            self.folder / "pki" / "admin.kubeconfig", self.place.inside, authority.certificate, admin
        )

    def start_apiserver(self) -> None:
        """Start the API server, at first or after :meth:`stop_apiserver`, and wait until it is ready."""
        self._run_server("kube-apiserver")
        self.kept.wait_for(self._is_ready, "the API server is ready", READY_S)

    def _run_server(self, name: str) -> None:
        arguments = ARGUMENTS[name](self.folder, self.place, self.options)
        self.run(name, [binaries.ensure(name)[name], *arguments])

    def _is_ready(self) -> bool:
        try:
            return bool(self.api()("GET", "/readyz", raw=True) == b"ok")
        except (OSError, ApiError):
            return False

    def _has_service_account(self) -> bool:
        try:
            self.api()("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        except ApiError:
            return False
        return True

    def stop_apiserver(self) -> None:
        """Take the API server away, as by ``kill -9``; clients' connections break."""
        self.kept.stop("kube-apiserver", signal.SIGKILL)

    @contextmanager
    def apiserver_away(self) -> Iterator[None]:
        """Run the body without an API server."""
        self.stop_apiserver()
        try:
            yield
        finally:
            self.start_apiserver()

    def restart_apiserver(self, away_s: float = 0.0) -> None:
        """Take the API server away for a while, and wait until it is back.

        A watch that goes on from before meets "410 Gone" where objects changed meanwhile: the new server
        remembers only what came after its start.
        """
        with self.apiserver_away():
            time.sleep(away_s)

    def compact_etcd(self) -> int:
        """Make etcd forget all but the present; return the revision.

        The API server still serves what its own cache remembers. A watch from an older revision gets "410
        Gone" for sure when the API server restarts after this.
        """
        revision = int(self._etcd("range", {"key": "AA=="})["header"]["revision"])
        self._etcd("compaction", {"revision": revision, "physical": True})
        return revision

    def _etcd(self, action: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.place.etcd}/v3/kv/{action}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with directly.open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def user_kubeconfig(self, user: str, groups: Sequence[str] = (), namespace: str = "default") -> Path:
        """A kubeconfig for a user by certificate: one with no rights until somebody grants some."""
        name = f"user-{user.replace(':', '-').replace('/', '-')}"
        certificate = self.authority.issue(name, user, groups)
        path = self.folder / f"{name}.kubeconfig"
        return credentials.kubeconfig(
            path, self.place.outside, self.authority.certificate, certificate, namespace
        )

    def serviceaccount_kubeconfig(self, namespace: str, name: str, valid_s: int = 3600) -> Path:
        """A kubeconfig for a ServiceAccount, by a token that is valid for a while (600 s at least)."""
        token = self.serviceaccount_token(namespace, name, valid_s)
        path = self.folder / f"serviceaccount-{namespace}-{name}.kubeconfig"
        return credentials.kubeconfig(path, self.place.outside, self.authority.certificate, token, namespace)

    def serviceaccount_token(self, namespace: str, name: str, valid_s: int = 3600) -> str:
        """A ServiceAccount's token (600 s at least)."""
        body = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = self.api()("POST", path, body | {"spec": {"expirationSeconds": valid_s}})
        return str(token["status"]["token"])

    def add_kwok_nodes(
        self,
        count: int,
        cpus: int = 16,
        memory: str = "64Gi",
        *,
        prefix: str = "kwok",
        pods: int = 250,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
    ) -> list[str]:
        """Add fake nodes, wait until they are Ready, and return their names.

        Parameters
        ----------
        count
            How many.
        cpus, memory, pods
            What each has, in Kubernetes' quantities.
        prefix
            Their names are ``<prefix>-0``, ``<prefix>-1``, and so on, after those that are there.
        labels, taints
            As in the Node's metadata and spec.
        """
        self._start_kwok()
        api = self.api()
        there = {node["metadata"]["name"] for node in api("GET", "/api/v1/nodes")["items"]}
        names = [name for i in range(len(there) + count) if (name := f"{prefix}-{i}") not in there][:count]
        size = {"cpu": str(cpus), "memory": memory, "pods": str(pods)}
        for name in names:
            own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": own | dict(labels or {}),
                    "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
                },
                "spec": {"taints": [dict(taint) for taint in taints], "providerID": f"kwok://{name}"},
                "status": {"capacity": size, "allocatable": size, "nodeInfo": {"kubeletVersion": "fake"}},
            }
            api("POST", "/api/v1/nodes", node)
        wanted = set(names)
        self.kept.wait_for(lambda: wanted <= self.ready_nodes(api), f"{count} kwok nodes are Ready", READY_S)
        return names

    def ready_nodes(self, api: Api | None = None) -> set[str]:
        """The names of the nodes that are Ready."""
        nodes = (api or self.api())("GET", "/api/v1/nodes?resourceVersion=0")["items"]
        return {
            node["metadata"]["name"]
            for node in nodes
            for condition in node["status"].get("conditions", ())
            if condition["type"] == "Ready" and condition["status"] == "True"
        }

    def _start_kwok(self) -> None:
        if "kwok" in self.kept.status():
            return
        paths = binaries.ensure("kwok", "kwok-stages")
        self.run(
            "kwok",
            [
                paths["kwok"],
                f"--config={paths['kwok-stages']}",
                f"--kubeconfig={self.folder / 'pki' / 'admin.kubeconfig'}",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            ],
        )


def own_name() -> str:
    """A name for a cluster of this process."""
    return f"test-{os.getpid()}-{random.randrange(1 << 16):04x}"
