"""Places in the pace of a subscription are taken with a lease, where several processes lease."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.models import lane_of
from dispatcher.store import Store
from dispatcher.store.records import LaneClaim, LeasedBatch
from dispatcher.store.tables import paces
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    new_event,
    open_store,
    publish,
    subscribe,
    who,
)


@pytest.fixture
def home(postgres_url: str, tmp_path: Path) -> Home:
    return Home(data_dir=tmp_path / "data", database_url=postgres_url)


@pytest.fixture
async def stores(home: Home) -> AsyncIterator[tuple[Store, Store]]:
    async with open_store(home, alone=False) as one, open_store(home, alone=False) as two:
        yield one, two


async def ask(store: Store, id_: str, limit: int = 100) -> LeasedBatch:
    return await store.lease([LaneClaim(lane=lane_of(ACCOUNT, id_), limit=limit)])


async def standing(store: Store) -> list[sa.Row[Any]]:
    async with store.database.read() as connection:
        return list(await connection.execute(sa.select(paces)))


async def test_one_has_places_and_the_other_none(stores: tuple[Store, Store]) -> None:
    one, two = stores
    id_ = await subscribe(one, rate_limit=10.0)
    lane = lane_of(ACCOUNT, id_)
    await publish(one, *(new_event() for _ in range(50)))
    began = time.monotonic()
    first = await ask(one, id_)
    assert len(first.deliveries) == 20
    starts = [delivery.not_before for delivery in first.deliveries]
    assert starts[0] >= began
    assert starts == pytest.approx([starts[0] + n / 10 for n in range(20)])
    # the first of them have the first places
    assert [one.id for one in first.deliveries] == sorted(one.id for one in first.deliveries)
    assert 0 <= first.closed[lane] <= 0.2
    others = await ask(two, id_)
    assert others.deliveries == []
    assert 0.5 < others.closed[lane] <= 2.0
    rows = await delivery_rows(one, subscription_id=id_)
    assert [row["state"] for row in rows].count("leased") == 20
    assert {row["session"] for row in rows} == {None, one.session}
    assert [(row.subscription_id, row.session) for row in await standing(one)] == [(id_, one.session)]


async def test_what_is_over_another_takes_up(stores: tuple[Store, Store]) -> None:
    """The one that held the pace is gone, or has nothing to send any more: its places pass, and that is all."""
    one, two = stores
    id_ = await subscribe(one, rate_limit=1000.0)
    await publish(one, *(new_event() for _ in range(4)))
    last = (await ask(one, id_, 2)).deliveries[-1].not_before
    while not (got := await ask(two, id_)).deliveries:
        assert time.monotonic() < last + 30
    assert len(got.deliveries) == 2
    assert got.deliveries[0].not_before > last
    assert [row.session for row in await standing(two)] == [two.session]


async def test_what_is_without_a_limit_or_alone_takes_no_places(home: Home) -> None:
    async with open_store(home, alone=False) as shared:
        free = await subscribe(shared, "free")
        paced = await subscribe(shared, "paced", rate_limit=1.0)
        await publish(shared, *(new_event() for _ in range(3)))
        batch = await ask(shared, free)
        assert (len(batch.deliveries), batch.closed, await standing(shared)) == (3, {}, [])
        assert {delivery.not_before for delivery in batch.deliveries} == {0.0}
    async with open_store(home, alone=True) as alone:
        batch = await ask(alone, paced)
        assert (len(batch.deliveries), batch.closed, await standing(alone)) == (3, {}, [])


async def test_a_pace_that_somebody_is_at_is_not_waited_for(stores: tuple[Store, Store]) -> None:
    one, two = stores
    id_ = await subscribe(one, rate_limit=1000.0)
    other = await subscribe(one, "other", rate_limit=1000.0)
    await publish(one, new_event(), new_event())
    await ask(one, id_, 1)
    async with one.database.write() as connection:
        await connection.execute(sa.select(paces).with_for_update())
        lanes = [LaneClaim(lane=lane_of(ACCOUNT, name), limit=5) for name in (id_, other)]
        batch = await two.lease(lanes)
    assert {delivery.lane for delivery in batch.deliveries} == {lane_of(ACCOUNT, other)}
    assert batch.closed.keys() == {lane_of(ACCOUNT, id_)}


async def test_it_goes_with_its_subscription(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    id_ = await subscribe(one, rate_limit=1000.0)
    await publish(one, new_event())
    await ask(one, id_)
    await one.delete_subscription(who(one), id_)
    assert len(await standing(one)) == 1
    async with one.database.write() as connection:
        await connection.execute(sa.text("DELETE FROM deliveries"))
        await connection.execute(sa.text("UPDATE subscriptions SET movement = NULL, updated_at = 0"))
    await one.delete_old(0)
    assert await standing(one) == []
