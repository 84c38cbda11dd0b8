"""Tasks that a test holds in its hand: they say that they have started, and end when they are let.

For workers in the test's own process (``dask_tide.testing.RecordingProvider``) only.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from waiting import until

_lock = threading.Lock()
_gates: dict[str, threading.Event] = {}
_starts: Counter[str] = Counter()
_all = threading.Event()

#: Longer than any test: a task that nobody lets go is a failed test, not a hanging one.
_END_S = 120.0


def _gate(name: str) -> threading.Event:
    with _lock:
        gate = _gates.setdefault(name, threading.Event())
    if _all.is_set():
        gate.set()
    return gate


def held(name: str, value: Any = None, *dependencies: Any) -> Any:
    """Run as a task: ends once :func:`let` is called for ``name``."""
    with _lock:
        _starts[name] += 1
    if not _gate(name).wait(_END_S):
        raise TimeoutError(f"nobody let {name!r} go within {_END_S:.0f} s")
    return value


async def asked(name: str) -> str:
    """Call by ``client.run``: ends once :func:`let` is called for ``name``."""
    with _lock:
        _starts[name] += 1
    gate = _gate(name)
    await until(gate.is_set, f"{name!r} is let go", _END_S)
    return name


def quick(name: str, value: Any = None, *dependencies: Any) -> Any:
    """Run as a task: counts its starts and ends at once."""
    with _lock:
        _starts[name] += 1
    return value


def let(*names: str) -> None:
    """Let these end; without a name all, those too that start later."""
    if not names:
        _all.set()
    for name in names or list(_gates):
        _gate(name).set()


def starts(name: str) -> int:
    """How many times it was started."""
    return _starts[name]


def forget() -> None:
    """End of a test: let all go, begin anew."""
    let()
    with _lock:
        _gates.clear()
        _all.clear()
        _starts.clear()
