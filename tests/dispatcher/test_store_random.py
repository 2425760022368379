"""Anything in any order: random operations on subscriptions of every ordering, and what must hold after each.

The operations know nothing of what they should bring about; only invariants are checked, from the rows themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.bodies import Body
from dispatcher.errors import LeaseLost, Problem
from dispatcher.ids import new_id
from dispatcher.models import LIVE_STATES, TERMINAL_STATES, DeliveryState, Outcome
from dispatcher.store import Store
from dispatcher.store.deliveries import Release
from dispatcher.store.publishing import Accepted
from dispatcher.store.records import Endpoint, LaneClaim, LeasedDelivery
from dispatcher.store.redelivering import Bulk, Criteria
from dispatcher.store.tables import deliveries, subscriptions
from subscriptions.models import Draft, Movement, OnExhausted, Ordering, Subscription, SubscriptionState
from subscriptions.secrets import Secret
from tests.support.stores import (
    ACCOUNT,
    Home,
    delivery_rows,
    draft,
    lane_of_subscription,
    make_due,
    move_all,
    new_event,
    open_store,
    publish,
    settle,
    subscribe,
    who,
)

#: operations in one run
STEPS = 100
KINDS = (
    (Ordering.NONE, OnExhausted.BLOCK),
    (Ordering.FIFO, OnExhausted.BLOCK),
    (Ordering.FIFO, OnExhausted.SKIP),
    (Ordering.FIFO_BY_KEY, OnExhausted.BLOCK),
    (Ordering.FIFO_BY_KEY, OnExhausted.SKIP),
)
#: (weight, outcome, status, what else the answer says)
ANSWERS: list[tuple[int, Outcome, int | None, dict[str, Any]]] = [
    (30, Outcome.SUCCESS, 200, {}),
    (10, Outcome.HTTP_ERROR, 500, {}),
    (5, Outcome.TIMEOUT, None, {}),
    (5, Outcome.HTTP_ERROR, 401, {}),
    (3, Outcome.HTTP_ERROR, 401, {"other_secret": True}),
    (3, Outcome.HTTP_ERROR, 422, {}),
    (1, Outcome.HTTP_ERROR, 410, {}),
    (2, Outcome.HTTP_ERROR, 500, {"abort": True}),
    (1, Outcome.SUCCESS, 200, {"disable": True}),
    (2, Outcome.EGRESS_REFUSED, None, {}),
    (2, Outcome.HTTP_ERROR, 503, {"retry_after": 90_000.0}),
]


@contextmanager
def refused(slug: str) -> Iterator[None]:
    """What is asked may be refused, for this reason only."""
    try:
        yield
    except Problem as problem:
        if problem.slug != slug:
            raise


class Machine:
    """Does something, anything, to a store."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.subscriptions: dict[str, OnExhausted] = {}
        self.leased: list[LeasedDelivery] = []
        self.ended: dict[str, dict[str, Any]] = {}
        #: for each group, the places of what was delivered
        self.delivered: dict[tuple[str, str], list[int]] = defaultdict(list)
        #: lanes whose order may be another one: something was sent again, or the kind of order changed
        self.reordered: set[str] = set()
        self.done: list[str] = []

    async def begin(self) -> None:
        for number, (ordering, on_exhausted) in enumerate(KINDS):
            id_ = await subscribe(self.store, f"s{number}", ordering=ordering, on_exhausted=on_exhausted)
            self.subscriptions[id_] = on_exhausted

    async def step(self) -> None:
        operations = {
            self.publish: 25,
            self.lease: 25,
            self.settle: 40,
            self.move: 20,
            self.make_due: 15,
            self.enable: 10,
            self.disable: 3,
            self.redeliver: 5,
            self.release: 3,
            self.interrupt: 2,
            self.die: 2,
            self.switch: 2,
            self.end_holds: 1,
            self.redeliver_all: 1,
            self.step_redeliveries: 5,
            self.delete: 0.3,
        }
        [operation] = self.random.choices(list(operations), weights=list(operations.values()))
        self.done.append(operation.__name__)
        await operation()
        await self.check()

    # --- operations

    async def publish(self) -> None:
        keys = [self.random.choice(["a", "b", None]) for _ in range(self.random.randint(1, 4))]
        events = [new_event(ordering_key=key) for key in keys]
        published = await publish(self.store, *events, hand_off=self.random.random() < 0.3)
        assert isinstance(published.result, Accepted)
        assert all(one.complete for one in published.published)
        rows = {row["id"]: row for row in await delivery_rows(self.store, state="leased")}
        self.leased += [_as_leased(rows[id_]) for id_ in published.result.handed_off]

    async def lease(self) -> None:
        lanes = [lane_of_subscription(id_) for id_ in self.subscriptions]
        lanes += [f"{lane} ping" for lane in lanes]
        claims = [LaneClaim(lane=lane, limit=self.random.randint(1, 3)) for lane in lanes if self.random.random() < 0.7]
        if claims:
            self.leased += (await self.store.lease(claims)).deliveries

    async def settle(self) -> None:
        if not self.leased:
            return
        self.random.shuffle(self.leased)
        chosen = [self.leased.pop() for _ in range(self.random.randint(1, min(3, len(self.leased))))]
        answers = self.random.choices(ANSWERS, weights=[one[0] for one in ANSWERS], k=len(chosen))
        # by one commit
        await asyncio.gather(
            *(self._settle(delivery, *answer[1:]) for delivery, answer in zip(chosen, answers, strict=True))
        )

    async def _settle(
        self, delivery: LeasedDelivery, outcome: Outcome, status: int | None, more: dict[str, Any]
    ) -> None:
        schedule = self.random.choice([(), (0.0,), (0.0, 60.0, 60.0)])
        try:
            settled = await settle(self.store, delivery, outcome, status, schedule=schedule, **more)
        except LeaseLost:
            return
        if settled.state is DeliveryState.DELIVERED:
            [row] = await delivery_rows(self.store, id=delivery.id)
            if row["seq"] is not None:
                self.delivered[row["lane"], row["order_key"]].append(row["seq"])

    async def move(self) -> None:
        await self.store.move_deliveries(self.random.randint(1, 3))

    async def make_due(self) -> None:
        await make_due(self.store)

    async def enable(self) -> None:
        id_ = self.random.choice(list(self.subscriptions))
        movement = self.random.choice([Movement.RELEASE, Movement.RELEASE, Movement.DISCARD])
        try:
            changed = await self.store.enable_subscription(who(self.store), id_, movement)
        except Problem:
            return
        if changed.asked is not None and self.random.random() < 0.8:
            pings = (await self.store.lease([LaneClaim(lane=changed.asked.lane, limit=5)])).deliveries
            for ping in pings:
                await settle(self.store, ping)

    async def disable(self) -> None:
        await self._on_one(self.store.disable_subscription)

    async def delete(self) -> None:
        await self._on_one(self.store.delete_subscription)

    async def _on_one(self, change: Any) -> None:
        with refused("not-found"):
            await change(who(self.store), self.random.choice(list(self.subscriptions)))

    async def redeliver(self) -> None:
        rows = [row for row in await delivery_rows(self.store) if row["state"] not in LIVE_STATES]
        if not rows:
            return
        row = self.random.choice(rows)
        self.reordered.add(row["lane"])
        with refused("conflict"):
            await self.store.redeliver(ACCOUNT, row["id"], None)

    async def redeliver_all(self) -> None:
        self.reordered.update(lane_of_subscription(id_) for id_ in self.subscriptions)
        await self.store.redeliver_all(Bulk(id=new_id(), account=ACCOUNT, criteria=Criteria(since=0), key=None))

    async def step_redeliveries(self) -> None:
        await self.store.step_redeliveries()

    async def release(self) -> None:
        if self.leased:
            delivery = self.leased.pop(self.random.randrange(len(self.leased)))
            delay = self.random.choice([0.0, 60.0])
            await self.store.release(Release(delivery_id=delivery.id, attempt=delivery.attempt, delay=delay))

    async def interrupt(self) -> None:
        if self.leased:
            delivery = self.leased.pop(self.random.randrange(len(self.leased)))
            await self.store.interrupt([delivery.id])

    async def die(self) -> None:
        """Another process leases, and ends without a word."""
        database, keyring = self.store.database, self.store.keyring
        other = await Store.open(database, keyring, session_ttl=60, alone=False)
        await other.lease([LaneClaim(lane=lane_of_subscription(id_), limit=2) for id_ in self.subscriptions])
        await other.close()
        await self.check()
        await self.store.reap()

    async def switch(self) -> None:
        id_ = self.random.choice(list(self.subscriptions))
        ordering = self.random.choice(list(Ordering))
        self.reordered.add(lane_of_subscription(id_))
        with refused("not-found"):
            await self.store.change_subscription(
                who(self.store), id_, lambda before: _with_ordering(self.store, before, ordering)
            )

    async def end_holds(self) -> None:
        rows = await delivery_rows(self.store, state="held")
        over = [row["id"] for row in rows if self.random.random() < 0.3]
        async with self.store.database.write() as connection:
            await connection.execute(sa.update(deliveries).where(deliveries.c.id.in_(over)).values(hold_until=0))
        assert await self.store.end_holds() == len(over)

    # --- what must hold

    async def check(self) -> None:
        rows = await delivery_rows(self.store)
        async with self.store.database.read() as connection:
            found = await connection.execute(sa.select(subscriptions))
            standing = {row["id"]: row for row in found.mappings()}
        await self._check_books(rows, standing)
        self._check_rows(rows, standing)
        self._check_order(rows, standing)

    async def _check_books(self, rows: list[sa.RowMapping], standing: dict[str, sa.RowMapping]) -> None:
        counts = await self.store.ledger(ACCOUNT)
        assert counts["accepted"] == len(rows) == sum(counts.values()) - counts["accepted"]
        states = Counter(row["state"] for row in rows)
        assert {state: number for state, number in counts.items() if number and state != "accepted"} == states
        held = Counter(row["subscription_id"] for row in rows if row["state"] == "held")
        assert {id_: row["held"] for id_, row in standing.items() if row["held"]} == held

    def _check_rows(self, rows: list[sa.RowMapping], standing: dict[str, sa.RowMapping]) -> None:
        for row in rows:
            if row["state"] in LIVE_STATES:
                assert row["id"] not in self.ended, "what has ended stays ended"
                assert row["finished_at"] is None
            else:
                assert self.ended.setdefault(row["id"], dict(row)) == row, "what has ended changes no more"
                assert row["finished_at"] is not None
                assert row["due_at"] is None
            assert (row["session"] is not None) == (row["state"] == "leased")
            assert (row["hold_until"] is not None) <= (row["state"] in {"held", *TERMINAL_STATES})
            if row["state"] == "pending" and row["seq"] is None:
                assert row["due_at"] is not None, "it would wait for ever"
        for one in standing.values():
            if one["movement"] is None:
                assert one["state"] == SubscriptionState.DISABLED or one["held"] == 0, "nobody would release it"

    def _check_order(self, rows: list[sa.RowMapping], standing: dict[str, sa.RowMapping]) -> None:
        groups: dict[tuple[str, str], list[sa.RowMapping]] = defaultdict(list)
        for row in rows:
            if row["seq"] is not None and row["state"] in LIVE_STATES:
                groups[row["lane"], row["order_key"]].append(row)
        for group in groups.values():
            first, *others = sorted(group, key=lambda row: int(row["seq"]))
            assert first["seq"] not in {row["seq"] for row in others}, "two of one message are under way"
            in_turn = [row for row in group if row["state"] == "leased" or row["due_at"] is not None]
            assert len(in_turn) <= 1, "two would go at once"
            if in_turn and in_turn[0]["id"] != first["id"]:
                # Only something that was sent again stands before what was on its way already.
                assert in_turn[0]["state"] == "leased"
                assert first["redelivery_of"] is not None
            if first["state"] == "pending":
                assert in_turn, "nobody would ever wake this group"
        for (lane, _), places in self.delivered.items():
            if lane not in self.reordered:
                assert places == sorted(places)

    # --- the end of it all

    async def drain(self) -> None:
        """All is well at last: everything that can still arrive does."""
        for delivery in self.leased:
            await self._settle(delivery, Outcome.SUCCESS, 200, {})
        self.leased = []
        for _ in range(1_000):
            while (await self.store.step_redeliveries()).seen:
                pass
            await move_all(self.store)
            for id_ in self.subscriptions:
                with refused("not-found"):
                    await self.store.enable_subscription(who(self.store), id_, Movement.RELEASE)
            await make_due(self.store)
            lanes = [lane_of_subscription(id_) for id_ in self.subscriptions]
            batch = await self.store.lease(
                [LaneClaim(lane=key, limit=50) for one in lanes for key in (one, f"{one} ping")]
            )
            for delivery in batch.deliveries:
                await self._settle(delivery, Outcome.SUCCESS, 200, {})
            await self.check()
            if not [row for row in await delivery_rows(self.store) if row["state"] in LIVE_STATES]:
                return
        raise AssertionError("something never moves again")


def _as_leased(row: sa.RowMapping) -> LeasedDelivery:
    return LeasedDelivery(
        id=row["id"],
        wire_id=row["wire_id"],
        account=row["account"],
        lane=row["lane"],
        attempt=row["attempt"],
        event="order.paid",
        endpoint=Endpoint(url=Secret("https://x.example"), origin="https://x.example", key_id=""),
        body=Body(b"", ""),
        traceparent=None,
    )


def _with_ordering(store: Store, before: Subscription, ordering: Ordering) -> Draft:
    return draft(store, before.name, url=before.url.reveal(), ordering=ordering, on_exhausted=before.on_exhausted)


@pytest.mark.parametrize("seed", range(2))
async def test_what_must_hold_holds(home: Home, seed: int) -> None:
    async with open_store(home) as store:
        machine = Machine(store, seed)
        await machine.begin()
        for _ in range(STEPS):
            await machine.step()
        await machine.drain()
