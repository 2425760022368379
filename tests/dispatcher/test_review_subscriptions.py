"""What a review of subscriptions found: each was once lost, stuck, or told otherwise than it was."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher import retry
from dispatcher.delivery.governor import INTERVAL, SLOWEST, Governor
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.ids import new_id
from dispatcher.models import DeliveryState, Outcome
from dispatcher.store import Store, holding, publishing, redelivering
from dispatcher.store.committer import Committer
from dispatcher.store.publishing import Accepted
from dispatcher.store.records import AttemptRecord, IdempotencyKey, LeasedDelivery, Report
from dispatcher.store.redelivering import Bulk, Criteria
from dispatcher.store.tables import redeliveries, subscriptions
from subscriptions import store as subscription_store
from subscriptions.models import Movement, Ordering, SubscriptionState
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    draft,
    enable,
    heard,
    lease,
    lease_for,
    move_all,
    new_event,
    open_store,
    planned,
    publish,
    publish_planned,
    reconciled,
    settle,
    settle_report,
    subscribe,
    subscription_row,
    who,
)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


# --- publishing -------------------------------------------------------------------------------------------


async def test_many_events_with_an_old_plan_read_the_subscriptions_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are planned anew in one transaction, in which everybody else waits."""
    await subscribe(store, "a")
    roster = await store.roster(ACCOUNT)
    old = [await planned(roster, new_event()) for _ in range(20)]
    later = await subscribe(store, "b")
    read: list[int] = []
    real = subscription_store.changed_since

    async def counted(connection: Any, account: str, version: int, **more: Any) -> Any:
        read.append(version)
        return await real(connection, account, version, **more)

    monkeypatch.setattr(subscription_store, "changed_since", counted)
    await publish_planned(store, old)
    assert len(await delivery_rows(store, subscription_id=later)) == len(old)
    # once in the transaction, and once after it
    assert len(read) == 2


async def test_what_is_stored_is_not_denied_when_a_look_at_it_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was good; that the roster cannot be read anew after it is no reason to send the caller away."""
    await subscribe(store, "a")
    roster = await store.roster(ACCOUNT)
    old = await planned(roster, new_event())
    await subscribe(store, "b")
    monkeypatch.setattr(store.database, "read", _away)
    result = (await publish_planned(store, [old])).result
    monkeypatch.undo()
    assert isinstance(result, Accepted)
    assert len(await delivery_rows(store, source_id=old.event.id)) == 2


def _away() -> Any:
    raise StoreUnavailable("the database cannot be used now (test)")


async def test_one_large_request_leaves_room_for_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes only so many deliveries at once, so it counts for no more: while it waits, others may write."""
    for number in range(30):
        await subscribe(store, f"s{number}")
    roster = await store.roster(ACCOUNT)
    weights: list[int] = []
    real = Committer.write

    async def weighed(self: Committer, write: Any, item: Any, *, weight: int = 1, **more: Any) -> Any:
        weights.append(weight)
        return await real(self, write, item, weight=weight, **more)

    monkeypatch.setattr(Committer, "write", weighed)
    many = [await planned(roster, new_event()) for _ in range(100)]
    await publish_planned(store, many)
    assert weights == [len(many) + publishing.AT_ONCE]


async def test_a_batch_of_one_tells_of_its_item(store: Store) -> None:
    """Its id was used for another event: that is said of the item, as in a batch of two, and not of the request."""
    roster = await store.roster(ACCOUNT)
    for fingerprint in (b"a" * 32, b"b" * 32):
        key = IdempotencyKey(account=ACCOUNT, route="event", key="x", fingerprint=fingerprint)
        one = await planned(roster, new_event(), key=key)
        told: list[bytes | Problem] = []

        def join(parts: Sequence[bytes | Problem], told: list[bytes | Problem] = told) -> bytes:
            told.extend(parts)
            return b"items"

        result = await store.publish(
            [one], key=None, describe=lambda _: b"event", answer=join, source="/test", then=lambda _: None
        )
        assert result.answer == b"items"
    [part] = told
    assert isinstance(part, Problem)
    assert part.slug == "idempotency-mismatch"


# --- settling ---------------------------------------------------------------------------------------------


def refusal(delivery: LeasedDelivery, status: int) -> Report:
    """What the sender reports of an answer."""
    now = time.monotonic()
    return Report(
        delivery_id=delivery.id,
        attempt=delivery.attempt,
        answer=retry.Answer(outcome=Outcome.HTTP_ERROR, status=status),
        record=AttemptRecord(outcome=Outcome.HTTP_ERROR, status=status, started=now, ended=now),
        schedule=(0.0,),
        jitter=0.0,
        version=delivery.endpoint.version,
    )


@pytest.mark.parametrize("status", [404, 410])
async def test_a_refusal_by_the_old_url_says_nothing_about_the_new_one(store: Store, status: int) -> None:
    """A URL is changed since the old one is going away: what is on its way there may well be told so."""
    id_ = await subscribe(store)
    await publish(store, new_event())
    [one] = await lease_for(store, id_)
    moved = draft(store, url="https://new.example.com/hooks")
    await store.change_subscription(who(store), id_, lambda _: moved)
    settled = await settle_report(store, refusal(one, status))
    assert settled.state is DeliveryState.PENDING
    assert (await subscription_row(store, id_))["state"] == SubscriptionState.ACTIVE
    [again] = await lease_for(store, id_)
    assert again.endpoint.url.reveal() == "https://new.example.com/hooks"
    await settle(store, again)
    assert await reconciled(store) == {"accepted": 1, "delivered": 1}


async def test_a_ping_that_is_told_to_wait_keeps_no_other_waiting(store: Store) -> None:
    """Whoever enables a subscription has mended its endpoint, and is not to wait for what an earlier ping was told."""
    id_ = await subscribe(store, is_active=False)
    changed = await store.enable_subscription(who(store), id_, Movement.RELEASE)
    assert changed.asked is not None
    [ping] = await lease(store, 1, lane=changed.asked.lane)
    with heard(store) as news:
        settled = await settle(store, ping, Outcome.HTTP_ERROR, 503, schedule=(), retry_after=3600.0)
    assert (settled.state, news.pauses) == (DeliveryState.EXHAUSTED, {})
    await enable(store, id_)
    await publish(store, new_event())
    [message] = await lease_for(store, id_)
    with heard(store) as news:
        await settle(store, message, Outcome.HTTP_ERROR, 503, retry_after=3600.0)
    assert news.pauses == {message.lane: 3600.0}


async def test_what_is_being_sent_to_a_deleted_subscription_ends_as_deleted(store: Store) -> None:
    """Whether it waited or was on its way: the reason is the same."""
    id_ = await subscribe(store)
    await publish(store, new_event(), new_event())
    one, two = await lease_for(store, id_)
    await store.delete_subscription(who(store), id_)
    await settle_report(store, refusal(one, 503))
    await move_all(store)
    await settle_report(store, refusal(two, 503))
    rows = await delivery_rows(store, subscription_id=id_)
    assert {(row["state"], row["reason"]) for row in rows} == {(DeliveryState.CANCELLED, "deleted")}


# --- holding ----------------------------------------------------------------------------------------------


async def test_many_movements_keep_no_other_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes only so many subscriptions; those with long lines do not have it to themselves."""
    monkeypatch.setattr(holding, "STEP", 4)
    ids = [await subscribe(store, f"s{number}") for number in range(6)]
    for _ in range(40):
        await publish(store, new_event())
    for id_ in ids:
        await store.disable_subscription(who(store), id_)
    await move_all(store)
    for id_ in ids:
        await enable(store, id_)
    for _ in range(40):
        await store.move_deliveries(1)
    released = [len(await delivery_rows(store, subscription_id=id_, state="pending", kind="message")) for id_ in ids]
    assert min(released) > 0


async def test_a_step_that_leaves_some_out_says_that_there_is_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "STEP", 2)
    for number in range(5):
        await store.delete_subscription(who(store), await subscribe(store, f"s{number}"))
    steps = 0
    while (await store.move_deliveries(1)).unfinished:
        steps += 1
    assert steps >= 2
    async with store.database.read() as connection:
        left = await connection.scalar(
            sa.select(sa.func.count()).select_from(subscriptions).where(subscriptions.c.movement.is_not(None))
        )
    assert left == 0


async def test_a_release_ends_however_much_comes_in(store: Store) -> None:
    """What is published during a release waits behind what is held, but is not held itself without an end."""
    id_ = await subscribe(store, ordering=Ordering.FIFO_BY_KEY)
    await publish(store, *(new_event(ordering_key=f"k{number}") for number in range(6)))
    await store.disable_subscription(who(store), id_)
    await move_all(store)
    await enable(store, id_)
    for step in range(20):
        await publish(store, *(new_event(ordering_key=f"k{step}-{number}") for number in range(3)))
        await store.move_deliveries(2)
    assert (await subscription_row(store, id_))["held"] == 0
    assert (await subscription_row(store, id_))["movement"] is None
    await reconciled(store)


# --- redelivery -------------------------------------------------------------------------------------------


async def test_a_long_redelivery_keeps_no_other_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has come least far is next."""
    monkeypatch.setattr(redelivering, "STEP", 5)
    ids = {}
    for account in ("first", "second"):
        ids[account] = await subscribe(store, account=account)
        await publish(store, *(new_event(account=account) for _ in range(30 if account == "first" else 3)))
    for account in ids:
        wish = Bulk(id=new_id(), account=account, criteria=Criteria(since=0), key=None)
        await store.redeliver_all(wish)
    for _ in range(3):
        await store.step_redeliveries()
    async with store.database.read() as connection:
        done = await connection.scalars(sa.select(redeliveries.c.account).where(redeliveries.c.state == "done"))
        assert list(done) == ["second"]


# --- leasing ----------------------------------------------------------------------------------------------


def test_leasing_keeps_up_with_what_comes_in() -> None:
    """However long callers wait: what cannot be handed off, as all that keeps an order, would pile up for ever."""
    governor = Governor(lambda: ())
    for _ in range(1_000):
        governor.expect(20)
        governor.note(late=0.0, waits=[0.005, 0.05])
    assert governor.pace > 20 / INTERVAL
    # and yields again when no more comes
    for _ in range(1_000):
        governor.note(late=0.0, waits=[0.005, 0.05])
    assert governor.pace == SLOWEST


async def test_what_is_published_says_how_much_is_to_be_leased(store: Store) -> None:
    for name, ordering in (("a", Ordering.NONE), ("b", Ordering.FIFO), ("c", Ordering.FIFO_BY_KEY)):
        await subscribe(store, name, ordering=ordering)
    result = (await publish(store, new_event(ordering_key="k"), new_event(ordering_key="k"), hand_off=True)).result
    assert isinstance(result, Accepted)
    assert (len(result.handed_off), result.waiting) == (2, 4)
