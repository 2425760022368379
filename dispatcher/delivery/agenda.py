"""The agenda: which lanes have work in the database, and when it is due.

It is only a hint. An entry too many costs a query that finds nothing; one that is missing is found by the next
scan. So it may be kept in memory, and no row depends on it.
"""

from __future__ import annotations

import heapq

#: entries left behind that are borne with before the heap is built anew
MAX_STALE = 64


class Agenda:
    """Lanes by the time their next work is due (monotonic seconds)."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def note(self, lane: str, due: float) -> None:
        """Work of this lane is due then, or earlier if that was known before."""
        known = self._due.get(lane)
        if known is None or due < known:
            self._due[lane] = due
            heapq.heappush(self._heap, (due, lane))
            if len(self._heap) > 2 * len(self._due) + MAX_STALE:
                self._heap = [(when, name) for name, when in self._due.items()]
                heapq.heapify(self._heap)

    def is_due(self, lane: str, now: float) -> bool:
        """Whether this lane has due work in the database."""
        due = self._due.get(lane)
        return due is not None and due <= now

    def take_due(self, now: float, limit: int) -> list[str]:
        """Remove and return lanes that are due, the longest overdue first."""
        lanes: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(lanes) < limit:
            due, lane = heapq.heappop(self._heap)
            # An entry that was noted anew, earlier, has left this one behind.
            if self._due.get(lane) == due:
                del self._due[lane]
                lanes.append(lane)
        return lanes

    def next_due(self) -> float | None:
        """When the next lane is due; None when nothing is planned."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
