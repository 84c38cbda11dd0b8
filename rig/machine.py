"""A node to be: what it is told at its boot, and the configuration of what runs on it.

Its PID 1, ``rig/machine.sh``, sees its own folder as ``/run/rig/node``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig import images
from rig.network import POD_RANGE, ROUTER, node_address, pod_range


@dataclass(frozen=True)
class Machine:
    """A node to be.

    Attributes
    ----------
    name
        Its name.
    cpus, memory_gib
        What kubelet shall take for its size; by default what this machine has.
    labels
        The Node's labels.
    taints
        Its taints, as kubectl writes them: ``key=value:Effect``.
    provider_id
        What a cloud would call it.
    kubelet
        More of kubelet's configuration.
    of_cloud
        Whether a cloud controller has to see the node before pods may come.
    """

    name: str
    cpus: int | None = None
    memory_gib: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[str] = ()
    provider_id: str | None = None
    kubelet: Mapping[str, Any] = field(default_factory=dict)
    of_cloud: bool = False

    def environment(self, index: int) -> dict[str, str]:
        """What ``machine.sh`` reads of the environment about the machine itself."""
        environment = {
            "RIG_NAME": self.name,
            "RIG_ADDRESS": node_address(index),
            "RIG_ROUTER": ROUTER,
            "RIG_LABELS": ",".join(f"{key}={value}" for key, value in self.labels.items()),
            "RIG_TAINTS": ",".join(self.taints),
            "RIG_PROVIDER_ID": self.provider_id or f"rig:///{self.name}",
            "RIG_CLOUD_PROVIDER": "external" if self.of_cloud else "",
        }
        if self.cpus is not None:
            environment["RIG_CPUS"] = str(self.cpus)
        if self.memory_gib is not None:
            environment["RIG_MEMORY_KIB"] = str(int(self.memory_gib * (1 << 20)))
        return environment

    def write(self, folder: Path, index: int) -> None:
        """Write its disk, without images and credentials."""
        for name in ("lib/kubelet", "lib/cni", "log/pods", "log/containers", "tmp"):
            (folder / "var" / name).mkdir(parents=True)
        (folder / "var" / "run").symlink_to("/run")
        (folder / "cni").mkdir()
        (folder / "resolv.conf").write_text(f"nameserver {ROUTER}\n")
        (folder / "machine-id").write_text(secrets.token_hex(16) + "\n")
        (folder / "containerd.toml").write_text(CONTAINERD)
        files = {
            "kubelet.json": _kubelet(self),
            "proxy.json": _proxy(self),
            "cni/10-rig.conflist": _cni(index),
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1))


def _cni(index: int) -> dict[str, Any]:
    return {
        "cniVersion": "0.4.0",
        "name": "rig",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_range(index)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


CONTAINERD = f"""\
version = 2
# Else it runs without, where inotify instances are short, and is no use to kubelet.
required_plugins = ["io.containerd.grpc.v1.cri"]
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  # Where CAP_SYS_RESOURCE is missing, no process may be made less likely to be killed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/rig/node/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def _kubelet(machine: Machine) -> dict[str, Any]:
    # With more CPUs than there are, kubelet cannot give its pods' cgroup all of them.
    cgroup_per_class = machine.cpus is None
    never = (
        "memory.available",
        "nodefs.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "imagefs.inodesFree",
    )
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "cgroupRoot": "/",
        "cgroupsPerQOS": cgroup_per_class,
        "enforceNodeAllocatable": ["pods"] if cgroup_per_class else [],
        "oomScoreAdj": 0,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": "/run/rig/node/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [ROUTER],
        "clusterDomain": "cluster.local",
        "resolvConf": "/run/rig/node/resolv.conf",
        # The default is in /usr, which is the host's.
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "evictionHard": dict.fromkeys(never, "0%"),
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 20,
        "seccompDefault": True,
        "serializeImagePulls": False,
        # A pod that uses more of its disk than it may is evicted once that is counted: by default each minute
        "volumeStatsAggPeriod": "5s",
        **machine.kubelet,
    }


def _proxy(machine: Machine) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": "/run/rig/node/proxy.kubeconfig"},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": machine.name,
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        # Limits of the whole kernel: not ours to set.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "nodePortAddresses": ["primary"],
    }
