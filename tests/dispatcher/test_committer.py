"""Group commit on a real database: who is answered when, and what one bad row costs the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import StoreUnavailable
from dispatcher.store import committer as committer_module
from dispatcher.store import migrations
from dispatcher.store.committer import Committer, Transaction
from dispatcher.store.database import Database
from dispatcher.store.sessions import open_session
from dispatcher.store.statements import Statement
from dispatcher.store.tables import bodies
from tests.support.stores import Home


@pytest.fixture
async def database(home: Home) -> AsyncIterator[Database]:
    home.data_dir.mkdir()
    database = Database(home.url)
    async with database.setup() as connection:
        await connection.run_sync(migrations.upgrade)
    yield database
    await database.close()


@pytest.fixture
async def committer(database: Database) -> AsyncIterator[Committer]:
    committer = Committer(database, session=await open_session(database, ttl=60, alone=True))
    committer.start()
    yield committer
    await committer.stop()


INSERT = Statement(sa.insert(bodies), "id", "content", "content_type")


class Inserts:
    """A write that inserts a body per item, and remembers how the items were grouped."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    async def __call__(self, tx: Transaction, items: Sequence[str]) -> list[str | ValueError]:
        self.batches.append(list(items))
        await tx.connection.execute(
            sa.insert(bodies), [{"id": item, "content": b"x", "content_type": "t", "headers": None} for item in items]
        )
        return [ValueError(item) if item.startswith("refused") else item.upper() for item in items]


async def stored(database: Database) -> set[str]:
    async with database.read() as connection:
        return set(await connection.scalars(sa.select(bodies.c.id)))


async def test_writes_that_come_together_share_a_commit(committer: Committer, database: Database) -> None:
    insert = Inserts()
    answers = await asyncio.gather(*(committer.write(insert, f"row{n}") for n in range(200)))
    assert answers == [f"ROW{n}" for n in range(200)]
    assert len(insert.batches) <= 2
    assert len(await stored(database)) == 200


async def test_an_answer_means_that_it_is_on_disk(committer: Committer, database: Database) -> None:
    insert = Inserts()

    async def write(item: str) -> bool:
        await committer.write(insert, item)
        return item in await stored(database)

    assert all(await asyncio.gather(*(write(f"row{n}") for n in range(30))))


async def test_a_bad_row_fails_alone(committer: Committer, database: Database) -> None:
    insert = Inserts()
    await committer.write(insert, "taken")
    items = [*(f"row{n}" for n in range(20)), "taken", *(f"row{n}" for n in range(20, 40))]
    answers = await asyncio.gather(*(committer.write(insert, item) for item in items), return_exceptions=True)
    failed = [item for item, answer in zip(items, answers, strict=True) if isinstance(answer, Exception)]
    assert failed == ["taken"]
    assert await stored(database) == {"taken", *(f"row{n}" for n in range(40))}


async def test_a_bad_row_that_goes_along_with_commit_fails_alone(
    committer: Committer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed before COMMIT is not on disk, so nobody has to look."""
    looked_up: list[str] = []
    look = committer._was_committed

    async def noted(batch: str, session: str) -> bool:
        looked_up.append(batch)
        return await look(batch, session)

    async def insert(tx: Transaction, items: Sequence[str]) -> list[str]:
        await tx.leave((INSERT, [(item, b"x", "t") for item in items]))
        return list(items)

    monkeypatch.setattr(committer, "_was_committed", noted)
    items = ["a", "b", "c", "b", "d"]
    answers = await asyncio.gather(*(committer.write(insert, item) for item in items), return_exceptions=True)
    assert [isinstance(answer, Exception) for answer in answers] == [False, False, False, True, False]
    assert await stored(database) == {"a", "b", "c", "d"}
    assert looked_up == []


async def test_an_answer_that_is_an_exception_is_raised_and_the_rest_commits(
    committer: Committer, database: Database
) -> None:
    insert = Inserts()
    good, bad = await asyncio.gather(
        committer.write(insert, "good"), committer.write(insert, "refused"), return_exceptions=True
    )
    assert good == "GOOD"
    assert isinstance(bad, ValueError)
    assert await stored(database) == {"good", "refused"}


async def test_a_caller_that_goes_away_cancels_nothing(committer: Committer, database: Database) -> None:
    insert, told = Inserts(), asyncio.Event()
    caller = asyncio.create_task(committer.write(insert, "row", then=lambda _answer: told.set()))
    await asyncio.sleep(0)
    caller.cancel()
    async with asyncio.timeout(10):
        await told.wait()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await stored(database) == {"row"}


async def test_a_callback_that_fails_harms_nobody(committer: Committer) -> None:
    def fails(_answer: object) -> None:
        raise RuntimeError("in the callback")

    insert = Inserts()
    assert await committer.write(insert, "row", then=fails) == "ROW"
    assert await committer.write(insert, "next") == "NEXT"


async def test_stopping_commits_what_has_gathered(database: Database) -> None:
    committer = Committer(database, session=await open_session(database, ttl=60, alone=True))
    insert = Inserts()
    writes = [asyncio.create_task(committer.write(insert, f"row{n}")) for n in range(10)]
    await asyncio.sleep(0)
    committer.start()
    await committer.stop()
    assert len(await asyncio.gather(*writes)) == 10
    with pytest.raises(StoreUnavailable):
        await committer.write(insert, "late")
    assert len(await stored(database)) == 10


async def test_too_many_waiting_writes_are_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "MAX_WAITING_WEIGHT", 5)
    committer = Committer(database, session=await open_session(database, ttl=60, alone=True))
    insert = Inserts()
    writes = [asyncio.create_task(committer.write(insert, f"row{n}")) for n in range(10)]
    await asyncio.sleep(0)
    committer.start()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    await committer.stop()
    taken = [answer for answer in answers if isinstance(answer, str)]
    assert all(isinstance(answer, str | StoreUnavailable) for answer in answers)
    assert len(taken) == 6
    assert len(await stored(database)) == 6


async def test_others_who_write_have_their_turn(committer: Committer, database: Database) -> None:
    """The committer keeps the one connection that writes from batch to batch, but not for long."""
    insert, others = Inserts(), 0

    def all_have_had_some() -> bool:
        return others >= 3 and len(insert.batches) > 3

    async def write_without_a_pause() -> None:
        n = 0
        while not all_have_had_some():
            await committer.write(insert, f"row{n}")
            n += 1

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(write_without_a_pause())
        while not all_have_had_some():
            async with database.write() as connection:
                await connection.execute(sa.text("UPDATE sessions SET pid = pid + 1"))
            others += 1
            await asyncio.sleep(0.01)


class LosesAnswers(Database):
    """A database whose connection breaks around COMMIT: before it took effect, or after."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.breaks: str | None = None

    @asynccontextmanager
    async def write(self, held: AsyncConnection | None = None) -> AsyncIterator[AsyncConnection]:
        breaks, self.breaks = self.breaks, None
        async with super().write(held) as connection:
            yield connection
            if breaks == "before":
                raise StoreUnavailable("the connection broke before COMMIT took effect")
        if breaks == "after":
            raise StoreUnavailable("the connection broke before the answer to COMMIT came")


@pytest.mark.parametrize(("breaks", "kept"), [("after", True), ("before", False)])
async def test_a_commit_without_an_answer_is_looked_up(database: Database, breaks: str, kept: bool) -> None:
    losing = LosesAnswers(database.url)
    committer = Committer(losing, session=await open_session(losing, ttl=60, alone=True))
    insert = Inserts()
    write = asyncio.create_task(committer.write(insert, "row"))
    await asyncio.sleep(0)
    losing.breaks = breaks
    committer.start()
    if kept:
        assert await write == "ROW"
    else:
        with pytest.raises(StoreUnavailable):
            await write
    assert await stored(database) == ({"row"} if kept else set())
    assert len(insert.batches) == 1
    await committer.stop()
    await losing.close()


async def test_a_session_that_was_ended_writes_nothing(committer: Committer, database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(sa.text("DELETE FROM sessions"))
    with pytest.raises(StoreUnavailable):
        await committer.write(Inserts(), "row")
    assert await stored(database) == set()
