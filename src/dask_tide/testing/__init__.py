"""For tests: a provider that records what it is asked, and the contract that every provider keeps.

``dask_tide.testing.contract`` needs pytest and pytest-asyncio.
"""

from .recording import Call, RecordingProvider

__all__ = ["Call", "RecordingProvider"]
