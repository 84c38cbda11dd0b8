"""The controller's clock."""

from __future__ import annotations

import time

_OFFSET_S = time.time() - time.monotonic()


def now_s() -> float:
    """Seconds since 1970, as Dask's own times are, by a clock that nobody sets.

    Where the machine's is corrected, this one is not: a pause or a delay would last for as long as that was
    set back.
    """
    return _OFFSET_S + time.monotonic()
