"""Where the demo is played, on Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a cluster; None: as ``kubectl`` has it.

    Attributes
    ----------
    namespace, kubeconfig, context
        As for :class:`dask_tide.TideCluster`.
    image
        Likewise, for a cluster of the demo's own.
    release
        Name of a release of the chart to play the story on, instead.
    """

    namespace: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    image: str | None = None
    release: str | None = None
