"""Options of the kubernetes provider: ``tide.options``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_tide.config import duration_s
from dask_tide.errors import ConfigError

__all__ = ["ON_CLOSE", "Options"]

#: What may become of the pods when the scheduler closes.
ON_CLOSE = ("release", "keep")


@dataclass(frozen=True)
class Options:
    """What may be said about the platform.

    Attributes
    ----------
    namespace
        Where the pools' ReplicaSets are; None: the pod's own, or the kubeconfig's.
    kubeconfig, context
        Path of a kubeconfig file and a context in it; None: see :func:`.kubeconfig.read`.
    annotate
        Whether pods may be patched: deletion costs, and the annotations that node autoscalers heed.
        Without it (where no admission policy narrows that right down) readiness alone selects victims.
    nodes
        Whether nodes may be read, to see at once that one is to be disrupted.
    on_close
        ``release``: the pools are scaled to 0 when the scheduler closes. ``keep``: the next scheduler
        adopts the pods, as one that a Deployment starts again does.
    unschedulable_after_s
        A pod that nobody could place for so long limits its pool: no more are asked for meanwhile.
    """

    namespace: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    annotate: bool = True
    nodes: bool = False
    on_close: str = "release"
    unschedulable_after_s: float = 60.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Options:
        """What the configuration says at ``tide.options``.

        Raises
        ------
        ConfigError
            For an unknown option or a wrong value.
        """
        read: dict[str, Any] = {}
        for name, value in values.items():
            key = f"tide.options.{name}"
            # Dask treats a hyphen and an underscore in its configuration as the same.
            match name.replace("_", "-"):
                case "namespace" | "kubeconfig" | "context" as plain:
                    read[plain] = _text(key, value)
                case "annotate" | "nodes" as flag:
                    read[flag] = _flag(key, value)
                case "on-close":
                    if value not in ON_CLOSE:
                        raise ConfigError(key, value, f"one of {', '.join(map(repr, ON_CLOSE))}")
                    read["on_close"] = value
                case "unschedulable-after":
                    read["unschedulable_after_s"] = duration_s(key, value)
                case _:
                    known = (
                        "namespace, kubeconfig, context, annotate, nodes, on-close and unschedulable-after"
                    )
                    raise ConfigError(key, value, f"one of the options {known}")
        return cls(**read)


def _text(key: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigError(key, value, "a text, or nothing")


def _flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(key, value, "true or false")
