"""How PostgreSQL stores what there is much of, and what changes often; SQLite knows nothing of it.

Bodies and attempts stand in partitions by time: what is old is dropped, not deleted row by row. What there is becomes
the first partition as it is; nothing is copied. That it ends before the next one begins is checked beforehand, while
others go on (`foresee`), so that the step itself takes no longer on a large database.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

DAY_MS = 86_400_000
#: days that a new database begins with, and after which the first partition of an old one ends
AHEAD = 8

#: how long it waits for a lock, milliseconds: others wait behind it
LOCK_WITHIN = 10_000

_QUEUE = (
    "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.02"
)
STORED = {
    "deliveries": _QUEUE,
    "tasks": _QUEUE,
    "sessions": "fillfactor = 20",
    "ledger": "fillfactor = 20",
    "subscriptions": "fillfactor = 70",
}


class _Table(NamedTuple):
    """What is partitioned."""

    #: the id that it is partitioned by
    key: str
    primary: str


TABLES = {
    "bodies": _Table("id", "PRIMARY KEY (id)"),
    "attempts": _Table("delivery_id", "PRIMARY KEY (delivery_id, number)"),
}


def foresee(connection: sa.Connection, table: str, *, check: bool) -> None:
    """Say that a table ends some days from now; then, in another transaction, `check` that it is so.

    The one locks it for a moment only, the other keeps nobody from reading and writing.
    """
    if not _is_whole(connection, table) or not _has_rows(connection, table):
        return
    constraint = f"ck_{table}_first"
    if check:
        connection.execute(sa.text(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"))
    elif _end(connection, table) is None:
        ends = f"CHECK ({TABLES[table].key} < '{_later(connection, table)}')"
        connection.execute(sa.text(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {ends} NOT VALID"))


def upgrade() -> None:
    """Apply this step."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute(f"SET LOCAL lock_timeout = {LOCK_WITHIN}")
    for table in TABLES:
        _partition(connection, table)
    for table, how in STORED.items():
        op.execute(f"ALTER TABLE {table} SET ({how})")


def _partition(connection: sa.Connection, table: str) -> None:
    key, primary = TABLES[table]
    first = f"{table}_first"
    if not _has_rows(connection, table):
        # Somebody of the version before may be writing the first ones just now.
        op.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    keep = _has_rows(connection, table)
    if keep:
        # in case that nobody has done so beforehand
        foresee(connection, table, check=False)
        foresee(connection, table, check=True)
    end = _end(connection, table)
    op.execute(f"ALTER TABLE {table} RENAME TO {first}")
    op.execute(f"ALTER TABLE {first} RENAME CONSTRAINT pk_{table} TO pk_{first}")
    if table == "bodies":
        op.execute("ALTER INDEX ix_bodies_event_id RENAME TO ix_bodies_first_event_id")
    op.execute(f"CREATE TABLE {table} (LIKE {first} INCLUDING DEFAULTS INCLUDING STORAGE) PARTITION BY RANGE ({key})")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} {primary}")
    if table == "bodies":
        op.create_index("ix_bodies_event_id", table, ["event_id"], postgresql_where=sa.text("event_id IS NOT NULL"))
    if keep:
        op.execute(f"ALTER TABLE {table} ATTACH PARTITION {first} FOR VALUES FROM (MINVALUE) TO ('{end}')")
        op.execute(f"ALTER TABLE {first} DROP CONSTRAINT ck_{table}_first")
    else:
        op.execute(f"DROP TABLE {first}")
        _begin(connection, table)
    # whatever has no place elsewhere
    op.execute(f"CREATE TABLE {table}_rest PARTITION OF {table} DEFAULT")


def _begin(connection: sa.Connection, table: str) -> None:
    """The first days of a new database; maintenance makes those to come."""
    today = _today(connection)
    for start in range(today, today + AHEAD * DAY_MS, DAY_MS):
        name = f"{table}_{datetime.fromtimestamp(start / 1000, UTC):%Y%m%d}"
        bounds = f"FROM ('{_floor(start)}') TO ('{_floor(start + DAY_MS)}')"
        op.execute(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES {bounds}")


def _is_whole(connection: sa.Connection, table: str) -> bool:
    """Whether it is there, and in one piece."""
    kind = sa.text("SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass(:name)")
    return bool(connection.scalar(kind, {"name": table}))


def _has_rows(connection: sa.Connection, table: str) -> bool:
    return bool(connection.scalar(sa.select(sa.exists().select_from(sa.table(table)))))


def _end(connection: sa.Connection, table: str) -> str | None:
    """Where the first partition ends, if that has been said."""
    query = sa.text(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name AND conrelid = to_regclass(:table)"
    )
    said = connection.scalar(query, {"name": f"ck_{table}_first", "table": table})
    return None if said is None else said.split("'")[1]


def _later(connection: sa.Connection, table: str) -> str:
    """A midnight some days from now, and after every id that there is, whatever clock made it."""
    greatest = connection.scalar(sa.select(sa.func.max(sa.column(TABLES[table].key))).select_from(sa.table(table)))
    today = _today(connection)
    ahead = max(0, (int(greatest or "0", 16) >> 80) - today) // DAY_MS
    return _floor(today + (ahead + AHEAD) * DAY_MS)


def _today(connection: sa.Connection) -> int:
    now = connection.scalar(sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)")) or 0
    return int(now) * 1000 // DAY_MS * DAY_MS


def _floor(ms: int) -> str:
    """The least id of a moment, as ids are made since the first version."""
    return f"{ms << 80:032x}"
