"""A release: one cluster in one namespace, and the names that its objects go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import values as chart_values
from .certificates import Certificates
from .golang import compact, digest

__all__ = ["OWN_LABELS", "Manifest", "Release"]

#: An object as Kubernetes' API has it.
Manifest = dict[str, Any]

#: Labels that tell our objects; nobody else may set them.
OWN_LABELS = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "dask-tide/pool",
    "dask-tide/template",
)


@dataclass(frozen=True)
class Release:
    """What every object of a cluster is made from.

    Attributes
    ----------
    name
        The cluster's name, Helm's release.
    namespace
        Where it is.
    values
        The chart's values, with defaults and checked: :func:`.values.read`.
    certificates
        Where ``security.tls.source`` is ``generated``.
    token
        The notebook server's.
    replicas
        What a pool's ReplicaSet starts with; None: the API server's default of 1, and whatever is
        there already stays.
    """

    name: str
    namespace: str
    values: Mapping[str, Any]
    certificates: Certificates | None = None
    token: str = ""
    replicas: int | None = None

    @cached_property
    def pools(self) -> dict[str, dict[str, Any]]:
        """The pools with their defaults, by name."""
        return chart_values.pools(self.values)

    @cached_property
    def buffers(self) -> dict[str, dict[str, Any]]:
        """Values of the buffers, by their pools' names."""
        return chart_values.buffers(self.values)

    @property
    def tls(self) -> Mapping[str, Any]:
        """Values of ``security.tls``."""
        tls: Mapping[str, Any] = self.values["security"]["tls"]
        return tls

    @property
    def protocol(self) -> str:
        """Dask's, between scheduler, workers and clients."""
        return "tls" if self.tls["enabled"] else "tcp"

    @property
    def address(self) -> str:
        """Where workers and clients find the scheduler."""
        return f"{self.protocol}://{self.name}-scheduler:8786"

    @property
    def comm_port(self) -> str:
        """Name of the scheduler's port; meshes read the protocol from it."""
        return f"{self.protocol}-comm"

    @property
    def image(self) -> str:
        image = self.values["image"]
        return f"{image['repository']}:{_text(image.get('tag') or chart_values.app_version())}"

    @property
    def dashboard_prefix(self) -> str:
        """Path below which the dashboard serves, without a slash at its end."""
        ingress = self.values["ingress"]
        return str(ingress["path"]).removesuffix("/") if ingress.get("enabled") else ""

    @property
    def tls_secret(self) -> str:
        """Name of the Secret with the certificates."""
        return str(self.tls["secretName"]) if self.tls["source"] == "secret" else f"{self.name}-tls"

    @property
    def rotation(self) -> str:
        """``security.tls.rotate`` as text."""
        return _text(self.tls["rotate"])

    @property
    def tls_checksum(self) -> str:
        """Changes when certificates do. What a Secret of somebody else's holds is not known here."""
        return digest(self.rotation if self.certificates is None else self.certificates.certificate)

    def cluster_scoped(self, suffix: str) -> str:
        """Name of an object that is in no namespace. Dots, which neither name has, keep releases apart."""
        return f"{self.namespace}.{self.name}.{suffix}"

    @property
    def placeholder_class(self) -> str:
        """Full name of the placeholders' own priority class; with its value, which nobody may change."""
        return self.cluster_scoped(f"buffer{self.values['buffer']['priority']:d}")

    def priority_class(self, name: str) -> str:
        """Full name of a priority class that may be said by its short name."""
        return self.cluster_scoped(name) if name in self.values["priorityClasses"] else name

    def labels(self, component: str | None = None, pool: str | None = None) -> dict[str, str]:
        """Labels of an object, and what selects it."""
        labels = {"app.kubernetes.io/name": "dask-tide", "app.kubernetes.io/instance": self.name}
        if component is not None:
            labels["app.kubernetes.io/component"] = component
        if pool is not None:
            labels["dask-tide/pool"] = pool
        return labels

    def metadata(
        self,
        name: str,
        component: str | None = None,
        *,
        pool: str | None = None,
        annotations: Mapping[str, str] | None = None,
        namespaced: bool = True,
    ) -> Manifest:
        """Make an object's ``metadata``."""
        metadata: Manifest = {"name": name, "labels": self.labels(component, pool)}
        if namespaced:
            metadata["namespace"] = self.namespace
        if annotations:
            metadata["annotations"] = dict(annotations)
        return metadata


def _text(value: str | int) -> str:
    """Text that may be given as a whole number."""
    return value if isinstance(value, str) else compact(value)
