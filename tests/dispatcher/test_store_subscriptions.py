"""What answers do to subscriptions, and what that does to the deliveries that wait for them, row by row."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.errors import LeaseLost, Problem
from dispatcher.models import DeliveryKind, DeliveryState, Outcome
from dispatcher.store import Store, holding, making, queries, subscribing, upkeep
from dispatcher.store.committer import Transaction
from dispatcher.store.records import LeasedDelivery, Settled
from dispatcher.store.tables import deliveries, notices, subscriptions
from subscriptions.health import MIN_FAILURES, DisableOn
from subscriptions.models import Movement, Ordering, SubscriptionState, Verification
from tests.support.stores import (
    ACCOUNT,
    Home,
    accept,
    delivery_rows,
    draft,
    enable,
    heard,
    lane_of_subscription,
    lease,
    lease_for,
    move_all,
    new_event,
    new_task,
    open_store,
    publish,
    reconciled,
    settle,
    signing_key,
    subscribe,
    subscription_row,
    who,
)

HELD, PENDING, REJECTED = DeliveryState.HELD, DeliveryState.PENDING, DeliveryState.REJECTED
DELIVERED, CANCELLED = DeliveryState.DELIVERED, DeliveryState.CANCELLED


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


async def leased(store: Store, count: int = 1, **fields: Any) -> tuple[str, list[LeasedDelivery]]:
    """A subscription, and so many deliveries for it that are being sent."""
    id_ = await subscribe(store, **fields)
    await publish(store, *(new_event() for _ in range(count)))
    return id_, await lease_for(store, id_)


async def refuse(store: Store, delivery: LeasedDelivery, status: int = 401, **answer: Any) -> Settled:
    return await settle(store, delivery, Outcome.HTTP_ERROR, status, **answer)


async def standing(store: Store, id_: str) -> tuple[str, str | None]:
    row = await subscription_row(store, id_)
    return row["state"], row["disabled_reason"]


async def change_row(store: Store, id_: str, **values: Any) -> None:
    async with store.database.write() as connection:
        await connection.execute(sa.update(subscriptions).where(subscriptions.c.id == id_).values(values))


async def row_of(store: Store, delivery: LeasedDelivery) -> sa.RowMapping:
    [row] = await delivery_rows(store, id=delivery.id)
    return row


ACTIVE = (SubscriptionState.ACTIVE, None)


def disabled(reason: str) -> tuple[str, str]:
    return (SubscriptionState.DISABLED, reason)


class TestQuota:
    async def test_of_subscriptions(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscribing, "MAX_SUBSCRIPTIONS", 2)
        for name in ("one", "two"):
            await subscribe(store, name)
        with pytest.raises(Problem) as caught:
            await subscribe(store, "three")
        assert (caught.value.slug, caught.value.status) == ("quota", 403)

    async def test_of_those_that_keep_an_order(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscribing, "MAX_ORDERED", 2)
        for number in range(2):
            await subscribe(store, f"ordered{number}", ordering=Ordering.FIFO)
        plain = await subscribe(store, "plain")
        with pytest.raises(Problem) as caught:
            await subscribe(store, "another", ordering=Ordering.FIFO_BY_KEY)
        assert (caught.value.slug, [one.field for one in caught.value.errors]) == ("quota", ["/ordering"])
        with pytest.raises(Problem):
            await store.change_subscription(who(store), plain, lambda one: replace(one, ordering=Ordering.FIFO))


class TestAnswers:
    """DESIGN §5, "What an answer means", on the rows."""

    async def test_the_first_4xx_disables_and_is_held(self, store: Store) -> None:
        id_, [one] = await leased(store)
        with heard(store) as news:
            settled = await refuse(store, one)
        assert (settled.state, settled.delay, news.chores) == (HELD, None, True)
        row = await row_of(store, one)
        assert (row["refused"], row["reason"], row["due_at"], row["session"]) == (True, None, None, None)
        assert row["hold_until"] - time.time() * 1000 == pytest.approx(14 * 86_400_000, abs=60_000)
        assert await standing(store, id_) == disabled("rejected")
        assert await reconciled(store) == {"accepted": 1, "held": 1}

    @pytest.mark.parametrize(
        ("outcome", "status", "more", "state"),
        [
            (Outcome.HTTP_ERROR, 401, {}, HELD),
            (Outcome.HTTP_ERROR, 500, {}, HELD),
            (Outcome.TIMEOUT, None, {}, HELD),
            (Outcome.INTERRUPTED, None, {}, HELD),
            (Outcome.EGRESS_REFUSED, None, {}, HELD),
            (Outcome.HTTP_ERROR, 401, {"other_secret": True}, HELD),
            (Outcome.SUCCESS, 200, {}, DELIVERED),
            (Outcome.HTTP_ERROR, 410, {}, REJECTED),
            (Outcome.HTTP_ERROR, 500, {"abort": True}, REJECTED),
        ],
    )
    async def test_what_was_in_flight_finds_it_disabled(
        self, store: Store, outcome: Outcome, status: int | None, more: dict[str, Any], state: DeliveryState
    ) -> None:
        _, [first, other] = await leased(store, 2)
        await refuse(store, first)
        assert (await settle(store, other, outcome, status, **more)).state is state
        row = await row_of(store, other)
        assert (row["refused"], row["other_secret"]) == (False, False)
        await reconciled(store)

    async def test_refused_again_after_re_enabling_is_rejected_and_it_stays_active(self, store: Store) -> None:
        id_, [first] = await leased(store)
        await refuse(store, first)
        await enable(store, id_)
        await move_all(store)
        [again] = await lease_for(store, id_)
        assert (again.id, again.attempt) == (first.id, 2)
        with heard(store) as news:
            settled = await refuse(store, again)
        assert (settled.state, news.chores) == (REJECTED, False)
        assert (await row_of(store, again))["reason"] == "rejected"
        assert await standing(store, id_) == ACTIVE
        # another one may disable it, once
        await publish(store, new_event())
        [another] = await lease_for(store, id_)
        assert (await refuse(store, another)).state is HELD
        assert await standing(store, id_) == disabled("rejected")
        assert await reconciled(store) == {"accepted": 3, "held": 1, "rejected": 1, "delivered": 1}

    async def test_one_that_found_it_disabled_may_still_disable_it(self, store: Store) -> None:
        id_, [first, other] = await leased(store, 2)
        await refuse(store, first)
        await refuse(store, other)
        await enable(store, id_)
        await move_all(store)
        by_id = {one.id: one for one in await lease_for(store, id_)}
        assert (await refuse(store, by_id[first.id])).state is REJECTED
        assert await standing(store, id_) == ACTIVE
        assert (await refuse(store, by_id[other.id])).state is HELD
        assert await standing(store, id_) == disabled("rejected")

    async def test_410_is_gone(self, store: Store) -> None:
        id_, [one, other] = await leased(store, 2)
        await publish(store, new_event())
        assert (await refuse(store, one, 410)).state is REJECTED
        assert await standing(store, id_) == disabled("gone")
        published = await publish(store, new_event())
        [event] = published.published
        assert event.deliveries == 0
        assert [(skip.subscription_id, skip.reason) for skip in event.skipped] == [(id_, "gone")]
        await move_all(store)
        assert await reconciled(store) == {"accepted": 3, "rejected": 1, "leased": 1, "held": 1}
        assert (await refuse(store, other, 500)).state is HELD

    async def test_410_when_it_is_disabled_already_makes_it_gone(self, store: Store) -> None:
        id_, [one, other] = await leased(store, 2)
        await refuse(store, one)
        await refuse(store, other, 410)
        assert await standing(store, id_) == disabled("gone")

    @pytest.mark.parametrize("status", [409, 411])
    async def test_the_neighbours_of_410_are_refusals(self, store: Store, status: int) -> None:
        id_, [one] = await leased(store)
        assert (await refuse(store, one, status)).state is HELD
        assert await standing(store, id_) == disabled("rejected")

    @pytest.mark.parametrize(
        ("outcome", "status", "state"),
        [(Outcome.SUCCESS, 200, DELIVERED), (Outcome.HTTP_ERROR, 500, HELD), (Outcome.HTTP_ERROR, 302, HELD)],
    )
    async def test_the_endpoint_asks_to_be_disabled(
        self, store: Store, outcome: Outcome, status: int, state: DeliveryState
    ) -> None:
        id_, [one] = await leased(store)
        assert (await settle(store, one, outcome, status, disable=True)).state is state
        assert await standing(store, id_) == disabled("asked")
        assert not (await row_of(store, one))["refused"]

    @pytest.mark.parametrize("status", [401, 500])
    async def test_an_aborted_message_says_nothing_about_the_endpoint(self, store: Store, status: int) -> None:
        id_, [one] = await leased(store)
        assert (await refuse(store, one, status, abort=True)).state is REJECTED
        assert (await row_of(store, one))["reason"] == "aborted"
        row = await subscription_row(store, id_)
        assert (row["state"], row["failures"], row["refusals"]) == (SubscriptionState.ACTIVE, 0, 0)

    async def test_the_third_egress_refusal_in_a_row(self, store: Store) -> None:
        id_, [one] = await leased(store)
        for state, reason in ((PENDING, ACTIVE), (PENDING, ACTIVE), (REJECTED, disabled("egress"))):
            assert (await settle(store, one, Outcome.EGRESS_REFUSED, None)).state is state
            assert await standing(store, id_) == reason
            if state is PENDING:
                [one] = await lease_for(store, id_)
        assert (await row_of(store, one))["reason"] == "egress"

    @pytest.mark.parametrize("status", [408, 423, 425, 429, 301, 503])
    async def test_what_may_pass_disables_nothing(self, store: Store, status: int) -> None:
        id_, [one] = await leased(store)
        assert (await refuse(store, one, status)).state is PENDING
        row = await subscription_row(store, id_)
        assert (row["state"], row["failures"], row["refusals"]) == (SubscriptionState.ACTIVE, 1, 0)

    @pytest.mark.parametrize(
        ("before", "age_ms", "reason"),
        [
            (MIN_FAILURES - 1, 60_000, "failing"),
            (MIN_FAILURES - 2, 60_000, None),
            (MIN_FAILURES - 1, 30_000, None),
        ],
    )
    async def test_failing_for_long_enough(self, store: Store, before: int, age_ms: int, reason: str | None) -> None:
        id_, [one] = await leased(store, disable_after=60.0)
        await change_row(store, id_, failures=before, failing_since=int(time.time() * 1000) - age_ms)
        settled = await refuse(store, one, 503)
        assert settled.state is (HELD if reason else PENDING)
        assert await standing(store, id_) == (disabled(reason) if reason else ACTIVE)

    async def test_a_success_ends_the_streak(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await change_row(store, id_, failures=99, refusals=9, failing_since=1)
        await settle(store, one)
        row = await subscription_row(store, id_)
        assert (row["failures"], row["refusals"], row["failing_since"]) == (0, 0, None)

    async def test_interruptions_say_nothing_about_health(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await store.interrupt([one.id])
        row = await subscription_row(store, id_)
        assert (row["state"], row["failures"], row["failing_since"]) == (SubscriptionState.ACTIVE, 0, None)
        assert (await row_of(store, one))["state"] == PENDING

    async def test_an_error_of_ours_says_nothing_about_health(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one, Outcome.INTERNAL_ERROR, None)
        assert (await subscription_row(store, id_))["failures"] == 0

    @pytest.mark.parametrize(
        ("status", "state"), [(422, REJECTED), (400, REJECTED), (401, HELD), (416, HELD), (421, HELD), (423, PENDING)]
    )
    async def test_disable_on_endpoint(self, store: Store, status: int, state: DeliveryState) -> None:
        id_, [one] = await leased(store, disable_on=DisableOn.ENDPOINT)
        assert (await refuse(store, one, status)).state is state
        assert (await standing(store, id_) == ACTIVE) is (state is not HELD)

    async def test_never_by_4xx(self, store: Store) -> None:
        id_, many = await leased(store, 8, disable_after_4xx=0)
        for one in many:
            assert (await refuse(store, one)).state is REJECTED
        assert await standing(store, id_) == ACTIVE

    async def test_reports_of_one_commit_are_applied_one_after_the_other(self, store: Store) -> None:
        id_, many = await leased(store, 5, disable_after_4xx=3)
        settled = await asyncio.gather(*(refuse(store, one) for one in many))
        assert [one.state for one in settled] == [REJECTED, REJECTED, HELD, HELD, HELD]
        flags = [(await row_of(store, one))["refused"] for one in many]
        assert flags == [False, False, True, False, False]
        assert (await subscription_row(store, id_))["refusals"] == 5
        assert await reconciled(store) == {"accepted": 5, "rejected": 2, "held": 3}

    async def test_a_success_between_them_counts(self, store: Store) -> None:
        id_, [a, b, c, d] = await leased(store, 4, disable_after_4xx=2)
        await asyncio.gather(refuse(store, a), settle(store, b), refuse(store, c), settle(store, d))
        assert await standing(store, id_) == ACTIVE

    async def test_the_second_secret_is_tried_before_a_refusal_counts(self, store: Store) -> None:
        id_, [one] = await leased(store)
        settled = await refuse(store, one, other_secret=True)
        assert (settled.state, settled.delay) == (PENDING, 0.0)
        row = await subscription_row(store, id_)
        assert (row["state"], row["failures"], row["refusals"]) == (SubscriptionState.ACTIVE, 0, 0)
        [again] = await lease_for(store, id_)
        assert (again.other_secret, again.attempt) == (True, 2)
        assert (await refuse(store, again)).state is HELD
        row = await subscription_row(store, id_)
        assert (row["state"], row["failures"], row["refusals"]) == (SubscriptionState.DISABLED, 1, 1)

    async def test_after_it_was_held_the_new_secret_is_tried_first(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await refuse(store, one, other_secret=True)
        await store.disable_subscription(who(store), id_)
        await move_all(store)
        await enable(store, id_)
        await move_all(store)
        [again] = await lease_for(store, id_)
        assert not again.other_secret

    async def test_a_callback_harms_no_subscription(self, store: Store) -> None:
        id_, _ = await leased(store)
        await accept(store, new_task())
        [callback] = await lease(store)
        assert (await refuse(store, callback)).state is REJECTED
        assert await standing(store, id_) == ACTIVE

    async def test_a_ping_that_fails_harms_nothing(self, store: Store) -> None:
        id_ = await subscribe(store)
        asked = await store.ping_subscription(who(store), id_)
        [ping] = await lease(store, lane=asked.lane)
        assert ping.kind is DeliveryKind.PING
        assert (await refuse(store, ping, 410)).state is REJECTED
        assert await standing(store, id_) == ACTIVE

    async def test_a_ping_that_fails_enables_nothing(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await refuse(store, one)
        changed = await store.enable_subscription(who(store), id_, Movement.RELEASE)
        assert changed.asked is not None
        [ping] = await lease(store, lane=changed.asked.lane)
        await refuse(store, ping, 404)
        assert await standing(store, id_) == disabled("rejected")
        assert (await subscription_row(store, id_))["verifying"] is None

    async def test_a_ping_of_before_does_not_enable_what_its_owner_disabled(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await refuse(store, one)
        changed = await store.enable_subscription(who(store), id_, Movement.RELEASE)
        assert changed.asked is not None
        [ping] = await lease(store, lane=changed.asked.lane)
        await store.disable_subscription(who(store), id_)
        await settle(store, ping)
        assert (await standing(store, id_))[0] == SubscriptionState.DISABLED

    async def test_a_new_url_is_not_enabled_by_the_old_ones_grant(self, store: Store) -> None:
        id_ = await subscribe(store, verification=Verification.HANDSHAKE)
        row = await subscription_row(store, id_)
        await store.change_subscription(
            who(store),
            id_,
            lambda before: draft(store, url="https://victim.example/x", verification=Verification.HANDSHAKE),
        )
        with pytest.raises(Problem):
            await store.grant_handshake(row["granting"], None)
        assert await standing(store, id_) == disabled("unverified")

    async def test_a_grant_does_not_enable_what_its_owner_disabled(self, store: Store) -> None:
        id_ = await subscribe(store, verification=Verification.HANDSHAKE)
        granting = (await subscription_row(store, id_))["granting"]
        await store.disable_subscription(who(store), id_)
        with pytest.raises(Problem):
            await store.grant_handshake(granting, None)
        assert (await standing(store, id_))[0] == SubscriptionState.DISABLED

    async def test_a_grant_enables_once_and_sets_the_pace(self, store: Store) -> None:
        id_ = await subscribe(store, verification=Verification.HANDSHAKE, rate_limit=5.0)
        granting = (await subscription_row(store, id_))["granting"]
        await store.grant_handshake(granting, 2.0)
        assert await standing(store, id_) == ACTIVE
        assert (await subscription_row(store, id_))["rate_limit"] == 2.0
        with pytest.raises(Problem):
            await store.grant_handshake(granting, 2.0)


class TestDeletion:
    """What is being sent to a deleted subscription still counts if it arrives; anything else is cancelled."""

    @pytest.mark.parametrize("moved", [False, True])
    @pytest.mark.parametrize(
        ("outcome", "status", "more", "state"),
        [
            (Outcome.SUCCESS, 200, {}, DELIVERED),
            (Outcome.SUCCESS, 200, {"disable": True}, DELIVERED),
            (Outcome.HTTP_ERROR, 500, {}, CANCELLED),
            (Outcome.HTTP_ERROR, 401, {}, CANCELLED),
            (Outcome.HTTP_ERROR, 401, {"other_secret": True}, CANCELLED),
            (Outcome.HTTP_ERROR, 410, {}, CANCELLED),
            (Outcome.HTTP_ERROR, 500, {"disable": True}, CANCELLED),
        ],
    )
    async def test_while_it_is_being_sent(
        self, store: Store, outcome: Outcome, status: int, more: dict[str, Any], state: DeliveryState, moved: bool
    ) -> None:
        id_, [one] = await leased(store)
        await store.delete_subscription(who(store), id_)
        if moved:
            await move_all(store)
        assert (await settle(store, one, outcome, status, **more)).state is state
        row = await subscription_row(store, id_)
        assert (row["state"], row["url"], row["disabled_reason"]) == (SubscriptionState.DELETED, None, None)
        await move_all(store)
        assert set(await reconciled(store)) == {"accepted", state}

    async def test_what_waits_is_cancelled_step_by_step(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holding, "STEP", 2)
        id_, [one] = await leased(store)
        await publish(store, *(new_event() for _ in range(7)))
        await store.delete_subscription(who(store), id_)
        assert await lease_for(store, id_, 2) == []
        assert await move_all(store) > 2
        await store.interrupt([one.id])
        assert await reconciled(store) == {"accepted": 8, "cancelled": 8}

    async def test_what_was_held_is_cancelled(self, store: Store) -> None:
        id_, [one, _other] = await leased(store, 2)
        await refuse(store, one)
        await publish(store, new_event())
        await store.delete_subscription(who(store), id_)
        await move_all(store)
        assert await reconciled(store) == {"accepted": 3, "cancelled": 2, "leased": 1}

    async def test_a_second_one_can_take_its_place(self, store: Store) -> None:
        id_ = await subscribe(store)
        with pytest.raises(Problem) as caught:
            await subscribe(store)
        assert caught.value.slug == "conflict"
        await store.delete_subscription(who(store), id_)
        assert await subscribe(store) != id_

    async def test_another_accounts_is_not_found(self, store: Store) -> None:
        id_ = await subscribe(store)
        theirs = who(store, "other")
        for attempt in (
            store.delete_subscription(theirs, id_),
            store.disable_subscription(theirs, id_),
            store.enable_subscription(theirs, id_, Movement.RELEASE),
            store.ping_subscription(theirs, id_),
            store.change_subscription(theirs, id_, lambda before: before),
            store.revoke_secret(theirs, id_, "0" * 32),
        ):
            with pytest.raises(Problem) as caught:
                await attempt
            assert caught.value.slug == "not-found"
        assert await standing(store, id_) == ACTIVE

    async def test_the_rows_go_when_nothing_names_them(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upkeep, "KEPT_MS", 0)
        id_, [one] = await leased(store)
        await settle(store, one)
        await store.delete_subscription(who(store), id_)
        await move_all(store)
        async with store.database.write() as connection:
            await connection.execute(sa.update(deliveries).values(finished_at=1))
            await connection.execute(sa.text("UPDATE events SET finished_at=1, id='0' || substr(id, 2)"))
            await connection.execute(sa.text("UPDATE bodies SET id='0' || substr(id, 2)"))
            await connection.execute(sa.text("UPDATE deliveries SET source_id='0' || substr(source_id, 2)"))
            await connection.execute(sa.update(subscriptions).values(updated_at=1))
        while await store.delete_old(0):
            pass
        async with store.database.read() as connection:
            # On PostgreSQL bodies and attempts go with their day: test_partitions.
            by_day = ("bodies", "attempts") if connection.dialect.name == "sqlite" else ()
            for table in ("subscriptions", "secrets", "deliveries", "events", *by_day):
                assert await connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) == 0, table


class TestHolding:
    """Disabling never drops; enabling releases in order, or discards."""

    async def held(self, store: Store, count: int, **fields: Any) -> str:
        """A disabled subscription with so many deliveries held."""
        id_ = await subscribe(store, **fields)
        await store.disable_subscription(who(store), id_)
        await publish(store, *(new_event() for _ in range(count)))
        return id_

    async def test_hold_step_by_step(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holding, "STEP", 3)
        id_ = await subscribe(store)
        await publish(store, *(new_event() for _ in range(7)))
        await store.disable_subscription(who(store), id_)
        counts = []
        while (moved := await store.move_deliveries(1)).unfinished:
            counts.append(moved.count)
            await reconciled(store)
        assert counts == [3, 3, 1]
        assert await reconciled(store) == {"accepted": 7, "held": 7}
        assert (await subscription_row(store, id_))["movement"] is None

    async def test_leasing_holds_what_it_comes_across(self, store: Store) -> None:
        id_ = await subscribe(store)
        await publish(store, *(new_event() for _ in range(5)))
        await store.disable_subscription(who(store), id_)
        assert await lease_for(store, id_, 3) == []
        assert await reconciled(store) == {"accepted": 5, "held": 3, "pending": 2}

    @pytest.mark.parametrize("ordering", list(Ordering))
    async def test_release_in_order_and_gently(self, store: Store, ordering: Ordering) -> None:
        id_ = await self.held(store, 7, ordering=ordering)
        before = [row["id"] for row in await delivery_rows(store, subscription_id=id_)]
        await enable(store, id_)
        # Of a line only the first is ever due, so it is released at once.
        steps = (7, 0) if ordering is Ordering.FIFO else (2, 2, 2, 1, 0)
        for number in steps:
            moved = await store.move_deliveries(2)
            assert moved.count == number
            rows = await delivery_rows(store, subscription_id=id_, kind="message", state="pending")
            assert [row["id"] for row in rows] == before[: len(rows)]
            await reconciled(store)
        assert len(rows) == 7
        assert (await subscription_row(store, id_))["movement"] is None

    async def test_discarding_takes_what_was_not_held_yet(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holding, "STEP", 2)
        id_ = await subscribe(store)
        await publish(store, *(new_event() for _ in range(6)))
        await store.disable_subscription(who(store), id_)
        await store.move_deliveries(2)
        await enable(store, id_, Movement.DISCARD)
        await publish(store, new_event())
        while (await store.move_deliveries(2)).unfinished:
            pass
        counts = await reconciled(store)
        assert (counts["cancelled"], counts["pending"]) == (6, 1)

    async def test_what_is_released_begins_anew(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one, Outcome.TIMEOUT, None)
        [one] = await lease_for(store, id_)
        await store.disable_subscription(who(store), id_)
        assert (await settle(store, one, Outcome.TIMEOUT, None)).state is HELD
        await enable(store, id_)
        with heard(store) as news:
            await store.move_deliveries(10)
        assert news.lanes == {lane_of_subscription(id_)}
        row = await row_of(store, one)
        assert (row["failures"], row["repeats"], row["last_outcome"], row["hold_until"]) == (0, 0, None, None)
        [again] = await lease_for(store, id_)
        assert again.attempt == 3

    async def test_discard(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        id_ = await self.held(store, 5)
        await enable(store, id_, Movement.DISCARD)
        monkeypatch.setattr(holding, "STEP", 2)
        await publish(store, new_event())
        await move_all(store)
        rows = await delivery_rows(store, subscription_id=id_, kind="message")
        assert [(row["state"], row["reason"]) for row in rows] == [*[(CANCELLED, "discarded")] * 5, (PENDING, None)]

    async def test_disable_during_a_release(self, store: Store) -> None:
        id_ = await self.held(store, 6)
        await enable(store, id_)
        await store.move_deliveries(2)
        assert await reconciled(store) == {"accepted": 7, "held": 4, "pending": 2, "delivered": 1}
        await store.disable_subscription(who(store), id_)
        await move_all(store)
        assert await reconciled(store) == {"accepted": 7, "held": 6, "delivered": 1}
        await enable(store, id_)
        await move_all(store)
        assert len(await lease_for(store, id_)) == 6

    @pytest.mark.parametrize("ordering", list(Ordering))
    async def test_enable_while_it_is_still_being_held(
        self, store: Store, ordering: Ordering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(holding, "STEP", 2)
        id_ = await subscribe(store, ordering=ordering)
        await publish(store, *(new_event() for _ in range(6)))
        await store.disable_subscription(who(store), id_)
        await store.move_deliveries(1)
        await enable(store, id_)
        await move_all(store, 1)
        seen = 0
        while batch := await lease_for(store, id_):
            for one in batch:
                await settle(store, one)
                seen += 1
        assert seen == 6
        assert await reconciled(store) == {"accepted": 7, "delivered": 7}

    async def test_the_quota(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(making, "MAX_HELD", 3)
        id_ = await self.held(store, 2)
        await publish(store, *(new_event() for _ in range(3)))
        rows = await delivery_rows(store, subscription_id=id_)
        assert [(row["state"], row["reason"]) for row in rows] == [*[(HELD, None)] * 3, *[("expired", "quota")] * 2]
        assert all((row["hold_until"] is None) == (row["state"] != HELD) for row in rows)
        assert await reconciled(store) == {"accepted": 5, "held": 3, "expired": 2}
        with pytest.raises(Problem):
            await store.redeliver(ACCOUNT, rows[-1]["id"], None)
        await enable(store, id_)
        await move_all(store)
        assert len(await lease_for(store, id_)) == 3

    async def test_the_quota_of_an_ordered_one_takes_no_place(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(making, "MAX_HELD", 2)
        id_ = await self.held(store, 4, ordering=Ordering.FIFO)
        rows = await delivery_rows(store, subscription_id=id_)
        assert [row["seq"] for row in rows] == [0, 1, None, None]
        assert await reconciled(store) == {"accepted": 4, "held": 2, "expired": 2}

    async def test_held_until_then(self, store: Store) -> None:
        id_ = await self.held(store, 3, hold_for=60.0)
        rows = await delivery_rows(store, subscription_id=id_)
        assert all(row["hold_until"] - row["created_at"] == 60_000 for row in rows)
        assert await store.end_holds() == 0
        async with store.database.write() as connection:
            await connection.execute(sa.update(deliveries).where(deliveries.c.id == rows[1]["id"]).values(hold_until=1))
        assert await store.end_holds() == 1
        ended = await delivery_rows(store, id=rows[1]["id"])
        assert [(row["state"], row["reason"], row["hold_until"]) for row in ended] == [("expired", "hold", None)]
        assert await reconciled(store) == {"accepted": 3, "held": 2, "expired": 1}

    async def test_a_long_line_keeps_no_other_waiting(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holding, "STEP", 4)
        long = await subscribe(store, "long")
        await publish(store, *(new_event() for _ in range(40)))
        short = await subscribe(store, "short")
        await store.disable_subscription(who(store), short)
        await publish(store, new_event())
        await store.disable_subscription(who(store), long)
        await enable(store, short)
        await store.move_deliveries(10)
        assert len(await lease_for(store, short)) == 1

    async def test_a_ping_goes_out_whatever_the_state(self, store: Store) -> None:
        id_ = await self.held(store, 1)
        asked = await store.ping_subscription(who(store), id_)
        [ping] = await lease(store, lane=asked.lane)
        await settle(store, ping)
        assert (await standing(store, id_))[0] == SubscriptionState.DISABLED
        assert await reconciled(store) == {"accepted": 2, "held": 1, "delivered": 1}

    async def test_a_redelivery_to_a_disabled_one_is_held(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one)
        await store.disable_subscription(who(store), id_)
        await store.redeliver(ACCOUNT, one.id, None)
        assert await reconciled(store) == {"accepted": 2, "delivered": 1, "held": 1}
        with pytest.raises(Problem) as caught:
            await store.redeliver(ACCOUNT, one.id, None)
        assert caught.value.slug == "conflict"


class TestRedelivery:
    """An ended one is sent again, as a new one with the same wire id."""

    async def test_it_keeps_the_wire_id_and_the_body(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one)
        await store.redeliver(ACCOUNT, one.id, None)
        [again] = await lease_for(store, id_)
        assert (again.wire_id, again.body, again.attempt) == (one.wire_id, one.body, 1)
        assert again.id != one.id

    async def test_one_that_is_under_way_is_not(self, store: Store) -> None:
        _, [one] = await leased(store)
        with pytest.raises(Problem) as caught:
            await store.redeliver(ACCOUNT, one.id, None)
        assert caught.value.slug == "conflict"

    async def test_a_ping_is_not(self, store: Store) -> None:
        id_ = await subscribe(store)
        asked = await store.ping_subscription(who(store), id_)
        [ping] = await lease(store, lane=asked.lane)
        await settle(store, ping)
        with pytest.raises(Problem):
            await store.redeliver(ACCOUNT, ping.id, None)

    async def test_one_of_a_deleted_subscription_is_not(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one)
        await store.delete_subscription(who(store), id_)
        with pytest.raises(Problem):
            await store.redeliver(ACCOUNT, one.id, None)

    async def test_another_accounts_is_not_found(self, store: Store) -> None:
        _, [one] = await leased(store)
        await settle(store, one)
        with pytest.raises(Problem) as caught:
            await store.redeliver("other", one.id, None)
        assert caught.value.slug == "not-found"

    async def test_it_shows_whom_it_went_to(self, store: Store) -> None:
        _, [one] = await leased(store)
        found = await queries.delivery(store.database, ACCOUNT, one.id)
        assert found is not None
        assert found[0]["type"] == "order.paid"
        assert await queries.delivery(store.database, "other", one.id) is None

    async def test_a_lost_lease_changes_nothing(self, store: Store) -> None:
        id_, [one] = await leased(store)
        await settle(store, one)
        with pytest.raises(LeaseLost):
            await refuse(store, one)
        assert await standing(store, id_) == ACTIVE


class TestNotices:
    """What the account is told: the first at once, the rest gathered; of the operational endpoint nothing."""

    async def operational(self, store: Store) -> str:
        await store.set_operational(who(store), draft(store, "ops", events=("**",), operational=True), signing_key())
        id_ = (await store.account(ACCOUNT)).operational_id
        assert id_ is not None
        return id_

    async def told(self, store: Store, operational: str) -> list[dict[str, Any]]:
        """Payloads that the operational endpoint gets now; each arrives."""
        await store.tell("/test")
        batch = await lease_for(store, operational)
        for one in batch:
            await settle(store, one)
        return [json.loads(one.body.body) for one in batch]

    async def let_a_minute_pass(self, store: Store) -> None:
        async with store.database.write() as connection:
            await connection.execute(sa.update(notices).values(due_at=0))

    async def test_the_first_at_once_and_the_rest_together(self, store: Store) -> None:
        operational = await self.operational(store)
        id_, many = await leased(store, 4, disable_after_4xx=0)
        await settle(store, many[0], Outcome.HTTP_ERROR, 500, schedule=())
        [first] = await self.told(store, operational)
        assert (first["type"], first["count"], first["subscription"]["id"]) == ("delivery.exhausted", 1, id_)
        for one in many[1:]:
            await settle(store, one, Outcome.HTTP_ERROR, 500, schedule=())
        assert await self.told(store, operational) == []
        told = await store.tell("/test")
        assert told.more_in is not None
        assert 0 < told.more_in <= 60
        await self.let_a_minute_pass(store)
        [rest] = await self.told(store, operational)
        assert (rest["type"], rest["count"]) == ("delivery.exhausted", 3)
        assert first["last_at"] <= rest["first_at"] <= rest["last_at"]

    async def test_what_stays_quiet_is_forgotten(self, store: Store) -> None:
        operational = await self.operational(store)
        _, [one] = await leased(store)
        await refuse(store, one)
        assert [told["type"] for told in await self.told(store, operational)] == ["subscription.disabled"]
        await self.let_a_minute_pass(store)
        assert await self.told(store, operational) == []
        assert (await store.tell("/test")).more_in is None

    async def test_disabled_and_enabled_are_told_with_their_reason(self, store: Store) -> None:
        operational = await self.operational(store)
        id_, [one] = await leased(store)
        await refuse(store, one, 403)
        await enable(store, id_)
        told = {one["type"]: one for one in await self.told(store, operational)}
        assert set(told) == {"subscription.disabled", "subscription.enabled"}
        disabled_ = told["subscription.disabled"]
        assert (disabled_["reason"], disabled_["status"], disabled_["subscription"]["host"]) == (
            "rejected",
            403,
            "s.example.com",
        )
        assert "/hooks/" not in json.dumps(disabled_)

    async def test_failing_is_told_at_the_fifth_failure(self, store: Store) -> None:
        operational = await self.operational(store)
        _, many = await leased(store, 6)
        for number, one in enumerate(many, 1):
            with heard(store) as news:
                await settle(store, one, Outcome.TIMEOUT, None, schedule=(60.0,))
            assert news.chores is (number == 5)
        assert [told["type"] for told in await self.told(store, operational)] == ["subscription.failing"]

    async def test_its_own_failures_are_told_to_nobody(self, store: Store) -> None:
        operational = await self.operational(store)
        _, [one] = await leased(store)
        await refuse(store, one)
        await store.tell("/test")
        [notice] = await lease_for(store, operational)
        await refuse(store, notice)
        assert await standing(store, operational) == disabled("rejected")
        for _ in range(5):
            await self.let_a_minute_pass(store)
            await store.tell("/test")
        assert await reconciled(store) == {"accepted": 2, "held": 2}
        async with store.database.read() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(notices)) == 0

    async def test_without_an_operational_endpoint_it_is_forgotten(self, store: Store) -> None:
        _, [one] = await leased(store)
        await refuse(store, one)
        with heard(store) as news:
            await store.tell("/test")
        assert not news
        await self.let_a_minute_pass(store)
        await store.tell("/test")
        assert (await store.tell("/test")).more_in is None
        assert await reconciled(store) == {"accepted": 1, "held": 1}

    async def test_one_that_is_gone_is_told_nothing(self, store: Store) -> None:
        operational = await self.operational(store)
        await change_row(store, operational, state="disabled", disabled_reason="gone")
        _, [one] = await leased(store)
        await refuse(store, one)
        await store.tell("/test")
        assert await reconciled(store) == {"accepted": 1, "held": 1}

    async def test_published_events_do_not_go_there(self, store: Store) -> None:
        operational = await self.operational(store)
        published = await publish(store, new_event(type="subscription.disabled"))
        assert published.published[0].deliveries == 0
        assert await lease_for(store, operational) == []

    async def test_another_one_takes_its_place(self, store: Store) -> None:
        first = await self.operational(store)
        second = await self.operational(store)
        assert first != second
        assert (await subscription_row(store, first))["state"] == SubscriptionState.DELETED
        await store.set_operational(who(store), None, None)
        assert (await store.account(ACCOUNT)).operational_id is None

    async def test_it_can_be_put_again_after_it_was_deleted_by_its_id(self, store: Store) -> None:
        first = await self.operational(store)
        await store.delete_subscription(who(store), first)
        assert (await store.account(ACCOUNT)).operational_id is None
        assert await self.operational(store) != first

    async def test_another_account_is_told_nothing(self, store: Store) -> None:
        operational = await self.operational(store)
        id_ = await subscribe(store, account="other")
        await publish(store, new_event(account="other"))
        [one] = await lease(store, lane=lane_of_subscription(id_, "other"))
        await refuse(store, one)
        assert await self.told(store, operational) == []


async def test_what_a_refused_change_counted_is_not_counted(store: Store) -> None:
    id_ = await subscribe(store)

    async def change(tx: Transaction) -> None:
        await subscribing.ping(tx, who(store), id_)
        raise Problem("conflict", "not so")

    with pytest.raises(Problem, match="not so"):
        await store._change(change)
    await store.ping_subscription(who(store), id_)
    assert await reconciled(store) == {"accepted": 1, "pending": 1}
