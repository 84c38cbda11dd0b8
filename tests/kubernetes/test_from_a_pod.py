"""TideCluster with Kubernetes, from a pod of that cluster: reached by its Service, and nothing is left."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from waiting import wait_until

from rig.image_build import TAG
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

UP_S = 240.0
SMALL = {"requests": {"cpu": "50m", "memory": "150Mi"}}
VALUES: dict[str, Any] = {
    "poolDefaults": {"memory": "400Mi", "resources": SMALL, "terminationGracePeriodSeconds": 10},
    "scheduler": {"resources": SMALL},
}
_PROGRAM = """
    import json, sys
    from dask_tide import TideCluster

    def name_of_worker(_):
        import distributed
        return distributed.get_worker().name

    arguments = json.loads(sys.argv[1])
    cluster = TideCluster(provider="kubernetes", maximum=2, **arguments)
    with cluster, cluster.get_client() as client:
        names = client.gather(client.map(name_of_worker, range(8)))
        seen = {
            "name": cluster.name,
            "address": cluster.scheduler_address,
            "client": client.scheduler.address,
            "dashboard": cluster.dashboard_link,
            "forwards": len(cluster._site._host._forwards),
            "workers": sorted(set(names)),
            "explained": "asked for" in cluster.explain(),
        }
    print(json.dumps(seen))
"""


def program(namespace: str, **arguments: Any) -> dict[str, Any]:
    """A pod that makes a cluster, uses it and ends; of the strictest pod security, as the others."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "program",
        "image": TAG,
        "imagePullPolicy": "Never",
        "args": ["python", "-c", textwrap.dedent(_PROGRAM), json.dumps(arguments)],
        "resources": SMALL,
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "program", "namespace": namespace},
        "spec": {
            "serviceAccountName": "analyst",
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def test_a_cluster_made_from_a_pod_is_reached_by_its_service(
    nodes: Cluster, new_namespace: Callable[..., str]
) -> None:
    """With the rights that somebody has whose namespace it is, and no more."""
    namespace = new_namespace(nodes.kubectl, "restricted")
    nodes.kubectl("--namespace", namespace, "create", "serviceaccount", "analyst")
    granted = ("--clusterrole=admin", f"--serviceaccount={namespace}:analyst")
    nodes.kubectl("--namespace", namespace, "create", "rolebinding", "analyst", *granted)
    nodes.kubectl.apply(program(namespace, image=TAG, values=VALUES))

    def pod() -> dict[str, Any]:
        found: dict[str, Any] = nodes.kubectl.json("--namespace", namespace, "get", "pod", "program")
        return found

    def log() -> str:
        return nodes.kubectl("--namespace", namespace, "logs", "program")

    wait_until(lambda: pod()["status"].get("phase") in ("Succeeded", "Failed"), "it ends", UP_S, pod)
    assert pod()["status"]["phase"] == "Succeeded", log()
    seen = json.loads(log().splitlines()[-1])
    service = f"{seen['name']}-scheduler.{namespace}.svc"
    assert seen["address"] == seen["client"] == f"tls://{service}:8786"
    assert seen["dashboard"].startswith(f"http://{service}:8787/")
    assert seen["forwards"] == 0
    assert seen["workers"]
    assert all(name.startswith(f"{seen['name']}-default-") for name in seen["workers"])
    assert seen["explained"]
    kinds = (
        "jobs,pods,replicasets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies"
    )
    left = nodes.kubectl(
        "--namespace", namespace, "get", kinds, "--selector=app.kubernetes.io/name=dask-tide", "--output=name"
    )
    assert left == ""
