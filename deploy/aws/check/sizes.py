"""How big machines are, and what of them is left for workers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from deploy.aws.check.tree import Tree

FILE = "schema/instance-types.json"

#: What the pods of the system's own DaemonSets (network, DNS cache, volumes, logs) ask for on each machine.
DAEMONS_MILLICPU = 300
DAEMONS_MIB = 400
#: The part of its memory that a virtual machine does not see: Karpenter's own assumption,
#: VM_MEMORY_OVERHEAD_PERCENT.
INVISIBLE_RATIO = 0.075
#: Of root volumes: the system and the image, and what one can pay for.
SMALLEST_GIB, BIGGEST_GIB = 20, 2048
#: Pods on a machine, which the kubelet's reservation depends on: that of a 4-CPU machine with EKS's network.
_PODS = 58
_EVICTION_MIB = 100


@dataclass(frozen=True)
class Size:
    """CPUs and memory of a machine."""

    cpus: int
    memory_mib: int

    @property
    def free_millicpu(self) -> int:
        """What the kubelet (EKS's formula: 6 % of the first CPU, 1 % of the second, …) and daemons leave."""
        per_cpu = (60.0, 10.0, 5.0, 5.0)
        reserved = sum(per_cpu[: self.cpus]) + 2.5 * max(self.cpus - len(per_cpu), 0)
        return int(self.cpus * 1000 - reserved - DAEMONS_MILLICPU)

    @property
    def free_mib(self) -> int:
        reserved = 255 + 11 * _PODS + _EVICTION_MIB
        return int(self.memory_mib * (1 - INVISIBLE_RATIO) - reserved - DAEMONS_MIB)

    def holds(self, millicpu: int, memory_mib: int) -> int:
        """How many pods that ask for this much fit."""
        return max(min(self.free_millicpu // max(millicpu, 1), self.free_mib // max(memory_mib, 1)), 0)


@dataclass(frozen=True)
class Sizes:
    """Sizes by the name of an instance type."""

    cpus: dict[str, int]
    memory_gib_per_cpu: dict[str, int]
    exceptions: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, tree: Tree) -> Sizes:
        facts = json.loads(tree.text(FILE))
        exceptions = {name: (size[0], size[1]) for name, size in facts["exceptions"].items()}
        return cls(facts["cpus"], facts["memory_gib_per_cpu"], exceptions)

    def get(self, instance_type: str) -> Size | None:
        """The size; None if that type is not in our table."""
        if instance_type in self.exceptions:
            cpus, memory_gib = self.exceptions[instance_type]
            return Size(cpus, memory_gib * 1024)
        family, _, size = instance_type.partition(".")
        if family not in self.memory_gib_per_cpu or size not in self.cpus:
            return None
        return self.of_family(family, self.cpus[size])

    def of_family(self, family: str, cpus: int) -> Size:
        return Size(cpus, cpus * self.memory_gib_per_cpu[family] * 1024)


def mebibytes(quantity: str) -> int:
    """Kubernetes' way to write memory."""
    found = re.fullmatch(r"([0-9.]+)(Ki|Mi|Gi|Ti|k|M|G|T)?", quantity)
    if found is None:
        raise ValueError(f"{quantity!r} is no amount of memory")
    power = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}[(found[2] or "").replace("i", "").replace("K", "k")]
    base = 1024 if (found[2] or "").endswith("i") else 1000
    return int(float(found[1]) * base**power) // 2**20
