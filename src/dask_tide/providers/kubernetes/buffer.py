"""Another number of placeholders, as a program for the chart's CronJobs.

``python -m dask_tide.providers.kubernetes.buffer --namespace science --deployment dask-cpu-buffer --units 6``

Its account has one right, to patch the scale of that Deployment, and this is the one call it makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import httpx2
from lightkube import ApiError, Client
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.resources.apps_v1 import Deployment
from lightkube.types import PatchType

from dask_tide.errors import TideError

# No more of ours: this starts often, and lives for a second.
from . import kubeconfig

__all__ = ["main"]

#: How the API server names it in the Deployment's managed fields.
_FIELD_MANAGER = "dask-tide-buffer"


def main(arguments: Sequence[str] | None = None) -> None:
    """Set the number of pods of a Deployment; exits with 1 and the API server's words if that is refused."""
    parser = argparse.ArgumentParser(prog="python -m dask_tide.providers.kubernetes.buffer")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--deployment", required=True)
    parser.add_argument("--units", required=True, type=int)
    given = parser.parse_args(arguments)
    change = {"spec": {"replicas": given.units}}
    try:
        client = Client(config=kubeconfig.read(), namespace=given.namespace, field_manager=_FIELD_MANAGER)
        client.patch(Deployment.Scale, given.deployment, change, patch_type=PatchType.MERGE)
    except (ApiError, httpx2.HTTPError, LightkubeConfigError, TideError, OSError) as error:
        sys.exit(f"Error: scaling Deployment {given.deployment} to {given.units}: {error}")


if __name__ == "__main__":
    main()
