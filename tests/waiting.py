"""Conditions with a deadline: no test sleeps for luck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

#: Long enough for a machine that does four other things; no test takes it unless it fails.
DEADLINE_S = 60.0


def wait_until(
    condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S, detail: Callable[[], Any] = str
) -> Any:
    """Wait for a condition and return its (true) value; say ``what`` did not happen, and ``detail()``."""
    began_s = time.monotonic()
    while True:
        looked_s = time.monotonic()
        if value := condition():
            return value
        if time.monotonic() > began_s + deadline_s:
            pytest.fail(f"not within {deadline_s:g} s: {what}\n{detail()}")
        time.sleep(_pause_s(looked_s, began_s))


async def until(
    condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S, detail: Callable[[], Any] = str
) -> Any:
    """:func:`wait_until` for asynchronous tests; the condition may be a coroutine function."""
    began_s = time.monotonic()
    while True:
        looked_s = time.monotonic()
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > began_s + deadline_s:
            pytest.fail(f"not within {deadline_s:g} s: {what}\n{detail()}")
        await asyncio.sleep(_pause_s(looked_s, began_s))


def _pause_s(looked_s: float, began_s: float) -> float:
    """Longer than the look took, so that what is waited for has the machine; longer in a long wait."""
    now_s = time.monotonic()
    return max(0.02, 3 * (now_s - looked_s), min(0.05, (now_s - began_s) / 20))
