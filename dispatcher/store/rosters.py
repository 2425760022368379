"""Who wants which events: each account's subscriptions, indexed and kept in memory.

A roster is good for one version of the account's subscriptions. Matching is done with what is in memory, and the
transaction that stores the event checks the version: so an event meets the subscriptions as they were at its
acceptance, and nobody reads them anew for every event.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.store.database import Database
from dispatcher.store.endpoints import Stamp
from dispatcher.store.tables import accounts
from subscriptions import store as subscription_store
from subscriptions.filters import Filter, compile_filter
from subscriptions.health import DisabledReason
from subscriptions.matching import Audience, Listener
from subscriptions.models import Ordering, SubscriptionState

#: accounts that are remembered
MAX_REMEMBERED = 10_000
#: seconds for which a roster is brought up to date by what changed since; the rows of deleted subscriptions, which say
#: that they are gone, are kept for twice as long at least
GOOD_FOR = 43_200.0
#: filters that are remembered compiled
MAX_FILTERS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscriber:
    """What fan-out needs to know of a subscription."""

    stamp: Stamp
    state: SubscriptionState
    disabled_reason: DisabledReason | None
    body_mode: str
    ordering: str
    rate_limit: float | None
    listener: Listener

    @property
    def id(self) -> str:
        """Its id."""
        return self.stamp.id

    @property
    def is_plain(self) -> bool:
        """Whether a delivery to it waits for nothing but its turn."""
        return self.state is SubscriptionState.ACTIVE and self.ordering == Ordering.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """An account's subscriptions that published events may go to."""

    account: str
    version: int
    subscribers: dict[str, Subscriber]
    audience: Audience
    #: monotonic clock when it was read, seconds
    read_at: float


class Rosters:
    """The process's rosters."""

    def __init__(self) -> None:
        self._rosters: OrderedDict[str, Roster] = OrderedDict()

    async def get(self, database: Database, account: str) -> Roster:
        """An account's roster; what it was a moment ago, if something is known of it."""
        known = self._rosters.get(account)
        if known is None:
            async with database.read() as connection:
                known = await self.read(connection, account)
            self.remember(known)
        self._rosters.move_to_end(account)
        return known

    def remember(self, roster: Roster) -> None:
        """Keep a roster that was committed."""
        self._rosters[roster.account] = roster
        if len(self._rosters) > MAX_REMEMBERED:
            self._rosters.popitem(last=False)

    async def read(self, connection: AsyncConnection, account: str) -> Roster:
        """An account's roster as this transaction sees it, made of the one in memory where that is still good."""
        version = await current_version(connection, account)
        known = self._rosters.get(account)
        if known is not None and known.version == version:
            return known
        now = monotonic()
        old = known if known is not None and known.version < version and is_good(known.read_at) else None
        rows = await subscription_store.changed_since(connection, account, old.version if old else 0)
        subscribers = dict(old.subscribers) if old else {}
        for id_, changed in _changed(rows).items():
            if changed is None:
                subscribers.pop(id_, None)
            else:
                subscribers[id_] = changed
        ordered = dict(sorted(subscribers.items()))
        audience = Audience(one.listener for one in ordered.values())
        return Roster(account=account, version=version, subscribers=ordered, audience=audience, read_at=now)


def is_good(read_at: float) -> bool:
    """Whether what was read at a moment of the monotonic clock can be brought up to date by what changed since."""
    return monotonic() - read_at < GOOD_FOR


async def changes(
    connection: AsyncConnection, account: str, version: int, *, limit: int
) -> dict[str, Subscriber | None]:
    """An account's subscriptions that changed after a version, by id, at most `limit`; None for what events miss."""
    return _changed(await subscription_store.changed_since(connection, account, version, limit=limit))


def _changed(rows: Iterable[sa.RowMapping]) -> dict[str, Subscriber | None]:
    return {
        row["id"]: None if row["state"] == SubscriptionState.DELETED or row["operational"] else subscriber(row)
        for row in rows
    }


def subscriber(row: sa.RowMapping) -> Subscriber:
    """A row of `subscriptions` as fan-out knows it."""
    return Subscriber(
        stamp=Stamp.of(row),
        state=SubscriptionState(row["state"]),
        disabled_reason=None if row["disabled_reason"] is None else DisabledReason(row["disabled_reason"]),
        body_mode=row["body_mode"],
        ordering=row["ordering"],
        rate_limit=row["rate_limit"],
        listener=Listener(
            id=row["id"],
            patterns=tuple(row["events"]),
            filter=None if row["filter"] is None else _compiled(row["filter"]),
        ),
    )


async def current_version(connection: AsyncConnection, account: str) -> int:
    """The version of an account's subscriptions that the database has now."""
    versions = await current_versions(connection, [account])
    return versions.get(account, 0)


async def current_versions(connection: AsyncConnection, ids: Iterable[str]) -> dict[str, int]:
    """The versions of several accounts' subscriptions; an account without any is not in it."""
    rows = await connection.execute(
        sa.select(accounts.c.id, accounts.c.subscriptions_version).where(accounts.c.id.in_(sorted(set(ids))))
    )
    return dict(rows.all())


@functools.lru_cache(MAX_FILTERS)
def _compiled(text: str) -> Filter:
    return compile_filter(text)
