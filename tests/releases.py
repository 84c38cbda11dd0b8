"""A release of the chart on a real cluster, and what a test asks of it: a client, pods, reasons."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dask
import pytest
import yaml
from distributed import Client, Event, Future, Security
from known import known
from waiting import wait_until

from rig import binaries
from rig.clients import Kubectl
from rig.nodes import Cluster
from rig.servers import free_port

CHART = Path(__file__).parents[1] / "charts" / "dask-tide"
#: What the whole of a small machine can hold a dozen times.
POOL: dict[str, Any] = {
    "threads": 1,
    "memory": "400Mi",
    "maximum": 6,
    "terminationGracePeriodSeconds": 40,
    "resources": {"requests": {"cpu": "50m", "memory": "150Mi"}},
}
VALUES: dict[str, Any] = {
    "image": {"repository": "docker.io/dask-tide/dask-tide", "tag": "dev", "pullPolicy": "Never"},
    "scheduler": {"resources": {"requests": {"cpu": "50m", "memory": "150Mi"}, "limits": {"memory": "1Gi"}}},
}
#: What tests look at again and again, and its API; kubectl takes a tenth of a second of a CPU each time.
OFTEN = {"pods": "/api/v1", "replicasets": "/apis/apps/v1"}
#: A cluster on a machine that does other things, too.
DEADLINE_S = 90.0


class HelmError(Exception):
    """helm failed; the message is what it said."""


def helm(kubectl: Kubectl, namespace: str, folder: Path, *arguments: str) -> str:
    """Run helm in a namespace, with its caches in a folder, and return what it prints."""
    command = [str(binaries.ensure("helm")["helm"]), "--namespace", namespace, *arguments]
    environment = os.environ | kubectl.environment()
    environment |= {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise HelmError(done.stderr)
    return done.stdout


class Release:
    """An installed release.

    Parameters
    ----------
    cluster
        Where.
    namespace, name
        Its namespace and its own name.
    folder
        For certificates and logs.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, folder: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        self.folder = folder
        self._forwards: list[subprocess.Popen[bytes]] = []
        self._api, self._asking = cluster.api(), threading.Lock()

    # -- helm -----------------------------------------------------------------------------------

    def helm(self, *arguments: str) -> str:
        return helm(self.cluster.kubectl, self.namespace, self.folder, *arguments)

    def apply(self, verb: str, values: dict[str, Any], *arguments: str) -> None:
        """``install`` or ``upgrade``, with ``values`` beside what tests always say."""
        file = self.folder / f"{verb}-{self.name}.yaml"
        file.write_text(yaml.safe_dump(VALUES | values))
        self.helm(verb, self.name, str(CHART), "--values", str(file), *arguments)

    # -- kubectl --------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, **options)

    def objects(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        labels = f"app.kubernetes.io/instance={self.name}" + (f",{selector}" if selector else "")
        if kind in OFTEN:
            path = f"{OFTEN[kind]}/namespaces/{self.namespace}/{kind}?labelSelector={quote(labels)}"
            with self._asking:
                found: list[dict[str, Any]] = self._api("GET", path)["items"]
        else:
            command = ("--namespace", self.namespace, "get", kind, "--selector", labels)
            found = self.cluster.kubectl.json(*command)["items"]
        return found

    def pods(self, pool: str | None = None) -> dict[str, dict[str, Any]]:
        """Workers' pods that are not about to go, by name."""
        return _staying(self.all_pods(pool))

    def all_pods(self, pool: str | None = None) -> dict[str, dict[str, Any]]:
        """Workers' pods, those that are going, too."""
        selector = "app.kubernetes.io/component=worker" + (f",dask-tide/pool={pool}" if pool else "")
        return {pod["metadata"]["name"]: pod for pod in self.objects("pods", selector)}

    def evict(self, pod: str) -> None:
        """What ``kubectl drain`` and node autoscalers do to a pod."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        metadata = {"name": pod, "namespace": self.namespace}
        self.cluster.api()(
            "POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        )

    def delete(self, pod: str) -> None:
        """What somebody does by hand."""
        self.kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found")

    def destroy(self, pod: str) -> None:
        """The same without time for it to leave."""
        self.kubectl(
            "delete", "pod", pod, "--force", "--grace-period=0", "--wait=false", "--ignore-not-found"
        )

    def scheduler_pod(self) -> str:
        """The name of the scheduler's pod that runs."""
        (name,) = (
            pod["metadata"]["name"]
            for pod in self.objects("pods", "app.kubernetes.io/component=scheduler")
            if "deletionTimestamp" not in pod["metadata"]
        )
        return str(name)

    def schedulers(self) -> dict[str, bool]:
        """The names of the scheduler's pods, old and new, and whether they are ready."""
        found = self.objects("pods", "app.kubernetes.io/component=scheduler")
        return {pod["metadata"]["name"]: is_ready(pod) for pod in found}

    def settled(
        self, workers: int, what: str = "", deadline_s: float = DEADLINE_S
    ) -> dict[str, dict[str, Any]]:
        """Wait until there are exactly so many workers' pods, and none is going."""

        def there() -> bool:
            found = self.all_pods()
            return len(_staying(found)) == workers == len(found)

        wait_until(there, f"{workers} pods {what}", deadline_s, self.situation)
        return self.pods()

    def ready(self, deadline_s: int = 180) -> None:
        """Wait until the scheduler serves; a machine may have to come for it."""
        what = ("rollout", "status", f"deployment/{self.name}-scheduler", f"--timeout={deadline_s}s")
        self.kubectl(*what, deadline_s=deadline_s + 10)

    def log(self) -> str:
        return self.kubectl("logs", f"deployment/{self.name}-scheduler", "--tail=-1")

    def explain(self) -> str:
        """What ``dask tide explain`` says in the scheduler's pod."""
        return self.kubectl(
            "exec", f"deployment/{self.name}-scheduler", "--",
            "dask", "tide", "explain", "--scheduler", f"tls://{self.name}-scheduler:8786", "--lines", "200",
        )  # fmt: skip

    def situation(self) -> str:
        """For the message of a test that fails; the longest last, as some who show it cut it."""
        return "\n".join([self.kubectl("get", "pods,replicasets", "--output=wide"), self.explain()])

    def told(self, client: Client, words: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until it is told to who asks why; :meth:`explain` starts a Python in the pod each time."""
        wait_until(
            lambda: words in ask(client, "tide_explain", lines=200),
            f"it is told: {words}",
            deadline_s,
            self.situation,
        )

    # -- a client -------------------------------------------------------------------------------

    def security(self) -> Security:
        """The certificates of the release's Secret."""
        command = ("--namespace", self.namespace, "get", "secret", f"{self.name}-tls")
        data = self.cluster.kubectl.json(*command)["data"]
        for key, text in data.items():
            (self.folder / key).write_bytes(base64.b64decode(text))
        return Security(
            tls_ca_file=str(self.folder / "ca.crt"),
            tls_client_cert=str(self.folder / "tls.crt"),
            tls_client_key=str(self.folder / "tls.key"),
            require_encryption=True,
        )

    def forward(self, target: str, port: int) -> int:
        """A loopback port behind which is ``port`` of ``target`` in the cluster."""
        local = free_port()
        command = self.cluster.kubectl.command(
            "--namespace", self.namespace, "port-forward", target, f"{local}:{port}"
        )
        environment = os.environ | self.cluster.kubectl.environment()
        log = self.folder / f"forward-{local}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self._forwards.append(process)

        def listens() -> bool:
            if process.poll() is not None:
                pytest.fail(f"port-forward to {target} ended with {process.returncode}:\n{log.read_text()}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", local)) == 0

        wait_until(listens, f"port-forward to {target} listens", detail=log.read_text)
        return local

    @contextmanager
    def client(self, **options: Any) -> Iterator[Client]:
        """A client outside of the cluster."""
        client = wait_until(lambda: self._connected(**options), "a port-forward that lasts")
        try:
            yield client
        finally:
            try:
                client.close()
            except ValueError as error:
                # It was connecting again to a scheduler that went away just then (tornadoweb/tornado#2546).
                if "IOStream is not idle" not in str(error):
                    raise

    def _connected(self, **options: Any) -> Client | None:
        """A client; None: kubectl has ended, which it does when a single connection to a pod fails."""
        port = self.forward(f"service/{self.name}-scheduler", 8786)
        process, log = self._forwards[-1], self.folder / f"forward-{port}.log"
        try:
            return Client(f"tls://127.0.0.1:{port}", security=self.security(), timeout=30, **options)
        except OSError as error:
            if process.poll() is None:
                error.add_note(log.read_text())
                raise
            print(f"port-forward ended with {process.returncode}: {log.read_text()}")
            return None

    def close(self) -> None:
        """End port-forwards; the namespace goes with its test."""
        for process in self._forwards:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
        self._forwards.clear()


def _staying(pods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: pod
        for name, pod in pods.items()
        if "deletionTimestamp" not in pod["metadata"]
        and pod["status"].get("phase") not in ("Failed", "Succeeded")
    }


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether a pod is ready."""
    conditions = pod["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def workers(client: Client) -> dict[str, dict[str, Any]]:
    """The workers that the scheduler knows, by name."""
    return {str(worker["name"]): worker for worker in known(client).values()}


def _by_value() -> Callable[..., str]:
    # Inside of a function, so that it is sent by value: workers cannot import tests.
    def nap(seconds: float, *_: object) -> str:
        import time

        from distributed import get_worker

        time.sleep(seconds)
        return str(get_worker().name)

    return nap


#: A task: sleep, and say on which worker.
nap = _by_value()


def computed_once(client: Client) -> None:
    """Fail, with their stories, where a task has finished more than once: its result was computed again."""

    def count(dask_scheduler: Any) -> dict[str, list[str]]:
        stories: dict[str, list[str]] = {}
        for key, start, finish, _, stimulus, at_s in dask_scheduler.transition_log:
            stories.setdefault(str(key), []).append(f"{at_s:.1f} {start} -> {finish}: {stimulus}")
        return stories

    stories = dict(client.run_on_scheduler(count))
    ends = {key: sum("processing -> memory" in each for each in story) for key, story in stories.items()}
    again = {key: stories[key] for key, times in ends.items() if times > 1}
    assert any(ends.values()), "nothing was computed"
    told = ask(client, "tide_explain", lines=40)
    assert not again, f"computed again:\n{json.dumps(again, indent=1)}\n{told}"


def calls(client: Client) -> dict[str, int]:
    """How many calls the provider has made to the API server, by verb."""

    def count(dask_scheduler: Any) -> dict[str, int]:
        return dict(dask_scheduler.extensions["tide"].provider._api.calls)

    return dict(client.run_on_scheduler(count))


def ask(client: Client, handler: str, **arguments: Any) -> Any:
    """Call one of the controller's handlers."""
    return client.sync(lambda: getattr(client.scheduler, handler)(**arguments))


def at_work(client: Client, future: Future) -> str:
    """Name of the worker that has the task; empty: none."""
    busy = [address for address, keys in client.processing().items() if future.key in keys]
    return next((name for address in busy for name, at in addresses(client).items() if at == address), "")


def addresses(client: Client) -> dict[str, str]:
    """Addresses of workers by name."""
    return {str(w["name"]): address for address, w in known(client).items()}


def _until_told() -> Callable[..., int]:
    def until_told(topic: str, number: int) -> int:
        from distributed import Event, get_worker

        get_worker().log_event(topic, number)
        Event(f"{topic}-{number}").wait()
        return number

    return until_told


class Held:
    """Tasks that say when they begin, and end when they are told; see :func:`hold`.

    Parameters
    ----------
    client
        Who asks after them.
    topic
        Their name.
    futures
        The tasks, numbered from 0.
    """

    def __init__(self, client: Client, topic: str, futures: list[Future]) -> None:
        self._client = client
        self.topic = topic
        self.futures = futures

    @classmethod
    def published(cls, client: Client, topic: str) -> Held:
        """Those that another client has published."""
        return cls(client, topic, client.get_dataset(topic))

    def publish(self) -> None:
        """Have them outlive their client, as a dataset named after the topic."""
        self._client.publish_dataset(self.futures, name=self.topic)

    def begun(self) -> list[int]:
        """How often each has begun."""
        said = [number for _, number in self._client.get_events(self.topic)]
        return [said.count(number) for number in range(len(self.futures))]

    def placed(self, release: Release) -> dict[str, int]:
        """Wait until each runs on a worker of its own; their numbers by the workers' names."""

        def by_worker() -> dict[str, int]:
            # First: one that has begun is not sent elsewhere any more.
            if not all(self.begun()):
                return {}
            found = {at_work(self._client, future): number for number, future in enumerate(self.futures)}
            return found if len(found) == len(self.futures) and "" not in found else {}

        placed: dict[str, int] = wait_until(by_worker, "each has a task", DEADLINE_S, release.situation)
        return placed

    def tell(self, *numbers: int) -> None:
        """Let these end; without a number all."""
        for number in numbers or range(len(self.futures)):
            Event(f"{self.topic}-{number}", client=self._client).set()

    def forget(self) -> None:
        """Nobody wants their results any more."""
        self.futures.clear()


def hold(client: Client, count: int, **options: Any) -> Held:
    """Have so many of them; ``options`` as of ``client.map``."""
    topic = f"held-{uuid.uuid4().hex}"
    with dask.annotate(duration="1h"):
        futures = client.map(_until_told(), [topic] * count, range(count), pure=False, **options)
    return Held(client, topic, futures)
