"""One change in a transaction of its own, made by a process that is no server: the command line, beside one or alone.

It runs the functions that the committer runs, on the same kind of `Transaction`. A running server sees the change by
its version. What has become due it hears of on PostgreSQL, and else finds when it next looks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random

from dispatcher.errors import StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.store.committer import Transaction
from dispatcher.store.database import Database, now_ms

T = TypeVar("T")

#: how long a change tries to get its turn to write, seconds: a busy server takes many
PATIENCE = 15.0


async def apply(database: Database, change: Callable[[Transaction], Awaitable[T]], *, keep: bool = True) -> T:
    """Carry out one change, as a whole or not at all. With `keep=False` it is only tried: nothing of it is stored.

    Raises what the change raises, and StoreUnavailable: then nothing was stored.
    """
    async with _transaction(database) as tx:
        savepoint = await tx.connection.begin_nested()
        made = await change(tx)
        if keep:
            await savepoint.commit()
            await tx.write_counts()
            await tx.tell_others()
        else:
            await savepoint.rollback()
        return made


@asynccontextmanager
async def _transaction(database: Database) -> AsyncIterator[Transaction]:
    async with AsyncExitStack() as stack:
        turns = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random(0, 0.1),
            stop=stop_after_delay(PATIENCE),
            reraise=True,
        )

        async def begin() -> tuple[AsyncConnection, int]:
            beginning = AsyncExitStack()
            async with beginning:
                connection = await beginning.enter_async_context(database.write())
                # The transaction begins with its first statement.
                now = await connection.scalar(sa.select(now_ms()))
                if now is None:
                    raise StoreUnavailable("the database has no clock")
                stack.push_async_exit(beginning.pop_all())
            return connection, now

        # Only the beginning is tried again: at that point nothing can have been stored.
        begun: tuple[AsyncConnection, int] = await turns(begin)
        connection, now = begun
        # This process has no session, since it leases nothing. What is told apart by session, as the ledger's
        # counts are, goes under an id of its own.
        yield Transaction(connection=connection, now=now, clock=monotonic(), session=new_id())
