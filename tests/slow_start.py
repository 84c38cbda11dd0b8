"""A worker's preload that makes its start slow, or makes it wait for a file (`SLOW_START_GATE`)."""

from __future__ import annotations

import os
import time
from typing import Any


def dask_setup(worker: Any) -> None:
    """Dask calls it before the worker registers; it blocks, as a slow import does."""
    time.sleep(float(os.environ.get("SLOW_START_S", "0")))
    gate = os.environ.get("SLOW_START_GATE")
    while gate and not os.path.exists(gate):  # noqa: PTH110
        time.sleep(0.02)
