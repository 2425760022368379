"""Reading: one account's tasks, deliveries and attempts. Nothing here changes a row, or opens a sealed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dispatcher.models import BodyMode, TaskState
from dispatcher.store.database import Database
from dispatcher.store.records import LeasedTask
from dispatcher.store.tables import attempts, bodies, deliveries, tasks

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
    tasks.c.type,
    tasks.c.callback_origin,
    tasks.c.window_end,
    bodies.c.content_type,
    sa.func.length(bodies.c.content).label("size"),
)


async def task(database: Database, account: str, task_id: str) -> sa.RowMapping | None:
    """One task, or None."""
    return await _one(database, _tasks().where(tasks.c.id == task_id, tasks.c.account == account))


async def list_tasks(
    database: Database, account: str, *, limit: int, before: str | None, **equal: str | None
) -> Sequence[sa.RowMapping]:
    """Tasks, newest first, below the id `before`, where columns have the given values."""
    query = _tasks().where(tasks.c.account == account)
    return await _page(database, query, tasks, limit=limit, before=before, equal=equal)


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


async def list_deliveries(
    database: Database, account: str, *, limit: int, before: str | None, **equal: str | None
) -> Sequence[sa.RowMapping]:
    """Deliveries, newest first, below the id `before`, where columns have the given values."""
    query = _deliveries().where(deliveries.c.account == account)
    return await _page(database, query, deliveries, limit=limit, before=before, equal=equal)


def _tasks() -> sa.Select[Any]:
    return sa.select(*_TASK).select_from(tasks.join(deliveries, deliveries.c.id == tasks.c.delivery_id))


def _deliveries() -> sa.Select[Any]:
    joined = deliveries.join(tasks, tasks.c.id == deliveries.c.task_id)
    return sa.select(*_DELIVERY).select_from(joined.outerjoin(bodies, bodies.c.id == deliveries.c.body_id))


async def _page(
    database: Database,
    query: sa.Select[Any],
    table: sa.Table,
    *,
    limit: int,
    before: str | None,
    equal: dict[str, str | None],
) -> Sequence[sa.RowMapping]:
    for column, value in equal.items():
        if value is not None:
            query = query.where(table.c[column] == value)
    if before is not None:
        query = query.where(table.c.id < before)
    async with database.read() as connection:
        rows = await connection.execute(query.order_by(table.c.id.desc()).limit(limit))
        found: Sequence[sa.RowMapping] = rows.mappings().all()
        return found


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
