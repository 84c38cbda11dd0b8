"""The peer: dask-kubernetes' operator, as a process beside the control plane.

It is installed from requirements/bench-kubernetes.txt into an environment of its own below the rig's
caches; its custom resources come from its own package.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rig.clients import KubectlError
from rig.folders import CHECKOUT, locked, root, wait_for
from rig.image_build import TAG
from rig.network import ROUTER
from rig.nodes import Cluster
from rig.plane import Plane

REQUIREMENTS = CHECKOUT / "requirements" / "bench-kubernetes.txt"
GROUP = "kubernetes.dask.org"
KINDS = ("daskautoscalers", "daskclusters", "daskworkergroups", "daskjobs")
#: How the operator calls what it makes for a DaskCluster of this name.
NAME = "peer"
WORKER_GROUP = f"daskworkergroups.{GROUP}/{NAME}-default"
WORKERS = f"dask.org/workergroup-name={NAME}-default"
_PROCESS = "dask-kubernetes"


def environment() -> Path:
    """The folder of the peer's environment; made if it is not there."""
    folder = root() / "peers" / hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    with locked(folder.with_suffix(".lock")):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv = str(Path(sys.executable).parent / "uv")
            subprocess.run(
                [uv, "venv", "--quiet", "--python", sys.executable, folder], check=True, timeout=120
            )
            python = folder / "bin" / "python"
            install = [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(python)]
            subprocess.run([*install, "-r", str(REQUIREMENTS)], check=True, timeout=300)
            (folder / "done").touch()
    return folder


def containers(
    scheduler: Mapping[str, Any], worker: Mapping[str, Any], memory: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers of a scheduler and of workers with one thread, from the project's image.

    Parameters
    ----------
    scheduler, worker
        Their resources, as Kubernetes has them.
    memory
        What a worker is told that it has.
    """
    image = {"image": TAG, "imagePullPolicy": "Never"}
    command = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1", "--no-dashboard"]
    command += ["--memory-limit", memory, "--local-directory", "/tmp", "--death-timeout", "60"]
    return (
        image | {"name": "scheduler", "args": ["dask", "scheduler"], "resources": scheduler},
        image | {"name": "worker", "args": command, "resources": worker},
    )


class Operator:
    """The operator, running for one namespace.

    Parameters
    ----------
    plane
        Where.
    namespace
        The one that it works for.
    """

    def __init__(self, plane: Plane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.plane.kubectl("--namespace", self.namespace, *arguments, **options)

    def make(
        self,
        scheduler: dict[str, Any],
        worker: dict[str, Any],
        *,
        scheduler_pod: Mapping[str, Any] | None = None,
        worker_pod: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a DaskCluster without workers; wait for its worker group.

        Parameters
        ----------
        scheduler, worker
            One container each.
        scheduler_pod, worker_pod
            More of their pods' specs.
        """
        ports = (("tcp-comm", 8786), ("http-dashboard", 8787))
        service = {
            "type": "ClusterIP",
            "selector": {"dask.org/cluster-name": NAME, "dask.org/component": "scheduler"},
            "ports": [{"name": name, "port": port, "targetPort": name} for name, port in ports],
        }
        scheduler = {
            "ports": [{"name": name, "containerPort": port} for name, port in ports],
            "readinessProbe": {"tcpSocket": {"port": "http-dashboard"}, "periodSeconds": 1},
        } | scheduler
        spec = {
            "worker": {"replicas": 0, "spec": {"containers": [worker], **(worker_pod or {})}},
            "scheduler": {
                "spec": {"containers": [scheduler], **(scheduler_pod or {})},
                "service": service,
            },
        }
        self._create("DaskCluster", spec)
        wait_for(
            lambda: self.kubectl("get", WORKER_GROUP, "--ignore-not-found", "--output=name").strip(),
            "the operator has made a worker group",
            60,
        )
        self.kubectl("wait", f"deployment/{NAME}-scheduler", "--for=condition=Available", "--timeout=60s")

    def autoscale(self, maximum: int) -> None:
        """Add a DaskAutoscaler from 0 to ``maximum``."""
        self._create("DaskAutoscaler", {"cluster": NAME, "minimum": 0, "maximum": maximum})

    def scale(self, n: int) -> None:
        """By hand."""
        patch = json.dumps({"spec": {"worker": {"replicas": n}}})
        self.kubectl("patch", WORKER_GROUP, "--type=merge", f"--patch={patch}")

    def log(self) -> str:
        return (self.plane.folder / "logs" / f"{_PROCESS}.log").read_text()

    def give_up(self) -> None:
        """Let go of what the operator has left: with its finalizers it would keep its namespace, too."""
        kinds = ",".join(f"{kind}.{GROUP}" for kind in KINDS)
        for left in self.kubectl("get", kinds, "--output=name").split():
            with suppress(KubectlError):  # it has, meanwhile
                self.kubectl("patch", left, "--type=merge", '--patch={"metadata": {"finalizers": null}}')

    def _create(self, kind: str, spec: dict[str, Any]) -> None:
        made = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": NAME}, "spec": spec}
        self.kubectl("create", "-f", "-", stdin=json.dumps(made))


@contextmanager
def operator(plane: Plane, namespace: str) -> Iterator[Operator]:
    """Install the custom resources and run the operator; all of it goes with the block."""
    folder = environment()
    (package,) = folder.glob("lib/python3*/site-packages/dask_kubernetes")
    crds = package / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    made = Operator(plane, namespace)
    # Not `apply`: they are too large for its annotation.
    plane.kubectl("create", "-f", str(crds))
    try:
        plane.kubectl("wait", "-f", str(crds), "--for=condition=Established", "--timeout=30s")
        kopf: list[str | Path] = [folder / "bin" / "kopf", "run", "--standalone", "--namespace", namespace]
        with tempfile.TemporaryDirectory() as home:
            # kr8s leaves keys among the temporary files.
            settings = {"HOME": home, "TMPDIR": home}
            settings["KUBECONFIG"] = str(plane.folder / "pki" / "admin.kubeconfig")
            command: list[str | Path] = [
                *_with_dns(plane),
                *kopf,
                "-m",
                "dask_kubernetes.operator.controller",
            ]
            plane.run(_PROCESS, command, settings)
            try:
                yield made
            finally:
                # While it runs: it has put finalizers on them. And it may make more meanwhile.
                with suppress(KubectlError):
                    made.kubectl("delete", f"daskautoscalers.{GROUP}", "--all", "--timeout=30s")
                    made.kubectl("delete", f"daskclusters.{GROUP}", "--all", "--timeout=30s")
                plane.kept.stop(_PROCESS)
                made.give_up()
    finally:
        plane.kubectl("delete", "-f", str(crds), "--timeout=60s", deadline_s=70)


def _with_dns(plane: Plane) -> list[str]:
    """First words of a command that finds Services by name, as a pod would."""
    if not isinstance(plane, Cluster):
        return []
    file = plane.folder / "resolv.conf"
    file.write_text(f"nameserver {ROUTER}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n")
    bind = f'mount --bind "{file}" /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", bind, "sh"]
