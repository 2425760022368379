"""One installation: data directory, keyring, database, and the locks on them.

data_dir/
├── dispatcher.db   the embedded database (SQLite, with its -wal and -shm files)
├── keyring.json    the keys that encrypt secrets and callback URLs, and sign API tokens (mode 0600); it changes when
│                   they are rotated
├── setup.lock      held while one process opens an embedded database, and makes what is missing
└── serve.lock      held by the one process that owns the embedded database

With PostgreSQL there may be any number of servers, on any number of machines. Each has a data directory, and in all of
them stands the same keyring: the first one makes it, and it is brought to the others. Or they share one directory: once
the keyring is in it, nobody writes there but who rotates keys, so they may have it read-only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config import Settings
from dispatcher.errors import ConfigError
from dispatcher.ids import new_id
from dispatcher.store import migrations, outbox_keys, postgresql
from dispatcher.store.database import Database, embedded_url, now_ms
from dispatcher.store.sealing import CANARY
from dispatcher.store.tables import installation
from subscriptions.keyring import Keyring, KeyringError

_CANARY_TEXT = b"this keyring opens this database"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An opened installation."""

    database: Database
    keyring: Keyring
    #: names this installation in the `iss` claim of its tokens
    issuer: str
    #: whether the database belongs to one process at a time
    embedded: bool


async def open_installation(settings: Settings) -> Installation:
    """Open the installation, and make it if there is none.

    Raises ConfigError when the data directory cannot be used, or when keyring and database do not belong
    together.
    """
    embedded = settings.database_url is None
    if settings.database_url is not None and not postgresql.is_meant(settings.database_url):
        raise ConfigError("DATABASE_URL names a database that cannot be used; it begins with postgresql://")
    data_dir = settings.data_dir
    _make(data_dir)
    try:
        # On PostgreSQL it is the database that is locked (`Database.setup`), for processes on other machines, too.
        with _locked(data_dir / "setup.lock", wait=True) if embedded else nullcontext():
            database = Database(
                settings.database_url or embedded_url(data_dir),
                connections=settings.database_connections,
                pgbouncer=settings.pgbouncer,
                timeout=settings.database_timeout,
            )
            if embedded:
                _restrict(data_dir / "dispatcher.db")
            try:
                await migrations.prepare(database)
                async with database.setup() as connection:
                    await connection.run_sync(migrations.upgrade)
                    keyring, issuer = await _match(connection, data_dir / "keyring.json")
                    if not embedded:
                        await outbox_keys.ensure(connection, keyring)
            except BaseException:
                await database.close()
                raise
    except OSError as exc:
        raise ConfigError(f"the data directory {data_dir} cannot be used: {exc.strerror}") from exc
    except KeyringError as exc:
        raise ConfigError(f"the keyring in {data_dir} cannot be used: {exc}") from exc
    return Installation(database=database, keyring=keyring, issuer=issuer, embedded=embedded)


def is_made(settings: Settings) -> bool:
    """Whether there is an installation already."""
    return settings.database_url is not None or (settings.data_dir / "dispatcher.db").exists()


@contextmanager
def sole_server(settings: Settings) -> Iterator[None]:
    """Own the embedded database for as long as the block runs. Raises ConfigError when another process does.

    PostgreSQL is owned by nobody.
    """
    if settings.database_url is not None:
        yield
        return
    _make(settings.data_dir)
    with _locked(settings.data_dir / "serve.lock", wait=False):
        yield


async def _match(connection: AsyncConnection, file: Path) -> tuple[Keyring, str]:
    """The keyring and issuer that belong to the database. Both are made when there are none."""
    row: Any = (await connection.execute(sa.select(installation))).one_or_none()
    if row is None:
        keyring = Keyring.load(file) if file.exists() else Keyring.create(file)
        issuer = new_id()
        await connection.execute(
            sa.insert(installation).values(
                id=1, issuer=issuer, canary=keyring.seal(_CANARY_TEXT, where=CANARY), created_at=now_ms()
            )
        )
        return keyring, issuer
    if not file.exists():
        raise ConfigError(
            f"{file} is missing, and without it nothing in the database can be read: restore it from a backup, or copy"
            " it from another server of this database"
        )
    keyring = Keyring.load(file)
    try:
        keyring.open(row.canary, where=CANARY)
    except KeyringError:
        raise ConfigError(f"{file} does not belong to this database: restore the one that was used with it") from None
    return keyring, row.issuer


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"the data directory {data_dir} cannot be made: {exc.strerror}") from exc


def _restrict(file: Path) -> None:
    """Make a new database file readable by its owner only; SQLite gives its other files the same mode."""
    file.touch(mode=0o600, exist_ok=True)
    file.chmod(0o600)


@contextmanager
def _locked(file: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(
                f"another process serves {file.parent}; stop it first, or give this one its own --data-dir"
            ) from None
        yield
    finally:
        os.close(descriptor)
