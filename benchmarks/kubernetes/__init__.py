"""Figures on Kubernetes, against ``kubectl scale`` and dask-kubernetes: ``make bench-kubernetes``."""

import sys
from pathlib import Path

# A release of the chart, and a pool on a plane, are the tests' own.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
