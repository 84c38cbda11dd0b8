"""A scheduler process on this machine, with the controller, that scales a pool on a plane."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from distributed import Client

from benchmarks.scheduler import command
from dask_tide.providers.kubernetes.manifests import manifests
from rig.clients import Api
from rig.folders import wait_for
from rig.plane import Plane

RELEASE, POOL = "bench", "cpu"
REPLICASET = f"{RELEASE}-{POOL}"
MAXIMUM = 2000
#: A pod on a fake node costs nothing.
_VALUES: dict[str, Any] = {
    "memory": "1Mi",
    "maximum": MAXIMUM,
    "resources": {"requests": {"cpu": "10m", "memory": "1Mi"}},
}
GROW_S = 180.0


def scale(client: Client, n: int) -> None:
    """Tell the controller to have ``n`` units, as a user does it by hand."""

    async def ask() -> Any:
        assert client.scheduler is not None
        return await client.scheduler.tide_scale(n=n)

    reply = client.sync(ask)
    assert not reply, reply


class Pool:
    """The pool's ReplicaSet on a plane, as the chart has it.

    Parameters
    ----------
    plane
        Where.
    namespace
        An empty one.
    values
        What the pool has otherwise, as the chart's values have it.
    """

    def __init__(self, plane: Plane, namespace: str, **values: Any) -> None:
        self.plane = plane
        self.namespace = namespace
        self._api: Api = plane.api()
        self._base = f"/apis/apps/v1/namespaces/{namespace}/replicasets"
        both = {"image": {"repository": "example.org/none"}, "pools": {POOL: _VALUES | values}}
        made = manifests(RELEASE, namespace, both, replicas=0)
        (replicaset,) = (one for one in made if one["kind"] == "ReplicaSet")
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"{RELEASE}-worker"}}
        plane.kubectl("--namespace", namespace, "create", "-f", "-", stdin=json.dumps(account))
        self._api("POST", self._base, replicaset)

    def status(self) -> dict[str, Any]:
        return dict(self._api("GET", f"{self._base}/{REPLICASET}")["status"])

    def ready(self, n: int, deadline_s: float = GROW_S) -> None:
        """Wait until ``n`` pods are ready."""
        end_s = time.monotonic() + deadline_s
        while self.status().get("readyReplicas", 0) < n:
            if time.monotonic() > end_s:
                raise TimeoutError(f"not within {deadline_s:g} s: {n} pods are ready; {self.status()}")
            time.sleep(0.02)

    def scale(self, n: int) -> None:
        """By kubectl."""
        self.plane.kubectl(
            "--namespace", self.namespace, "scale", f"replicaset/{REPLICASET}", f"--replicas={n}"
        )

    def empty(self) -> None:
        """Scale to 0, and wait until the last pod has gone."""
        self.scale(0)
        self.gone()

    def gone(self, deadline_s: float = GROW_S) -> None:
        """Wait until there are no pods."""
        pods = f"/api/v1/namespaces/{self.namespace}/pods?limit=1"
        wait_for(lambda: not self._api("GET", pods)["items"], "all pods are gone", deadline_s)

    @contextmanager
    def scheduler(self) -> Iterator[SchedulerProcess]:
        """A scheduler with the controller; its pods stay when it goes."""
        tide = {
            "provider": "kubernetes",
            "name": RELEASE,
            "pools": {POOL: {"maximum": MAXIMUM}},
            "options": {
                "namespace": self.namespace,
                "kubeconfig": str(self.plane.kubeconfig),
                "on-close": "keep",
            },
            # No worker will ever register from a pod that is only an object.
            "start": {"timeout": "1h"},
        }
        with scheduler_process({"tide": tide}, "--preload", "dask_tide.preload") as process:
            wait_for(process.attached, "the controller watches", 60)
            yield process


class SchedulerProcess:
    """A running ``dask scheduler``.

    Parameters
    ----------
    process
        Its process.
    client
        A client of it.
    """

    def __init__(self, process: psutil.Process, client: Client) -> None:
        self.process = process
        self.client = client

    def cpu_s(self) -> float:
        """CPU time that it has used."""
        return float(sum(self.process.cpu_times()[:2]))

    def rss_mib(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def attached(self) -> bool:
        """Whether the controller has had a look."""

        def looked(dask_scheduler: Any) -> bool:
            return dask_scheduler.extensions["tide"].snapshot is not None

        return bool(self.client.run_on_scheduler(looked))

    def scale(self, n: int) -> None:
        """As a user does it by hand."""
        scale(self.client, n)

    def units(self) -> int:
        """How many running pods the controller knows."""

        def count(dask_scheduler: Any) -> int:
            snapshot = dask_scheduler.extensions["tide"].snapshot
            return sum(1 for unit in snapshot.units if unit.phase.value == "starting")

        return int(self.client.run_on_scheduler(count))

    def calls(self) -> Counter[str]:
        """API calls that the provider has made, by verb; a watch counts once."""

        def count(dask_scheduler: Any) -> dict[str, int]:
            return dict(dask_scheduler.extensions["tide"].provider._api.calls)

        return Counter(self.client.run_on_scheduler(count))


@contextmanager
def scheduler_process(config: dict[str, Any], *options: str) -> Iterator[SchedulerProcess]:
    """Run ``dask scheduler`` with these options and this configuration."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "scheduler.json"
        (folder / "config").mkdir()
        (folder / "config" / "dask.json").write_text(json.dumps(config))
        environment = dict(psutil.Process().environ()) | {"DASK_CONFIG": str(folder / "config")}
        log = folder / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command(file, *options), stdout=output, stderr=output, env=environment
            ) as process,
        ):
            try:
                wait_for(lambda: file.exists() or process.poll() is not None, "the scheduler runs", 60)
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                wait_for(lambda: file.read_text().strip(), "its address is written", 10)
                with Client(scheduler_file=str(file), timeout=30) as client:
                    yield SchedulerProcess(psutil.Process(process.pid), client)
            finally:
                process.terminate()
                process.wait(30)
