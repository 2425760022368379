"""Bodies and attempts in partitions by time (PostgreSQL): made ahead, and dropped as a whole when all in them is over.

Ids begin with the moment at which they were made, so a partition is a range of ids, and no table has a column more.
What belongs to something that is still there when its partition goes is moved to the partition for the rest. SQLite has
one table of each, and deletes row by row. Any number of processes may do this at once; one of them does each step.

The DDL locks a whole table for a moment. It waits for that lock no longer than `LOCK_WITHIN`, since all others then
wait behind it; if it does not get it, there is another time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import StoreUnavailable
from dispatcher.ids import id_floor
from dispatcher.store.clock import not_before
from dispatcher.store.database import Database, now_ms
from dispatcher.store.idempotency import KEPT_MS
from dispatcher.store.tables import attempts, bodies, deliveries, events, tasks

log = structlog.get_logger(__name__)

DAY_MS = 86_400_000
#: days for which there are partitions at least
AHEAD = 7
#: partitions of what is kept: every statement that does not name an id looks at all of them
MOST = 60
#: rows that are moved out of a partition at most; one in which more is still needed stays
MAX_MOVED = 10_000
#: how long a step waits for its locks, milliseconds, and how long it may take with them
LOCK_WITHIN = 200
STEP_WITHIN = 10_000
#: the advisory lock of PostgreSQL that a step takes: any number that nobody else uses
_STEP_LOCK = 0x64697370_70617274


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A range of ids of one table. Its end is not in it."""

    name: str
    start: str
    end: str


async def keep(database: Database, age_ms: int) -> int:
    """Make the partitions of the days to come, and drop those that ended longer ago than an age.

    Answers how many were made or dropped. Raises StoreUnavailable.
    """
    if not database.is_partitioned:
        return 0
    done = 0
    trouble: StoreUnavailable | None = None
    for table in _NEEDED:
        for step in (_make, _drop_old):
            try:
                done += await step(database, table, age_ms)
            except StoreUnavailable as exc:
                # The one does not wait for the other: what keeps us from making keeps us from dropping seldom.
                trouble = exc
    if trouble is not None:
        raise trouble
    return done


def rest(table: sa.Table, dialect: str) -> sa.Table:
    """Where rows are deleted one by one: a table, or its partition for what has no other place."""
    return table if dialect == "sqlite" else _REST[table]


def _part(table: sa.Table, name: str) -> sa.Table:
    return table.to_metadata(sa.MetaData(), name=name)


_REST = {table: _part(table, f"{table.name}_rest") for table in (bodies, attempts)}


# --- make -------------------------------------------------------------------------------------------------


async def _make(database: Database, table: sa.Table, age_ms: int) -> int:
    made, after = 0, ""
    while True:
        async with _step(database) as connection:
            wanted = None if connection is None else await _next(connection, table, age_ms, after=after)
            if connection is None or wanted is None:
                return made
            after = wanted.end
            if await _holds_more(connection, table, wanted):
                # What went astray so far stays there, and goes row by row; the days that follow have their own.
                log.error("partition_overtaken", partition=wanted.name)
                continue
            await _attach(connection, table, wanted)
        made += 1


async def _next(connection: AsyncConnection, table: sa.Table, age_ms: int, *, after: str = "") -> Partition | None:
    """The next partition that is to be made: of the first day that has none, from today on and not before `after`.

    There may be later ones: those of a clock that was wrong for a while.
    """
    now = await connection.scalar(sa.select(now_ms())) or 0
    today = now // DAY_MS * DAY_MS
    start = max(today, _moment(after))
    later = None
    for one in await partitions(connection, table):
        if _moment(one.start) <= start:
            start = max(start, _moment(one.end))
        elif later is None:
            later = _moment(one.start)
    if start >= today + AHEAD * DAY_MS:
        return None
    # Where much is kept they are wider, so that there are never too many.
    end = start + DAY_MS * max(1, -(-age_ms // (MOST * DAY_MS)))
    if later is not None:
        end = min(end, later)
    day = datetime.fromtimestamp(start / 1000, UTC).strftime("%Y%m%d")
    return Partition(name=f"{table.name}_{day}", start=id_floor(start), end=id_floor(end))


def _moment(bound: str) -> int:
    """Where a bound is in time, milliseconds since the epoch; the beginning of all time is empty."""
    return int(bound or "0", 16) >> 80


async def _holds_more(connection: AsyncConnection, table: sa.Table, partition: Partition) -> bool:
    """Whether the rest holds more of a partition than can be moved at once."""
    key = _key(_REST[table])
    among = sa.select(key).where(key >= partition.start, key < partition.end).limit(MAX_MOVED + 1)
    return (await connection.scalar(sa.select(sa.func.count()).select_from(among.subquery())) or 0) > MAX_MOVED


async def _attach(connection: AsyncConnection, table: sa.Table, partition: Partition) -> None:
    made, left = _part(table, partition.name), _REST[table]
    within = sa.and_(_key(left) >= partition.start, _key(left) < partition.end)
    await connection.execute(sa.text(f"CREATE TABLE {made.name} (LIKE {table.name} INCLUDING STORAGE)"))
    await connection.execute(sa.text(f"LOCK TABLE {left.name} IN ACCESS EXCLUSIVE MODE"))
    await connection.execute(sa.insert(made).from_select(made.c.keys(), sa.select(left).where(within)))
    await connection.execute(sa.delete(left).where(within))
    bounds = f"FROM ('{partition.start}') TO ('{partition.end}')"
    await connection.execute(sa.text(f"ALTER TABLE {table.name} ATTACH PARTITION {made.name} FOR VALUES {bounds}"))


# --- drop -------------------------------------------------------------------------------------------------


async def _drop_old(database: Database, table: sa.Table, age_ms: int) -> int:
    dropped = 0
    async with database.read() as connection:
        now = await connection.scalar(sa.select(now_ms())) or 0
        found = await partitions(connection, table)
    over = id_floor(not_before(now) - max(age_ms, KEPT_MS))
    for partition in found:
        if partition.end <= over:
            dropped += await _drop(database, table, partition)
    return dropped


async def _drop(database: Database, table: sa.Table, partition: Partition) -> bool:
    """Drop a partition. What is still needed of it is moved; where that is too much, it stays."""
    async with _step(database) as connection:
        if connection is None or partition not in await partitions(connection, table):
            return False
        # Nothing comes into it from now on; it can still be read.
        await connection.execute(sa.text(f"LOCK TABLE {partition.name} IN SHARE MODE"))
        needed = await _NEEDED[table](connection, partition)
        if len(needed) > MAX_MOVED:
            return False
        await connection.execute(sa.text(f"ALTER TABLE {table.name} DETACH PARTITION {partition.name}"))
        if needed:
            one = _part(table, partition.name)
            await connection.execute(
                sa.insert(table).from_select(table.c.keys(), sa.select(one).where(_key(one).in_(needed)))
            )
        await connection.execute(sa.text(f"DROP TABLE {partition.name}"))
    log.info("partition_dropped", partition=partition.name, moved=len(needed))
    return True


async def _needed_attempts(connection: AsyncConnection, partition: Partition) -> set[str]:
    """Deliveries that are still there, and have attempts in a partition."""
    return await _there(connection, deliveries, _part(attempts, partition.name), partition)


async def _needed_bodies(connection: AsyncConnection, partition: Partition) -> set[str]:
    """The bodies of a partition whose task, event or delivery is still there."""
    one = _part(bodies, partition.name)
    needed: set[str] = set()
    for table in (tasks, events, deliveries):
        needed |= await _there(connection, table, one, partition)
    # Other forms of an event's payload have ids of their own.
    others = sa.select(one.c.id).join(events, events.c.id == one.c.event_id).limit(MAX_MOVED + 1)
    return needed | set(await connection.scalars(others.with_for_update(of=events, read=True, key_share=True)))


async def _there(connection: AsyncConnection, table: sa.Table, one: sa.Table, partition: Partition) -> set[str]:
    """Ids of a table that a partition has rows under. Nobody can delete them meanwhile."""
    found = await connection.scalars(
        sa.select(table.c.id)
        .where(
            table.c.id >= partition.start,
            table.c.id < partition.end,
            sa.exists().where(_key(one) == table.c.id),
        )
        .limit(MAX_MOVED + 1)
        .with_for_update(of=table, read=True, key_share=True)
    )
    return set(found)


#: what of a partition is still needed: the values of its key
_NEEDED: dict[sa.Table, Callable[[AsyncConnection, Partition], Coroutine[Any, Any, set[str]]]] = {
    bodies: _needed_bodies,
    attempts: _needed_attempts,
}


# --- what both do -----------------------------------------------------------------------------------------


def _key(table: sa.Table) -> sa.Column[Any]:
    """The column by which it is partitioned: the first of its primary key."""
    return next(iter(table.primary_key.columns))


@asynccontextmanager
async def _step(database: Database) -> AsyncIterator[AsyncConnection | None]:
    """A transaction that one process at a time has, and that waits for nobody; None while another has it."""
    async with database.write() as connection:
        if not await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_STEP_LOCK))):
            yield None
            return
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_WITHIN}"))
        await connection.execute(sa.text(f"SET LOCAL statement_timeout = {STEP_WITHIN}"))
        yield connection


_BOUNDS = re.compile(r"FOR VALUES FROM \((?:'([0-9a-f]+)'|MINVALUE)\) TO \('([0-9a-f]+)'\)")


async def partitions(connection: AsyncConnection, table: sa.Table) -> Sequence[Partition]:
    """A table's partitions in their order, without that for the rest."""
    rows = await connection.execute(
        sa.text(
            "SELECT relname, pg_get_expr(relpartbound, pg_class.oid) FROM pg_inherits"
            " JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass(:parent)"
        ),
        {"parent": table.name},
    )
    found = [(name, _BOUNDS.fullmatch(bounds)) for name, bounds in rows]
    made = [Partition(name=name, start=bounds[1] or "", end=bounds[2]) for name, bounds in found if bounds is not None]
    return sorted(made, key=lambda one: one.end)
