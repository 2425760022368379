"""New databases that are there at once: copies of one whose migrations were run, once in each process of the tests.

To run them takes longer than most tests do. They are run on nothing by tests/dispatcher/test_migrations.py, by every
command that makes an installation, and wherever a server is started with `prefix`, as a `real_start`, or by a launcher.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from dispatcher.store import migrations
from tests.support import postgres

KINDS = ("sqlite", "postgresql")
#: by hand: everything that can be is tested on this kind of database, and on no other
ONLY = os.environ.get("TESTS_DATABASE")
#: the kinds of database to test on; where one has to do, the first
DATABASES = tuple(kind for kind in KINDS if ONLY in {None, kind})
assert DATABASES, f"TESTS_DATABASE is one of {KINDS}"

#: the databases of servers that named none, by data directory: there is a server again where one was
_taken: dict[Path, str] = {}


def url_for(data_dir: Path) -> str | None:
    """The URL of the database for a server that names none; None where it is to be a file in its data directory."""
    if DATABASES[0] == "sqlite":
        return None
    if data_dir not in _taken:
        _taken[data_dir] = postgres.shared().take()
    return postgres.shared().url(_taken[data_dir])


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """At the end of the block the databases of its servers are for others. None of these runs any more."""
    try:
        yield
    finally:
        while _taken:
            _, name = _taken.popitem()
            postgres.shared().give_back(name)


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
