"""Workers as processes of this machine."""

from .provider import LocalProvider

__all__ = ["LocalProvider"]
