"""The database's clock, as a process knows it between two looks: from one to the next, its own monotonic clock goes on.

A machine's own clock may be wrong, by seconds or by hours. Moments in the database (when a secret becomes valid, when
a window ends) are the database's, so only that clock can be compared with them.
"""

from __future__ import annotations

import time

#: seconds after which an answer says too little of when the question was asked
MAX_TRIP = 1.0


def not_before(now: int) -> int:
    """The earlier of the database's moment and this machine's, milliseconds since the epoch.

    What is deleted is gone: nothing is old because one clock jumped ahead.
    """
    return min(now, time.time_ns() // 1_000_000)


class DatabaseClock:
    """Tells the database's time. Until it has been told that, it goes by the machine's."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def learn(self, now: int, *, asked: float) -> None:
        """Take over the database's time, milliseconds since the epoch. `asked` is monotonic: before it was asked for.

        What has been written there can thus never seem to be yet to come.
        """
        if time.monotonic() - asked <= MAX_TRIP:
            self._ahead = now / 1000 - asked

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.monotonic() + self._ahead
