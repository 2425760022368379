"""Worker sessions: what leases hang on. A session lives as long as its row; when that is gone, its leases are free.

A process keeps its session by a heartbeat, and deletes it when it stops. Others end it when the heartbeat is overdue.
"""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import version
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.store.database import Database, now_ms
from dispatcher.store.statements import Statement, leave, run
from dispatcher.store.tables import sessions


async def open_session(database: Database, *, ttl: float, alone: bool, role: str = "all") -> str:
    """Register this process, which has this role, and return the session's id.

    `alone` says that no other process can be using the database (the embedded file is locked to us): every
    other session is then over at once, instead of at the end of its `ttl` (seconds).
    """
    session = new_id()
    async with database.write() as connection:
        if alone:
            await connection.execute(sa.delete(sessions))
        await connection.execute(
            sa.insert(sessions).values(
                id=session,
                host=socket.gethostname()[:255],
                pid=os.getpid(),
                started_at=now_ms(),
                expires_at=now_ms() + int(ttl * 1000),
                role=role,
                version=version("webhook-dispatcher")[:40],
                heartbeat_at=now_ms(),
            )
        )
    return session


async def heartbeat(database: Database, session: str, *, ttl: float) -> bool:
    """Prolong a session by `ttl` seconds from now. False when it is over.

    A session that is late, but has not been ended by another process, goes on: its leases are still its own.
    """
    async with database.write() as connection:
        result = await connection.execute(
            sa.update(sessions)
            .where(sessions.c.id == session)
            .values(heartbeat_at=now_ms(), expires_at=now_ms() + int(ttl * 1000))
        )
        return result.rowcount == 1


async def mark_batch(connection: AsyncConnection, session: str, batch: str) -> int:
    """Note which batch this transaction commits, and return the database's clock.

    Raises StoreUnavailable if the session is over: where the clock is this machine's, not before the next statement.
    """
    step = (_MARK, [(batch, session)])
    if connection.dialect.name == "sqlite":
        await leave(connection, step, check=_must_be_there)
        return time.time_ns() // 1_000_000
    [marked] = await run(connection, step)
    _must_be_there(len(marked), marked)
    now: int = marked[0][0]
    return now


def _must_be_there(marked: int, _rows: list[Any]) -> None:
    if not marked:
        raise StoreUnavailable("the session of this process is over")


def _mark(dialect: str) -> sa.Update:
    mark = sa.update(sessions).where(sessions.c.id == sa.bindparam("this")).values(last_batch=sa.bindparam("batch"))
    return mark if dialect == "sqlite" else mark.returning(now_ms())


_MARK = Statement(_mark, "batch", "this")


async def last_batch(database: Database, session: str) -> str | None:
    """The last batch that a session committed. A COMMIT that a server is still at is waited for, by its row's lock."""
    async with database.write() as connection:
        if connection.dialect.name == "postgresql":
            # What takes longer is a matter of the moment, too: whoever asks, asks again.
            await connection.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
        query = sa.select(sessions.c.last_batch).where(sessions.c.id == session)
        return await connection.scalar(query.with_for_update())


async def end_late_sessions(connection: AsyncConnection, now: int, *, but: str) -> int:
    """End sessions whose heartbeat is overdue, but not our own. Answers how many.

    Each transaction of a process holds its session's row (`mark_batch`), and may outlive it by a while: whoever waited
    for that would answer nobody until then. What it holds is not free yet either.
    """
    late = sa.select(sessions.c.id).where(sessions.c.expires_at <= now, sessions.c.id != but)
    free = late.with_for_update(skip_locked=True)
    ended = await connection.execute(sa.delete(sessions).where(sessions.c.id.in_(free)))
    return ended.rowcount


async def close_session(database: Database, session: str) -> None:
    """End a session; leases it may still hold are free from now on."""
    async with database.write() as connection:
        await connection.execute(sa.delete(sessions).where(sessions.c.id == session))


def is_over(session: sa.Column[str]) -> sa.ColumnElement[bool]:
    """Whether a lease hangs on a session that is over."""
    return sa.and_(session.is_not(None), ~sa.exists().where(sessions.c.id == session))
