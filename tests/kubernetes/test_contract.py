"""The kubernetes provider keeps the contract of all providers, with real pods."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

MODULE = Path(__file__).with_name("contract_in_cluster.py")


def test_the_kubernetes_provider_keeps_the_contract(nodes: Cluster) -> None:
    """Workers must reach the test's own scheduler: the suite runs inside of the cluster's network."""
    done = nodes.run_in(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", MODULE],
        env=os.environ | {"DASK_TIDE_CONTRACT_KUBECONFIG": str(nodes.folder / "pki" / "admin.kubeconfig")},
        cwd=MODULE.parents[2],
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
