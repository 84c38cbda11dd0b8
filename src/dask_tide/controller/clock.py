"""The controller's clock."""

from __future__ import annotations

import sys
import time

if sys.platform == "linux":

    def _steady_s() -> float:
        """With the time that a laptop has slept."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    _steady_s = time.monotonic

_OFFSET_S = time.time() - _steady_s()


def now_s() -> float:
    """Seconds since 1970, as Dask's own times are, by a clock that nobody sets.

    Where the machine's is corrected, this one is not: a pause or a delay would last for as long as that was
    set back.
    """
    return _OFFSET_S + _steady_s()
