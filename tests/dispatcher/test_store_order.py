"""Order: of one group only the first is ever due, whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.models import DeliveryState, Outcome
from dispatcher.store import Store, holding
from dispatcher.store.deliveries import Release
from dispatcher.store.records import LeasedDelivery
from dispatcher.store.tables import deliveries
from subscriptions.models import Movement, OnExhausted, Ordering, SubscriptionState
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    draft,
    enable,
    heard,
    lane_of_subscription,
    lease_for,
    make_due,
    move_all,
    new_event,
    open_store,
    planned,
    publish,
    publish_planned,
    reconciled,
    settle,
    subscribe,
    subscription_row,
    who,
)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


async def line(store: Store, count: int, *, ordering: Ordering = Ordering.FIFO, **fields: Any) -> tuple[str, list[str]]:
    """A subscription that keeps an order, and the ids of so many deliveries that wait in it, by their place."""
    id_ = await subscribe(store, ordering=ordering, **fields)
    await publish(store, *(new_event() for _ in range(count)))
    return id_, await places(store, id_)


async def places(store: Store, id_: str) -> list[str]:
    rows = await delivery_rows(store, subscription_id=id_, kind="message")
    return [row["id"] for row in sorted(rows, key=lambda row: int(row["seq"]))]


async def head(store: Store, id_: str) -> LeasedDelivery:
    """Lease all that is due: it is one."""
    [one] = await lease_for(store, id_)
    return one


async def arrived(store: Store, id_: str) -> list[str]:
    """Deliver all that is left, one after the other; their ids as they went."""
    ids = []
    while batch := await lease_for(store, id_):
        [one] = batch
        ids.append(one.id)
        await settle(store, one)
    return ids


async def state_of(store: Store, id_: str) -> str:
    [row] = await delivery_rows(store, id=id_)
    return str(row["state"])


async def test_they_go_one_after_the_other(store: Store) -> None:
    id_, ids = await line(store, 5)
    assert await store.due_lanes(after="", limit=5) == {lane_of_subscription(id_): 0.0}
    for number, expected in enumerate(ids):
        one = await head(store, id_)
        assert one.id == expected
        assert await lease_for(store, id_) == []
        settled = await settle(store, one)
        assert settled.promoted is (number < 4)
    assert await reconciled(store) == {"accepted": 5, "delivered": 5}


async def test_an_ordered_one_is_never_handed_off(store: Store) -> None:
    await subscribe(store, ordering=Ordering.FIFO)
    published = await publish(store, new_event(), hand_off=True)
    assert getattr(published.result, "handed_off", None) == frozenset()
    assert await reconciled(store) == {"accepted": 1, "pending": 1}


async def test_places_are_by_acceptance(store: Store) -> None:
    id_ = await subscribe(store, ordering=Ordering.FIFO)
    events = [[new_event() for _ in range(3)] for _ in range(6)]
    roster = await store.roster(ACCOUNT)
    plans = [[await planned(roster, event) for event in part] for part in events]
    # those that come first have the later ids
    await asyncio.gather(*(publish_planned(store, part) for part in reversed(plans)))
    rows = await delivery_rows(store, subscription_id=id_)
    by_place = sorted(rows, key=lambda row: int(row["seq"]))
    assert [row["seq"] for row in by_place] == list(range(18))
    assert [row["source_id"] for row in by_place] == [event.id for part in reversed(events) for event in part]
    assert (await subscription_row(store, id_))["next_seq"] == 18


async def test_a_retried_head_keeps_the_others_waiting(store: Store) -> None:
    id_, [first, second] = await line(store, 2)
    settled = await settle(store, await head(store, id_), Outcome.TIMEOUT, None, schedule=(60.0, 60.0))
    assert (settled.state, settled.delay, settled.promoted) == (DeliveryState.PENDING, 60.0, False)
    assert await lease_for(store, id_) == []
    await make_due(store)
    assert await arrived(store, id_) == [first, second]


@pytest.mark.parametrize(
    ("outcome", "status", "more"),
    [
        (Outcome.HTTP_ERROR, 422, {}),
        (Outcome.HTTP_ERROR, 500, {"abort": True}),
        (Outcome.SUCCESS, 200, {}),
    ],
)
async def test_the_end_of_the_head_promotes_the_next(
    store: Store, outcome: Outcome, status: int, more: dict[str, Any]
) -> None:
    id_, [_, *rest] = await line(store, 3, disable_after_4xx=0)
    assert (await settle(store, await head(store, id_), outcome, status, **more)).promoted
    assert await arrived(store, id_) == rest


async def test_a_head_that_expires_while_it_is_held_promotes_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "STEP", 2)
    id_, ids = await line(store, 4)
    await store.disable_subscription(who(store), id_)
    await move_all(store)
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.id == ids[0]).values(hold_until=1))
    await enable(store, id_)
    await store.move_deliveries(2)
    # it was released before it could expire, so the second one is made to
    one = await head(store, id_)
    assert one.id == ids[0]
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.id == ids[2]).values(hold_until=1))
    assert await store.end_holds() == 1
    await settle(store, one)
    await move_all(store)
    assert await arrived(store, id_) == [ids[1], ids[3]]


async def test_held_heads_that_expire_leave_the_rest_in_order(store: Store) -> None:
    id_, ids = await line(store, 3)
    await store.disable_subscription(who(store), id_)
    await move_all(store)
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.id == ids[0]).values(hold_until=1))
    await store.end_holds()
    await enable(store, id_)
    await move_all(store, 1)
    assert await arrived(store, id_) == ids[1:]


async def test_block_disables_and_holds_the_rest(store: Store) -> None:
    id_, [first, *rest] = await line(store, 4)
    with heard(store) as news:
        settled = await settle(store, await head(store, id_), Outcome.TIMEOUT, None, schedule=())
    assert (settled.state, news.chores) == (DeliveryState.EXHAUSTED, True)
    row = await subscription_row(store, id_)
    assert (row["state"], row["disabled_reason"]) == (SubscriptionState.DISABLED, "blocked")
    assert await lease_for(store, id_) == []
    await move_all(store)
    assert await reconciled(store) == {"accepted": 4, "exhausted": 1, "held": 3}
    # sent again it goes first, when the rest may go
    again = await store.redeliver(ACCOUNT, first, None)
    await enable(store, id_)
    await move_all(store, 1)
    assert await arrived(store, id_) == [getattr(again, "delivery_id", None), *rest]


async def test_a_poisonous_head_blocks_too(store: Store) -> None:
    id_, _ = await line(store, 2)
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).values(repeats=9, last_outcome="interrupted"))
    await store.interrupt([(await head(store, id_)).id])
    assert (await subscription_row(store, id_))["disabled_reason"] == "blocked"


async def test_skip_goes_on(store: Store) -> None:
    id_, [_, *rest] = await line(store, 3, on_exhausted=OnExhausted.SKIP)
    settled = await settle(store, await head(store, id_), Outcome.TIMEOUT, None, schedule=())
    assert (settled.state, settled.promoted) == (DeliveryState.EXHAUSTED, True)
    assert await arrived(store, id_) == rest


async def test_without_an_order_exhaustion_blocks_nothing(store: Store) -> None:
    id_ = await subscribe(store)
    await publish(store, new_event(), new_event())
    one, _ = await lease_for(store, id_)
    await settle(store, one, Outcome.TIMEOUT, None, schedule=())
    assert (await subscription_row(store, id_))["state"] == SubscriptionState.ACTIVE


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_held_and_released_in_order_with_new_ones_behind(store: Store, limit: int) -> None:
    id_, ids = await line(store, 3)
    assert (await settle(store, await head(store, id_), Outcome.HTTP_ERROR, 401)).state is DeliveryState.HELD
    await publish(store, new_event())
    await move_all(store)
    await publish(store, new_event())
    await enable(store, id_)
    await publish(store, new_event(), new_event())
    going: list[str] = []
    for _ in range(3):
        await store.move_deliveries(limit)
        batch = await lease_for(store, id_)
        for one in batch:
            going.append(one.id)
            await settle(store, one)
        await publish(store, new_event())
    await move_all(store, limit)
    going += await arrived(store, id_)
    assert going == await places(store, id_)
    assert going[:3] == ids
    assert len(going) == 10


async def test_discard_leaves_new_ones_to_go(store: Store) -> None:
    id_, _ = await line(store, 3)
    await store.disable_subscription(who(store), id_)
    await move_all(store)
    await enable(store, id_, Movement.DISCARD)
    await publish(store, new_event(), new_event())
    assert await lease_for(store, id_) == []
    await move_all(store)
    assert await arrived(store, id_) == (await places(store, id_))[3:]


class TestSentAgain:
    """What ended and is sent again keeps its place, so it goes before those that came after it."""

    async def ended(self, store: Store) -> tuple[str, list[str]]:
        """The first of five was rejected; the others wait."""
        id_, ids = await line(store, 5, disable_after_4xx=0)
        await settle(store, await head(store, id_), Outcome.HTTP_ERROR, 422)
        return id_, ids

    async def again(self, store: Store, id_: str) -> str:
        return str(getattr(await store.redeliver(ACCOUNT, id_, None), "delivery_id", None))

    async def test_before_one_that_is_due(self, store: Store) -> None:
        id_, ids = await self.ended(store)
        again = await self.again(store, ids[0])
        assert await arrived(store, id_) == [again, *ids[1:]]

    async def test_before_one_that_waits_to_be_tried_again(self, store: Store) -> None:
        id_, ids = await self.ended(store)
        await settle(store, await head(store, id_), Outcome.TIMEOUT, None, schedule=(60.0, 60.0))
        again = await self.again(store, ids[0])
        await make_due(store)
        assert await arrived(store, id_) == [again, *ids[1:]]

    @pytest.mark.parametrize("how", ["retried", "delivered", "interrupted", "released"])
    async def test_after_one_that_is_being_sent(self, store: Store, how: str) -> None:
        id_, ids = await self.ended(store)
        second = await head(store, id_)
        again = await self.again(store, ids[0])
        assert await lease_for(store, id_) == []
        match how:
            case "retried":
                assert (await settle(store, second, Outcome.TIMEOUT, None)).promoted
            case "delivered":
                assert (await settle(store, second)).promoted
            case "interrupted":
                await store.interrupt([second.id])
            case "released":
                released = await store.release(Release(delivery_id=second.id, attempt=1, delay=60.0))
                assert released is not None
                assert released.delay == 0.0
        rest = ids[2:] if how == "delivered" else ids[1:]
        assert await arrived(store, id_) == [again, *rest]

    async def test_two_of_them_behind_one_that_is_being_sent(self, store: Store) -> None:
        id_, ids = await line(store, 3, disable_after_4xx=0)
        for _ in range(2):
            await settle(store, await head(store, id_), Outcome.HTTP_ERROR, 422)
        third = await head(store, id_)
        later = await self.again(store, ids[1])
        first = await self.again(store, ids[0])
        assert await lease_for(store, id_) == []
        await settle(store, third, Outcome.TIMEOUT, None)
        assert await arrived(store, id_) == [first, later, ids[2]]

    async def test_while_a_release_is_under_way(self, store: Store) -> None:
        id_, ids = await self.ended(store)
        await store.disable_subscription(who(store), id_)
        await move_all(store)
        await enable(store, id_)
        await store.move_deliveries(2)
        again = await self.again(store, ids[0])
        assert await lease_for(store, id_) == []
        await move_all(store)
        assert await arrived(store, id_) == [again, *ids[1:]]


async def test_groups_do_not_wait_for_each_other(store: Store) -> None:
    id_ = await subscribe(store, ordering=Ordering.FIFO_BY_KEY)
    await publish(store, *(new_event(ordering_key=key) for key in ("a", "a", "b", "b", None, None, "c")))
    rows = {row["id"]: row for row in await delivery_rows(store, subscription_id=id_)}
    batch = await lease_for(store, id_)
    assert sorted(str(rows[one.id]["order_key"]) for one in batch) == ["None", "None", "a", "b", "c"]
    slow = next(one for one in batch if rows[one.id]["order_key"] == "a")
    for one in batch:
        if one is not slow:
            await settle(store, one)
    [next_] = await lease_for(store, id_)
    assert rows[next_.id]["order_key"] == "b"
    await settle(store, next_)
    await settle(store, slow)
    [last] = await lease_for(store, id_)
    assert rows[last.id]["order_key"] == "a"


async def test_two_subscriptions_do_not_wait_for_each_other(store: Store) -> None:
    one, other = (
        await subscribe(store, "a", ordering=Ordering.FIFO),
        await subscribe(store, "b", ordering=Ordering.FIFO),
    )
    await publish(store, new_event(), new_event())
    assert len(await lease_for(store, one)) == 1
    assert len(await arrived(store, other)) == 2


async def switch(store: Store, id_: str, ordering: Ordering) -> None:
    await store.change_subscription(who(store), id_, lambda _before: draft(store, ordering=ordering))


async def test_switching_the_order_on_and_off_with_rows_waiting(store: Store) -> None:
    id_ = await subscribe(store)
    await publish(store, new_event(), new_event())
    await switch(store, id_, Ordering.FIFO)
    await publish(store, new_event(), new_event(), new_event())
    await switch(store, id_, Ordering.NONE)
    await publish(store, new_event(), new_event())
    batch = await lease_for(store, id_)
    rows = {row["id"]: row for row in await delivery_rows(store, subscription_id=id_)}
    # those without a place at once, and the first of those with one
    assert sorted(str(rows[one.id]["seq"]) for one in batch) == ["0", "None", "None", "None", "None"]
    for one in batch:
        await settle(store, one)
    assert [rows[id_]["seq"] for id_ in await arrived(store, id_)] == [1, 2]
    assert await reconciled(store) == {"accepted": 7, "delivered": 7}


async def test_what_a_dead_process_left_goes_first(store: Store) -> None:
    id_, ids = await line(store, 3)
    other = await Store.open(store.database, store.keyring, session_ttl=60, alone=False)
    [one] = await lease_for(other, id_)
    assert one.id == ids[0]
    await other.close()
    assert await lease_for(store, id_) == []
    assert await store.reap() == 1
    assert await arrived(store, id_) == ids


async def test_two_publishers_at_once(store: Store) -> None:
    id_ = await subscribe(store, ordering=Ordering.FIFO)
    other = await Store.open(store.database, store.keyring, session_ttl=60, alone=False)
    await asyncio.gather(*(publish(one, new_event()) for _ in range(20) for one in (store, other)))
    await other.close()
    rows = await delivery_rows(store, subscription_id=id_)
    assert sorted(row["seq"] for row in rows) == list(range(40))
    assert len(await arrived(store, id_)) == 40


async def test_a_ping_stands_in_no_line(store: Store) -> None:
    id_, _ = await line(store, 2)
    asked = await store.ping_subscription(who(store), id_)
    assert asked.lane in await store.due_lanes(after="", limit=5)
    [row] = await delivery_rows(store, kind="ping")
    assert row["seq"] is None
