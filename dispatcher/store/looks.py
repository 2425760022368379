"""Whether what is about to be sent goes to what its subscription still is: one look at the database for all who ask.

A delivery that waited in memory is sent as its subscription was a second ago at most. Many wait for the same few
subscriptions, so what was seen is good for all of them until it is that old.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import NamedTuple

import sqlalchemy as sa

from dispatcher.store.database import Database
from dispatcher.store.statements import Statement, among, run
from subscriptions.schema import subscriptions

#: seconds for which a look is good
GOOD_FOR = 1.0
#: subscriptions that are remembered
MAX_REMEMBERED = 20_000


class _Seen(NamedTuple):
    """What a look found."""

    #: None: it is there no more
    version: int | None
    #: monotonic time before it was looked for, seconds
    at: float


class Looks:
    """The versions of subscriptions as they were last seen."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[str, _Seen] = {}
        #: whom the next look is for, and the look
        self._wanted: set[str] = set()
        self._next: asyncio.Task[dict[str, int]] | None = None

    def forget(self) -> None:
        """Something was changed here: whoever asks from now on sees it."""
        self._seen = {}

    async def version(self, subscription_id: str) -> int | None:
        """The version of a subscription; None if there is no such any more. Raises StoreUnavailable."""
        seen = self._seen.get(subscription_id)
        if seen is not None and monotonic() - seen.at <= GOOD_FOR:
            return seen.version
        self._wanted.add(subscription_id)
        if self._next is None:
            self._next = asyncio.create_task(self._look(), name="look")
        # Whoever goes away takes it from nobody else.
        found = await asyncio.shield(self._next)
        return found.get(subscription_id)

    async def _look(self) -> dict[str, int]:
        # Those who ask in the same round of the event loop are looked for together.
        await asyncio.sleep(0)
        wanted, self._wanted, self._next = sorted(self._wanted), set(), None
        if len(self._seen) > MAX_REMEMBERED:
            self.forget()
        # What is forgotten meanwhile is not remembered again.
        at, seen = monotonic(), self._seen
        async with self._database.read() as connection:
            [rows] = await run(connection, (_VERSIONS, [(wanted,)]))
        found: dict[str, int] = dict(rows)
        seen.update((id_, _Seen(found.get(id_), at)) for id_ in wanted)
        return found


_VERSIONS = Statement(
    sa.select(subscriptions.c.id, subscriptions.c.version).where(among(subscriptions.c.id, "ids")), "ids", packed=True
)
