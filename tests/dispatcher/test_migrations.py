"""The schema that migrations make is the one that the code declares, and a newer one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import dispatcher.store.tables  # noqa: F401 - fills the metadata
from dispatcher.config import load
from dispatcher.errors import ConfigError
from dispatcher.installation import open_installation
from dispatcher.store import migrations
from subscriptions.schema import metadata


def test_migrated_is_declared() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrations.upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        indexes = {index["name"] for table in metadata.tables for index in sa.inspect(connection).get_indexes(table)}
        assert indexes == {index.name for table in metadata.tables.values() for index in table.indexes}
    engine.dispose()


def test_partial_indexes_keep_their_conditions() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrations.upgrade(connection)
        made = {row.name: row.sql for row in connection.execute(sa.text("SELECT name, sql FROM sqlite_master"))}
        for table in metadata.tables.values():
            for index in table.indexes:
                where = index.dialect_options["sqlite"]["where"]
                assert ("WHERE" in made[index.name]) is (where is not None), index.name
    engine.dispose()


def test_upgrading_twice_changes_nothing() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrations.upgrade(connection)
        migrations.upgrade(connection)
    engine.dispose()


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path / "data")
    installation = await open_installation(settings)
    async with installation.database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await installation.database.close()
    with pytest.raises(ConfigError, match="newer version of this program"):
        await open_installation(settings)
