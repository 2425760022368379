"""Several processes at the same rows of one PostgreSQL: who waits for whom, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.store import Store, changes, direct, ledger
from dispatcher.store.changes import Cancellation
from dispatcher.store.committer import Transaction
from tests.support.patience import PATIENCE
from tests.support.stores import Home, accept, new_task, open_store, reconciled


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
