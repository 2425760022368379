"""Leases that this process holds, as their rows were when it took them: settling need not read them again.

While a delivery is leased its row changes in few ways: somebody marks it, or ends the lease, which changes its state,
its session or its attempt. So what is decided on what is known here is written only where none of that has happened
(`settling`); otherwise the row is read, and it is decided anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: leases that are remembered; more than a process ever holds
MAX_REMEMBERED = 200_000


class Leased(msgspec.Struct, frozen=True, gc=False):
    """A leased delivery, with what of its task matters to it: the values of a row, in its order."""

    # what leasing sets stands first
    state: str
    attempt: int
    session: str
    id: str
    account: str
    source_id: str
    subscription_id: str | None
    kind: str
    lane: str
    # one that is leased from the start has no more to tell
    mark: str | None = None
    failures: int = 0
    last_outcome: str | None = None
    repeats: int = 0
    seq: int | None = None
    order_key: str | None = None
    refused: bool = False
    other_secret: bool = False
    # of a task's callback
    window_end: int | None = None
    callback_origin: str | None = None


class Leases:
    """What a process remembers of its leases, until it hears of their end."""

    def __init__(self) -> None:
        self._rows: dict[str, Leased] = {}

    def remember(self, row: Leased) -> None:
        """This is leased, or will be with the transaction that is under way: else nobody will ask for it."""
        if len(self._rows) > MAX_REMEMBERED:
            self.clear()
        self._rows[row.id] = row

    def take(self, delivery_id: str, attempt: int, session: str) -> Leased | None:
        """A lease that is over now, if it is known. Whoever asks again has to read it."""
        row = self._rows.pop(delivery_id, None)
        if row is None or row.attempt != attempt or row.session != session:
            return None
        return row

    def forget(self, ids: Iterable[str]) -> None:
        """These are over, or have been marked."""
        for id_ in ids:
            self._rows.pop(id_, None)

    def clear(self) -> None:
        """All are over."""
        self._rows.clear()
