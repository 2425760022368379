"""What an account is told of its subscriptions, gathered: per subscription and type, once a minute at most.

The first of a kind is told at once; those that follow within the minute are counted, and told together after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dispatcher.store.committer import Transaction
from dispatcher.store.database import upsert
from dispatcher.store.tables import notices

#: stands for no subscription
NO_SUBSCRIPTION = ""
#: time between two notices of one kind about one subscription, milliseconds
SPAN_MS = 60_000


class NoticeType(StrEnum):
    """What may be told."""

    #: a subscription was disabled
    DISABLED = "subscription.disabled"
    #: it was enabled
    ENABLED = "subscription.enabled"
    #: its endpoint has failed several times in a row
    FAILING = "subscription.failing"
    #: deliveries to it used up every try
    EXHAUSTED = "delivery.exhausted"
    #: one of its secrets ends soon
    SECRET_EXPIRING = "secret.expiring"  # noqa: S105 - a name
    #: a row of the outbox cannot be taken; it is about no subscription
    OUTBOX_REFUSED = "outbox.refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something that happened to a subscription, or to the account."""

    account: str
    #: NO_SUBSCRIPTION where it is about none
    subscription_id: str
    type: NoticeType
    #: what is said of it; of several, the latest
    detail: dict[str, Any]
    #: how many times it happened
    count: int = 1


async def note(tx: Transaction, happened: Sequence[Notice]) -> None:
    """Count what happened, to be told when its time comes."""
    if not happened:
        return
    insert = upsert(tx.connection.dialect.name, notices)
    statement = insert.on_conflict_do_update(
        index_elements=[notices.c.account, notices.c.subscription_id, notices.c.type],
        set_={
            "count": notices.c.count + insert.excluded.count,
            "detail": insert.excluded.detail,
            "first_at": sa.case((notices.c.count == 0, insert.excluded.first_at), else_=notices.c.first_at),
            "last_at": insert.excluded.last_at,
        },
    )
    rows = [
        {
            "account": notice.account,
            "subscription_id": notice.subscription_id,
            "type": notice.type,
            "count": notice.count,
            "detail": notice.detail,
            "first_at": tx.now,
            "last_at": tx.now,
            "due_at": tx.now,
        }
        for notice in happened
    ]
    await tx.connection.execute(statement, rows)


async def take_due(tx: Transaction, limit: int) -> Sequence[sa.RowMapping]:
    """Take what may be told now, and begin a new span for it. What stayed quiet for a span is forgotten."""
    found = await tx.connection.execute(
        sa.select(notices)
        .where(notices.c.due_at <= tx.now)
        .order_by(notices.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    due = found.mappings().all()
    for row in due:
        if row["count"] == 0:
            await forget(tx, row)
        else:
            span = sa.update(notices).where(_is(row)).values(count=0, due_at=tx.now + SPAN_MS)
            await tx.connection.execute(span)
    return [row for row in due if row["count"] > 0]


async def forget(tx: Transaction, row: sa.RowMapping) -> None:
    """Let the next of this kind be told at once."""
    await tx.connection.execute(sa.delete(notices).where(_is(row)))


def _is(row: sa.RowMapping) -> sa.ColumnElement[bool]:
    return sa.and_(
        notices.c.account == row["account"],
        notices.c.subscription_id == row["subscription_id"],
        notices.c.type == row["type"],
    )


async def next_due(tx: Transaction) -> float | None:
    """Seconds until something may be told or forgotten; None when nothing is noted."""
    due = await tx.connection.scalar(sa.select(sa.func.min(notices.c.due_at)))
    return None if due is None else max(0.0, (due - tx.now) / 1000)
