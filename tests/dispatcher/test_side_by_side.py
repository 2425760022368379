"""Several processes at the same rows of one PostgreSQL: who waits for whom, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dispatcher.ids import new_id
from dispatcher.store import Store, changes, deliveries, direct, ledger, sessions
from dispatcher.store.changes import Cancellation
from dispatcher.store.committer import Transaction
from tests.support.patience import PATIENCE
from tests.support.stores import Home, accept, new_task, open_store, reconciled, subscribe


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
