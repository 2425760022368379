"""The backlog yields to what comes in: how much of it may be leased, by how long callers wait for their commits.

A delivery that was just accepted is handed to its lane with its commit and is not counted here. What waits in the
database, after a fan-out to many, an enabled subscription or a time without us, is leased as fast as it can be without
keeping callers waiting: while there are any, it is leased in small parts whose sends do not start all at once, and
whenever a commit takes much longer than the fastest of late, or the event loop runs late, the pace is halved; else it
grows by a twentieth. It never falls below what comes in and cannot be handed off, such as all that keeps an order: a
backlog that yields to its own growth would never end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

#: deliveries per second that are leased at least, at most, and at most while there are callers
SLOWEST = 100.0
FASTEST = 20_000.0
FASTEST_BESIDE = 1_000.0
#: deliveries in one lease while there are callers: its commit is one that they wait behind
LARGEST_BESIDE = 12
#: attempts settled in one commit: at most, and at most while there are callers
LARGEST_SETTLE = 256
LARGEST_SETTLE_BESIDE = 36
#: seconds between two leases at most
LONGEST_GAP = 0.005
#: seconds that the loop may run late
LATE = 0.003
#: how much longer than the fastest commit of late another may take
SLOWED = 1.7
#: how the fastest is forgotten: what it grows by with each commit
FORGET = 1.005
#: looks without any caller after which the backlog has the loop to itself
ALONE = 50
#: seconds between two looks
INTERVAL = 0.02
#: a lease of fewer is not worth its commit
SMALLEST_LEASE = 4
#: seconds of pace that may be saved up
SAVED = 0.05
#: how much faster than what comes in is leased at least, so that no backlog grows as long as callers keep coming
KEEP_UP = 1.25
#: seconds over which it is counted how fast that is
COUNTED_OVER = 2.0


class Governor:
    """A pace for leasing. `watch()` it runs as long as the engine does."""

    def __init__(self, take_waits: Callable[[], Iterable[float]]) -> None:
        self.pace = FASTEST
        self._take_waits = take_waits
        self._fastest: float | None = None
        #: looks since a caller last waited for a commit
        self._looks_alone = ALONE
        self._saved = FASTEST * SAVED
        self._at = 0.0
        #: deliveries that came in since the last look, to be leased; and per second
        self._came = 0
        self._coming = 0.0

    async def watch(self) -> None:
        """Look once how callers fare, and set the pace."""
        loop = asyncio.get_running_loop()
        due = loop.time() + INTERVAL
        await asyncio.sleep(INTERVAL)
        self.note(late=loop.time() - due, waits=self._take_waits())

    def note(self, *, late: float, waits: Iterable[float]) -> None:
        """The loop ran so many seconds late, and callers waited so long for their commits."""
        slowed = late > LATE and not self._is_alone
        self._looks_alone += 1
        for wait in waits:
            self._looks_alone = 0
            self._fastest = wait if self._fastest is None else min(self._fastest * FORGET, wait)
            slowed = slowed or wait > self._fastest * SLOWED
        span = INTERVAL + max(0.0, late)
        self._coming += (self._came / span - self._coming) * min(1.0, span / COUNTED_OVER)
        self._came = 0
        slowest = max(SLOWEST, self._coming * KEEP_UP)
        fastest = FASTEST if self._is_alone else max(slowest, FASTEST_BESIDE)
        self.pace = min(fastest, max(slowest, self.pace * (0.5 if slowed else 1.05)))

    @property
    def _is_alone(self) -> bool:
        return self._looks_alone >= ALONE

    def expect(self, count: int) -> None:
        """So many came in that are to be leased: in order, at a pace, or since their lanes had no room."""
        self._came += count

    def allowance(self, now: float) -> int:
        """How many deliveries may be leased now; none, if too few for a lease."""
        self._saved = min(self.pace * SAVED, self._saved + (now - self._at) * self.pace)
        self._at = now
        if self._saved < SMALLEST_LEASE:
            return 0
        return int(self._saved) if self._is_alone else min(LARGEST_BESIDE, int(self._saved))

    @property
    def gap(self) -> float:
        """Seconds between two sends of one lease."""
        return 0.0 if self._is_alone else min(LONGEST_GAP, 0.5 / self.pace)

    def settle_at_most(self) -> int:
        """How many attempts may be settled in one commit."""
        return LARGEST_SETTLE if self._is_alone else LARGEST_SETTLE_BESIDE

    def spend(self, count: int) -> None:
        """So many were leased."""
        self._saved -= count

    def ready_in(self) -> float:
        """Seconds until there is an allowance."""
        return max(0.0, (SMALLEST_LEASE - self._saved) / self.pace)
