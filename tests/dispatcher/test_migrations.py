"""The schema that migrations make is the one that the code declares, and a newer one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

import dispatcher.store.tables  # noqa: F401 - fills the metadata
from dispatcher.config import load
from dispatcher.errors import ConfigError
from dispatcher.ids import new_id
from dispatcher.installation import open_installation
from dispatcher.models import DeliveryState
from dispatcher.store import migrations, queries, sealing
from dispatcher.store.database import embedded_url
from dispatcher.store.migrations import steps
from subscriptions.keyring import Keyring
from subscriptions.schema import metadata
from subscriptions.secrets import Secret
from tests.support.stores import (
    ACCOUNT,
    LANE,
    ORIGIN,
    URL,
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


def test_migrated_is_declared() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        migrations.upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        indexes = {index["name"] for table in metadata.tables for index in sa.inspect(connection).get_indexes(table)}
        assert indexes == {index.name for table in metadata.tables.values() for index in table.indexes}
    engine.dispose()


def test_the_last_step_is_the_one_that_is_taken_for_it() -> None:
    assert steps.known()[0] == migrations.HEAD


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


def test_migrated_indexes_are_those_that_are_declared() -> None:
    """To the letter: a partial index is used only for a query that says the same words."""
    migrated, declared = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    indexes = []
    for engine, make in ((migrated, migrations.upgrade), (declared, metadata.create_all)):
        with engine.begin() as connection:
            make(connection)
            rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql <> ''"))
            indexes.append({row.name: " ".join(row.sql.replace('"', "").split()) for row in rows})
        engine.dispose()
    assert indexes[0] == indexes[1]


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


def at_first_version(data_dir: Path) -> Keyring:
    """A database as the first version left it: a task that was delivered, and one whose delivery waits."""
    data_dir.mkdir(mode=0o700)
    keyring = Keyring.create(data_dir / "keyring.json")
    engine = sa.create_engine(embedded_url(data_dir).replace("+aiosqlite", ""))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

        def insert(table: str, **values: object) -> None:
            # in the words of that version, not by the tables of this one
            names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)

        canary = keyring.seal(b"this keyring opens this database", where=sealing.CANARY)
        insert("installation", id=1, issuer=new_id(), canary=canary, created_at=1)
        secret = sealing.seal_account_secret(keyring, Secret("of-the-account"), account=ACCOUNT)
        insert("accounts", id=ACCOUNT, default_secret=secret, schemes='["websub"]', created_at=1)
        for state, due_at, attempt in (("delivered", None, 1), ("pending", 1, 2)):
            task, delivery = new_id(), new_id()
            url = keyring.seal(URL, where=sealing.place(ACCOUNT, "callback_url", task))
            ended = 2 if state == "delivered" else None
            insert(
                "tasks", id=task, account=ACCOUNT, type="relay", state="succeeded", body_mode="raw",
                delivery_id=delivery, attempt=0, failures=0, interruptions=0, callback_url=None if ended else url,
                callback_origin=ORIGIN, callback_fingerprint="0" * 16, callback_token="jwt", created_at=1,
                finished_at=1,
            )  # fmt: skip
            insert(
                "deliveries", id=delivery, account=ACCOUNT, task_id=task, wire_id=delivery, lane=LANE, state=state,
                attempt=attempt, failures=attempt - 1, last_outcome="timeout", repeats=1, due_at=due_at,
                body_id=delivery, created_at=1, finished_at=ended,
            )  # fmt: skip
            insert("bodies", id=delivery, content=b'{"n":1}', content_type="application/json", headers='[["X-A","b"]]')
            insert(
                "attempts", delivery_id=delivery, number=1, outcome="timeout", started_at=1, duration_ms=2.5,
                truncated=False,
            )  # fmt: skip
            insert("ledger", account=ACCOUNT, slot=0 if ended else 1, state="accepted", count=1)
        insert("ledger", account=ACCOUNT, slot=0, state="delivered", count=1)
    engine.dispose()
    return keyring


async def test_a_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    at_first_version(tmp_path / "data")
    async with open_store(tmp_path / "data") as store:
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
    async with open_store(tmp_path / "data") as store:
        assert await reconciled(store) == {"accepted": 3, "delivered": 3}
