"""Level *nodes*: real kubelets with containerd, on several virtual nodes of one machine; it needs root.

One node is one set of namespaces with a PID 1 (``rig/machine.sh``): killing that ends everything on it at
once, as when an instance is terminated. All addresses are in a network of the cluster's own; the machine's
network has only the *door*, a loopback port to the API server. Nothing of the machine itself is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self

from rig import binaries, cgroups, credentials, images, packages
from rig.clients import ApiError
from rig.folders import CHECKOUT, RigError, locked
from rig.keeper import Kept
from rig.machine import Machine
from rig.network import HOLDER, ROUTER, Network, run
from rig.plane import SERVERS, Options, Place, Plane, own_name
from rig.servers import SERVICE_RANGE

NODE_S = 90.0
LAST_ADDRESS = 240


class Cluster(Plane):
    """A control plane in a network of its own, with nodes: ``with Cluster.start() as cluster: …``.

    Parameters
    ----------
    kept, place, options
        As those of :class:`rig.plane.Plane`.
    """

    @property
    def network(self) -> Network:
        return Network(self.place.enter)

    @classmethod
    def start(
        cls,
        name: str | None = None,
        *,
        bound: bool = True,
        options: Options | None = None,
        tars: Sequence[Path] = (),
    ) -> Self:
        """Start a cluster without nodes, and wait until it serves.

        Parameters
        ----------
        name, bound, options
            As those of :meth:`rig.plane.Plane.start`.
        tars
            Images that each node has from its start: docker-archive files.

        Raises
        ------
        RigError
            If this machine cannot, or something does not start; with the reason.
        """
        if reason := packages.lacking():
            raise RigError(reason)
        binaries.ensure(*SERVERS, "kubectl", "kubelet", "kube-proxy", "coredns")
        store = images.bake(tars)
        kept = Kept.begin(name or own_name(), bound=bound)
        try:
            place = Place(ROUTER, Network.make(kept).enter, etcd_port=2379, peer_port=2380, api_port=6443)
            cluster = cls(kept, place, options or Options())
            (cluster.folder / "nodes").mkdir()
            (cluster.folder / "addresses").mkdir()
            images.copy(store, cluster.folder / "store")  # others' images may push it out of the cache
            (cluster.folder / "tars.json").write_text(json.dumps([str(tar.resolve()) for tar in tars]))
            cluster.bring_up()
            cluster._start_dns()
        except BaseException:
            kept.quit()
            raise
        return cluster

    def bring_up(self) -> None:
        door = [sys.executable, "-I", str(CHECKOUT / "rig" / "door.py"), str(self.place.door)]
        pid, _ = self.kept.status()[HOLDER]
        self.kept.start("door", [*door, str(pid), self.place.address, str(self.place.api_port)])
        super().bring_up()

    def _start_dns(self) -> None:
        looks = ["list", "watch"]
        kubeconfig = self._make_user(
            "coredns",
            [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": looks},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": looks},
            ],
        )
        (self.folder / "Corefile").write_text(
            ".:53 {\n  errors\n"
            f"  bind {ROUTER}\n"
            "  kubernetes cluster.local in-addr.arpa {\n"
            f"    kubeconfig {kubeconfig}\n    pods insecure\n    ttl 2\n  }}\n}}\n"
        )
        self.run("coredns", [binaries.ensure("coredns")["coredns"], "-conf", self.folder / "Corefile"])

    def _make_user(self, name: str, rules: Sequence[Mapping[str, Any]]) -> Path:
        """Make a user with these rights everywhere; the kubeconfig."""
        user = f"system:{name}"
        rbac = "rbac.authorization.k8s.io"
        kind = {"apiVersion": f"{rbac}/v1", "metadata": {"name": user}}
        role = {"apiGroup": rbac, "kind": "ClusterRole", "name": user}
        subject = {"apiGroup": rbac, "kind": "User", "name": user}
        api, base = self.api(), f"/apis/{rbac}/v1"
        api("POST", f"{base}/clusterroles", kind | {"kind": "ClusterRole", "rules": rules})
        binding = {"kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]}
        api("POST", f"{base}/clusterrolebindings", kind | binding)
        return self._credentials(name, user)

    def _credentials(
        self, name: str, user: str, groups: Sequence[str] = (), folder: Path | None = None
    ) -> Path:
        folder = folder or self.folder / "pki"
        certificate = self.authority.issue(name, user, groups, folder=folder)
        return credentials.kubeconfig(
            folder / f"{name}.kubeconfig", self.place.inside, self.authority.certificate, certificate
        )

    def nodes(self) -> list[str]:
        """The names of the nodes that are up (the machines, not the API's objects)."""
        return sorted(path.name for path in (self.folder / "nodes").iterdir())

    def node_up(
        self,
        name: str,
        *,
        cpus: int | None = None,
        memory_gib: float | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[str] = (),
        provider_id: str | None = None,
        wait: bool = True,
    ) -> None:
        """Boot a node (see :class:`Machine`) and, unless told otherwise, wait until it is Ready.

        Raises
        ------
        RigError
            If there is one of this name, or it does not become Ready; with the end of its logs.
        """
        self.boot(Machine(name, cpus, memory_gib, labels or {}, taints, provider_id), wait=wait)

    def boot(self, machine: Machine, *, index: int | None = None, wait: bool = True) -> None:
        """Boot a machine; :meth:`node_up` with more to choose.

        Parameters
        ----------
        machine
            The node to be.
        index
            Its place in the network (see :func:`rig.network.node_address`); by default a free one.
        wait
            Whether to wait until the node is Ready.
        """
        folder = self.folder / "nodes" / machine.name
        try:
            folder.mkdir()
        except FileExistsError:
            raise RigError(f"node {machine.name!r} is up already") from None
        try:
            self._boot(machine, folder, index)
            if wait:
                self.wait_ready(machine.name)
        except BaseException:
            self.node_down(machine.name)
            raise

    def nodes_up(self, *names: str, **options: Any) -> None:
        """Boot several nodes at once and wait until all are Ready."""
        for name in names:
            self.node_up(name, wait=False, **options)
        for name in names:
            self.wait_ready(name)

    def _boot(self, machine: Machine, folder: Path, wanted: int | None) -> None:
        index = self._take_address(machine.name, wanted)
        machine.write(folder, index)
        shutil.copy(self.authority.certificate, folder / "ca.crt")
        self._credentials("kubelet", f"system:node:{machine.name}", ["system:nodes"], folder)
        self._credentials("proxy", "system:kube-proxy", folder=folder)
        images.copy(self.folder / "store", folder / "var" / "lib" / "containerd")
        environment = machine.environment(index) | {
            "RIG_NODE": str(folder),
            "RIG_BIN": str(binaries.ensure("kubelet", "kube-proxy")["kubelet"].parent),
            "RIG_CGROUPS": " ".join(map(str, cgroups.make(self.folder, machine.name))),
        }
        script = CHECKOUT / "rig" / "machine.sh"
        process = _process(machine.name)
        outer = self.kept.start(process, ["bash", str(script), "enter"], environment)
        # Another machine that has died is no obstacle.
        self.kept.wait_for(lambda: _init(outer), f"{machine.name} has a PID 1", NODE_S, of=[process])
        with self._wiring():
            self.network.plug_in(index, _init(outer))

    def _take_address(self, name: str, wanted: int | None) -> int:
        for index in range(1, LAST_ADDRESS) if wanted is None else [wanted]:
            try:
                (self.folder / "addresses" / str(index)).symlink_to(name)  # atomic: two boots at once get two
            except FileExistsError:
                continue
            return index
        raise RigError("no address is left for another node")

    def _wiring(self) -> AbstractContextManager[None]:
        """Alone at addresses and routes: nodes come and go at the same time, in several processes."""
        return locked(self.folder / "network.lock")

    def _addresses(self) -> dict[str, int]:
        found = {}
        for path in (self.folder / "addresses").iterdir():
            with suppress(FileNotFoundError):  # another node goes meanwhile
                found[str(path.readlink())] = int(path.name)
        return found

    def load(self, tar: Path) -> None:
        """Import an image (a docker-archive file) into all nodes; those to come have it from their start."""
        with tar.open("rb") as file:
            for name in self.nodes():
                file.seek(0)
                importing = ["ctr", "--namespace", "k8s.io", "images", "import", "-"]
                self.run_on(name, importing, stdin=file, timeout=images.BAKE_S)
        listed = self.folder / "tars.json"
        tars = dict.fromkeys([*json.loads(listed.read_text()), str(tar.resolve())])
        baked = images.bake([Path(each) for each in tars if Path(each).exists()])
        images.renew(self.folder / "store", baked)
        listed.write_text(json.dumps(list(tars)))

    def wait_ready(self, name: str) -> None:
        """Wait until a node is Ready."""
        api, folder = self.api(), self.folder / "nodes" / name

        def decided() -> bool:
            return name in self.ready_nodes(api) or (folder / "kubelet.ended").exists()

        try:
            self.kept.wait_for(decided, f"node {name} is Ready", NODE_S, of=[_process(name)])
            if (folder / "kubelet.ended").exists():
                raise RigError(f"the kubelet of node {name} ended")
        except RigError as error:
            if any("too many open files" in text for text in self._logs(name).values()):
                # A limit of the whole machine, 128 by default: it is not ours to raise.
                hint = "end other clusters, or: sysctl fs.inotify.max_user_instances=1024"
                raise RigError(f"no inotify instances are left for node {name}: {hint}") from error
            raise RigError(f"{error}\n{self.console(name)}") from error

    def console(self, name: str) -> str:
        """What a node's daemons, and its PID 1, have said last."""
        return "\n".join(f"{log}:\n{text[-2000:]}" for log, text in self._logs(name).items())

    def _logs(self, name: str) -> dict[str, str]:
        logs = [self.folder / "nodes" / name / f"{log}.log" for log in ("containerd", "proxy", "kubelet")]
        logs.append(self.folder / "logs" / f"{_process(name)}.log")
        return {log.name: log.read_text(errors="replace") for log in logs if log.exists()}

    def node_down(self, name: str, *, forget: bool = False) -> None:
        """Kill a node as when an instance is terminated: nothing is said to anybody.

        Parameters
        ----------
        name
            The node.
        forget
            Whether its Node object goes too, as a cloud's controller would have it after a while.
        """
        folder = self.folder / "nodes" / name
        if not folder.exists():
            raise RigError(f"no node {name!r} is up; there are: {', '.join(self.nodes())}")
        for process in (_policies(name), _process(name)):
            if process in self.kept.status():
                self.kept.stop(process, signal.SIGKILL)
        with self._wiring():
            self._unwire(name)
        cgroups.remove(self.folder, name)
        for log in folder.glob("*.log"):  # a console outlives its machine
            shutil.copy(log, self.folder / "logs" / f"node-{name}-{log.name}")
        shutil.rmtree(folder)
        if forget:
            self._forget(name)

    def _unwire(self, name: str) -> None:
        addresses = self._addresses()
        index = addresses.pop(name, None)
        if index is None:
            return
        self.network.pull_out(index)
        (self.folder / "addresses" / str(index)).unlink()
        for other in list(addresses.values())[-1:]:
            self.network.route_services(other)

    def _forget(self, name: str) -> None:
        try:
            self.api()("DELETE", f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    def enforce_policies(self, name: str) -> None:
        """Have a node that is Ready enforce NetworkPolicies, for as long as it is up.

        CNI's own plugins do not. This is kube-router's controller (``rig/go/policies``).
        """
        kubeconfig = self.folder / "pki" / "policies.kubeconfig"
        if not kubeconfig.exists():
            looks = ["get", "list", "watch"]
            self._make_user(
                "policies",
                [
                    {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": looks},
                    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": looks},
                ],
            )
        outer, _ = self.kept.status()[_process(name)]
        # Its network is the node's, and it ends with the node's PID 1; its programs are the host's.
        enter = ["nsenter", "--net", "--pid", f"--target={_init(outer)}", "--"]
        program = str(binaries.ensure("policies")["policies"])
        options = [f"-kubeconfig={kubeconfig}", f"-node={name}", f"-services={SERVICE_RANGE}"]
        environment = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
        self.kept.start(_policies(name), [*enter, program, *options], environment)
        log = self.folder / "logs" / f"{_policies(name)}.log"
        self.kept.wait_for(
            lambda: "Starting network policy controller full sync" in log.read_text(),
            f"node {name} enforces NetworkPolicies",
            NODE_S,
            of=[_policies(name)],
        )

    def unplug(self, name: str) -> None:
        """Take a node off the network; it goes on running."""
        self.network.switch(self._addresses()[name], "down")

    def plug(self, name: str) -> None:
        """Put a node back on the network."""
        self.network.switch(self._addresses()[name], "up")

    def kill_kubelet(self, name: str) -> None:
        """Kill a node's kubelet; its containers go on running."""
        pid = (self.folder / "nodes" / name / "kubelet.pid").read_text().strip()
        self.run_on(name, ["bash", "-c", f"kill -9 {pid}"])

    def start_kubelet(self, name: str) -> None:
        """Start a node's kubelet again, after :meth:`kill_kubelet`, and wait until the node is Ready."""
        self.kept.wait_for(
            (self.folder / "nodes" / name / "kubelet.ended").exists, "the kubelet ended", NODE_S
        )
        (self.folder / "nodes" / name / "kubelet.ended").unlink()
        self.run_on(name, ["kill", "-HUP", "1"])
        self.wait_ready(name)

    def run_in(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's network, where Services, pods and nodes can be reached by address.

        Parameters
        ----------
        command
            The command.
        options
            More for :func:`subprocess.run`.
        """
        return self.network.run(command, **options)

    def run_on(self, name: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, as root at its console."""
        outer, _ = self.kept.status()[_process(name)]
        return run(["nsenter", "--all", f"--target={_init(outer)}", "--", *command], **options)


def _process(node: str) -> str:
    return f"node-{node}"


def _policies(node: str) -> str:
    return f"policies-{node}"


def _init(outer: int) -> int:
    """The id of a machine's PID 1, seen from here; 0 as long as there is none."""
    try:
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        status = Path(f"/proc/{children[0]}/status").read_text() if children else ""
    except OSError:
        return 0
    # Not a helper of the shell before: first in a PID namespace of its own.
    own = [line.split() for line in status.splitlines() if line.startswith("NSpid:")]
    return int(children[0]) if own and len(own[0]) > 2 and own[0][-1] == "1" else 0
