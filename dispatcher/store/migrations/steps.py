"""Runs the steps in `versions/` that a database has not seen."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from dispatcher.errors import ConfigError


def run(connection: Connection) -> None:
    """Run them. Raises ConfigError when the database is newer than this program."""
    config = _config()
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known():
        raise ConfigError("the database was written by a newer version of this program; upgrade the program")
    command.upgrade(config, "head")


def known() -> list[str]:
    """The names of all steps, the last one first."""
    return [step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()]


#: partitions, which are made as time goes by
_PARTITION = re.compile(r"(bodies|attempts)_(first|rest|[0-9]{8})")


def is_declared(name: str | None, kind: str, _parents: object) -> bool:
    """Whether a name of a database is one that its declared schema would have."""
    return kind != "table" or name is None or _PARTITION.fullmatch(name) is None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
