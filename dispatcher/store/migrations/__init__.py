"""Brings a database's schema up to date (Alembic). Steps stand in `versions/`, one file each, in order."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from dispatcher.errors import ConfigError


def upgrade(connection: Connection) -> None:
    """Run the steps that this database has not seen.

    Raises ConfigError when the database is newer than this program.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is not None and current not in {step.revision for step in script.walk_revisions()}:
        raise ConfigError("the database was written by a newer version of this program; upgrade the program")
    command.upgrade(config, "head")
