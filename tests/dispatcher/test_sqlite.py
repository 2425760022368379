"""The connection to SQLite: one visit to its thread a statement, and nothing lost on the way."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dispatcher.store import sqlite
from dispatcher.store.database import Database, embedded_url

metadata = sa.MetaData()
numbers = sa.Table("numbers", metadata, sa.Column("n", sa.Integer, primary_key=True), sa.Column("word", sa.String))


@pytest.fixture
async def database(tmp_path: Path) -> Database:
    database = Database(embedded_url(tmp_path))
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(sa.insert(numbers), [{"n": n, "word": f"w{n}"} for n in range(5)])
    return database


async def test_rows_counts_and_what_is_returned(database: Database) -> None:
    async with database.write() as connection:
        changed = await connection.execute(sa.update(numbers).where(numbers.c.n > 2).values(word="big"))
        assert changed.rowcount == 2
        returned = await connection.execute(sa.delete(numbers).where(numbers.c.word == "big").returning(numbers.c.n))
        assert sorted(returned.scalars()) == [3, 4]
        inserted = await connection.execute(sa.insert(numbers).values(n=9, word="nine"))
        assert inserted.inserted_primary_key == (9,)
        one = await connection.execute(sa.select(numbers).order_by(numbers.c.n))
        two = await connection.execute(sa.select(numbers.c.word).where(numbers.c.n == 9))
        # each has its own rows, in whatever order they are read
        assert two.scalar_one() == "nine"
        assert [row.n for row in one] == [0, 1, 2, 9]
    await database.close()


async def test_a_statement_that_fails_leaves_the_connection_usable(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(sa.update(numbers).where(numbers.c.n == 1).values(word="changed"))
            await connection.execute(sa.insert(numbers).values(n=1))

    with pytest.raises(IntegrityError):
        await fail()
    async with database.read() as connection:
        assert await connection.scalar(sa.select(numbers.c.word).where(numbers.c.n == 1)) == "w1"
    await database.close()


async def test_a_statement_is_one_visit(tmp_path: Path) -> None:
    connection = sqlite.connect(str(tmp_path / "file"))
    await connection
    visits = 0
    visit = connection._execute

    async def counted(*arguments: object, **options: object) -> object:
        nonlocal visits
        visits += 1
        return await visit(*arguments, **options)  # type: ignore[no-untyped-call]

    connection._execute = counted  # type: ignore[method-assign]
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT 1 AS a UNION SELECT 2")
        assert [column[0] for column in cursor.description] == ["a"]
        assert await cursor.fetchall() == [(1,), (2,)]
        assert await cursor.fetchall() == []
    assert visits == 1
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await connection.cursor().execute("SELECT * FROM numbers")
    await connection.close()
