"""dask-tide: a Dask cluster that is only a scheduler until somebody computes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from dask_tide.adaptive import TideAdaptive
from dask_tide.cluster import TideCluster
from dask_tide.errors import TideError

try:
    __version__ = version("dask-tide")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0"

__all__ = ["TideAdaptive", "TideCluster", "TideError", "__version__"]
