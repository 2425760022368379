"""Retention: what is over and old goes, bodies and attempts with it, in whichever way; what is still needed stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.ids import id_floor
from dispatcher.models import Outcome
from dispatcher.store import Store, partitions, queries
from dispatcher.store import upkeep as upkeep_store
from dispatcher.store.partitions import DAY_MS
from dispatcher.store.tables import attempts, bodies, deliveries, events, tasks
from tests.conftest import DATABASES
from tests.support.stores import (
    ACCOUNT,
    Home,
    accept,
    enable,
    lease,
    lease_for,
    make_due,
    new_event,
    new_task,
    open_store,
    publish,
    settle,
    subscribe,
)

DAY = 86_400.0
#: seconds for which things are kept
AGE = 3 * DAY


@pytest.fixture(params=DATABASES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = request.getfixturevalue("own_postgres_url") if request.param == "postgresql" else None
    async with open_store(Home(data_dir=tmp_path / "data", database_url=url)) as opened:
        yield opened


def older(id_: str, days: int) -> str:
    """The id that it would have, had it been made so many days earlier."""
    return id_floor((int(id_, 16) >> 80) - days * DAY_MS)[:12] + id_[12:]


async def age(store: Store, days: int) -> None:
    """Let all that there is be so many days older; with partitions for that time, as there would be."""
    async with store.database.write() as connection:
        if store.database.is_partitioned:
            for table in (bodies, attempts):
                today = int(time.time() * 1000) // DAY_MS * DAY_MS
                start = today - days * DAY_MS
                one = partitions.Partition(
                    name=f"{table.name}_{days}_ago", start=id_floor(start), end=id_floor(start + DAY_MS)
                )
                await partitions._attach(connection, table, one)
        for table, columns in (
            (tasks, ("id", "delivery_id")),
            (events, ("id",)),
            (deliveries, ("id", "source_id", "wire_id", "body_id")),
            (bodies, ("id", "event_id")),
            (attempts, ("delivery_id",)),
        ):
            moments = [name for name in ("created_at", "finished_at") if name in table.c]
            for row in (await connection.execute(sa.select(table))).mappings().all():
                changed = {name: older(row[name], days) for name in columns if row[name] is not None}
                changed |= {name: row[name] - days * DAY_MS for name in moments if row[name] is not None}
                same = sa.and_(*(column == row[column.name] for column in table.primary_key))
                await connection.execute(sa.update(table).where(same).values(changed))


async def upkeep(store: Store, seconds: float = AGE) -> None:
    """What maintenance does, until there is nothing left to do."""
    for _ in range(100):
        if not await store.delete_old(seconds) + await store.keep_partitions(seconds):
            return
    raise AssertionError("it does not end")


async def left(store: Store) -> dict[str, int]:
    async with store.database.read() as connection:
        return {
            table.name: await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (tasks, events, deliveries, bodies, attempts)
        }


async def in_pieces(store: Store, table: sa.Table) -> list[str]:
    """The names of a table's partitions."""
    async with store.database.read() as connection:
        return [one.name for one in await partitions.partitions(connection, table)]


async def delivered(store: Store) -> str:
    """A task whose delivery failed, and then arrived; the delivery's id."""
    task = new_task()
    await accept(store, task)
    for outcome, status in ((Outcome.HTTP_ERROR, 503), (Outcome.SUCCESS, 200)):
        await make_due(store)
        [one] = await lease(store)
        await settle(store, one, outcome, status)
    return task.delivery_id


async def test_what_is_over_and_old_goes_with_all_that_belongs_to_it(store: Store) -> None:
    id_ = await subscribe(store, body_mode="envelope")
    await delivered(store)
    await publish(store, new_event())
    [one] = await lease_for(store, id_)
    await settle(store, one)
    assert await left(store) == {"tasks": 1, "events": 1, "deliveries": 2, "bodies": 3, "attempts": 3}
    await upkeep(store)
    before = await left(store)
    assert before["bodies"] == 3
    await age(store, 2)
    await upkeep(store)
    assert await left(store) == before
    # one day more, and the day itself has to be over
    await age(store, 3)
    await upkeep(store)
    assert set((await left(store)).values()) == {0}
    counts = await store.ledger(ACCOUNT)
    assert (counts["accepted"], counts["delivered"]) == (2, 2)


async def test_nothing_is_old_that_is_so_by_one_clock_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumped ahead deletes nothing for good, whether it is the database's or this machine's."""
    await delivered(store)
    await age(store, 10)
    monkeypatch.setattr("dispatcher.store.clock.time.time_ns", lambda: (int(time.time()) - 8 * 86_400) * 10**9)
    await upkeep(store)
    assert (await left(store))["tasks"] == 1
    monkeypatch.undo()
    await upkeep(store)
    assert set((await left(store)).values()) == {0}


async def test_what_is_still_needed_stays_until_it_is_not(store: Store) -> None:
    """A delivery that can still move, with its attempts, and what is held for another of the same event."""
    slow = await subscribe(store)
    disabled = await subscribe(store, "d", is_active=False, body_mode="envelope")
    await publish(store, new_event())
    [one] = await lease_for(store, slow)
    await settle(store, one, Outcome.HTTP_ERROR, 503)
    await delivered(store)
    await age(store, 40)
    await upkeep(store)
    assert await left(store) == {"tasks": 0, "events": 1, "deliveries": 2, "bodies": 2, "attempts": 1}
    # it goes on as if nothing had been
    await make_due(store)
    [again] = await lease_for(store, slow)
    assert (again.id, again.attempt, again.body.body) == (older(one.id, 40), 2, b'{"n":1}')
    await settle(store, again)
    assert [row["number"] for row in await attempts_of(store, again.id)] == [1, 2]
    await enable(store, disabled)
    while (await store.move_deliveries(100)).unfinished:
        pass
    [late] = await lease_for(store, disabled)
    assert b'"data":{"n":1}' in late.body.body
    await settle(store, late)
    counts = await store.ledger(ACCOUNT)
    assert (counts["accepted"], counts["delivered"]) == (4, 4)
    # that was just now
    await upkeep(store)
    assert (await left(store))["bodies"] == 3
    await age(store, 5)
    await upkeep(store)
    assert set((await left(store)).values()) == {0}


async def test_a_task_goes_with_its_first_delivery_which_has_its_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deliveries go a part at a time; one that is left meanwhile can be sent again, or there is none to send."""
    task = new_task()
    await accept(store, task)
    [one] = await lease(store)
    await settle(store, one, Outcome.HTTP_ERROR, 404)
    await store.redeliver(ACCOUNT, one.id, None)
    [again] = await lease(store)
    await settle(store, again, Outcome.HTTP_ERROR, 404)
    await age(store, 10)
    monkeypatch.setattr(upkeep_store, "PART", 1)
    assert await store.delete_old(AGE) == 1
    assert (await left(store))["deliveries"] == 1
    with pytest.raises(Problem):
        await store.redeliver(ACCOUNT, older(one.id, 10), None)
    with pytest.raises(Problem, match="no such task"):
        await store.cancel_task(ACCOUNT, older(task.id, 10))
    await upkeep(store)
    assert set((await left(store)).values()) == {0}


async def test_what_is_written_for_a_day_that_is_gone_has_its_place(store: Store) -> None:
    id_ = await subscribe(store)
    event = new_event()
    await publish(store, replace(event, id=older(event.id, 400)))
    [one] = await lease_for(store, id_)
    assert one.body.body == b'{"n":1}'
    await settle(store, one)
    await upkeep(store)
    assert (await left(store))["bodies"] == 1
    await age(store, 5)
    await upkeep(store)
    assert set((await left(store)).values()) == {0}


async def attempts_of(store: Store, delivery_id: str) -> Sequence[sa.RowMapping]:
    found = await queries.delivery(store.database, ACCOUNT, delivery_id)
    assert found is not None
    return found[1]


# --- partitions -------------------------------------------------------------------------------------------


@pytest.fixture
async def divided(own_postgres_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    """A store on PostgreSQL."""
    async with open_store(Home(data_dir=tmp_path / "data", database_url=own_postgres_url)) as opened:
        yield opened


async def rows_in(store: Store, partition: str) -> int:
    async with store.database.read() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(sa.table(partition))) or 0


async def test_each_day_has_its_own_before_it_comes(divided: Store) -> None:
    """Two at once make each of them once, and a second time there is nothing to do."""
    now = int(time.time() * 1000)
    made = await asyncio.gather(*(divided.keep_partitions(AGE) for _ in range(3)))
    assert sum(made) == 0, "a new database begins with them"
    async with divided.database.write() as connection:
        for table in (bodies, attempts):
            for one in (await partitions.partitions(connection, table))[3:]:
                await connection.execute(sa.text(f"DROP TABLE {one.name}"))
    made = await asyncio.gather(*(divided.keep_partitions(AGE) for _ in range(3)))
    while not sum(made):
        made = [await divided.keep_partitions(AGE)]
    assert await divided.keep_partitions(AGE) == 0
    for table in (bodies, attempts):
        async with divided.database.read() as connection:
            found = await partitions.partitions(connection, table)
        assert [int(one.start, 16) >> 80 for one in found] == [
            now // DAY_MS * DAY_MS + n * DAY_MS for n in range(partitions.AHEAD)
        ]
        assert all(one.end == following.start for one, following in pairwise(found))
    await delivered(divided)
    assert await rows_in(divided, (await in_pieces(divided, bodies))[0]) == 1
    assert await rows_in(divided, "bodies_rest") == 0


async def test_where_much_is_kept_they_are_wider(divided: Store) -> None:
    async with divided.database.read() as connection:
        [*_, last, later] = await partitions.partitions(connection, bodies)
    async with divided.database.write() as connection:
        for one in (last, later):
            await connection.execute(sa.text(f"DROP TABLE {one.name}"))
        made = await partitions._next(connection, bodies, 121 * DAY_MS)
    assert made is not None
    assert made.start == last.start
    assert (int(made.end, 16) - int(made.start, 16) >> 80) == 3 * DAY_MS


async def test_what_came_before_its_partition_is_moved_there(divided: Store) -> None:
    async with divided.database.write() as connection:
        for one in await partitions.partitions(connection, bodies):
            await connection.execute(sa.text(f"DROP TABLE {one.name}"))
    await delivered(divided)
    assert await rows_in(divided, "bodies_rest") == 1
    await divided.keep_partitions(AGE)
    assert await rows_in(divided, "bodies_rest") == 0
    assert await rows_in(divided, (await in_pieces(divided, bodies))[0]) == 1


async def test_what_is_too_much_to_move_stays_where_it_is(divided: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MAX_MOVED", 1)
    await subscribe(divided, is_active=False)
    await publish(divided, new_event(), new_event())
    await age(divided, 10)
    old = (await in_pieces(divided, bodies))[0]
    await upkeep(divided)
    assert (await in_pieces(divided, bodies))[0] == old
    assert (await left(divided))["bodies"] == 2
    # nothing of what has attempts is left
    assert "attempts_10_ago" not in await in_pieces(divided, attempts)
    monkeypatch.setattr(partitions, "MAX_MOVED", 2)
    await upkeep(divided)
    assert old not in await in_pieces(divided, bodies)
    assert (await left(divided))["bodies"] == 2


async def test_nobody_waits_behind_one_that_waits_to_drop(divided: Store) -> None:
    """Somebody reads for long, as a backup does; what is to be dropped waits a moment only, and others go on."""
    await delivered(divided)
    await age(divided, 10)
    while await divided.delete_old(AGE):
        pass
    async with divided.database.read() as connection:
        await connection.scalar(sa.select(sa.func.count()).select_from(bodies))
        with pytest.raises(StoreUnavailable):
            await divided.keep_partitions(AGE)
        await delivered(divided)
    await upkeep(divided)
    assert "bodies_10_ago" not in await in_pieces(divided, bodies)
    assert (await left(divided))["bodies"] == 1


async def test_a_day_that_stays_in_the_rest_does_not_keep_the_next_ones_there(
    divided: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MAX_MOVED", 1)
    await drop_all(divided)
    await delivered(divided)
    await delivered(divided)
    assert await rows_in(divided, "bodies_rest") == 2
    await divided.keep_partitions(AGE)
    async with divided.database.read() as connection:
        found = await partitions.partitions(connection, bodies)
    today = int(time.time() * 1000) // DAY_MS * DAY_MS
    assert [int(one.start, 16) >> 80 for one in found] == [today + n * DAY_MS for n in range(1, partitions.AHEAD)]
    monkeypatch.setattr(partitions, "MAX_MOVED", 2)
    await divided.keep_partitions(AGE)
    assert await rows_in(divided, "bodies_rest") == 0


async def test_days_have_their_own_though_a_clock_was_wrong_for_a_while(divided: Store) -> None:
    """It made partitions of a year to come, and now it is right again."""
    await drop_all(divided)
    today = int(time.time() * 1000) // DAY_MS * DAY_MS
    async with divided.database.write() as connection:
        for table in (bodies, attempts):
            for ahead in (4, 365):
                start = today + ahead * DAY_MS
                one = partitions.Partition(
                    name=f"{table.name}_ahead_{ahead}", start=id_floor(start), end=id_floor(start + DAY_MS)
                )
                await partitions._attach(connection, table, one)
    await divided.keep_partitions(121 * DAY)
    async with divided.database.read() as connection:
        found = await partitions.partitions(connection, bodies)
    days = [((int(one.start, 16) >> 80) - today) // DAY_MS for one in found]
    # three days wide, where there is room for that
    assert days == [0, 3, 4, 5, 365]
    await delivered(divided)
    assert await rows_in(divided, "bodies_rest") == 0


async def test_what_keeps_one_step_does_not_keep_the_others(divided: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await delivered(divided)
    await age(divided, 10)
    while await divided.delete_old(AGE):
        pass

    async def failing(*_arguments: object) -> int:
        raise StoreUnavailable("locked")

    monkeypatch.setattr(partitions, "_make", failing)
    with pytest.raises(StoreUnavailable):
        await divided.keep_partitions(AGE)
    assert "bodies_10_ago" not in await in_pieces(divided, bodies)
    assert "attempts_10_ago" not in await in_pieces(divided, attempts)


async def drop_all(store: Store) -> None:
    async with store.database.write() as connection:
        for table in (bodies, attempts):
            for one in await partitions.partitions(connection, table):
                await connection.execute(sa.text(f"DROP TABLE {one.name}"))
