"""Tell accounts what happened to their subscriptions: an event to the operational one, of what `notices` gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from dispatcher.bodies import rfc3339
from dispatcher.models import DeliveryKind
from dispatcher.store import notices
from dispatcher.store.committer import Transaction
from dispatcher.store.subscribing import send_own
from dispatcher.store.tables import accounts, subscriptions
from subscriptions.health import DisabledReason
from subscriptions.models import SubscriptionState

#: notices that one step tells
STEP = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a step did."""

    #: seconds until there may be more to tell; None when nothing is noted
    more_in: float | None


async def tell(tx: Transaction, sources: Sequence[str]) -> list[Told]:
    """Tell what is due; a source is what a CloudEvent names as such."""
    return [await _tell(tx, source) for source in sources]


async def _tell(tx: Transaction, source: str) -> Told:
    for row in await notices.take_due(tx, STEP):
        await _tell_one(tx, row, source)
    return Told(more_in=await notices.next_due(tx))


async def _tell_one(tx: Transaction, row: sa.RowMapping, source: str) -> None:
    listener = await _listener(tx, row["account"])
    if listener is None:
        # Whoever names an endpoint later is told at once of what happens then.
        await notices.forget(tx, row)
        return
    payload = {
        "type": row["type"],
        **await _subject(tx, row["subscription_id"]),
        "count": row["count"],
        "first_at": rfc3339(row["first_at"]),
        "last_at": rfc3339(row["last_at"]),
        **row["detail"],
    }
    body = msgspec.json.encode(payload)
    await send_own(tx, listener, row["type"], body, kind=DeliveryKind.MESSAGE, source=source)


async def _subject(tx: Transaction, subscription_id: str) -> dict[str, object]:
    """The subscription that something is told of, if it is one."""
    if subscription_id == notices.NO_SUBSCRIPTION:
        return {}
    about = await tx.connection.execute(
        sa.select(subscriptions.c.name, subscriptions.c.origin).where(subscriptions.c.id == subscription_id)
    )
    name, origin = about.one_or_none() or ("", "")
    return {"subscription": {"id": subscription_id, "name": name, "host": origin.partition("://")[2]}}


async def _listener(tx: Transaction, account: str) -> sa.RowMapping | None:
    """The account's operational subscription, if it has one that has not gone for good."""
    rows = await tx.connection.execute(
        sa.select(subscriptions)
        .join(accounts, accounts.c.operational_id == subscriptions.c.id)
        .where(accounts.c.id == account, subscriptions.c.state != SubscriptionState.DELETED)
    )
    row = rows.mappings().one_or_none()
    return None if row is None or row["disabled_reason"] == DisabledReason.GONE else row
