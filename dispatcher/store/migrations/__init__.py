"""Brings a database's schema up to date (Alembic). Steps stand in `versions/`, one file each, in order."""

from __future__ import annotations

import sqlalchemy as sa

#: the last step, which is what this program works on
HEAD = "0005"

_version = sa.table("alembic_version", sa.column("version_num", sa.String))


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
