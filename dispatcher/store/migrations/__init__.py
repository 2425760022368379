"""Brings a database's schema up to date (Alembic). Steps stand in `versions/`, one file each, in order."""

from __future__ import annotations

import importlib

import sqlalchemy as sa

from dispatcher.store.database import Database

#: the last step, which is what this program works on
HEAD = "0007"

_version = sa.table("alembic_version", sa.column("version_num", sa.String))


async def prepare(database: Database, *, lock_within: int = 10_000) -> None:
    """Do beforehand what takes long on a large database, while others go on with it. Then upgrade.

    For a moment it needs a table for itself; if it does not get it within so many milliseconds, it raises
    StoreUnavailable.
    """
    if not database.is_partitioned:
        return
    async with database.setup() as connection:
        if await connection.run_sync(_current) in {None, HEAD}:
            return
    # Only now, as below; its name is none that could stand in an import.
    step = importlib.import_module("dispatcher.store.migrations.versions.0006_storage")
    for check in (False, True):
        for table in step.TABLES:
            async with database.setup() as connection:
                await connection.execute(sa.text(f"SET LOCAL lock_timeout = {lock_within}"))
                await connection.run_sync(step.foresee, table, check=check)


def upgrade(connection: sa.Connection) -> None:
    """Run the steps that this database has not seen.

    Raises ConfigError when the database is newer than this program.
    """
    if _current(connection) == HEAD:
        return
    # Only now: Alembic takes longer to load than most commands take to run, and a database is seldom new.
    from dispatcher.store.migrations import steps  # noqa: PLC0415

    steps.run(connection)


def _current(connection: sa.Connection) -> str | None:
    """The last step that this database has seen; None: there was none yet."""
    if not sa.inspect(connection).has_table(_version.name):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar()
