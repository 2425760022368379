"""What becomes ready in one round of the event loop is done together, step by step.

A delivery that walks by itself through all of our code finds none of it in the processor's caches, since the one before
has just been everywhere. Where many are ready, one step is done for all of them before the next, which takes half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: items that are done together at most, so that the event loop looks at its sockets meanwhile
MOST = 64


class Round(Generic[T]):
    """Gathers items, and hands all that came in a round of the event loop to `work`, which raises nothing."""

    def __init__(self, work: Callable[[list[T]], None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._ready: list[T] = []

    def add(self, item: T) -> None:
        """Have it done soon."""
        if not self._ready:
            self._loop.call_soon(self._go)
        self._ready.append(item)

    def _go(self) -> None:
        ready = self._ready[:MOST]
        self._ready = self._ready[MOST:]
        if self._ready:
            self._loop.call_soon(self._go)
        self._work(ready)
