"""p43: what a service mesh learns from the chart's objects; there is none here. See docs/chart.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from known import known
from releases import DEADLINE_S, POOL, Release, addresses, ask, computed_once, hold, nap, workers
from waiting import wait_until

from dask_tide.providers.kubernetes.manifests import manifests

#: What Istio takes a port's name for: `<protocol>` or `<protocol>-<anything>`.
PROTOCOLS = {"grpc", "http", "http2", "https", "mongo", "mysql", "redis", "tcp", "tls", "udp"}
INJECT = {"sidecar.istio.io/inject": "false"}
PLAIN = {"security": {"tls": {"enabled": False}}}
MESH = {"serviceMesh": {"enabled": True}}


def made(**values: Any) -> list[dict[str, Any]]:
    always = {"image": {"repository": "example.org/dask-tide"}, "notebook": {"enabled": True}}
    return manifests("r", "science", always | values, replicas=0)


def templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod templates by their component."""
    found = [one["spec"]["template"] for one in objects if one["kind"] in ("Deployment", "ReplicaSet")]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in found}


@pytest.mark.parametrize(("values", "comm"), [({}, "tls"), (PLAIN, "tcp")], ids=["tls", "plain"])
def test_p43_each_port_of_a_service_is_named_after_its_protocol(values: dict[str, Any], comm: str) -> None:
    objects = made(**values, **MESH)
    pods = templates(objects)
    services = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Service"}
    assert set(services) == {"r-scheduler", "r-notebook", "r-workers"}
    protocols = {}
    for service in services.values():
        template = pods[service["selector"]["app.kubernetes.io/component"]]
        assert service["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["ports"]:
            protocols[port["port"]] = port["name"].partition("-")[0]
            # Not a number that nobody can look up: the pod has a port of this name, too.
            assert numbers[port["targetPort"]] == port["port"]
    assert set(protocols.values()) <= PROTOCOLS
    assert protocols == {8786: comm, 8787: "http", 8888: "http", 8788: comm, 8789: comm}


def test_p43_clients_are_told_of_the_service_and_of_no_pod() -> None:
    (notebook,) = templates(made())["notebook"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in notebook["env"]}
    assert environment["DASK_SCHEDULER_ADDRESS"] == "tls://r-scheduler:8786"


def test_p43_without_a_mesh_no_service_has_to_follow_the_workers() -> None:
    assert "r-workers" not in {one["metadata"]["name"] for one in made()}
    (worker,) = templates(made())["worker"]["spec"]["containers"]
    assert not {"--worker-port", "--nanny-port"} & set(worker["args"])


@pytest.mark.xdist_group("nodes")
@pytest.mark.timeout(300, func_only=True)
def test_p43_whatever_dask_connects_to_stands_in_a_service(install: Callable[..., Release]) -> None:
    tide = {"release": {"keep": "1m", "tail": "1m"}}
    release = install({"pools": {"cpu": POOL | {"maximum": 3}}, "tide": tide, **MESH})

    def announced() -> set[str]:
        """Addresses and ports that a mesh would know of."""
        command = ("--namespace", release.namespace, "get", "endpointslices")
        slices = release.cluster.kubectl.json(*command, "-l", "kubernetes.io/service-name=r-workers")["items"]
        return {
            f"tls://{address}:{port['port']}"
            for one in slices
            for port in one["ports"]
            for endpoint in one["endpoints"] or ()
            if endpoint["conditions"]["ready"]
            for address in endpoint["addresses"]
        }

    def used() -> set[str]:
        """Those that scheduler and workers have of one another."""
        return {*known(client), *(worker["nanny"] for worker in known(client).values())}

    def agree(n: int) -> None:
        wait_until(
            lambda: len(used()) == 2 * n and used() == announced(),
            f"the Service has what {n} workers use",
            DEADLINE_S,
            lambda: f"{used()}\n{announced()}\n{release.situation()}",
        )

    release.settled(0, "once the first one, which Kubernetes has started, is gone")
    with release.client() as client:
        held = hold(client, 3)
        held.placed(release)
        agree(3)
        schedulers = client.run(lambda dask_worker: dask_worker.scheduler.address)
        assert set(schedulers.values()) == {"tls://r-scheduler:8786"}
        held.tell()
        assert client.gather(held.futures) == [0, 1, 2]
        held.forget()
        # A worker that starts again listens where it did.
        before = used()
        client.restart(timeout=DEADLINE_S)
        ask(client, "tide_scale", n=3)
        agree(3)
        assert used() == before
        futures = client.map(nap, [0.1] * 12, pure=False)
        by_worker = client.gather(futures)
        assert set(by_worker) == set(workers(client))
        # One that has to go hands over its results to others' addresses, and is then no longer announced.
        victim = next(iter(addresses(client)))
        release.evict(victim)
        wait_until(lambda: victim not in workers(client), "it has left", DEADLINE_S, release.situation)
        agree(3)
        assert client.gather(futures) == by_worker
        computed_once(client)


def test_p43_pods_can_be_kept_out_of_the_mesh() -> None:
    """Where its sidecars would be in the way."""
    labels = {"podLabels": INJECT}
    pods = templates(made(scheduler=labels, poolDefaults=labels))
    for component in ("scheduler", "worker"):
        assert INJECT.items() <= pods[component]["metadata"]["labels"].items()
