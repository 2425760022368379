"""Waiting for what is to happen."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], *, within: float, every: float = 0.05) -> float | None:
    """Wait until a condition holds; the seconds that it took, or None if it did not happen in time."""
    began = time.monotonic()
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return time.monotonic() - began
        if time.monotonic() - began > within:
            return None
        await asyncio.sleep(every)


async def surely(condition: Callable[[], Any], *, within: float, every: float = 0.05) -> None:
    """The same for what has to happen. Raises TimeoutError."""
    if await until(condition, within=within, every=every) is None:
        raise TimeoutError(f"not within {within} s")
