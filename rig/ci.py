"""Continuous integration: where nothing may be left out."""

from __future__ import annotations

import os


def in_ci() -> bool:
    """Whether this is it, as the variable ``CI`` says."""
    return os.environ.get("CI", "").lower() in ("1", "true")
