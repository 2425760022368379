"""The connection to PostgreSQL: what a URL means, which errors pass, and what they never say."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, ProgrammingError

from dispatcher.errors import ConfigError, StoreContended, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.store import postgresql, sessions
from dispatcher.store.committer import Committer, Transaction
from dispatcher.store.database import Database
from dispatcher.store.tables import accounts, bodies, idempotency
from tests.support import postgres
from tests.support.lost_network import LostNetwork
from tests.support.patience import PATIENCE


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


async def asked(monkeypatch: pytest.MonkeyPatch, url: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """The DSNs that asyncpg is asked for, and the options of the last one."""
    dsns: list[str] = []
    last: dict[str, Any] = {}

    async def connect(dsn: str, **options: Any) -> None:
        dsns.append(dsn)
        last.update(options)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(StoreUnavailable):
        await postgresql.connector(url, **options)()
    return dsns, last


@pytest.mark.parametrize(
    ("url", "dsns"),
    [
        (
            "postgres://u:p%40ss@h:5433/app?sslmode=require",
            ["postgresql://u:p%40ss@h:5433/app?sslmode=require&application_name=webhook-dispatcher"],
        ),
        (
            "postgresql+asyncpg://u@h/app?channel_binding=prefer&sslrootcert=&application_name=mine",
            ["postgresql://u@h/app?application_name=mine"],
        ),
        (
            "postgresql://h/app?fallback_application_name=other&keepalives=0",
            ["postgresql://h/app?application_name=other"],
        ),
        (
            "postgresql://u@a:1,b:2/app?target_session_attrs=read-write",
            [
                "postgresql://u@a:1/app?target_session_attrs=read-write&application_name=webhook-dispatcher",
                "postgresql://u@b:2/app?target_session_attrs=read-write&application_name=webhook-dispatcher",
            ],
        ),
        (
            "postgresql://u@/app?host=a,b&port=1,2&application_name=x",
            [
                "postgresql://u@/app?target_session_attrs=read-write&host=a&port=1&application_name=x",
                "postgresql://u@/app?target_session_attrs=read-write&host=b&port=2&application_name=x",
            ],
        ),
        (
            "postgresql:///app?host=a,b&port=1&application_name=x",
            [
                "postgresql:///app?target_session_attrs=read-write&host=a&port=1&application_name=x",
                "postgresql:///app?target_session_attrs=read-write&host=b&port=1&application_name=x",
            ],
        ),
        (
            "postgresql://a:1,b:2/app?target_session_attrs=any&application_name=x",
            [
                "postgresql://a:1/app?target_session_attrs=any&application_name=x",
                "postgresql://b:2/app?target_session_attrs=any&application_name=x",
            ],
        ),
        (
            "postgresql:///app?host=%2Frun%2Fpg",
            ["postgresql:///app?host=%2Frun%2Fpg&application_name=webhook-dispatcher"],
        ),
    ],
)
async def test_what_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, url: str, dsns: list[str]) -> None:
    assert (await asked(monkeypatch, url))[0] == dsns


@pytest.mark.parametrize(
    ("url", "pgbouncer", "options"),
    [
        (
            "postgresql://h/app?connect_timeout=3",
            False,
            {
                "timeout": 3.0,
                "command_timeout": 8.0,
                "server_settings": {"idle_in_transaction_session_timeout": "4000"},
            },
        ),
        (
            "postgresql://h/app?connect_timeout=0&idle_in_transaction_session_timeout=1min",
            False,
            {
                "timeout": None,
                "command_timeout": 8.0,
                "server_settings": {"idle_in_transaction_session_timeout": "1min"},
            },
        ),
        ("postgresql://h/app", True, {"timeout": 10.0, "command_timeout": 8.0, "statement_cache_size": 0}),
    ],
)
async def test_how_long_the_driver_is_to_wait(
    monkeypatch: pytest.MonkeyPatch, url: str, pgbouncer: bool, options: dict[str, Any]
) -> None:
    assert (await asked(monkeypatch, url, pgbouncer=pgbouncer, command_timeout=8.0))[1] == options


@pytest.mark.parametrize(
    ("parameter", "kept"),
    [
        ("require_auth=scram-sha-256", False),
        ("gssencmode=require", False),
        ("gssencmode=prefer", True),
        ("channel_binding=require", False),
        ("channel_binding=disable", True),
        ("load_balance_hosts=random", False),
        ("client_encoding=LATIN1", False),
        ("client_encoding=UTF8", True),
        ("sslsni=0", False),
        ("sslcertmode=require", False),
        ("hostaddr=127.0.0.1", False),
        ("require_auth=", True),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(parameter: str, kept: bool) -> None:
    name, _, value = parameter.partition("=")
    if kept:
        postgresql.connector(f"postgresql://h/app?{parameter}")
        return
    with pytest.raises(ConfigError, match=f"DATABASE_URL has {name} ") as refused:
        postgresql.connector(f"postgresql://h/app?{parameter}")
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h:port/app",
        "postgresql://h/app?sslmode=perhaps",
        "postgresql://h/a?x",
        "postgresql:///a?host=a,b,c&port=1,2",
        "postgresql://h/a?keepalives=often",
    ],
)
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


# --- a server that is gone without a word -----------------------------------------------------------------


@pytest.fixture
def network(postgres_url: str) -> Iterator[LostNetwork]:
    """A way to the cluster that can be lost."""
    with LostNetwork(postgres.shared().socket) as network:
        yield network


def through(network: LostNetwork, postgres_url: str, *before: LostNetwork) -> str:
    """The URL of the same database over this network; over others before it, if there are any."""
    name = postgres_url.rpartition("@/")[2].partition("?")[0]
    hosts = ",".join(f"127.0.0.1:{one.port}" for one in (*before, network))
    return f"postgresql://postgres@{hosts}/{name}?connect_timeout=2&target_session_attrs=read-write"


async def test_nobody_waits_for_ever_for_a_server_that_is_gone(network: LostNetwork, postgres_url: str) -> None:
    database = Database(through(network, postgres_url), timeout=2)

    async def ask() -> None:
        async with database.write() as connection:
            await connection.execute(sa.select(1))

    await ask()
    network.lose()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await ask()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await ask()
    network.restore()
    await ask()
    await database.close()


@pytest.mark.parametrize("is_prepared", [False, True])
async def test_locks_of_whoever_is_gone_are_free_again(
    network: LostNetwork, postgres_url: str, is_prepared: bool
) -> None:
    """Also where a statement was prepared and not executed: PostgreSQL takes that for no idle transaction."""
    database = Database(postgres_url, timeout=2)
    here = await postgresql.connector(postgres_url)()
    there = await postgresql.connector(through(network, postgres_url), command_timeout=3600)()
    try:
        await there.execute("BEGIN; LOCK TABLE sessions")
        if is_prepared:
            await there.prepare("SELECT 1")
        network.lose()
        waits = asyncio.create_task(here.execute("BEGIN; LOCK TABLE sessions; COMMIT", timeout=PATIENCE))
        async with asyncio.timeout(PATIENCE):
            ended = 0
            while not ended:
                assert not waits.done()
                await asyncio.sleep(0.1)
                with suppress(StoreUnavailable):
                    ended = await database.end_abandoned()
        await waits
    finally:
        there.terminate()
        await here.close()
        await database.close()


async def test_transactions_of_others_may_take_their_time(postgres_url: str) -> None:
    """Those of other programs, those that are worked at, and connections that do nothing."""
    database = Database(postgres_url, timeout=1)
    other = await asyncpg.connect(postgres_url, server_settings={"application_name": "psql"})
    busy, idle = [await postgresql.connector(postgres_url)() for _ in range(2)]
    try:
        await other.execute("BEGIN")
        await other.prepare("SELECT 1")
        work = asyncio.create_task(busy.execute("SELECT pg_sleep(3)"))
        while not work.done():
            with suppress(StoreUnavailable):
                assert await database.end_abandoned() == 0
        await work
        assert await idle.fetchval("SELECT 1") == 1
        await other.execute("COMMIT")
    finally:
        for connection in (other, busy, idle):
            await connection.close()
        await database.close()


async def test_the_kernel_asks_after_the_other_end(network: LostNetwork, postgres_url: str) -> None:
    def options(connection: Any) -> dict[str, int]:
        made = connection._transport.get_extra_info("socket")
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        found = {name: made.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
        return found | {"SO_KEEPALIVE": made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}

    url = through(network, postgres_url)
    for parameters, expected in (
        ("", (15, 5, 3, 7_000, 1)),
        ("&keepalives_idle=9&keepalives_interval=4&keepalives_count=2&tcp_user_timeout=6000", (9, 4, 2, 6_000, 1)),
    ):
        connection = await postgresql.connector(url + parameters, command_timeout=7)()
        assert tuple(options(connection).values()) == expected
        await connection.close()
    connection = await postgresql.connector(f"{url}&keepalives=0", command_timeout=None)()
    assert options(connection)["SO_KEEPALIVE"] == 0
    assert options(connection)["TCP_USER_TIMEOUT"] == 0
    await connection.close()


async def test_where_one_host_is_silent_the_next_is_asked(network: LostNetwork, postgres_url: str) -> None:
    with LostNetwork(postgres.shared().socket) as other:
        connect = postgresql.connector(through(network, postgres_url, other))
        await (await connect()).close()
        other.lose()
        await (await connect()).close()
        # and then it is asked first
        network.lose()
        other.restore()
        await (await connect()).close()
        other.lose()
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            await connect()


async def test_a_host_that_takes_no_writes_is_passed_over(network: LostNetwork, postgres_url: str) -> None:
    """As a standby is, until it is promoted."""
    name = postgres_url.rpartition("@/")[2].partition("?")[0]
    postgres.shared().execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database = Database(through(network, postgres_url, network))

    async def ask() -> None:
        async with database.write() as connection:
            await connection.execute(sa.select(1))

    with pytest.raises(StoreUnavailable, match="TargetServerAttributeNotMatched"):
        await ask()
    postgres.shared().execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await ask()
    await database.close()


class _Lost:
    """A write that loses the network when all that it does is done: only the COMMIT is left."""

    def __init__(self, network: LostNetwork, **what: bool) -> None:
        self._lose = partial(network.lose, new=False, **what)
        self.lost = asyncio.Event()

    async def __call__(self, tx: Transaction, ids: Sequence[str]) -> list[str]:
        await tx.connection.execute(
            sa.insert(bodies), [{"id": id_, "content": b"x", "content_type": "t", "headers": None} for id_ in ids]
        )
        self._lose()
        self.lost.set()
        return list(ids)


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_whose_answer_is_lost_is_looked_up(
    network: LostNetwork, postgres_url: str, arrives: bool
) -> None:
    """Where it did not arrive, the server ends what was begun, before anybody can know."""
    database = Database(through(network, postgres_url), timeout=4)
    committer = Committer(database, session=await sessions.open_session(database, ttl=60, alone=False))
    committer.start()
    id_ = new_id()
    async with asyncio.timeout(PATIENCE):
        write = committer.write(_Lost(network, requests=not arrives), id_)
        if arrives:
            assert await write == id_
        else:
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await write
    async with database.read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).where(bodies.c.id == id_)) == int(arrives)
    await committer.stop()
    await database.close()


async def test_while_a_commit_is_looked_up_nobody_else_has_to_wait(network: LostNetwork, postgres_url: str) -> None:
    database = Database(through(network, postgres_url), timeout=2)
    committer = Committer(database, session=await sessions.open_session(database, ttl=60, alone=False))
    committer.start()
    lost = _Lost(network)
    unsure = asyncio.create_task(committer.write(lost, new_id()))
    async with asyncio.timeout(PATIENCE):
        await lost.lost.wait()
        network.lose()
        with pytest.raises(StoreUnavailable, match="is away"):
            await committer.write(lost, new_id())
        assert not unsure.done()
        network.restore()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await unsure
    await committer.stop()
    await database.close()


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
