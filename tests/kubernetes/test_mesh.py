"""p43: what a service mesh sees in the chart's objects; docs/chart.md says what it has to be told."""

from __future__ import annotations

from typing import Any

import pytest

from dask_tide.providers.kubernetes.manifests import manifests

#: What Istio takes a port's name for: `<protocol>` or `<protocol>-<anything>`.
PROTOCOLS = {"grpc", "http", "http2", "https", "mongo", "mysql", "redis", "tcp", "tls", "udp"}
INJECT = {"sidecar.istio.io/inject": "false"}
PLAIN = {"security": {"tls": {"enabled": False}}}


def made(**values: Any) -> list[dict[str, Any]]:
    return manifests("r", "science", {"notebook": {"enabled": True}} | values, replicas=0)


def templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod templates by their component."""
    found = [one["spec"]["template"] for one in objects if one["kind"] in ("Deployment", "ReplicaSet")]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in found}


@pytest.mark.parametrize(("values", "comm"), [({}, "tls"), (PLAIN, "tcp")], ids=["tls", "plain"])
def test_p43_each_port_of_a_service_is_named_after_its_protocol(values: dict[str, Any], comm: str) -> None:
    objects = made(**values)
    pods = templates(objects)
    services = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Service"}
    assert set(services) == {"r-scheduler", "r-notebook"}
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
    assert protocols == {8786: comm, 8787: "http", 8888: "http"}


def test_p43_clients_are_told_of_the_service_and_of_no_pod() -> None:
    (notebook,) = templates(made())["notebook"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in notebook["env"]}
    assert environment["DASK_SCHEDULER_ADDRESS"] == "tls://r-scheduler:8786"


def test_p43_pods_can_be_kept_out_of_the_mesh() -> None:
    """Scheduler and workers know one another by pods' addresses, which a mesh does not."""
    labels = {"podLabels": INJECT}
    pods = templates(made(scheduler=labels, poolDefaults=labels))
    for component in ("scheduler", "worker"):
        assert INJECT.items() <= pods[component]["metadata"]["labels"].items()
