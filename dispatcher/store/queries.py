"""Reading: one account's tasks, deliveries and attempts. Nothing here changes a row, or opens a sealed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.models import BodyMode, TaskState
from dispatcher.store.database import Database, now_ms
from dispatcher.store.records import LeasedTask
from dispatcher.store.tables import (
    attempts,
    bodies,
    deliveries,
    events,
    is_queued,
    redeliveries,
    subscriptions,
    tasks,
)
from subscriptions.models import SubscriptionState

#: what of a task may be shown; whether its URL is still there, not the URL
_TASK = (
    tasks.c.id,
    tasks.c.type,
    tasks.c.state,
    tasks.c.body_mode,
    tasks.c.metadata,
    tasks.c.error,
    tasks.c.delivery_id,
    deliveries.c.state.label("delivery_state"),
    tasks.c.attempt,
    tasks.c.callback_origin,
    tasks.c.callback_fingerprint,
    tasks.c.callback_token,
    tasks.c.callback_url.is_(None).label("wiped"),
    tasks.c.window_end,
    tasks.c.created_at,
    tasks.c.finished_at,
)

_DELIVERY = (
    deliveries,
    sa.func.coalesce(tasks.c.type, events.c.type).label("type"),
    subscriptions.c.origin,
    tasks.c.window_end,
    bodies.c.content_type,
    sa.func.length(bodies.c.content).label("size"),
)


#: rows that a filtered list looks at for one page, so that no filter makes anybody else wait
SCAN_LIMIT = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A part of a list."""

    rows: Sequence[sa.RowMapping]
    #: where the next page begins; None after the last
    next_cursor: str | None


async def task(database: Database, account: str, task_id: str) -> sa.RowMapping | None:
    """One task, or None."""
    return await _one(database, _tasks().where(tasks.c.id == task_id, tasks.c.account == account))


async def list_tasks(database: Database, account: str, *, limit: int, before: str | None, **equal: str | None) -> Page:
    """Tasks, newest first, below the id `before`, where columns have the given values."""
    mine = tasks.c.account == account
    return await _page(database, _tasks(), tasks, mine, limit=limit, before=before, equal=equal)


async def delivery(
    database: Database, account: str, delivery_id: str
) -> tuple[sa.RowMapping, Sequence[sa.RowMapping]] | None:
    """One delivery and its attempts in order, or None."""
    query = _deliveries().where(deliveries.c.id == delivery_id, deliveries.c.account == account)
    async with database.read() as connection:
        row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        tries = await connection.execute(
            sa.select(attempts).where(attempts.c.delivery_id == delivery_id).order_by(attempts.c.number)
        )
        return row, tries.mappings().all()


async def event(database: Database, account: str, event_id: str) -> sa.RowMapping | None:
    """One event with its payload, or None."""
    query = (
        sa.select(events, bodies.c.content)
        .select_from(events.outerjoin(bodies, bodies.c.id == events.c.id))
        .where(events.c.id == event_id, events.c.account == account)
    )
    return await _one(database, query)


async def list_events(database: Database, account: str, *, limit: int, before: str | None, **equal: str | None) -> Page:
    """Events, newest first, below the id `before`, where columns have the given values."""
    mine = events.c.account == account
    return await _page(database, sa.select(events), events, mine, limit=limit, before=before, equal=equal)


async def next_task_due(database: Database, types: Sequence[str]) -> float | None:
    """Seconds until a task of these types is due; None when none waits."""
    first = [
        sa.select(sa.func.min(tasks.c.due_at).label("due_at")).where(is_queued, tasks.c.type == name) for name in types
    ]
    earliest = sa.union_all(*first).subquery()
    async with database.read() as connection:
        row = (await connection.execute(sa.select(sa.func.min(earliest.c.due_at), now_ms()))).one()
    due, now = row
    return None if due is None else max(0.0, (due - now) / 1000)


async def list_deliveries(
    database: Database,
    account: str,
    *,
    limit: int,
    before: str | None,
    subscription_id: str | None = None,
    **equal: str | None,
) -> Page:
    """Deliveries, newest first, below the id `before`, where columns have the given values."""
    mine = deliveries.c.account == account
    if subscription_id is not None:
        if not await is_subscription(database, account, subscription_id, deleted_too=True):
            return Page(rows=(), next_cursor=None)
        # it is the account's, so its deliveries are; named alone, it is found by its own index
        mine = deliveries.c.subscription_id == subscription_id
    return await _page(database, _deliveries(), deliveries, mine, limit=limit, before=before, equal=equal)


async def delivery_state(database: Database, delivery_id: str) -> str | None:
    """A delivery's state, or None."""
    async with database.read() as connection:
        state: str | None = await connection.scalar(sa.select(deliveries.c.state).where(deliveries.c.id == delivery_id))
        return state


async def list_subscriptions(
    database: Database, account: str, *, limit: int, before: str | None, state: str | None
) -> Page:
    """Ids of subscriptions, newest first, below the id `before`. The operational one is not among them."""
    mine = sa.and_(
        subscriptions.c.account == account,
        subscriptions.c.operational.is_(False),
        subscriptions.c.state != SubscriptionState.DELETED,
    )
    query = sa.select(subscriptions.c.id)
    return await _page(database, query, subscriptions, mine, limit=limit, before=before, equal={"state": state})


async def is_subscription(database: Database, account: str, subscription_id: str, *, deleted_too: bool = False) -> bool:
    """Whether the account has this subscription."""
    here = sa.true() if deleted_too else subscriptions.c.state != SubscriptionState.DELETED
    query = sa.select(sa.literal(1)).where(
        subscriptions.c.id == subscription_id, subscriptions.c.account == account, here
    )
    async with database.read() as connection:
        return await connection.scalar(query) is not None


async def recent(database: Database, subscription_id: str, *, limit: int) -> Sequence[sa.RowMapping]:
    """A subscription's latest deliveries, newest first, each with the status of its last attempt."""
    status = (
        sa.select(attempts.c.status)
        .where(attempts.c.delivery_id == deliveries.c.id)
        .order_by(attempts.c.number.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        sa.select(
            deliveries.c.id,
            events.c.type,
            deliveries.c.kind,
            deliveries.c.state,
            deliveries.c.attempt,
            deliveries.c.last_outcome,
            status.label("status"),
            deliveries.c.created_at,
        )
        .select_from(deliveries.join(events, events.c.id == deliveries.c.source_id))
        .where(deliveries.c.subscription_id == subscription_id)
        .order_by(deliveries.c.id.desc())
        .limit(limit)
    )
    async with database.read() as connection:
        return (await connection.execute(query)).mappings().all()


async def redelivery(database: Database, account: str, redelivery_id: str) -> sa.RowMapping | None:
    """One redelivery of many, or None."""
    return await _one(
        database,
        sa.select(redeliveries).where(redeliveries.c.id == redelivery_id, redeliveries.c.account == account),
    )


async def list_redeliveries(database: Database, account: str, *, limit: int, before: str | None) -> Page:
    """Redeliveries of many, newest first, below the id `before`."""
    mine = redeliveries.c.account == account
    return await _page(database, sa.select(redeliveries), redeliveries, mine, limit=limit, before=before, equal={})


def _tasks() -> sa.Select[Any]:
    return sa.select(*_TASK).select_from(tasks.join(deliveries, deliveries.c.id == tasks.c.delivery_id))


def _deliveries() -> sa.Select[Any]:
    return sa.select(*_DELIVERY).select_from(
        deliveries.outerjoin(tasks, tasks.c.id == deliveries.c.source_id)
        .outerjoin(events, events.c.id == deliveries.c.source_id)
        .outerjoin(subscriptions, subscriptions.c.id == deliveries.c.subscription_id)
        .outerjoin(bodies, bodies.c.id == deliveries.c.body_id)
    )


async def _page(
    database: Database,
    query: sa.Select[Any],
    table: sa.Table,
    mine: sa.ColumnElement[bool],
    *,
    limit: int,
    before: str | None,
    equal: dict[str, str | None],
) -> Page:
    """One page. With a filter that few rows pass, it ends after SCAN_LIMIT rows were looked at, however few it has."""
    here = sa.and_(mine, sa.true() if before is None else table.c.id < before)
    wanted = [table.c[column] == value for column, value in equal.items() if value is not None]
    async with database.read() as connection:
        floor = None
        if wanted:
            floor = await connection.scalar(
                sa.select(table.c.id).where(here).order_by(table.c.id.desc()).offset(SCAN_LIMIT - 1).limit(1)
            )
        reached = sa.true() if floor is None else table.c.id >= floor
        found = await connection.execute(query.where(here, reached, *wanted).order_by(table.c.id.desc()).limit(limit))
        rows = found.mappings().all()
    return Page(rows=rows, next_cursor=rows[-1]["id"] if len(rows) == limit else floor)


async def _one(database: Database, query: sa.Select[Any]) -> sa.RowMapping | None:
    async with database.read() as connection:
        row: sa.RowMapping | None = (await connection.execute(query)).mappings().one_or_none()
        return row


async def leased_task(database: Database, account: str | None, task_id: str) -> LeasedTask | None:
    """A task as the processor that holds its lease knows it, without the payload. None if there is none."""
    query = sa.select(tasks).where(tasks.c.id == task_id, sa.true() if account is None else tasks.c.account == account)
    row = await _one(database, query)
    if row is None:
        return None
    return LeasedTask(
        id=row["id"],
        account=row["account"],
        type=row["type"],
        payload=b"",
        attempt=row["attempt"],
        failures=row["failures"],
        interruptions=row["interruptions"],
        body_mode=BodyMode(row["body_mode"]),
        delivery_id=row["delivery_id"],
        metadata=row["metadata"],
        created_at=row["created_at"],
        window_end=row["window_end"],
        lease_until=row["lease_until"],
        state=TaskState(row["state"]),
    )
