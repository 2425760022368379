"""The connection to PostgreSQL: what a URL means, which errors pass, and what they never say."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, ProgrammingError

from dispatcher.errors import ConfigError, StoreContended, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.store import postgresql, sessions
from dispatcher.store.database import Database
from dispatcher.store.tables import accounts, bodies, idempotency
from tests.support import postgres


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    yield database
    await database.close()


# --- URLs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("postgresql://db/app", True),
        ("postgres://db/app", True),
        ("postgresql+asyncpg://db/app", True),
        ("postgresql+psycopg2://db/app", True),
        ("postgresqlx://db/app", False),
        ("mysql://db/app", False),
        ("sqlite:///file.db", False),
        ("db/app", False),
    ],
)
def test_which_urls_are_meant(url: str, meant: bool) -> None:
    assert postgresql.is_meant(url) is meant
    if not meant:
        with pytest.raises(ConfigError, match="postgresql://"):
            Database(url)


class Asked(Exception):
    """What asyncpg was called with."""


@pytest.mark.parametrize(
    ("url", "dsn", "wait"),
    [
        (
            "postgres://u:p%40ss@h:5433/app?sslmode=require",
            "postgresql://u:p%40ss@h:5433/app?sslmode=require&application_name=webhook-dispatcher",
            10.0,
        ),
        (
            "postgresql+asyncpg://u@h/app?channel_binding=require&connect_timeout=3&application_name=mine",
            "postgresql://u@h/app?application_name=mine",
            3.0,
        ),
        ("postgresql://h/app?connect_timeout=0", "postgresql://h/app?application_name=webhook-dispatcher", None),
        (
            "postgresql://a:1,b:2/app?target_session_attrs=read-write",
            "postgresql://a:1,b:2/app?target_session_attrs=read-write&application_name=webhook-dispatcher",
            10.0,
        ),
        (
            "postgresql:///app?host=%2Frun%2Fpg",
            "postgresql:///app?host=%2Frun%2Fpg&application_name=webhook-dispatcher",
            10.0,
        ),
    ],
)
async def test_what_the_driver_is_asked(
    monkeypatch: pytest.MonkeyPatch, url: str, dsn: str, wait: float | None
) -> None:
    async def connect(*arguments: Any, **options: Any) -> None:
        raise Asked(arguments, options)

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(Asked) as asked:
        await postgresql.connector(url)()
    assert asked.value.args == ((dsn,), {"timeout": wait})


@pytest.mark.parametrize("url", ["postgresql://h:port/app", "postgresql://h/app?sslmode=perhaps", "postgresql://h/a?x"])
async def test_a_url_that_is_none_is_named_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL") as refused:
        await postgresql.connector(url)()
    assert url not in "".join(traceback.format_exception(refused.value))


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53100", StoreUnavailable),  # the disk is full
        ("53300", StoreUnavailable),  # too many connections
        ("57P01", StoreUnavailable),  # it is being shut down
        ("57P03", StoreUnavailable),  # it starts, or recovers
        ("25006", StoreUnavailable),  # it is a standby
        ("58030", StoreUnavailable),
        ("40001", StoreContended),
        ("40P01", StoreContended),
        ("40002", None),
        ("22001", None),
        ("25001", None),
        ("42P01", None),
    ],
)
async def test_errors_of_the_moment(database: Database, code: str, kind: type[StoreUnavailable] | None) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))

    with pytest.raises(kind or sa.exc.DBAPIError) as raised:
        await fail()
    assert type(raised.value) is kind or kind is None
    # and the next transaction has nothing of it
    async with database.write() as connection:
        assert await connection.scalar(sa.select(1)) == 1


async def test_nobody_listens() -> None:
    database = Database("postgresql://postgres@/none?host=/nowhere")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with database.read() as connection:
            await connection.execute(sa.select(1))
    await database.close()


async def test_connections_that_were_cut_are_made_anew(database: Database, postgres_url: str) -> None:
    async with database.read() as connection:
        await connection.execute(sa.select(1))
    name = postgres_url.rpartition("@/")[2].partition("?")[0]
    postgres.shared().execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    # the moment in which the loop hears of it
    await asyncio.sleep(0.3)
    async with database.read() as connection:
        assert await connection.scalar(sa.select(1)) == 1


async def test_a_transaction_that_was_cut_stores_nothing(database: Database) -> None:
    async def cut() -> None:
        async with database.write() as connection:
            await connection.execute(sa.insert(accounts).values(id="a", created_at=1))
            pid = await connection.scalar(sa.text("SELECT pg_backend_pid()"))
            postgres.shared().execute(f"SELECT pg_terminate_backend({pid})")

    with pytest.raises(StoreUnavailable):
        await cut()
    async with database.read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(accounts)) == 0


async def test_an_error_shows_no_values(database: Database) -> None:
    """The server's own text has the whole row that it refused."""

    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(
                sa.insert(bodies).values(id=new_id(), content=b"the-payload", content_type=sa.null())
            )

    with pytest.raises(IntegrityError) as raised:
        await fail()
    shown = "".join(traceback.format_exception(raised.value))
    assert "content_type" in shown
    assert b"the-payload".hex() not in shown
    assert "the-payload" not in shown
    assert "Failing row" not in shown


async def test_what_another_process_has_just_made_is_contended(database: Database) -> None:
    row = {"account": "a", "route": "r", "key": "k", "fingerprint": b"", "answer": b"", "created_at": 1}
    async with database.write() as connection:
        await connection.execute(sa.insert(idempotency).values(row))
    with pytest.raises(StoreContended):
        async with database.write() as connection:
            await connection.execute(sa.insert(idempotency).values(row))
    async with database.write() as connection:
        await connection.execute(sa.insert(accounts).values(id="a", created_at=1))
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(sa.insert(accounts).values(id="a", created_at=1))


# --- transactions -----------------------------------------------------------------------------------------


async def test_reading_sees_one_state_and_writes_nothing(database: Database) -> None:
    count = sa.select(sa.func.count()).select_from(accounts)
    async with database.read() as connection:
        assert await connection.scalar(count) == 0
        async with database.write() as other:
            await other.execute(sa.insert(accounts).values(id="a", created_at=1))
        assert await connection.scalar(count) == 0
    with pytest.raises(StoreUnavailable):
        async with database.read() as connection:
            await connection.execute(sa.insert(accounts).values(id="b", created_at=1))
    async with database.read() as connection:
        assert await connection.scalar(count) == 1


async def test_it_holds_no_more_connections_than_it_may(postgres_url: str) -> None:
    database = Database(postgres_url, connections=2)
    async with database.write() as one, database.read() as two:
        pids = {await connection.scalar(sa.text("SELECT pg_backend_pid()")) for connection in (one, two)}
    async with database.write() as one, database.read() as two:
        assert pids == {await connection.scalar(sa.text("SELECT pg_backend_pid()")) for connection in (one, two)}
    await database.close()


@pytest.mark.parametrize("pgbouncer", [False, True])
async def test_statements_stay_prepared_unless_a_pooler_is_between(postgres_url: str, pgbouncer: bool) -> None:
    database = Database(postgres_url, pgbouncer=pgbouncer)
    async with database.write() as connection:
        for _ in range(3):
            await connection.scalar(sa.select(sa.literal("asked")))
    async with database.write() as connection:
        rows = await connection.scalars(sa.text("SELECT statement FROM pg_prepared_statements"))
        prepared = [statement for statement in rows if "pg_prepared_statements" not in statement]
    assert any("VARCHAR" in statement for statement in prepared) is not pgbouncer
    await database.close()


# --- databases that we do not take ------------------------------------------------------------------------


async def test_one_that_does_not_wait_for_its_disk_is_refused(database: Database, postgres_url: str) -> None:
    name = postgres_url.rpartition("@/")[2].partition("?")[0]
    postgres.shared().execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with pytest.raises(ConfigError, match="synchronous_commit"):
        async with database.setup():
            pass


async def test_one_that_cannot_hold_every_text_is_refused(database: Database) -> None:
    cluster = postgres.shared()
    cluster.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'")
    latin = Database(cluster.url("latin"))
    with pytest.raises(ConfigError, match="UTF8"):
        async with latin.setup():
            pass
    await latin.close()
    cluster.drop("latin")


async def test_a_statement_of_ours_that_is_wrong_is_no_trouble_of_the_database(database: Database) -> None:
    with pytest.raises(ProgrammingError):
        async with database.read() as connection:
            await connection.execute(sa.text("SELECT * FROM nothing"))


async def test_a_commit_that_is_under_way_is_waited_for(database: Database) -> None:
    """Who read what stands there meanwhile would tell a caller that nothing was stored."""
    session, batch = await sessions.open_session(database, ttl=60, alone=False), new_id()
    async with database.write() as connection:
        await sessions.mark_batch(connection, session, batch)
        asked = asyncio.create_task(sessions.last_batch(database, session))
        await asyncio.wait({asked}, timeout=0.3)
        assert not asked.done()
    assert await asked == batch
