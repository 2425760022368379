"""Events: each meets the subscriptions as they were at its acceptance, and every delivery that it has is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.errors import Problem
from dispatcher.ids import new_id
from dispatcher.models import DeliveryState, Outcome
from dispatcher.store import Store, publishing, queries, redelivering, rosters
from dispatcher.store.publishing import Accepted
from dispatcher.store.records import IdempotencyKey, NewEvent, Replayed
from dispatcher.store.redelivering import Bulk, Criteria
from dispatcher.store.tables import bodies, events, fan_outs, redeliveries, subscriptions
from subscriptions.models import Ordering
from tests.support.patience import PATIENCE
from tests.support.stores import (
    ACCOUNT,
    Home,
    Publishing,
    accept,
    delivery_rows,
    draft,
    heard,
    lane_of_subscription,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    planned,
    publish,
    publish_planned,
    reconciled,
    settle,
    subscribe,
    who,
)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


def accepted(publishing_: Publishing) -> Accepted:
    assert isinstance(publishing_.result, Accepted)
    return publishing_.result


async def receivers(store: Store, event: NewEvent) -> set[str]:
    return {row["subscription_id"] for row in await delivery_rows(store, source_id=event.id)}


async def count(store: Store, table: sa.Table) -> int:
    async with store.database.read() as connection:
        return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def own_key(event: NewEvent, reference: str, fingerprint: bytes = b"a" * 32) -> IdempotencyKey:
    return IdempotencyKey(account=event.account, route="event", key=reference, fingerprint=fingerprint)


class TestPlans:
    """A plan that is out of date is made anew within the commit."""

    async def test_one_that_holds_is_handed_off(self, store: Store) -> None:
        one = await subscribe(store)
        with heard(store) as news:
            published = accepted(await publish(store, new_event(), hand_off=True))
        [row] = await delivery_rows(store, subscription_id=one)
        assert (row["state"], row["attempt"], row["due_at"]) == (DeliveryState.LEASED, 1, None)
        assert published.handed_off == {row["id"]}
        assert published.stale == frozenset()
        assert not news
        assert row["wire_id"] == row["id"]

    async def test_a_subscription_that_came_meanwhile_gets_it(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # However slow this machine is just now, it is asked within the commit.
        monkeypatch.setattr(publishing, "CHANGED_WITHIN", PATIENCE)
        one = await subscribe(store, "one")
        event = new_event()
        plan = await planned(await store.roster(ACCOUNT), event, hand_off=True)
        other = await subscribe(store, "other")
        published = await publish_planned(store, [plan])
        assert published.published[0].deliveries == 2
        assert await receivers(store, event) == {one, other}
        # what was reserved for the old plan is not leased
        assert accepted(published).handed_off == frozenset()
        assert accepted(published).stale == {ACCOUNT}
        assert await reconciled(store) == {"accepted": 2, "pending": 2}
        # and the next plan is made of what is there now
        assert accepted(await publish(store, new_event())).stale == frozenset()

    async def test_one_that_was_deleted_meanwhile_does_not(self, store: Store) -> None:
        one = await subscribe(store)
        event = new_event()
        plan = await planned(await store.roster(ACCOUNT), event, hand_off=True)
        await store.delete_subscription(who(store), one)
        published = await publish_planned(store, [plan])
        assert published.published[0].deliveries == 0
        assert await reconciled(store) == {}

    async def test_one_that_was_disabled_meanwhile_holds_it(self, store: Store) -> None:
        one = await subscribe(store)
        plan = await planned(await store.roster(ACCOUNT), new_event(), hand_off=True)
        await store.disable_subscription(who(store), one)
        assert accepted(await publish_planned(store, [plan])).handed_off == frozenset()
        assert await reconciled(store) == {"accepted": 1, "held": 1}

    async def test_one_that_changed_its_patterns_meanwhile(self, store: Store) -> None:
        one = await subscribe(store)
        event = new_event()
        plan = await planned(await store.roster(ACCOUNT), event, hand_off=True)
        await store.change_subscription(who(store), one, lambda _before: draft(store, events=("user.*",)))
        assert (await publish_planned(store, [plan])).published[0].deliveries == 0

    async def test_one_that_changed_its_form_gets_the_new_form(self, store: Store) -> None:
        one = await subscribe(store)
        plan = await planned(await store.roster(ACCOUNT), new_event())
        await store.change_subscription(who(store), one, lambda _before: draft(store, body_mode="envelope"))
        await publish_planned(store, [plan])
        [leased] = await lease_for(store, one)
        assert leased.body.body.startswith(b'{"type":"order.paid"')

    async def test_changes_and_events_of_one_commit(self, store: Store) -> None:
        one = await subscribe(store)
        roster = await store.roster(ACCOUNT)
        plans = [await planned(roster, new_event(), hand_off=True) for _ in range(6)]
        await asyncio.gather(
            *(publish_planned(store, [plan]) for plan in plans[:3]),
            store.disable_subscription(who(store), one),
            *(publish_planned(store, [plan]) for plan in plans[3:]),
        )
        books = await reconciled(store)
        assert books["accepted"] == 6
        assert set(books) <= {"accepted", "held", "leased"}

    async def test_a_process_that_slept_while_a_row_went_for_good(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone, _ = await subscribe(store, "gone"), await subscribe(store, "one")
        plan = await planned(await store.roster(ACCOUNT), new_event())
        await store.delete_subscription(who(store), gone)
        async with store.database.write() as connection:
            await connection.execute(sa.delete(subscriptions).where(subscriptions.c.id == gone))
        monkeypatch.setattr(rosters, "GOOD_FOR", 0.0)
        assert (await publish_planned(store, [plan])).published[0].deliveries == 1

    async def test_another_accounts_subscriptions_never_see_it(self, store: Store) -> None:
        mine, theirs = await subscribe(store), await subscribe(store, account="other", events=("**",))
        event = new_event()
        await publish(store, event)
        assert await receivers(store, event) == {mine}
        assert await lease(store, lane=lane_of_subscription(theirs, "other")) == []
        assert await queries.event(store.database, "other", event.id) is None

    async def test_an_event_that_nobody_wants_is_kept(self, store: Store) -> None:
        event = new_event(type="user.created", payload=b'{"kept": true}')
        published = await publish(store, event)
        assert (published.published[0].deliveries, published.published[0].complete) == (0, True)
        row = await queries.event(store.database, ACCOUNT, event.id)
        assert row is not None
        assert (row["deliveries"], row["state"], row["content"]) == (0, "fanned_out", b'{"kept": true}')

    async def test_a_filter_that_fails_is_a_skip_and_harms_nobody(self, store: Store) -> None:
        failing = await subscribe(store, "failing", filter="contains(missing, 'x')")
        no = await subscribe(store, "no", filter="n == `2`")
        yes = await subscribe(store, "yes", filter="n == `1`")
        event = new_event()
        [published] = (await publish(store, event)).published
        assert await receivers(store, event) == {yes}
        assert [(skip.subscription_id, skip.reason) for skip in published.skipped] == [(failing, "filter")]
        row = await queries.event(store.database, ACCOUNT, event.id)
        assert row is not None
        assert [skip[:2] for skip in row["skipped"]] == [[failing, "filter"]]
        assert no not in str(row["skipped"])

    async def test_one_stored_body_for_each_form(self, store: Store) -> None:
        modes = ["raw", "raw", "envelope", "envelope", "form", "cloudevents-binary", "cloudevents-structured"]
        ids = [await subscribe(store, f"s{number}", body_mode=mode) for number, mode in enumerate(modes)]
        event = new_event()
        await publish(store, event)
        assert await count(store, bodies) == 5
        by_subscription = {row["subscription_id"]: row["body_id"] for row in await delivery_rows(store)}
        assert by_subscription[ids[0]] == by_subscription[ids[1]] == event.id
        assert by_subscription[ids[2]] == by_subscription[ids[3]] != event.id
        contents = {mode: (await lease_for(store, id_))[0].body for mode, id_ in zip(modes, ids, strict=True)}
        assert contents["raw"].body == b'{"n":1}'
        assert contents["form"].body == b"payload=%7B%22n%22%3A1%7D"
        assert dict(contents["cloudevents-binary"].headers)["ce-type"] == "order.paid"


class TestIdempotency:
    """The id that a publisher gives makes it one event, however often it comes."""

    async def one(self, store: Store, reference: str = "x", fingerprint: bytes = b"a" * 32) -> publishing.Publication:
        event = new_event(reference=reference)
        roster = await store.roster(ACCOUNT)
        return await planned(roster, event, key=own_key(event, reference, fingerprint), hand_off=True)

    async def test_published_twice(self, store: Store) -> None:
        await subscribe(store)
        first = accepted(await publish_planned(store, [await self.one(store)]))
        with heard(store) as news:
            second = accepted(await publish_planned(store, [await self.one(store)]))
        assert (second.replayed, second.answer, second.count) == (True, first.answer, 0)
        assert second.handed_off == frozenset()
        assert not news
        assert await count(store, events) == 1
        assert await reconciled(store) == {"accepted": 1, "leased": 1}

    async def test_twice_in_one_request(self, store: Store) -> None:
        await subscribe(store)
        both = accepted(await publish_planned(store, [await self.one(store), await self.one(store)]))
        first, second = both.answer.split(b",")
        assert first == second
        assert (both.replayed, both.count) == (True, 1)
        assert await reconciled(store) == {"accepted": 1, "leased": 1}

    async def test_twice_in_one_commit(self, store: Store) -> None:
        await subscribe(store)
        plans = [await self.one(store) for _ in range(10)]
        results = await asyncio.gather(*(publish_planned(store, [plan]) for plan in plans))
        assert sum(accepted(one).count for one in results) == 1
        assert len({accepted(one).answer for one in results}) == 1
        assert await count(store, events) == 1

    async def test_with_another_body(self, store: Store) -> None:
        await subscribe(store)
        await publish_planned(store, [await self.one(store)])
        with pytest.raises(Problem) as caught:
            await publish_planned(store, [await self.one(store, fingerprint=b"b" * 32)])
        assert (caught.value.slug, caught.value.status) == ("idempotency-mismatch", 422)
        # among others it fails alone
        batch = [await self.one(store, fingerprint=b"b" * 32), await self.one(store, "y")]
        answer = accepted(await publish_planned(store, batch)).answer.split(b",")
        assert answer[0] == b"idempotency-mismatch"
        assert answer[1] == batch[1].event.id.encode()
        assert await count(store, events) == 2

    async def test_a_request_with_a_key_is_answered_again_as_a_whole(self, store: Store) -> None:
        await subscribe(store)
        key = IdempotencyKey(account=ACCOUNT, route="POST /events", key="k", fingerprint=b"c" * 32)
        first = accepted(await publish_planned(store, [await self.one(store)], key=key))
        second = (await publish_planned(store, [await self.one(store, "z")], key=key)).result
        assert isinstance(second, Replayed)
        assert second.answer == first.answer
        assert await count(store, events) == 1

    async def test_another_accounts_id_is_another_event(self, store: Store) -> None:
        for account in (ACCOUNT, "other"):
            event = new_event(account=account, reference="x")
            await publish_planned(store, [await planned(await store.roster(account), event, key=own_key(event, "x"))])
        assert await count(store, events) == 2


class TestFanOut:
    """An event for very many commits alone, and its deliveries follow in steps."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publishing, "AT_ONCE", 4)
        monkeypatch.setattr(publishing, "STEP", 3)

    async def many(self, store: Store, number: int = 10) -> list[str]:
        return [await subscribe(store, f"s{n}") for n in range(number)]

    async def test_as_many_as_fit_are_made_at_once(self, store: Store) -> None:
        await self.many(store, 4)
        with heard(store) as news:
            published = await publish(store, new_event())
        assert (published.published[0].complete, len(news.lanes), news.chores) == (True, 4, False)
        assert (await store.fan_out()).count == 0

    async def test_one_more_is_fanned_out_in_steps(self, store: Store) -> None:
        ids = await self.many(store)
        event = new_event()
        with heard(store) as news:
            published = await publish(store, event, hand_off=True)
        assert (published.published[0].deliveries, published.published[0].complete) == (10, False)
        assert (news.lanes, news.chores, accepted(published).handed_off) == (set(), True, frozenset())
        assert await reconciled(store) == {}
        counts = []
        while step := (await store.fan_out()).count:
            counts.append(step)
            await reconciled(store)
        assert counts == [3, 3, 3, 1]
        assert await receivers(store, event) == set(ids)
        assert await count(store, fan_outs) == 0
        row = await queries.event(store.database, ACCOUNT, event.id)
        assert row is not None
        assert (row["deliveries"], row["state"]) == (10, "fanned_out")
        assert row["finished_at"] is not None

    async def test_it_goes_on_in_another_process(self, home: Home) -> None:
        event = new_event()
        async with open_store(home) as store:
            ids = await self.many(store)
            await publish(store, event)
            await store.fan_out()
        for _ in range(3):
            async with open_store(home) as store:
                assert (await store.fan_out()).count
        async with open_store(home) as store:
            assert (await store.fan_out()).count == 0
            rows = await delivery_rows(store, source_id=event.id)
            assert sorted(row["subscription_id"] for row in rows) == sorted(ids)
            assert await reconciled(store) == {"accepted": 10, "pending": 10}

    async def test_against_the_subscriptions_as_they_were(self, store: Store) -> None:
        ids = await self.many(store)
        event = new_event()
        await publish(store, event)
        await store.delete_subscription(who(store), ids[5])
        await store.disable_subscription(who(store), ids[6])
        await store.change_subscription(who(store), ids[7], lambda _b: draft(store, "s7", events=("user.*",)))
        await store.change_subscription(who(store), ids[8], lambda _b: draft(store, "s8", body_mode="form"))
        await subscribe(store, "late")
        while (await store.fan_out()).count:
            pass
        rows = {row["subscription_id"]: row for row in await delivery_rows(store, source_id=event.id)}
        assert set(rows) == set(ids)
        assert (rows[ids[5]]["state"], rows[ids[5]]["reason"]) == (DeliveryState.CANCELLED, "deleted")
        assert rows[ids[6]]["state"] == DeliveryState.HELD
        assert rows[ids[7]]["state"] == DeliveryState.PENDING
        # that form was not made: it gets the payload as it came
        assert rows[ids[8]]["body_id"] == event.id
        assert await reconciled(store) == {"accepted": 10, "cancelled": 1, "held": 1, "pending": 8}

    async def test_ordered_ones_get_theirs_with_the_events_own_commit(self, store: Store) -> None:
        plain = await self.many(store, 8)
        fifo = [await subscribe(store, f"o{n}", ordering=Ordering.FIFO) for n in range(2)]
        first, second = new_event(), new_event()
        await publish(store, first)
        assert await receivers(store, first) == set(fifo)
        await publish(store, second)
        while (await store.fan_out()).count:
            pass
        assert await receivers(store, first) == await receivers(store, second) == {*plain, *fifo}
        for id_ in fifo:
            rows = sorted(await delivery_rows(store, subscription_id=id_), key=lambda row: int(row["seq"]))
            assert [row["source_id"] for row in rows] == [first.id, second.id]

    async def test_a_request_of_several_events_shares_the_limit(self, store: Store) -> None:
        await self.many(store, 3)
        batch = [new_event() for _ in range(3)]
        roster = await store.roster(ACCOUNT)
        # what is made later cannot be handed off now, whatever was reserved for it
        published = await publish_planned(store, [await planned(roster, event, hand_off=True) for event in batch])
        assert [one.complete for one in published.published] == [True, False, False]
        rows = await delivery_rows(store)
        assert accepted(published).handed_off == {row["id"] for row in rows if row["state"] == "leased"}
        assert len(rows) == 3
        while (await store.fan_out()).count:
            pass
        assert await reconciled(store) == {"accepted": 9, "leased": 3, "pending": 6}

    async def test_retention_waits_for_it(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.many(store, 6)
        event = new_event()
        await publish(store, event)
        async with store.database.write() as connection:
            await connection.execute(sa.text("UPDATE events SET id='0' || substr(id, 2), created_at=1"))
            await connection.execute(sa.text("UPDATE fan_outs SET event_id='0' || substr(event_id, 2)"))
        assert await store.delete_old(0) == 0
        assert await count(store, events) == 1


class TestBulkRedelivery:
    """All that fit are sent again, once, step by step."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redelivering, "STEP", 3)

    async def ask(self, store: Store, *, since: int = 0, **criteria: Any) -> str:
        wish = Bulk(id=new_id(), account=ACCOUNT, criteria=Criteria(since=since, **criteria), key=None)
        begun = await store.redeliver_all(wish)
        assert isinstance(begun, str)
        return begun

    async def run(self, store: Store) -> int:
        steps = 0
        while (await store.step_redeliveries()).seen:
            await reconciled(store)
            steps += 1
        return steps

    async def job(self, store: Store, id_: str) -> tuple[str, int, int]:
        async with store.database.read() as connection:
            row = (await connection.execute(sa.select(redeliveries).where(redeliveries.c.id == id_))).mappings().one()
        return row["state"], row["seen"], row["made"]

    async def missed(self, store: Store, number: int, **fields: Any) -> str:
        """A subscription that was sent so many, and rejected every second of them."""
        id_ = await subscribe(store, disable_after_4xx=0, **fields)
        await publish(store, *(new_event() for _ in range(number)))
        for index, one in enumerate(sorted(await lease_for(store, id_), key=lambda one: one.id)):
            if index % 2:
                await settle(store, one)
            else:
                await settle(store, one, Outcome.HTTP_ERROR, 422)
        return id_

    async def test_only_what_did_not_arrive_and_once(self, store: Store) -> None:
        id_ = await self.missed(store, 9)
        job = await self.ask(store)
        assert await self.run(store) >= 3
        assert await self.job(store, job) == ("done", 9, 5)
        again = await delivery_rows(store, state="pending")
        missed = await delivery_rows(store, state="rejected")
        assert {row["redelivery_of"] for row in again} == {row["id"] for row in missed}
        assert len(await lease_for(store, id_)) == 5
        # asked again while they are under way, it makes none
        job = await self.ask(store)
        await self.run(store)
        assert (await self.job(store, job))[2] == 0

    async def test_only_the_latest_of_each_message(self, store: Store) -> None:
        id_ = await self.missed(store, 1)
        for _ in range(2):
            await self.ask(store)
            await self.run(store)
            [one] = await lease_for(store, id_)
            await settle(store, one, Outcome.HTTP_ERROR, 422)
        assert len(await delivery_rows(store, state="rejected")) == 3
        await self.ask(store)
        await self.run(store)
        [row] = await delivery_rows(store, state="pending")
        assert row["redelivery_of"] == max(one["id"] for one in await delivery_rows(store, state="rejected"))
        [one] = await lease_for(store, id_)
        await settle(store, one)
        # it arrived at last
        job = await self.ask(store)
        await self.run(store)
        assert (await self.job(store, job))[2] == 0

    async def test_it_does_not_chase_its_own(self, store: Store) -> None:
        id_ = await self.missed(store, 5)
        job = await self.ask(store)
        for _ in range(50):
            stepped = await store.step_redeliveries()
            for one in await lease_for(store, id_):
                await settle(store, one, Outcome.HTTP_ERROR, 422)
            if not stepped.seen:
                break
        assert await self.job(store, job) == ("done", 5, 3)

    async def test_it_goes_on_in_another_process(self, home: Home) -> None:
        async with open_store(home) as store:
            await self.missed(store, 9)
            job = await self.ask(store)
            await store.step_redeliveries()
        async with open_store(home) as store:
            await self.run(store)
            assert await self.job(store, job) == ("done", 9, 5)

    async def test_by_state_type_time_and_subscription(self, store: Store) -> None:
        id_ = await self.missed(store, 4)
        other = await self.missed(store, 3, name="other", events=("user.*",))
        assert other != id_
        rows = await delivery_rows(store, subscription_id=id_)
        for criteria, made in (
            ({"states": ("exhausted",)}, 0),
            ({"type": "user.created"}, 0),
            ({"since": rows[-1]["created_at"] + 1}, 0),
            ({"since": 0, "until": rows[0]["created_at"] - 1}, 0),
            ({"subscription_id": other}, 0),
            ({"states": ("delivered",), "type": "order.paid", "subscription_id": id_}, 2),
            ({"since": rows[0]["created_at"], "until": rows[-1]["created_at"]}, 2),
        ):
            job = await self.ask(store, **criteria)
            await self.run(store)
            assert (await self.job(store, job))[::2] == ("done", made), criteria

    async def test_callbacks_too(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [one] = await lease(store)
        await settle(store, one, Outcome.HTTP_ERROR, 422)
        job = await self.ask(store, type="relay")
        await self.run(store)
        assert (await self.job(store, job))[2] == 1
        [again] = await lease(store)
        assert again.wire_id == one.wire_id

    async def test_another_accounts_stay_where_they_are(self, store: Store) -> None:
        theirs = await self.missed(store, 4)
        mine = Bulk(id=new_id(), account="other", criteria=Criteria(since=0), key=None)
        await store.redeliver_all(mine)
        await self.run(store)
        assert await self.job(store, mine.id) == ("done", 0, 0)
        by_id = Bulk(id=new_id(), account="other", criteria=Criteria(since=0, subscription_id=theirs), key=None)
        with pytest.raises(Problem) as caught:
            await store.redeliver_all(by_id)
        assert caught.value.slug == "not-found"
        await self.run(store)
        assert await delivery_rows(store, state="pending") == []

    async def test_a_key_makes_it_one_wish(self, store: Store) -> None:
        key = IdempotencyKey(account=ACCOUNT, route="r", key="k", fingerprint=b"d" * 32)
        wishes = [Bulk(id=new_id(), account=ACCOUNT, criteria=Criteria(since=0), key=key) for _ in range(3)]
        answers = [await store.redeliver_all(wish) for wish in wishes]
        assert answers[0] == wishes[0].id
        assert all(isinstance(one, Replayed) and one.answer.decode() == wishes[0].id for one in answers[1:])
        assert await count(store, redeliveries) == 1
