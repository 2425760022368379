"""What a process remembers of its leases saves it from reading them, and is never taken for what they are now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.errors import LeaseLost
from dispatcher.models import DeliveryState, Mark, Outcome, lane_of
from dispatcher.store import Store, settling
from dispatcher.store.changes import Cancellation, cancel
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import leased_rows
from dispatcher.store.leases import Leased
from dispatcher.store.records import LeasedDelivery
from dispatcher.store.tables import deliveries
from tests.support.stores import (
    ACCOUNT,
    Home,
    accept,
    delivery_rows,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    publish,
    reconciled,
    settle,
    subscribe,
)

ELSEWHERE = "https://elsewhere.example.com"


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home, alone=False) as opened:
        yield opened


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The leases that are read from the database."""
    seen: list[str] = []

    async def watched(tx: Transaction, ids: Sequence[str]) -> dict[str, Leased]:
        seen.extend(ids)
        return await leased_rows(tx, ids)

    monkeypatch.setattr(settling, "leased_rows", watched)
    return seen


async def remembered_and_read(store: Store, id_: str) -> tuple[Leased, Leased]:
    rows = store._committer.leases._rows
    remembered = rows[id_]
    [found] = await store._committer.write(_read, id_)
    return remembered, found


async def _read(tx: Transaction, ids: Sequence[str]) -> list[list[Leased]]:
    return [list((await leased_rows(tx, ids)).values())]


async def test_what_is_remembered_is_what_is_on_disk(store: Store) -> None:
    task = new_task(handed_off=True, window_end=4_102_444_800_000)
    await accept(store, task)
    await accept(store, new_task(origin=ELSEWHERE))
    [one] = await lease(store, lane=lane_of(ACCOUNT, ELSEWHERE))
    # once more, after a failure
    await settle(store, one, Outcome.TIMEOUT, None)
    [one] = await lease(store, lane=lane_of(ACCOUNT, ELSEWHERE))
    plain, ordered = await subscribe(store), await subscribe(store, "o", ordering="fifo")
    await publish(store, new_event(ordering_key="k"), hand_off=True)
    [other] = await lease_for(store, ordered)
    [handed_off] = await delivery_rows(store, subscription_id=plain, state="leased")
    for id_ in (task.delivery_id, one.id, other.id, handed_off["id"]):
        remembered, found = await remembered_and_read(store, id_)
        assert remembered == found


async def test_what_is_remembered_is_not_read(store: Store, read: list[str]) -> None:
    handed_off = new_task(handed_off=True)
    await accept(store, handed_off, new_task())
    [leased] = await lease(store)
    await settle(store, leased)
    await settle(store, leased_again(leased, handed_off.delivery_id))
    assert read == []
    assert await reconciled(store) == {"accepted": 2, "delivered": 2}
    with pytest.raises(LeaseLost):
        await settle(store, leased)
    assert read == [leased.id]


def leased_again(leased: LeasedDelivery, id_: str) -> LeasedDelivery:
    """Another delivery with the same attempt."""
    return type(leased)(**{name: getattr(leased, name) for name in leased.__struct_fields__} | {"id": id_})


async def test_a_mark_that_came_meanwhile_is_applied(
    store: Store, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read, then, and nothing is written twice."""
    tasks = [new_task() for _ in range(3)]
    await accept(store, *tasks)
    leased = {one.id: one for one in await lease(store)}
    transact, transactions = store._committer._transact, list[int]()

    async def watched(batch: list[Any]) -> list[Any]:
        transactions.append(len(batch))
        return await transact(batch)

    monkeypatch.setattr(store._committer, "_transact", watched)
    await store._committer.write(cancel, Cancellation(account=ACCOUNT, task_id=tasks[1].id))
    states = [(await settle(store, leased[task.delivery_id], Outcome.TIMEOUT, None)).state for task in tasks]
    assert states == [DeliveryState.PENDING, DeliveryState.CANCELLED, DeliveryState.PENDING]
    assert read == [tasks[1].delivery_id]
    assert transactions == [1, 1, 1, 1]
    assert await reconciled(store) == {"accepted": 3, "pending": 2, "cancelled": 1}
    [row] = await delivery_rows(store, id=tasks[1].delivery_id)
    assert (row["mark"], row["session"]) == (None, None)


@pytest.mark.parametrize(
    "change", [{"mark": Mark.RETARGET}, {"session": "f" * 32}, {"attempt": 2}, {"state": "pending"}]
)
async def test_nothing_is_written_on_a_lease_that_is_not_as_it_was_taken(
    store: Store, change: dict[str, object], read: list[str]
) -> None:
    await accept(store, new_task(), new_task())
    one, other = await lease(store)
    # by another process
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.id == one.id).values(change))
    if "mark" in change:
        assert (await settle(store, one, Outcome.HTTP_ERROR, 400)).state is DeliveryState.PENDING
    else:
        with pytest.raises(LeaseLost):
            await settle(store, one)
    assert read == [one.id]
    assert (await settle(store, other)).state is DeliveryState.DELIVERED
    assert read == [one.id]
