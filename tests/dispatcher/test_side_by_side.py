"""Several processes at the same rows of one PostgreSQL: who waits for whom, and what comes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from dispatcher.bodies import Body
from dispatcher.ids import id_floor, new_id
from dispatcher.models import TaskState
from dispatcher.store import (
    Store,
    changes,
    deliveries,
    direct,
    ledger,
    publishing,
    redelivering,
    sessions,
    subscribing,
    tables,
    work,
)
from dispatcher.store.changes import Cancellation
from dispatcher.store.committer import Transaction
from dispatcher.store.database import now_ms
from dispatcher.store.notices import NoticeType
from dispatcher.store.records import TaskClaim, TaskReport, TaskSettled
from dispatcher.store.rotating import Rotation
from tests.support.patience import PATIENCE
from tests.support.stores import (
    ACCOUNT,
    Home,
    Publishing,
    accept,
    delivery_rows,
    draft,
    enable,
    lease_for,
    new_event,
    new_task,
    open_store,
    planned,
    publish,
    publish_planned,
    reconciled,
    settle,
    signing_key,
    subscribe,
    who,
)

DAY = 86_400.0


@pytest.fixture
async def store(postgres_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(Home(data_dir=tmp_path / "data", database_url=postgres_url)) as opened:
        yield opened


async def test_who_counts_in_another_order_does_not_stand_in_the_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions that end deliveries of the same two accounts, each in an order of its own."""
    monkeypatch.setattr(ledger, "SLOTS", 1)
    both = asyncio.Barrier(2)

    async def cancel(first: Cancellation, second: Cancellation) -> None:
        async def change(tx: Transaction) -> None:
            await changes.cancel(tx, [first])
            await both.wait()
            await changes.cancel(tx, [second])

        await direct.apply(store.database, change)

    def some(account: str) -> Cancellation:
        return Cancellation(account=account, task_id=tasks.pop(account).id)

    tasks = {}
    wishes = []
    for order in (("a", "b"), ("b", "a")):
        for account in order:
            tasks[account] = new_task(account=account)
            await accept(store, tasks[account])
        wishes.append([some(account) for account in order])
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(cancel(*pair) for pair in wishes))
    for account in "ab":
        assert await reconciled(store, account) == {"accepted": 2, "cancelled": 2}


async def test_what_changes_with_every_commit_leaves_its_indexes_alone(store: Store) -> None:
    """Its next version stands in the same page (HOT), for as long as no index has a column of it that changes."""
    id_ = await subscribe(store, is_active=False)

    async def change(tx: Transaction) -> dict[str, tuple[int, int]]:
        for _ in range(5):
            await sessions.mark_batch(tx.connection, store.session, new_id())
            await deliveries.count_held(tx, {id_: 1})
            tx.counts["acme", "accepted"] += 1
            await tx.write_counts()
            tx.counts.clear()
        names = ("sessions", "subscriptions", "ledger")
        return {
            name: (
                await tx.connection.execute(
                    sa.text(
                        "SELECT pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid)"
                        " FROM pg_class WHERE oid = to_regclass(:name)"
                    ),
                    {"name": name},
                )
            ).one()
            for name in names
        }

    found = await direct.apply(store.database, change, keep=False)
    for name, (updated, hot) in found.items():
        assert 4 <= updated == hot, name


async def somebody_waits(store: Store) -> bool:
    """Whether somebody waits for a lock in this database."""
    async with store.database.read() as connection:
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(await connection.scalar(waiting))


async def blocked(store: Store, other: asyncio.Task[Any]) -> bool:
    """Wait until another has to wait; false if it had not to."""
    async with asyncio.timeout(PATIENCE):
        while not other.done():
            if await somebody_waits(store):
                return True
            await asyncio.sleep(0.01)
    return False


async def test_a_subscription_is_not_there_before_events_that_were_planned_without_it(store: Store) -> None:
    """Who is told that it is there, and then looks, must not find that a later event has missed it."""
    publication = await planned(await store.roster(ACCOUNT), new_event())

    def answer(_parts: object) -> bytes:
        return b""

    request = publishing.Request(publications=[publication], key=None, describe=answer, answer=answer, source="/test")

    async def accept_slowly(tx: Transaction) -> asyncio.Task[str]:
        [accepted] = await publishing.accept(tx, [request])
        assert isinstance(accepted, publishing.Accepted)
        creating = asyncio.create_task(subscribe(store))
        assert await blocked(store, creating)
        return creating

    creating = await direct.apply(store.database, accept_slowly)
    id_ = await creating
    await publish(store, new_event())
    assert len(await delivery_rows(store, subscription_id=id_)) == 1


async def test_an_event_does_not_miss_what_was_just_being_changed(store: Store) -> None:
    await subscribe(store)
    roster = await store.roster(ACCOUNT)

    async def create_slowly(tx: Transaction) -> asyncio.Task[Publishing]:
        made = await subscribing.create(tx, who(store), draft(store, "late"), signing_key(), is_active=True)
        ids.append(made.subscription.id)
        publishing_ = asyncio.create_task(publish_planned(store, [await planned(roster, new_event())]))
        assert await blocked(store, publishing_)
        return publishing_

    ids: list[str] = []
    publishing_ = await direct.apply(store.database, create_slowly)
    await publishing_
    assert len(await delivery_rows(store, subscription_id=ids[0])) == 1
    assert await reconciled(store) == {"accepted": 2, "pending": 2}


# --- maintenance and chores, which have no leader ---------------------------------------------------------


async def change_all(store: Store, table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
    """Let rows be as time would make them."""
    async with store.database.write() as connection:
        await connection.execute(sa.update(table).where(where).values(**values))


async def past(store: Store, days: int) -> int:
    """A moment so many days ago, by the database's clock."""
    async with store.database.read() as connection:
        return (await connection.scalar(sa.select(now_ms())) or 0) - days * 86_400_000


async def delivered_long_ago(store: Store, subscription_id: str, count: int = 1) -> list[str]:
    """Events that were published and delivered ten days ago; their ids."""
    ago = await past(store, 10)
    some = [replace(new_event(), id=id_floor(ago)[:12] + new_id()[12:]) for _ in range(count)]
    await publish(store, *some)
    for one in await lease_for(store, subscription_id):
        await settle(store, one)
    ids = [event.id for event in some]
    await change_all(store, tables.events, tables.events.c.id.in_(ids), finished_at=ago)
    theirs = tables.deliveries.c.source_id.in_(ids)
    await change_all(store, tables.deliveries, theirs, created_at=ago, finished_at=ago)
    return ids


async def test_what_is_just_being_sent_again_is_not_deleted(store: Store) -> None:
    id_ = await subscribe(store)
    await delivered_long_ago(store, id_)
    [old] = await delivery_rows(store)

    async def redeliver_slowly(tx: Transaction) -> asyncio.Task[int]:
        wish = redelivering.Redelivery(account=ACCOUNT, delivery_id=old["id"], key=None)
        [made] = await redelivering.redeliver(tx, [wish])
        assert isinstance(made, redelivering.Redelivered)
        deleting = asyncio.create_task(store.delete_old(2 * DAY))
        await blocked(store, deleting)
        return deleting

    deleting = await direct.apply(store.database, redeliver_slowly)
    await deleting
    [again] = await lease_for(store, id_)
    assert again.body.body == b'{"n":1}'
    assert await reconciled(store) == {"accepted": 2, "delivered": 1, "leased": 1}


async def test_what_was_finished_in_time_does_not_expire(store: Store) -> None:
    """Its window ends in the moment in which its result is stored."""
    task = new_task(task_type="far")
    await accept(store, task)
    [leased] = await store.lease_tasks(TaskClaim(types=("far",), limit=1, lease_for={"far": 60.0}))
    await change_all(store, tables.tasks, tables.tasks.c.id == task.id, window_end=1)
    report = TaskReport(
        task_id=task.id,
        attempt=leased.attempt,
        remote=True,
        state=TaskState.SUCCEEDED,
        body=Body(b"3", "application/json"),
    )

    async def finish_slowly(tx: Transaction) -> asyncio.Task[int]:
        [settled] = await work.finish(tx, [report])
        assert isinstance(settled, TaskSettled)
        ending = asyncio.create_task(store.end_windows())
        await blocked(store, ending)
        return ending

    await (await direct.apply(store.database, finish_slowly))
    async with store.database.read() as connection:
        assert await connection.scalar(sa.select(tables.tasks.c.state)) == TaskState.SUCCEEDED
    # its delivery has no window any more
    assert await store.end_windows() == 1
    assert await reconciled(store) == {"accepted": 1, "expired": 1}


async def test_all_steps_at_once_from_two_processes(
    store: Store, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is done, and nothing twice."""
    monkeypatch.setattr(publishing, "AT_ONCE", 1)
    monkeypatch.setattr(ledger, "SLOTS", 1)
    home = Home(data_dir=tmp_path / "data", database_url=postgres_url)
    many = 12
    async with open_store(home, alone=False) as dead:
        # leases of a process that dies
        await accept(dead, *(new_task(handed_off=True) for _ in range(many)))
        # tasks that nobody works on in time
        await accept(dead, *(new_task(task_type="slow", window_end=1) for _ in range(many)))
    # held for too long; held, and released; missed, and sent again
    held, released, missed = [await subscribe(store, name, is_active=False) for name in ("h", "r", "m")]
    await publish(store, *(new_event() for _ in range(many)))
    while (await store.fan_out()).count:
        pass
    await change_all(store, tables.deliveries, tables.deliveries.c.subscription_id == held, hold_until=1)
    await change_all(store, tables.deliveries, tables.deliveries.c.subscription_id == missed, hold_until=1)
    assert await store.end_holds() == 2 * many
    criteria = redelivering.Criteria(subscription_id=missed, since=0)
    await store.redeliver_all(redelivering.Bulk(id=new_id(), account=ACCOUNT, criteria=criteria, key=None))
    await enable(store, released)
    # a fan-out that is left to be done
    await publish(store, new_event())
    # a secret that ends soon, and answers that nobody may ask for any more
    await store.rotate_secret(who(store), released, Rotation(key=signing_key(), overlap=DAY), lambda _one, _key: None)
    await change_all(store, tables.secrets, tables.secrets.c.valid_until.is_not(None), notice_at=1)
    async with store.database.write() as connection:
        row = {"account": "a", "route": "r", "fingerprint": b"", "answer": b"", "created_at": 1}
        await connection.execute(sa.insert(tables.idempotency), [{**row, "key": str(n)} for n in range(300)])

    done: Counter[str] = Counter()

    async def step(name: str, doing: Callable[[], Awaitable[Any]]) -> bool:
        result = await doing()
        number = result if isinstance(result, int) else getattr(result, "count", getattr(result, "seen", 0))
        done[name] += number
        return bool(number or getattr(result, "unfinished", False))

    def steps(of: Store) -> list[Awaitable[bool]]:
        return [
            step("reap", of.reap),
            step("end_windows", of.end_windows),
            step("end_holds", of.end_holds),
            step("end_secrets", of.end_secrets),
            step("forget_answers", of.forget_answers),
            step("delete_old", lambda: of.delete_old(2 * DAY)),
            step("keep_partitions", lambda: of.keep_partitions(2 * DAY)),
            step("fan_out", of.fan_out),
            step("move", lambda: of.move_deliveries(5)),
            step("redeliver", of.step_redeliveries),
        ]

    async with open_store(home, alone=False) as other:
        for _ in range(100):
            if not any(await asyncio.gather(*steps(store), *steps(other))):
                break
        else:
            raise AssertionError("it does not end")
    assert (done["reap"], done["end_windows"], done["forget_answers"], done["end_secrets"]) == (many, many, 300, 1)
    async with store.database.read() as connection:
        outcomes = await connection.execute(
            sa.select(tables.attempts.c.outcome, sa.func.count()).group_by(tables.attempts.c.outcome)
        )
        assert dict([tuple(row) for row in outcomes]) == {"interrupted": many, "success": 1}
        noted = tables.notices.c.type == NoticeType.SECRET_EXPIRING
        assert list(await connection.scalars(sa.select(tables.notices.c.count).where(noted))) == [1]
    by_subscription = Counter((row["subscription_id"], row["state"]) for row in await delivery_rows(store))
    assert by_subscription[held, "expired"] == many
    assert by_subscription[held, "held"] == 1
    assert by_subscription[missed, "expired"] == many
    assert by_subscription[missed, "held"] == many + 1
    assert by_subscription[released, "pending"] == many + 1
    await reconciled(store)
