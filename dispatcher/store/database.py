"""The connection to the database: engines, transactions, its clock, and what its errors mean.

Whatever differs between databases is known here, and of the hot path's statements in `statements`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from dispatcher.errors import ConfigError, StoreContended, StoreUnavailable
from dispatcher.store import postgresql as postgres
from dispatcher.store import sqlite
from dispatcher.store.statements import driver_of

#: how long a write waits for another process's lock on the file, milliseconds
BUSY_TIMEOUT_MS = 2_000
#: connections to SQLite for reading
READERS = 4
#: memory for pages of SQLite's file, KiB: for the connection that writes, and as much for those that read together
CACHE_KIB = 8_192
#: connections to PostgreSQL, where nobody says how many
CONNECTIONS = 8
#: how a transaction on SQLite that may write begins: it has its turn to write from the start
_BEGIN_TO_WRITE = "BEGIN IMMEDIATE"
#: the advisory lock of PostgreSQL that `Database.setup` takes: any number that nobody else uses
_SETUP_LOCK = 0x64697370_61746368


class now_ms(sa.sql.functions.FunctionElement[int]):  # noqa: N801 - reads as SQL
    """The database's clock: milliseconds since the Unix epoch, at this statement."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: now_ms, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(_element: now_ms, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


def upsert(dialect: str, table: sa.Table) -> sqlite_dialect.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, in the dialect of that name."""
    if dialect == "postgresql":
        return postgresql.insert(table)
    return sqlite_dialect.insert(table)


#: ours by its role and name: another program's COPY may wait for its client as long as it likes
_END_ABANDONED = sa.text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user
        AND application_name = current_setting('application_name')
        AND state <> 'idle' AND wait_event = 'ClientRead'
        AND state_change < clock_timestamp() - make_interval(secs => :seconds)
""")


class Database:
    """One database: a connection that writes, a few that read.

    `write()`, `read()` and `setup()` translate errors: StoreUnavailable means that nothing was stored and another try
    may succeed, StoreContended that it may at once; anything else is a fault of the statement.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = CONNECTIONS,
        pgbouncer: bool = False,
        timeout: float = postgres.COMMAND_TIMEOUT,
    ) -> None:
        """`connections`, `pgbouncer` and `timeout` (of a statement, seconds) are for PostgreSQL.

        Raises ConfigError when the URL cannot be used.
        """
        self.url = url
        #: how many wait for a connection to write on
        self.waiting = 0
        #: whether bodies and attempts stand in partitions
        self.is_partitioned = postgres.is_meant(url)
        self._pgbouncer = pgbouncer
        self._timeout = timeout
        if url.startswith("sqlite+aiosqlite:"):
            self._writer = _engine(url, begin=_BEGIN_TO_WRITE, pool_size=1)
            self._reader = _engine(url, begin="BEGIN", pool_size=READERS)
            return
        if not postgres.is_meant(url):
            raise ConfigError("DATABASE_URL names a database that cannot be used: it begins with postgresql://")
        writers = max(1, connections // 4)
        # Each statement sees what was committed before it: who waited for a row's lock decides by what it is now.
        self._writer = postgres.engine(
            url, pool_size=writers, isolation_level="READ COMMITTED", pgbouncer=pgbouncer, command_timeout=timeout
        )
        self._reader = postgres.engine(
            url,
            pool_size=max(1, connections - writers),
            isolation_level="REPEATABLE READ",
            read_only=True,
            pgbouncer=pgbouncer,
            command_timeout=timeout,
        )

    @asynccontextmanager
    async def write(self, held: AsyncConnection | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; commits at the end of the block, rolls back on any error.

        It is on the connection that is held, if one is: else on one that is taken for it and given back.
        """
        with translated_errors():
            if held is not None:
                async with _on(held):
                    yield held
                return
            async with AsyncExitStack() as stack:
                self.waiting += 1
                try:
                    connection = await stack.enter_async_context(self._writer.begin())
                finally:
                    self.waiting -= 1
                yield connection

    @staticmethod
    def reached_commit(held: AsyncConnection) -> bool:
        """Whether a transaction that failed may be on disk all the same: its COMMIT was sent, as far as is known."""
        if held.dialect.name != "sqlite" or held.invalidated:
            return True
        reached: bool = driver_of(held).reached_commit
        return reached

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[AsyncConnection]:
        """A connection for several transactions that follow each other; meanwhile others wait for theirs."""
        with translated_errors():
            async with self._writer.connect() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one consistent state and writes nothing."""
        with translated_errors():
            async with self._reader.begin() as connection:
                yield connection

    @asynccontextmanager
    async def setup(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that one process at a time has, to make the schema and what belongs to it.

        Raises ConfigError when the database is one that could lose what it committed, or spoil text.
        """
        if self._writer.dialect.name == "sqlite":
            async with self.write() as connection:
                yield connection
            return
        # It may wait for another process that does so, and take as long as there is data to move.
        patient = postgres.engine(
            self.url, pool_size=1, isolation_level="READ COMMITTED", pgbouncer=self._pgbouncer, command_timeout=None
        )
        try:
            with translated_errors():
                async with patient.begin() as connection:
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP_LOCK)))
                    await _check_postgresql(connection)
                    yield connection
        finally:
            await patient.dispose()

    async def end_abandoned(self) -> int:
        """End transactions whose process has not said for the time of a statement what is next; answers how many.

        The server does so by itself, unless a statement was prepared and not executed yet: that is not idle to it.
        Whoever is cut off there would keep its locks for ever.
        """
        if self._reader.dialect.name == "sqlite":
            return 0
        async with self.read() as connection:
            return len((await connection.execute(_END_ABANDONED, {"seconds": self._timeout})).all())

    async def close(self) -> None:
        """Close every connection."""
        await self._writer.dispose()
        await self._reader.dispose()


@asynccontextmanager
async def _on(held: AsyncConnection) -> AsyncIterator[None]:
    """A transaction on a connection that is held. To SQLAlchemy it begins when a statement passes through it."""
    if held.dialect.name != "sqlite":
        async with held.begin():
            yield
        return
    driver = driver_of(held)
    driver.begin(_BEGIN_TO_WRITE)
    try:
        yield
        # Through SQLAlchemy both cost as much as all else about a small transaction.
        await (held.commit() if held.in_transaction() else driver.commit())
    except BaseException:
        await held.rollback()
        await driver.rollback()
        raise


async def _check_postgresql(connection: AsyncConnection) -> None:
    durability, encoding = (
        await connection.execute(
            sa.select(sa.func.current_setting("synchronous_commit"), sa.func.current_setting("server_encoding"))
        )
    ).one()
    if durability == "off":
        raise ConfigError(
            "the database commits without waiting for the disk, so what was accepted could be lost: set"
            " synchronous_commit to on, at least for our user (ALTER ROLE … SET synchronous_commit = on)"
        )
    if encoding != "UTF8":
        raise ConfigError(f"the database's encoding is {encoding}; make one with ENCODING 'UTF8'")


class translated_errors:  # noqa: N801 - a context manager that reads as a sentence
    """Turn the driver's errors into StoreUnavailable where trying again may help."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, PoolTimeout):
            raise StoreUnavailable("every database connection is in use") from error
        if error is not None and postgres.is_cut(error):
            raise StoreUnavailable(f"the database does not answer ({type(error).__name__})") from error
        if error is not None and postgres.is_error(error):
            postgres.hide_values(error)
        elif not isinstance(error, (SQLAlchemyError, sqlite3.Error)):
            return
        if _is_contended(error):
            raise StoreContended("another transaction was in the way") from error
        if _is_passing(error):
            raise StoreUnavailable(f"the database cannot be used now ({_reason(error)})") from error


#: SQLite's primary result codes that speak of the moment, not of the statement (sqlite.org/rescode.html)
_PASSING_SQLITE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def _original(error: BaseException) -> BaseException | None:
    """The error as the driver has it."""
    return error.orig if isinstance(error, DBAPIError) else error


def _is_contended(error: BaseException) -> bool:
    return postgres.is_contended(_original(error))


def _is_passing(error: BaseException) -> bool:
    original = _original(error)
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _PASSING_SQLITE
    return postgres.is_passing(original) or (isinstance(error, DBAPIError) and error.connection_invalidated)


def _reason(error: BaseException) -> str:
    original = _original(error)
    name = getattr(original, "sqlite_errorname", None) or postgres.sqlstate(original)
    return name or type(original).__name__


def embedded_url(data_dir: Path) -> str:
    """The URL of the embedded database in a data directory."""
    return f"sqlite+aiosqlite:///{data_dir / 'dispatcher.db'}"


def _engine(url: str, *, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        # Parameters hold sealed secrets and payloads; errors must not carry them into a log.
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "async_creator_fn": sqlite.connect},
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # Transactions are begun by us, below: the driver's own ideas of when to begin one stay off.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            # FULL syncs the log at every commit: a 202 means that it is on disk.
            "synchronous=FULL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            # Wiped callback URLs and deleted rows leave no remains in the file.
            "secure_delete=FAST",
            f"cache_size=-{CACHE_KIB // pool_size}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # It goes along with the first statement. One that began without SQLAlchemy goes on.
        connection.connection.driver_connection.begin(begin)  # type: ignore[union-attr]  # `sqlite.Connection`

    return engine
