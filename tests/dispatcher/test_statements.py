"""Statements of the hot path write and read what SQLAlchemy's own would, in their order, and fail as cleanly."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import StoreUnavailable
from dispatcher.models import DeliveryState
from dispatcher.store import (
    deliveries,
    intake,
    lanewise,
    leasing,
    ledger,
    making,
    publishing,
    sessions,
    settling,
    sqlite,
)
from dispatcher.store.database import Database, embedded_url
from dispatcher.store.statements import MAX_ROWS, Statement, among, as_json, leave, run

metadata = sa.MetaData()
things = sa.Table(
    "things",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(10), nullable=False, server_default="new"),
    sa.Column("number", sa.BigInteger),
    sa.Column("share", sa.Float),
    sa.Column("is_good", sa.Boolean),
    sa.Column("content", sa.LargeBinary),
    sa.Column("detail", sa.JSON(none_as_null=True)),
    sa.Column("text", sa.Text),
)
NAMES = tuple(things.c.keys())
INSERT = Statement(sa.insert(things), *NAMES)
#: each kind of value, and what is next to nothing
ROWS: list[dict[str, Any]] = [
    {
        "state": DeliveryState.DELIVERED,
        "number": 2**62,
        "share": 0.1,
        "is_good": True,
        "content": b"\x00\xff",
        "detail": [["Name", "välue \u2028 \"\\' \x00"]],
        "text": "日本 '; --",
    },
    {
        "state": "",
        "number": 0,
        "share": 0.0,
        "is_good": False,
        "content": b"",
        "detail": {"dns": 1.5, "reconnected": True},
        "text": "",
    },
    {
        "state": "x",
        "number": None,
        "share": None,
        "is_good": None,
        "content": None,
        "detail": None,
        "text": None,
    },
    {"state": "y", "number": -1, "share": 1e300, "is_good": True, "content": b"x", "detail": [], "text": "\r\n"},
]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(embedded_url(tmp_path))
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


def as_row(values: dict[str, Any]) -> tuple[Any, ...]:
    """A row as a statement of ours takes it."""
    plain = values | {"state": str(values["state"]), "detail": as_json(values["detail"])}
    return tuple(plain[name] for name in NAMES)


async def ids(database: Database) -> list[str]:
    async with database.read() as connection:
        return list(await connection.scalars(sa.select(things.c.id).order_by(things.c.id)))


@pytest.mark.parametrize("values", ROWS)
async def test_a_row_is_written_as_sqlalchemy_writes_it(database: Database, values: dict[str, Any]) -> None:
    async with database.write() as connection:
        await connection.execute(sa.insert(things), [values | {"id": "theirs"}])
        await run(connection, (INSERT, [as_row(values | {"id": "ours"})]))
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(things))).mappings().all()
        kinds = [sa.func.typeof(column) for column in things.c]
        found = (await connection.execute(sa.select(*kinds).order_by(things.c.id))).all()
    [theirs, ours] = [{name: row[name] for name in NAMES if name != "id"} for row in rows]
    assert theirs == ours == values
    assert found[0] == found[1]


@pytest.mark.parametrize("packed", [False, True])
async def test_a_row_is_read_as_it_was_written(database: Database, *, packed: bool) -> None:
    by_id = sa.select(things).where(among(things.c.id, "ids")).order_by(things.c.id)
    read = Statement(by_id, "ids", packed=packed)
    rows = [as_row(values | {"id": str(n)}) for n, values in enumerate(ROWS)]
    async with database.write() as connection:
        _, [*found], nothing = await run(connection, (INSERT, rows), (read, [(["3", "0", "1", "2"],)]), (read, [([],)]))
    assert found == rows
    assert nothing == []


async def test_of_bytes_and_text_nothing_is_lost_when_they_are_packed(database: Database) -> None:
    every = [(f"{n:02x}", bytes([n]) * n, f"<{chr(n)}>" + chr(0x10FFFF - n) * n) for n in range(256)]
    read = Statement(sa.select(things.c.id, things.c.content, things.c.text), packed=True)
    written = Statement(sa.insert(things), "id", "content", "text")
    async with database.write() as connection:
        _, found = await run(connection, (written, every), (read, [()]))
    assert sorted(found) == every


async def test_packed_rows_are_one_to_sqlite(database: Database) -> None:
    """For each row the interpreter is let go and waited for again: beside a busy event loop that costs most."""
    statement = Statement(sa.select(things.c.id), packed=True)
    async with database.write() as connection:
        await run(connection, (IDS, [(str(n),) for n in range(100)]))
        packed = await connection.exec_driver_sql(statement.prepared(connection.dialect).sql)
        assert len(packed.all()) == 1


async def test_only_what_is_selected_can_be_packed(database: Database) -> None:
    async with database.read() as connection:
        with pytest.raises(TypeError):
            Statement(sa.delete(things), packed=True).prepared(connection.dialect)


@pytest.mark.parametrize("count", [0, 1, 2, 3, MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1, 3 * MAX_ROWS + 7])
async def test_any_number_of_rows_goes_in(database: Database, count: int) -> None:
    numbers = Statement(sa.insert(things), "number", "id")
    async with database.write() as connection:
        await run(connection, (numbers, [(n, f"{n:05}") for n in range(count)]))
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(things.c.id, things.c.number, things.c.state))).all()
    assert sorted(rows) == [(f"{n:05}", n, "new") for n in range(count)]


async def test_names_and_what_a_statement_says_itself_come_in_any_order(database: Database) -> None:
    change = Statement(
        sa.update(things)
        .where(among(things.c.id, "ids"), things.c.number < sa.bindparam("number"))
        .values(state=DeliveryState.HELD.value, share=sa.bindparam("share"), number=sa.bindparam("number"), text="said")
        .returning(things.c.id),
        "share",
        "ids",
        "number",
    )
    numbers = Statement(sa.insert(things), "id", "number")
    async with database.write() as connection:
        _, changed = await run(
            connection, (numbers, [("a", 1), ("b", 2), ("c", 3)]), (change, [(0.5, ["a", "c"], 3), (0.7, ["b"], 9)])
        )
    assert changed == [("a",), ("b",)]
    async with database.read() as connection:
        columns = [things.c[name] for name in ("id", "state", "number", "share", "text")]
        rows = (await connection.execute(sa.select(*columns).order_by(things.c.id))).all()
    assert rows == [("a", "held", 3, 0.5, "said"), ("b", "held", 9, 0.7, "said"), ("c", "new", 3, None, None)]


COUNT = Statement(sa.select(sa.func.count()).select_from(things))
IDS = Statement(sa.insert(things), "id")


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The visits to the thread of a connection."""
    seen: list[object] = []
    visit = sqlite.Connection._visit

    async def counted(connection: sqlite.Connection, *arguments: Any) -> Any:
        seen.append(arguments)
        return await visit(connection, *arguments)

    monkeypatch.setattr(sqlite.Connection, "_visit", counted)
    return seen


async def test_steps_are_executed_in_order_in_one_visit(database: Database, visits: list[object]) -> None:
    visits.clear()
    async with database.write() as connection:
        answers = await run(connection, (COUNT, [()]), (IDS, [("a",)]), (COUNT, [()]), (IDS, [("b",)]))
        assert len(visits) == 1  # what began the transaction went along
        assert answers == [[(0,)], [], [(1,)], []]
    assert await ids(database) == ["a", "b"]


async def test_rows_may_follow_from_what_was_answered_before(database: Database, visits: list[object]) -> None:
    visits.clear()
    async with database.write() as connection:
        answers = await run(
            connection,
            (COUNT, [()]),
            (IDS, lambda answers: [(f"found {answers[0][0][0]}",)]),
            (COUNT, [()]),
            (IDS, lambda answers: [(f"then {answers[2][0][0]}",)]),
        )
        assert len(visits) == 1
        assert answers == [[(0,)], [], [(1,)], []]
    assert await ids(database) == ["found 0", "then 1"]


async def test_what_is_left_goes_along_with_what_follows(database: Database, visits: list[object]) -> None:
    async with database.hold() as held:
        visits.clear()
        async with database.write(held) as connection:
            await leave(connection, (IDS, [("a",)]))
            await leave(connection, (IDS, [("b",)]))
            assert visits == []
        assert len(visits) == 1  # with COMMIT
        async with database.write(held) as connection:
            await leave(connection, (IDS, [("c",)]))
            assert await run(connection, (COUNT, [()])) == [[(3,)]]
            await leave(connection, (IDS, [("d",)]))
            # What passes through SQLAlchemy is no exception.
            assert await connection.scalar(sa.select(sa.func.count()).select_from(things)) == 4
            await leave(connection, (IDS, [("e",)]))
        assert await ids(database) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("through_sqlalchemy", [False, True])
async def test_of_what_is_undone_nothing_is_left(database: Database, *, through_sqlalchemy: bool) -> None:
    async def fail(held: AsyncConnection) -> None:
        async with database.write(held) as connection:
            if through_sqlalchemy:
                await connection.execute(sa.insert(things).values(id="a"))
            await leave(connection, (IDS, [("b",)]))
            raise LookupError

    async with database.hold() as held:
        with pytest.raises(LookupError):
            await fail(held)
        async with database.write(held) as connection:
            await leave(connection, (IDS, [("c",)]))
        assert await ids(database) == ["c"]


async def test_what_is_left_fails_before_commit(database: Database) -> None:
    async def write(held: AsyncConnection, id_: str) -> None:
        async with database.write(held) as connection:
            await run(connection, (IDS, [(id_,)]))
            await leave(connection, (IDS, [("twice",)]))

    async with database.hold() as held:
        await write(held, "a")
        assert database.reached_commit(held)
        with pytest.raises(sqlite3.IntegrityError):
            await write(held, "b")
        assert not database.reached_commit(held)
        assert await ids(database) == ["a", "twice"]


@pytest.mark.parametrize("packed", [False, True])
async def test_who_checks_the_rows_stops_what_follows(database: Database, *, packed: bool) -> None:
    seen: list[tuple[int, list[Any]]] = []

    def check(count: int, rows: list[Any]) -> None:
        seen.append((count, rows))
        if count > 1:
            raise LookupError

    rename = Statement(sa.update(things).values(text=sa.bindparam("to")), "to")
    found = Statement(sa.select(things.c.id), packed=packed)

    async def write(id_: str, statement: Statement, rows: list[tuple[Any, ...]]) -> None:
        async with database.write() as connection:
            await leave(connection, (statement, rows), check=check)
            await run(connection, (IDS, [(id_,)]))

    await write("a", rename, [("x",)])
    await write("b", found, [()])
    with pytest.raises(LookupError):
        await write("c", found, [()])
    with pytest.raises(LookupError):
        await write("d", rename, [("x",), ("y",)])
    assert seen == [(0, []), (1, [("a",)]), (2, [("a",), ("b",)]), (4, [])]
    assert await ids(database) == ["a", "b"]


async def test_nothing_after_a_failure_is_executed_and_nothing_before_it_stays(database: Database) -> None:
    numbers = Statement(sa.insert(things), "id", "text")

    async def fail() -> None:
        async with database.write() as connection:
            await run(connection, (numbers, [("a", "secret")]), (numbers, [("a", "secret")]), (numbers, [("b", "")]))

    with pytest.raises(sqlite3.IntegrityError) as failed:
        await fail()
    assert "secret" not in repr(failed.value)
    assert await ids(database) == []
    async with database.write() as connection:
        await run(connection, (numbers, [("c", "")]))
    assert await ids(database) == ["c"]


async def test_after_a_failure_the_transaction_is_still_the_same(database: Database) -> None:
    """As SQLite has it: what failed is undone, what came before it is not, and the caller decides."""
    numbers = Statement(sa.insert(things), "id")
    async with database.write() as connection:
        await run(connection, (numbers, [("a",)]))
        with pytest.raises(sqlite3.IntegrityError):
            await run(connection, (numbers, [("b",), ("a",)]))
        assert connection.in_transaction()
        await run(connection, (numbers, [("c",)]))
    assert await ids(database) == ["a", "c"]


async def test_a_transaction_that_cannot_begin_executes_nothing(database: Database, tmp_path: Path) -> None:
    numbers = Statement(sa.insert(things), "id")
    other = sqlite3.connect(tmp_path / "dispatcher.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def write() -> None:
        async with database.write() as connection:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await run(connection, (numbers, [("a",)]))
            # again, as a caller might: still not outside of a transaction
            await run(connection, (numbers, [("b",)]))

    with pytest.raises(StoreUnavailable):
        await write()
    other.execute("ROLLBACK")
    other.close()
    assert await ids(database) == []
    async with database.write() as connection:
        await run(connection, (numbers, [("c",)]))
    assert await ids(database) == ["c"]


async def test_a_transaction_without_a_statement_is_none(database: Database) -> None:
    async with database.write():
        pass
    async with database.write() as connection:
        await run(connection, (Statement(sa.insert(things), "id"), [("a",)]))
    assert await ids(database) == ["a"]


def test_every_hot_statement_can_be_said_to_both_databases() -> None:
    """PostgreSQL's words are looked at here; that it takes them, its own tests say."""
    dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
    modules = (deliveries, intake, lanewise, leasing, ledger, making, publishing, sessions, settling)
    found = [one for module in modules for one in vars(module).values() if isinstance(one, Statement)]
    assert len(found) > 10
    for statement in found:
        prepared = statement.prepared(dialect)
        assert "?" not in prepared.sql
        assert "json_each" not in prepared.sql
    assert "deliveries.id = ANY ($1::VARCHAR[])" in deliveries._LEASED.prepared(dialect).sql
    assert deliveries._LEASED.prepared(dialect).rows([(["a"],)])[0][0] == ["a"]
