"""Options of the kubernetes provider: ``tide.options``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_tide.config import duration_s
from dask_tide.errors import ConfigError

__all__ = ["ON_CLOSE", "Options", "protects"]

#: Of what a machine's price depends: type, zone, market.
_PARTS = 3
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
        Whether nodes may be read, to see at once that one is to be disrupted, and what it costs.
    prices
        What machines cost for an hour, by a pattern for their type, zone and market, the most exact one
        first: that is the one that counts. It needs ``nodes``.
    on_close
        ``release``: the pools are scaled to 0 when the scheduler closes. ``keep``: the next scheduler
        adopts the pods, as one that a Deployment starts again does.
    unschedulable_after_s
        A pod that nobody could place for so long limits its pool, unless a node autoscaler says that a
        machine is coming: no more are asked for meanwhile, and others pools' are.
    machine_within_s
        A machine that an autoscaler has promised comes within so long, or not at all.
    """

    namespace: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    annotate: bool = True
    nodes: bool = False
    on_close: str = "release"
    prices: Mapping[str, float] = field(default_factory=dict)
    unschedulable_after_s: float = 60.0
    machine_within_s: float = 600.0

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
                case "unschedulable-after" | "machine-within" as duration:
                    read[duration.replace("-", "_") + "_s"] = duration_s(key, value)
                case "prices":
                    read["prices"] = _prices(key, value)
                case _:
                    known = (
                        "namespace, kubeconfig, context, annotate, nodes, prices, on-close, "
                        "unschedulable-after and machine-within"
                    )
                    raise ConfigError(key, value, f"one of the options {known}")
        if read.get("prices") and not read.get("nodes"):
            expected = "nothing without tide.options.nodes: true, as nodes say of which type they are"
            raise ConfigError("tide.options.prices", read["prices"], expected)
        return cls(**read)


def protects(key: str, options: Mapping[str, object]) -> bool:
    """Whether a pool's options say that its busy pods are protected from node autoscalers.

    Raises
    ------
    ConfigError
        For an unknown option or a wrong value.
    """
    protect = True
    for name, value in options.items():
        if name != "protect":
            raise ConfigError(f"{key}.{name}", value, "the option protect")
        protect = _flag(f"{key}.{name}", value)
    return protect


def _text(key: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigError(key, value, "a text, or nothing")


def _prices(key: str, value: object) -> dict[str, float]:
    """Patterns in full: ``m5.xlarge`` is ``m5.xlarge/*/*``, ``m5.xlarge/spot`` is ``m5.xlarge/*/spot``."""
    if not isinstance(value, Mapping):
        raise ConfigError(key, value, "a mapping from 'TYPE', 'TYPE/MARKET' or 'TYPE/ZONE/MARKET' to prices")
    prices: dict[str, float] = {}
    for pattern, price in value.items():
        parts = pattern.split("/") if isinstance(pattern, str) else []
        if not 1 <= len(parts) <= _PARTS or not all(parts):
            expected = "'TYPE', 'TYPE/MARKET' or 'TYPE/ZONE/MARKET', each with * and ? if you like"
            raise ConfigError(f"{key}.{pattern}", pattern, expected)
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
            raise ConfigError(f"{key}.{pattern}", price, "a number >= 0, the price of an hour")
        first, *rest = parts
        prices["/".join([first, *["*"] * (_PARTS - len(parts)), *rest] if rest else [first, "*", "*"])] = (
            float(price)
        )
    # A mapping's order says nothing: Helm sorts its keys.
    return dict(sorted(prices.items(), key=lambda entry: _exactness(entry[0])))


def _exactness(pattern: str) -> tuple[int, int, str]:
    """Patterns with fewer parts left open come first, then those that say more."""
    open_parts = sum("*" in part or "?" in part for part in pattern.split("/"))
    return open_parts, -len(pattern.replace("*", "").replace("?", "")), pattern


def _flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(key, value, "true or false")
