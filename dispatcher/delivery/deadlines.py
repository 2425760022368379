"""One coarse timer for the deadlines of all requests in flight: one for each would cost as much as the request."""

from __future__ import annotations

import asyncio
from typing import Protocol

#: seconds by which a deadline may be late
TICK = 0.05


class Expiring(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """Its time is up."""
        ...


class Deadlines:
    """Who expires when, for one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: number of the tick -> those whose time is up then
        self._due: dict[int, set[Expiring]] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: the tick that the timer waits for
        self._next = 0

    def add(self, one: Expiring, at: float) -> int:
        """It expires at a moment of the loop's clock, or up to a tick later. What is returned takes it back."""
        tick = int(at / TICK) + 1
        due = self._due.get(tick)
        if due is None:
            self._due[tick] = {one}
            self._wait()
        else:
            due.add(one)
        return tick

    def discard(self, one: Expiring, tick: int) -> None:
        """It does not expire any more."""
        due = self._due.get(tick)
        if due is not None:
            due.discard(one)

    def close(self) -> None:
        """Let nothing expire any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        first = min(self._due)
        if self._timer is not None:
            if self._next <= first:
                return
            self._timer.cancel()
        self._next = first
        self._timer = self._loop.call_at(first * TICK, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for tick in sorted(tick for tick in self._due if tick * TICK <= now + TICK / 10):
            for one in self._due.pop(tick):
                one.expire()
        if self._due:
            self._wait()
