"""The policy: pure functions from what is known to what is to be done."""

from .decide import decide

__all__ = ["decide"]
