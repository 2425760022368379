"""New databases that are there at once: copies of one whose migrations were run, once in each process of the tests.

To run them takes longer than most tests do. They are run on nothing by tests/dispatcher/test_migrations.py, by every
command that makes an installation, and wherever a server is started with `prefix`, as a `real_start`, or by a launcher.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from dispatcher.store import migrations


def place(data_dir: Path) -> None:
    """Put a database into a data directory that has none."""
    file = data_dir / "dispatcher.db"
    if not file.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(_migrated())


@cache
def _migrated() -> bytes:
    """A database as the migrations leave it: with all tables, and nothing in them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dispatcher.db"
        engine = sa.create_engine(f"sqlite:///{file}")
        try:
            with engine.begin() as connection:
                migrations.upgrade(connection)
        finally:
            engine.dispose()
        return file.read_bytes()
