"""dask-tide: a Dask cluster that is only a scheduler until somebody computes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from dask_tide.errors import TideError

if TYPE_CHECKING:
    from dask_tide.adaptive import TideAdaptive
    from dask_tide.cluster import TideCluster

try:
    __version__ = version("dask-tide")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0"

__all__ = ["TideAdaptive", "TideCluster", "TideError", "__version__"]


def __getattr__(name: str) -> Any:
    # Workers import this package for what they do on SIGTERM: a tenth of a second less for each to start.
    if name == "TideCluster":
        from dask_tide.cluster import TideCluster

        return TideCluster
    if name == "TideAdaptive":
        from dask_tide.adaptive import TideAdaptive

        return TideAdaptive
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
