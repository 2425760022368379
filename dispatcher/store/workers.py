"""Who works on this database, and what each has in hand: the sessions, and the leases that hang on them."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from dispatcher.store.database import Database, now_ms
from dispatcher.store.tables import deliveries, is_live, is_processing, paces, sessions, tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One process, as its session tells."""

    #: its session's id
    id: str
    host: str
    pid: int
    #: `all`, `api` or `worker`
    role: str
    #: of the program
    version: str
    #: milliseconds since the epoch
    started_at: int
    #: since its last heartbeat, seconds; None where it is of a version that does not note it
    heartbeat_age: float | None
    #: whether its heartbeat is overdue: its leases are about to be freed
    overdue: bool
    #: deliveries that it has leased: those being sent, and those that wait in its lanes
    deliveries: int
    #: tasks that it is working on
    tasks: int
    #: subscriptions whose rate limit it is keeping for all
    paces: int


async def list_workers(database: Database) -> list[Worker]:
    """Every process that has a session, the oldest first."""
    # These count what is held at this moment, whatever waits.
    leased = _count(deliveries, sa.and_(is_live, deliveries.c.state == "leased"))
    processing = _count(tasks, is_processing)
    keeping = _count(paces, paces.c.until > now_ms())
    query = (
        sa.select(
            sessions.c.id,
            sessions.c.host,
            sessions.c.pid,
            sessions.c.role,
            sessions.c.version,
            sessions.c.started_at,
            (now_ms() - sessions.c.heartbeat_at).label("age"),
            (sessions.c.expires_at <= now_ms()).label("overdue"),
            sa.func.coalesce(leased.c.number, 0).label("deliveries"),
            sa.func.coalesce(processing.c.number, 0).label("tasks"),
            sa.func.coalesce(keeping.c.number, 0).label("paces"),
        )
        .select_from(
            sessions.outerjoin(leased, leased.c.session == sessions.c.id)
            .outerjoin(processing, processing.c.session == sessions.c.id)
            .outerjoin(keeping, keeping.c.session == sessions.c.id)
        )
        .order_by(sessions.c.id)
    )
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    return [
        Worker(
            id=row.id,
            host=row.host,
            pid=row.pid,
            role=row.role,
            version=row.version,
            started_at=row.started_at,
            heartbeat_age=None if row.age is None else max(0.0, row.age / 1000),
            overdue=bool(row.overdue),
            deliveries=row.deliveries,
            tasks=row.tasks,
            paces=row.paces,
        )
        for row in rows
    ]


def _count(table: sa.Table, where: sa.ColumnElement[bool]) -> sa.Subquery:
    return sa.select(table.c.session, sa.func.count().label("number")).where(where).group_by(table.c.session).subquery()
