"""cluster-autoscaler: the tags that it finds its Auto Scaling group by, and what it is told.

Nobody packages it for Go's module proxy: its binary is given by ``CLUSTER_AUTOSCALER``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rig.folders import CHECKOUT

#: What the project ships for cluster-autoscaler's own chart.
SHIPPED = CHECKOUT / "deploy" / "aws" / "cluster-autoscaler-values.yaml"
#: What tests have otherwise. By default these are 10 min (provisioning 15); nobody waits as long here.
TIMING = {
    "scan-interval": "2s",
    "scale-down-unneeded-time": "10s",
    "scale-down-delay-after-add": "10s",
    "scale-down-delay-after-delete": "0s",
    "scale-down-unready-time": "30s",
    "unremovable-node-recheck-timeout": "10s",
    "max-node-provision-time": "2m",
}
GROUP = "dask-workers"
_TAG = "k8s.io/cluster-autoscaler"


def tags(cluster: str, labels: Mapping[str, str], taints: Sequence[str]) -> list[dict[str, Any]]:
    """An Auto Scaling group's tags.

    Parameters
    ----------
    cluster
        The cluster's name.
    labels, taints
        Those of the group's nodes: without any node, cluster-autoscaler knows them by these tags only.
    """
    values = {f"{_TAG}/enabled": "true", f"{_TAG}/{cluster}": "owned"}
    values |= {f"{_TAG}/node-template/label/{key}": value for key, value in labels.items()}
    for taint in taints:
        key, _, value = taint.partition("=")
        values[f"{_TAG}/node-template/taint/{key}"] = value
    values[f"{_TAG}/node-template/resources/ephemeral-storage"] = "20Gi"
    owned = {f"kubernetes.io/cluster/{cluster}": "owned"}
    return [
        {
            "Key": key,
            "Value": value,
            "ResourceId": GROUP,
            "ResourceType": "auto-scaling-group",
            "PropagateAtLaunch": key in owned,
        }
        for key, value in (values | owned).items()
    ]


def cloud_config(url: str, region: str) -> str:
    """Its ``--cloud-config``: it does not read ``AWS_ENDPOINT_URL``."""
    lines = ["[Global]"]
    for service in ("autoscaling", "ec2", "eks"):
        lines += [
            f'[ServiceOverride "{service}"]',
            f"Service = {service}",
            f"Region = {region}",
            f"URL = {url}",
            f"SigningRegion = {region}",
            "SigningMethod = v4",
            f"SigningName = {service}",
        ]
    return "\n".join(lines) + "\n"


def arguments(kubeconfig: Path, config: Path, cluster: str) -> list[str]:
    """Its command line: the flags that the project ships, but for :data:`TIMING`."""
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["extraArgs"]
    said = {name: str(value).lower() if value in (True, False) else value for name, value in shipped.items()}
    return [
        f"--kubeconfig={kubeconfig}",
        "--cloud-provider=aws",
        f"--cloud-config={config}",
        "--aws-use-static-instance-list=true",
        f"--node-group-auto-discovery=asg:tag={_TAG}/enabled,{_TAG}/{cluster}",
        "--namespace=kube-system",
        "--leader-elect=false",
        "--address=127.0.0.1:8085",
        *(f"--{name}={value}" for name, value in (said | TIMING).items()),
    ]


def environment(region: str) -> dict[str, str]:
    """Its environment."""
    return {
        "AWS_REGION": region,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
