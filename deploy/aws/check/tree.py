"""The files that are checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
#: Variants of the kOps cluster, and the files of inputs that make them.
KOPS_VARIANTS = {
    "cluster-autoscaler": ("kops/defaults.yaml",),
    "karpenter": ("kops/defaults.yaml", "kops/karpenter.yaml"),
    "every input": ("kops/defaults.yaml", "kops/every-input.yaml"),
}
#: Has inputs of its own, which do not go together with somebody's.
_EVERY = "every input"


@dataclass(frozen=True)
class Tree:
    """``deploy/aws``, or a copy of it, the chart that its values are for, and somebody's inputs for kOps."""

    folder: Path = CHECKOUT / "deploy" / "aws"
    chart: Path = CHECKOUT / "charts" / "dask-tide"
    inputs: tuple[Path, ...] = ()

    def kops_variants(self) -> list[str]:
        """The variants of the kOps cluster that are looked at."""
        return [variant for variant in KOPS_VARIANTS if variant != _EVERY or not self.inputs]

    def kops_inputs(self, variant: str) -> list[str]:
        """Files whose values fill in the template, the last one first to be heeded."""
        return [*KOPS_VARIANTS[variant], *(str(path.resolve()) for path in self.inputs)]

    def kops_values(self, variant: str) -> dict[str, Any]:
        """What these files say, together."""
        merged: dict[str, Any] = {}
        for file in self.kops_inputs(variant):
            merged |= self.yaml(file) or {}
        return merged

    def path(self, name: str) -> Path:
        return self.folder / name

    def text(self, name: str) -> str:
        return self.path(name).read_text(encoding="utf-8")

    def yaml(self, name: str) -> Any:
        return yaml.safe_load(self.text(name))

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def modules(self) -> Iterator[Path]:
        """Folders with OpenTofu files."""
        yield from sorted({path.parent for path in self.path("opentofu").rglob("*.tf")})
