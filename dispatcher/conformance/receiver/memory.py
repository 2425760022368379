"""What was seen, remembered for a time: bounded, and never forgotten too early."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Sequence

#: times are Unix seconds throughout


class Memory:
    """A set whose members expire. It holds digests: members of any length cost the same, and none can be read back.

    Each member has two ends: until `needed` it is kept whatever comes, until `wanted` it is kept if there is room.
    When it is full of members that are still needed, there is no room: the caller has to refuse, since to forget
    one of them would open the door that it keeps shut.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ends: dict[bytes, tuple[float, float]] = {}
        #: (needed, member), soonest first; may name members that are gone
        self._queue: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._ends)

    def has(self, member: Sequence[str], now: float) -> bool:
        """It was added, and has not expired; at its last moment it is still there."""
        ends = self._ends.get(_digest(member))
        return ends is not None and now <= ends[1]

    def has_room(self, now: float) -> bool:
        """Another member can be added without forgetting one that is needed."""
        first = self._first()
        return len(self._ends) < self._capacity or (first is not None and first < now)

    def room_in(self, now: float) -> float:
        """Seconds until there is room; 0 if there is."""
        first = self._first()
        return 0.0 if self.has_room(now) or first is None else first - now

    def add(self, member: Sequence[str], *, now: float, needed: float, wanted: float | None = None) -> None:
        """Remember it until `needed`, and with room until `wanted`. Ask `has_room` before."""
        while len(self._ends) >= self._capacity and self._drop_first(now):
            pass
        digest = _digest(member)
        self._ends[digest] = (needed, max(needed, wanted or 0.0))
        heapq.heappush(self._queue, (needed, digest))
        # those who add and forget in turn leave their traces in the queue only
        if len(self._queue) > 2 * self._capacity + 16:
            self._queue = [(ends[0], digest) for digest, ends in self._ends.items()]
            heapq.heapify(self._queue)

    def forget(self, member: Sequence[str]) -> None:
        """As if it had not been added."""
        self._ends.pop(_digest(member), None)

    def _first(self) -> float | None:
        """When the next member is no longer needed."""
        while self._queue:
            needed, digest = self._queue[0]
            if self._ends.get(digest, (None,))[0] == needed:
                return needed
            heapq.heappop(self._queue)
        return None

    def _drop_first(self, now: float) -> bool:
        first = self._first()
        if first is None or first >= now:
            return False
        self._ends.pop(heapq.heappop(self._queue)[1])
        return True


def _digest(member: Sequence[str]) -> bytes:
    # JSON keeps ("ab", "c") and ("a", "bc") apart, and takes any text, lone surrogates too
    return hashlib.sha256(json.dumps(list(member)).encode()).digest()
