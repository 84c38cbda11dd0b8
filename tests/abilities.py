"""What a test needs and a machine may lack."""

from __future__ import annotations

from typing import NoReturn

import pytest

from rig.ci import in_ci


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip what this machine cannot do; in CI that is a failure."""
    if in_ci():
        pytest.fail(f"in CI this must run: {reason}")
    pytest.skip(reason)
