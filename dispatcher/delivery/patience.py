"""How long an answer may take before others go first: one timer for all requests, as all are given the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from dispatcher.delivery.lanes import Turn

#: seconds after which a request that got no answer yet stops counting against the send slots
PATIENCE = 0.5
#: seconds by which it may end early: timers count in milliseconds
EARLY = 0.002


class Patience:
    """Turns whose answer is waited for, the longest first; `lose` is told of those that take too long."""

    def __init__(self, lose: Callable[[list[Turn]], None]) -> None:
        self._lose = lose
        #: turn -> when it began, on the event loop's clock
        self._since: OrderedDict[Turn, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, turn: Turn, now: float) -> None:
        """Its request goes out."""
        self._since[turn] = now
        if self._timer is None:
            self._wait(now)

    def end(self, turn: Turn) -> None:
        """It has its answer, or there will be none."""
        self._since.pop(turn, None)

    def _wait(self, since: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(since + PATIENCE, self._look)

    def _look(self) -> None:
        self._timer = None
        began_before = asyncio.get_running_loop().time() - PATIENCE + EARLY
        lost: list[Turn] = []
        while self._since:
            turn, since = next(iter(self._since.items()))
            if since > began_before:
                self._wait(since)
                break
            del self._since[turn]
            lost.append(turn)
        if lost:
            self._lose(lost)
