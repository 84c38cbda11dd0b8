"""Karpenter: what it is told, and the pools of nodes that it makes machines for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rig.aws.account import CLUSTER, NODE_ROLE, PURPOSE, REGION
from rig.images import TOOLBOX

NODE_CLASS = "default"


def environment(kubeconfig: Path, url: str, apiserver: str, *, batch_idle_s: float) -> dict[str, str]:
    """Its environment, which is all that it reads.

    Parameters
    ----------
    kubeconfig
        Who it is.
    url
        AWS's endpoint.
    apiserver
        Where new nodes would find the API server.
    batch_idle_s
        How long it waits for more pods before it decides; 1 s by default, up to 10 s in all.
    """
    return {
        "KUBECONFIG": str(kubeconfig),
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CLUSTER_NAME": CLUSTER,
        "CLUSTER_ENDPOINT": apiserver,
        "INTERRUPTION_QUEUE": CLUSTER,
        "ISOLATED_VPC": "true",  # on-demand prices by its own list
        "BATCH_IDLE_DURATION": f"{batch_idle_s:g}s",
        "SYSTEM_NAMESPACE": "kube-system",
        "KARPENTER_SERVICE": "karpenter",
        "DISABLE_LEADER_ELECTION": "true",
        "LOG_LEVEL": "debug",
    }


def node_class(name: str = NODE_CLASS, *, hop_limit: int = 2) -> dict[str, Any]:
    """An EC2NodeClass.

    Parameters
    ----------
    name
        Its name.
    hop_limit
        How far instance metadata's tokens travel: 1 is the node itself, 2 reaches its pods.
    """
    discovery = [{"tags": {"karpenter.sh/discovery": CLUSTER}}]
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": name},
        "spec": {
            "amiFamily": "AL2023",
            "amiSelectorTerms": [{"alias": "al2023@latest"}],
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
            "role": NODE_ROLE,
            "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": hop_limit},
        },
    }


def node_pool(
    name: str = "workers",
    *,
    markets: Sequence[str] = ("spot", "on-demand"),
    types: Sequence[str] = ("m5.xlarge", "c5.xlarge", "r5.xlarge"),
    consolidate_after: str | None = "5s",
    cpus: int = 2000,
) -> dict[str, Any]:
    """A NodePool; by default the one for workers, as values files of the chart expect it.

    Parameters
    ----------
    name
        Its name, and its nodes' label and taint.
    markets
        ``"spot"``, ``"on-demand"``; Karpenter takes spot where there is some.
    types
        The instance types it may take.
    consolidate_after
        How long a node must be without news before it may go; Karpenter validates for 15 s after that. None:
        all of that is left to Karpenter's own defaults.
    cpus
        Its limit.
    """
    disruption = {
        "consolidationPolicy": "WhenEmptyOrUnderutilized",
        "consolidateAfter": consolidate_after,
        # By default no more than 10 % of the nodes go at a time: one by one, of a few.
        "budgets": [{"nodes": "100%"}],
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "limits": {"cpu": str(cpus)},
            "template": {
                "metadata": {"labels": {PURPOSE: name}},
                "spec": {
                    "nodeClassRef": {
                        "group": "karpenter.k8s.aws",
                        "kind": "EC2NodeClass",
                        "name": NODE_CLASS,
                    },
                    "taints": [{"key": PURPOSE, "value": name, "effect": "NoSchedule"}],
                    "requirements": [
                        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
                        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [*markets]},
                        {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": [*types]},
                    ],
                    "expireAfter": "Never",
                },
            },
            **({} if consolidate_after is None else {"disruption": disruption}),
        },
    }


def burst(replicas: int = 0, name: str = "burst", *, pool: str = "workers", cpu: str = "1") -> dict[str, Any]:
    """A ReplicaSet whose pods are as workers are: they need machines of a pool.

    Parameters
    ----------
    replicas
        How many pods at first.
    name
        Its name, and its pods' label `app`.
    pool
        The NodePool's name.
    cpu
        What each pod asks for.
    """
    container = {
        "name": "c",
        "image": TOOLBOX,
        "imagePullPolicy": "Never",
        "args": ["sleep"],
        "resources": {"requests": {"cpu": cpu, "memory": "512Mi"}},
    }
    spec = {
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "nodeSelector": {PURPOSE: pool},
        "tolerations": [{"key": PURPOSE, "value": pool, "effect": "NoSchedule"}],
        "containers": [container],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }
