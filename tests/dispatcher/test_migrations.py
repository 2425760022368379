"""The schema that migrations make is the one that the code declares, and a newer one is refused."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import ConfigError, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.installation import open_installation
from dispatcher.models import DeliveryState
from dispatcher.store import migrations, partitions, queries, sealing
from dispatcher.store.database import Database
from dispatcher.store.migrations import steps
from dispatcher.store.tables import accounts, attempts, bodies
from subscriptions.keyring import Keyring
from subscriptions.schema import metadata
from subscriptions.secrets import Secret
from tests.conftest import DATABASES
from tests.support import new_databases
from tests.support.stores import (
    ACCOUNT,
    LANE,
    ORIGIN,
    URL,
    Home,
    delivery_rows,
    lease,
    lease_for,
    new_event,
    open_store,
    publish,
    reconciled,
    settle,
    subscribe,
)


@pytest.fixture
async def empty(bare_home: Home) -> AsyncIterator[Database]:
    """A database with nothing in it."""
    bare_home.data_dir.mkdir()
    database = Database(bare_home.url)
    yield database
    await database.close()


@pytest.fixture(params=DATABASES)
async def migrated(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database of its own as the migrations leave it that were run on one with nothing in it: a copy of that."""
    url = request.getfixturevalue("own_postgres_url") if request.param == "postgresql" else None
    home = Home(data_dir=tmp_path / "data", database_url=url)
    if home.is_embedded:
        new_databases.place(home.data_dir)
    database = Database(home.url)
    yield database
    await database.close()


async def test_migrated_is_declared(migrated: Database) -> None:
    def compare(connection: sa.Connection) -> None:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": steps.is_declared})
        assert compare_metadata(context, metadata) == []
        indexes = {index["name"] for table in metadata.tables for index in sa.inspect(connection).get_indexes(table)}
        assert indexes == {index.name for table in metadata.tables.values() for index in table.indexes}

    async with migrated.setup() as connection:
        await connection.run_sync(compare)


def test_the_last_step_is_the_one_that_is_taken_for_it() -> None:
    assert steps.known()[0] == migrations.HEAD


async def index_definitions(connection: AsyncConnection) -> dict[str, str]:
    """Each index as the database says it; those of primary keys are not among them."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT relname, pg_get_indexdef(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relname LIKE 'ix%' AND NOT relispartition"
        )
    else:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql <> ''"
    return {name: " ".join(text.replace('"', "").split()) for name, text in await connection.execute(sa.text(query))}


async def test_partial_indexes_keep_their_conditions(migrated: Database) -> None:
    async with migrated.setup() as connection:
        made = await index_definitions(connection)
        kind = connection.dialect.name
    for table in metadata.tables.values():
        for index in table.indexes:
            where = index.dialect_options[kind]["where"]
            assert ("WHERE" in made[str(index.name)]) is (where is not None), index.name


async def test_migrated_indexes_are_those_that_are_declared(migrated: Database) -> None:
    """To the letter: a partial index is used only for a query that says the same words."""
    async with migrated.setup() as connection:
        found = await index_definitions(connection)
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
        assert found == await index_definitions(connection)


async def definitions(connection: AsyncConnection) -> set[tuple[Any, ...]]:
    """Everything that a database says of its tables, but for indexes and partitions: types, collations, defaults, what
    may be none, constraints, how it is partitioned, and how it is stored.
    """
    if connection.dialect.name == "sqlite":
        query = (
            'SELECT sqlite_master.name, field.name, field.type, "notnull", dflt_value, pk'
            " FROM sqlite_master, pragma_table_info(sqlite_master.name) AS field WHERE sqlite_master.type = 'table'"
        )
    else:
        query = (
            "WITH ours AS (SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT relispartition)"
            " SELECT relname, attname, concat_ws(' ', format_type(atttypid, atttypmod), attcollation::regcollation,"
            " attnotnull, pg_get_expr(adbin, adrelid)) FROM ours JOIN pg_attribute ON attrelid = ours.oid"
            " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0 AND NOT attisdropped"
            " UNION ALL SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid)"
            " FROM ours JOIN pg_constraint ON conrelid = ours.oid"
            " UNION ALL SELECT relname, relkind::text, concat_ws(' ', pg_get_partkeydef(oid), reloptions) FROM ours"
        )
    rows = await connection.execute(sa.text(query))
    return {tuple(row) for row in rows if row[0] not in {"alembic_version", "sqlite_sequence"}}


async def test_all_else_is_as_it_is_declared(migrated: Database) -> None:
    async with migrated.setup() as connection:
        found = await definitions(connection)
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
        declared = await definitions(connection)
    assert found - declared == set()
    assert declared - found == set()
    assert len(declared) > 100


async def test_upgrading_twice_changes_nothing(empty: Database) -> None:
    async with empty.setup() as connection:
        await connection.run_sync(migrations.upgrade)
        await connection.run_sync(migrations.upgrade)


async def test_two_processes_may_begin_at_once(empty: Database) -> None:
    async def upgrade() -> None:
        async with empty.setup() as connection:
            await connection.run_sync(migrations.upgrade)

    await asyncio.gather(upgrade(), upgrade())


async def test_text_is_compared_byte_by_byte(migrated: Database) -> None:
    async with migrated.setup() as connection:
        await connection.execute(
            sa.insert(accounts), [{"id": name, "created_at": 1} for name in ("b", "B", "a-c", "aB", "é", "z")]
        )
        ordered = list(await connection.scalars(sa.select(accounts.c.id).order_by(accounts.c.id)))
        assert ordered == sorted(ordered, key=str.encode)
        if connection.dialect.name == "postgresql":
            others = await connection.execute(
                sa.text(
                    "SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class ON oid = attrelid"
                    " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
                    " AND attcollation <> 0"
                    " AND attcollation <> '\"C\"'::regcollation"
                )
            )
            # what nobody compares
            assert set(others) == {("alembic_version", "version_num"), ("attempts", "response_body")}


async def test_a_newer_database_is_refused(bare_home: Home) -> None:
    home = bare_home
    installation = await open_installation(home.settings)
    async with installation.database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await installation.database.close()
    with pytest.raises(ConfigError, match="newer version of this program"):
        await open_installation(home.settings)


def insert(connection: sa.Connection, table: str, **values: object) -> None:
    """A row in the words of an earlier version, not by the tables of this one."""
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)


def fill_first(connection: sa.Connection, keyring: Keyring) -> None:
    """What the first version left: a task that was delivered, and one whose delivery waits."""
    canary = keyring.seal(b"this keyring opens this database", where=sealing.CANARY)
    insert(connection, "installation", id=1, issuer=new_id(), canary=canary, created_at=1)
    secret = sealing.seal_account_secret(keyring, Secret("of-the-account"), account=ACCOUNT)
    insert(connection, "accounts", id=ACCOUNT, default_secret=secret, schemes='["websub"]', created_at=1)
    for state, due_at, attempt in (("delivered", None, 1), ("pending", 1, 2)):
        task, delivery = new_id(), new_id()
        url = keyring.seal(URL, where=sealing.place(ACCOUNT, "callback_url", task))
        ended = 2 if state == "delivered" else None
        insert(
            connection, "tasks", id=task, account=ACCOUNT, type="relay", state="succeeded", body_mode="raw",
            delivery_id=delivery, attempt=0, failures=0, interruptions=0, callback_url=None if ended else url,
            callback_origin=ORIGIN, callback_fingerprint="0" * 16, callback_token="jwt", created_at=1,
            finished_at=1,
        )  # fmt: skip
        insert(
            connection, "deliveries", id=delivery, account=ACCOUNT, task_id=task, wire_id=delivery, lane=LANE,
            state=state, attempt=attempt, failures=attempt - 1, last_outcome="timeout", repeats=1, due_at=due_at,
            body_id=delivery, created_at=1, finished_at=ended,
        )  # fmt: skip
        insert(
            connection, "bodies", id=delivery, content=b'{"n":1}', content_type="application/json",
            headers='[["X-A","b"]]',
        )  # fmt: skip
        insert(
            connection, "attempts", delivery_id=delivery, number=1, outcome="timeout", started_at=1, duration_ms=2.5,
            truncated=False,
        )  # fmt: skip
        insert(connection, "ledger", account=ACCOUNT, slot=0 if ended else 1, state="accepted", count=1)
    insert(connection, "ledger", account=ACCOUNT, slot=0, state="delivered", count=1)


#: what each version could leave that those before it could not
FILL = {"0001": fill_first}


async def at_version(home: Home, version: str) -> None:
    """A database as a version left it, that came from the first one by and by."""
    home.data_dir.mkdir(mode=0o700)
    keyring = Keyring.create(home.data_dir / "keyring.json")

    def make(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        for step in reversed(steps.known()[steps.known().index(version) :]):
            command.upgrade(config, step)
            if step in FILL:
                FILL[step](connection, keyring)

    database = Database(home.url)
    async with database.setup() as connection:
        await connection.run_sync(make)
    await database.close()


@pytest.mark.parametrize("version", steps.known()[1:])
async def test_a_database_of_an_earlier_version_goes_on(bare_home: Home, version: str) -> None:
    await at_version(bare_home, version)
    async with open_store(bare_home) as store:
        account = await store.account(ACCOUNT)
        assert account.default_secret == Secret("of-the-account")
        assert (account.schemes, account.verification, account.operational_id) == (("websub",), "none", None)
        assert await reconciled(store) == {"accepted": 2, "delivered": 1, "pending": 1}
        [waiting] = await delivery_rows(store, state="pending")
        assert (waiting["kind"], waiting["refused"], waiting["other_secret"]) == ("message", False, False)
        assert (waiting["seq"], waiting["subscription_id"], waiting["hold_until"]) == (None, None, None)
        assert await store.due_lanes(after="", limit=5) == {LANE: 0.0}
        [leased] = await lease(store)
        assert (leased.attempt, leased.endpoint.url.reveal(), leased.body.body) == (3, URL, b'{"n":1}')
        assert leased.body.headers == (("X-A", "b"),)
        assert (await settle(store, leased)).state is DeliveryState.DELIVERED
        found = await queries.delivery(store.database, ACCOUNT, leased.id)
        assert found is not None
        assert [(row["number"], row["outcome"]) for row in found[1]] == [(1, "timeout"), (3, "success")]
        # and what is new works beside it
        id_ = await subscribe(store)
        await publish(store, new_event())
        [one] = await lease_for(store, id_)
        await settle(store, one)
        assert await reconciled(store) == {"accepted": 3, "delivered": 3}
    async with open_store(bare_home) as store:
        assert await reconciled(store) == {"accepted": 3, "delivered": 3}


# --- partitions -------------------------------------------------------------------------------------------


async def test_what_there_is_becomes_the_first_partition(bare_postgres_url: str, tmp_path: Path) -> None:
    """Its rows are looked through beforehand, while others write; whoever broke off there begins anew."""
    home = Home(data_dir=tmp_path / "data", database_url=bare_postgres_url)
    await at_version(home, steps.known()[steps.known().index("0006") + 1])
    database, other = Database(home.url), Database(home.url)
    step = importlib.import_module("dispatcher.store.migrations.versions.0006_storage")
    write = sa.update(bodies).values(content_type=bodies.c.content_type)
    async with other.write() as writing:
        await writing.execute(write)
        # A moment without others is all that it needs, and here it does not get that.
        with pytest.raises(StoreUnavailable):
            await migrations.prepare(database, lock_within=100)
    async with database.setup() as connection:
        await connection.run_sync(step.foresee, "bodies", check=False)
    async with other.write() as writing:
        await writing.execute(write)
        await migrations.prepare(database)
    before = await names_of_files(database, ("bodies", "attempts"))
    async with database.setup() as connection:
        await connection.run_sync(migrations.upgrade)
    assert await names_of_files(database, ("bodies_first", "attempts_first")) == before, "nothing was copied"
    async with database.read() as connection:
        for table in (bodies, attempts):
            [first] = await partitions.partitions(connection, table)
            assert first.name == f"{table.name}_first"
            days = (int(first.end, 16) >> 80) / 86_400_000 - time.time() / 86_400
            assert 7 < days <= 8
    assert await partitions.keep(database, 86_400_000) == 0
    await other.close()
    await database.close()


async def test_what_is_being_written_when_the_tables_are_divided_stays(bare_postgres_url: str, tmp_path: Path) -> None:
    """The first rows that there ever are, by a server of the version before, which goes on meanwhile."""
    home = Home(data_dir=tmp_path / "data", database_url=bare_postgres_url)
    await at_version(home, steps.known()[steps.known().index("0006") + 1])
    database, other = Database(home.url), Database(home.url)
    async with other.write() as writing:
        await writing.execute(sa.delete(bodies))
        await writing.execute(sa.delete(attempts))

    async def upgrade() -> None:
        async with database.setup() as connection:
            await connection.run_sync(migrations.upgrade)

    async with other.write() as writing:
        await writing.execute(sa.insert(bodies).values(id="1" * 32, content=b"1", content_type="a/b"))
        upgrading = asyncio.create_task(upgrade())
        await asyncio.sleep(0.5)
    await upgrading
    async with database.read() as connection:
        assert list(await connection.scalars(sa.select(bodies.c.id))) == ["1" * 32]
    await other.close()
    await database.close()


async def names_of_files(database: Database, tables: tuple[str, ...]) -> list[int]:
    async with database.read() as connection:
        return [
            await connection.scalar(sa.select(sa.func.pg_relation_filenode(sa.cast(table, postgresql.REGCLASS)))) or 0
            for table in tables
        ]
