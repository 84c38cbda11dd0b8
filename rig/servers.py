"""What the servers of a control plane are told."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SERVICE_RANGE = "10.96.0.0/16"


def free_port() -> int:
    """A loopback port that nobody listens on, outside of the range that the kernel gives to clients."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Place:
    """Where the servers listen.

    Attributes
    ----------
    address
        The API server's address for the other servers and for nodes.
    enter
        The command's first words that bring a process to that network.
    door
        The loopback port of the API server in the machine's own network.
    api_port, etcd_port, peer_port
        The servers' own ports.
    """

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()
    door: int = field(default_factory=free_port)
    etcd_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    api_port: int = 0

    @property
    def inside(self) -> str:
        """The API server's URL in its own network."""
        return f"https://{self.address}:{self.api_port or self.door}"

    @property
    def outside(self) -> str:
        """Its URL in the machine's own network."""
        return f"https://127.0.0.1:{self.door}"

    @property
    def etcd(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"


@dataclass(frozen=True)
class Options:
    """What can be chosen about a control plane.

    Attributes
    ----------
    node_grace_s
        How long a node may be silent before it is NotReady.
    apiserver, controller_manager
        More arguments for these servers, `--name=value`.
    audit
        Whether the API server writes who asked for what to ``logs/audit.log``, a JSON object a line.
    """

    node_grace_s: int = 20
    apiserver: tuple[str, ...] = ()
    controller_manager: tuple[str, ...] = ()
    audit: bool = False


def etcd(folder: Path, place: Place, options: Options) -> list[str]:
    peer = f"http://127.0.0.1:{place.peer_port}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={place.etcd}",
        f"--advertise-client-urls={place.etcd}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # nothing outlives the cluster anyway
        "--log-level=warn",
    ]


def apiserver(folder: Path, place: Place, options: Options) -> list[str]:
    pki = folder / "pki"
    loopback = not place.enter
    return [
        f"--etcd-servers={place.etcd}",
        f"--bind-address={'127.0.0.1' if loopback else '0.0.0.0'}",
        f"--secure-port={place.api_port or place.door}",
        f"--advertise-address={place.address}",
        # Loopback is no address for the Service `kubernetes`; no pod is there to use it.
        *(["--endpoint-reconciler-type=none"] if loopback else []),
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'admin.crt'}",
        f"--kubelet-client-key={pki / 'admin.key'}",
        "--kubelet-preferred-address-types=InternalIP",  # nodes' names are in no DNS
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'sa.key'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allow-privileged=true",
        *(_audit(folder) if options.audit else ()),
        *options.apiserver,
    ]


def _audit(folder: Path) -> list[str]:
    policy = folder / "audit-policy.json"
    rules = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
    policy.write_text(json.dumps(rules | {"omitStages": ["RequestReceived"]}))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={folder / 'logs' / 'audit.log'}"]


def controller_manager(folder: Path, place: Place, options: Options) -> list[str]:
    pki = folder / "pki"
    return [
        f"--kubeconfig={pki / 'kube-controller-manager.kubeconfig'}",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--secure-port=0",
        "--allocate-node-cidrs=false",
        # Its default of 20 a second makes 1,000 pods take 50 s, for anybody's autoscaler.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={options.node_grace_s}s",
        *options.controller_manager,
    ]


def scheduler(folder: Path, place: Place, options: Options) -> list[str]:
    return [
        f"--kubeconfig={folder / 'pki' / 'kube-scheduler.kubeconfig'}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


#: The arguments of each server, by its program's name, in the order of their start.
ARGUMENTS: dict[str, Callable[[Path, Place, Options], list[str]]] = {
    "etcd": etcd,
    "kube-apiserver": apiserver,
    "kube-controller-manager": controller_manager,
    "kube-scheduler": scheduler,
}
