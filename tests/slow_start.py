"""A worker's preload that makes its start slow, or makes it wait for a file (`SLOW_START_GATE`)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any


async def dask_setup(worker: Any) -> None:
    """Dask awaits it before the worker registers."""
    await asyncio.sleep(float(os.environ.get("SLOW_START_S", "0")))
    gate = os.environ.get("SLOW_START_GATE")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
