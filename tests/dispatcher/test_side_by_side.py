"""Several processes at the same rows of one PostgreSQL: who waits for whom, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.ids import new_id
from dispatcher.store import Store, changes, deliveries, direct, ledger, publishing, sessions, subscribing
from dispatcher.store.changes import Cancellation
from dispatcher.store.committer import Transaction
from tests.support.patience import PATIENCE
from tests.support.stores import (
    ACCOUNT,
    Home,
    Publishing,
    accept,
    delivery_rows,
    draft,
    new_event,
    new_task,
    open_store,
    planned,
    publish,
    publish_planned,
    reconciled,
    signing_key,
    subscribe,
    who,
)


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


async def waits_for_a_version(store: Store) -> bool:
    """Whether somebody waits for the versions of an account's subscriptions."""
    async with store.database.read() as connection:
        waiting = sa.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return bool(await connection.scalar(waiting))


async def blocked(store: Store, other: asyncio.Task[Any]) -> bool:
    """Wait until another has to wait; false if it had not to."""
    async with asyncio.timeout(PATIENCE):
        while not other.done():
            if await waits_for_a_version(store):
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
