"""What an instance's user data tells its kubelet: nodeadm's NodeConfig, as Amazon Linux 2023 reads it."""

from __future__ import annotations

import base64
import binascii
import email
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: The one in C: hundreds of instances may boot at once.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: What Karpenter takes off an instance's memory for the hypervisor.
_HYPERVISOR = 0.075


@dataclass
class Kubelet:
    """What a kubelet is told.

    Attributes
    ----------
    labels
        The Node's labels.
    taints
        Its taints, ``key=value:Effect``.
    config
        More of its configuration.
    """

    labels: dict[str, str] = field(default_factory=dict)
    taints: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: str) -> Kubelet:
        """Read user data, base64 or not, one NodeConfig or several in MIME parts."""
        kubelet = cls()
        for document in _documents(_decoded(data)):
            told = yaml.load(document, _LOADER).get("spec", {}).get("kubelet") or {}
            kubelet.config |= told.get("config") or {}
            for flag in told.get("flags") or ():
                kubelet._take(*" ".join(shlex.split(flag)).removeprefix("--").split("=", 1))
        kubelet.taints += [
            f"{taint['key']}={taint.get('value') or ''}:{taint['effect']}"
            for taint in kubelet.config.pop("registerWithTaints", ())
        ]
        return kubelet

    def _take(self, flag: str, value: str = "") -> None:
        words = [word for word in value.split(",") if word]
        if flag == "node-labels":
            self.labels |= dict(word.split("=", 1) for word in words)
        elif flag == "register-with-taints":
            self.taints += words

    def sized(self, kind: Mapping[str, Any]) -> dict[str, Any]:
        """Its configuration with what nodeadm reserves on an instance type that nobody said otherwise about.

        Parameters
        ----------
        kind
            The type, as EC2 describes it.
        """
        cpus, network = kind["VCpuInfo"]["DefaultVCpus"], kind["NetworkInfo"]
        addresses = network["Ipv4AddressesPerInterface"] - 1
        pods = self.config.get("maxPods") or network["MaximumNetworkInterfaces"] * addresses + 2
        milli_cpus = 60 + 10 * (min(cpus, 2) - 1) + 5 * max(0, min(cpus, 4) - 2) + 2.5 * max(0, cpus - 4)
        reserved = {"cpu": f"{int(milli_cpus)}m", "memory": f"{255 + 11 * pods}Mi"}
        reserved |= self.config.get("kubeReserved") or {}
        # The threshold at which a real node evicts counts as well.
        return {"maxPods": pods, "kubeReserved": reserved, "systemReserved": {"memory": "100Mi"}}


def memory_mib(kind: Mapping[str, Any]) -> int:
    """The memory that an instance of a type sees."""
    return int(kind["MemoryInfo"]["SizeInMiB"] * (1 - _HYPERVISOR))


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return data


def _documents(text: str) -> Iterator[str]:
    if text.startswith(("{", "apiVersion")):
        yield text
    for part in email.message_from_string(text).walk():
        if part.get_content_type() == "application/node.eks.aws":
            yield str(part.get_payload())


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number: ``"250m"``, ``"355Mi"``."""
    for suffix, factor in (("m", 0.001), ("Mi", 2**20), ("Gi", 2**30)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def allocatable(kind: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """What a kubelet with this configuration (:meth:`Kubelet.sized`) leaves to pods; for fake ones."""
    reserved = config["kubeReserved"]
    cpus = kind["VCpuInfo"]["DefaultVCpus"] - quantity(reserved["cpu"])
    taken = quantity(reserved["memory"]) + quantity(config["systemReserved"]["memory"])
    return {
        "cpu": f"{int(cpus * 1000)}m",
        "memory": str(int(memory_mib(kind) * 2**20 - taken)),
        "pods": str(config["maxPods"]),
        "ephemeral-storage": "20Gi",
    }


def capacity(kind: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """A fake node's size."""
    return {
        "cpu": str(kind["VCpuInfo"]["DefaultVCpus"]),
        "memory": f"{memory_mib(kind)}Mi",
        "pods": str(config["maxPods"]),
        "ephemeral-storage": "20Gi",
    }
