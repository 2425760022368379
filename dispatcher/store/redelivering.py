"""Send ended deliveries again, as new ones: one at a time, or all that fit, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.errors import Problem
from dispatcher.ids import id_floor, new_id
from dispatcher.models import TERMINAL_STATES, DeliveryKind, DeliveryState, lane_of
from dispatcher.store import deliveries as delivery_store
from dispatcher.store import endpoints, holding, ledger, making, ordering
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import Answers
from dispatcher.store.records import IdempotencyKey, Replayed
from dispatcher.store.tables import deliveries, events, is_running, redeliveries, tasks
from subscriptions import store as subscription_store
from subscriptions.models import Movement, SubscriptionState

#: deliveries that one step looks at
STEP = 100
#: wishes of one account that are carried out at once
MAX_RUNNING = 10
#: what the clocks of processes and database may differ by, milliseconds
CLOCKS_APART_MS = 60_000
#: states whose deliveries did not arrive
MISSED = (DeliveryState.EXHAUSTED, DeliveryState.REJECTED, DeliveryState.EXPIRED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Redelivery:
    """A wish to send an ended delivery again, as a new one."""

    account: str
    delivery_id: str
    key: IdempotencyKey | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Redelivered:
    """The new delivery, and the lane it waits in."""

    delivery_id: str
    lane: str


# --- one --------------------------------------------------------------------------------------------------


async def redeliver(tx: Transaction, wishes: Sequence[Redelivery]) -> list[Problem | Replayed | Redelivered]:
    """Make new deliveries of ended ones."""
    answers = Answers(tx)
    await answers.look_up([wish.key for wish in wishes])
    results: list[Problem | Replayed | Redelivered] = []
    for wish in wishes:
        result = answers.earlier(wish.key) or await _redeliver(tx, wish)
        if isinstance(result, Redelivered):
            answers.keep(wish.key, result.delivery_id.encode())
        results.append(result)
    await answers.write()
    return results


async def _redeliver(tx: Transaction, wish: Redelivery) -> Problem | Redelivered:
    rows = await tx.connection.execute(
        sa.select(deliveries)
        .where(deliveries.c.id == wish.delivery_id, deliveries.c.account == wish.account)
        .with_for_update()
    )
    row = rows.mappings().one_or_none()
    if row is None:
        return Problem("not-found", "There is no such delivery.")
    return await _send_again(tx, row)


async def _send_again(tx: Transaction, row: sa.RowMapping) -> Problem | Redelivered:
    if row["state"] not in TERMINAL_STATES:
        return Problem("conflict", f"The delivery is {row['state']}; only an ended one can be sent again.")
    if row["subscription_id"] is None:
        return await _to_callback(tx, row)
    return await _to_subscription(tx, row)


async def _to_callback(tx: Transaction, row: sa.RowMapping) -> Problem | Redelivered:
    found = await tx.connection.execute(sa.select(tasks).where(tasks.c.id == row["source_id"]).with_for_update())
    task = found.mappings().one_or_none()
    if task is None:
        return Problem("not-found", "There is no such delivery.")
    latest = await tx.connection.scalar(sa.select(deliveries.c.state).where(deliveries.c.id == task["delivery_id"]))
    if latest not in TERMINAL_STATES:
        return Problem("conflict", "A later delivery of this task is still under way.")
    if row["body_id"] is None:
        return Problem("conflict", "The task has no result to deliver.")
    if task["callback_url"] is None or (task["window_end"] or tx.now + 1) <= tx.now:
        return Problem("callback-wiped", "The callback URL has been wiped. PUT a new one to /tasks/{id}/callback.")
    lane = lane_of(row["account"], task["callback_origin"])
    delivery_id = new_id()
    await delivery_store.insert_redelivery(tx, row, delivery_id=delivery_id, lane=lane)
    return Redelivered(delivery_id=delivery_id, lane=lane)


async def _to_subscription(tx: Transaction, row: sa.RowMapping) -> Problem | Redelivered:
    """It keeps its place in order, so it goes before those that came after it."""
    id_ = row["subscription_id"]
    standing = (await endpoints.standing(tx.connection, [id_], lock=True)).get(id_)
    if standing is None or standing["state"] == SubscriptionState.DELETED:
        return Problem("conflict", "The subscription was deleted.")
    if row["kind"] != DeliveryKind.MESSAGE:
        return Problem("conflict", "A ping is not sent again; ask for a new one.")
    # It stays, with its bytes, until this transaction ends.
    event = sa.select(events.c.id).where(events.c.id == row["source_id"]).with_for_update(read=True, key_share=True)
    if await tx.connection.scalar(event) is None:
        return Problem("not-found", "There is no such delivery.")
    if await _is_under_way(tx, row):
        return Problem("conflict", "A later delivery of this message is still under way.")
    ordered = row["seq"] is not None
    held = standing["state"] == SubscriptionState.DISABLED or (ordered and standing["movement"] == Movement.RELEASE)
    if held and standing["held"] >= making.MAX_HELD:
        return Problem("conflict", "As many deliveries are held for the subscription as may be; enable it first.")
    delivery_id = new_id()
    await tx.connection.execute(
        sa.insert(deliveries).values(
            id=delivery_id,
            account=row["account"],
            source_id=row["source_id"],
            subscription_id=row["subscription_id"],
            wire_id=row["wire_id"],
            redelivery_of=row["id"],
            lane=row["lane"],
            state=DeliveryState.HELD if held else DeliveryState.PENDING,
            attempt=0,
            failures=0,
            repeats=0,
            due_at=None if held or ordered else tx.now,
            hold_until=holding.hold_until(standing, tx.now) if held else None,
            body_id=row["body_id"],
            seq=row["seq"],
            order_key=row["order_key"],
            created_at=tx.now,
        )
    )
    await delivery_store.count_held(tx, {row["subscription_id"]: int(held)})
    tx.counts[row["account"], ledger.ACCEPTED] += 1
    if ordered:
        tx.news.lanes |= await ordering.promote(tx, {(row["lane"], row["order_key"])})
    elif not held:
        tx.news.lanes.add(row["lane"])
    return Redelivered(delivery_id=delivery_id, lane=row["lane"])


async def _is_under_way(tx: Transaction, row: sa.RowMapping) -> bool:
    found = await tx.connection.scalar(
        _others(row).where(deliveries.c.state.not_in(TERMINAL_STATES)).limit(1),
    )
    return found is not None


def _others(row: sa.RowMapping) -> sa.Select[tuple[str]]:
    """Deliveries of the same message to the same subscription."""
    return sa.select(deliveries.c.id).where(
        deliveries.c.source_id == row["source_id"],
        deliveries.c.subscription_id == row["subscription_id"],
        deliveries.c.wire_id == row["wire_id"],
    )


# --- many -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Criteria:
    """Which ended deliveries are sent again. What was sent again since is left out."""

    states: tuple[str, ...] = MISSED
    subscription_id: str | None = None
    #: the event's type
    type: str | None = None
    #: accepted in this span, milliseconds since the epoch
    since: int
    until: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bulk:
    """A wish to send all again that fit."""

    id: str
    account: str
    criteria: Criteria
    key: IdempotencyKey | None


async def begin(tx: Transaction, wishes: Sequence[Bulk]) -> list[Problem | Replayed | str]:
    """Store wishes, to be carried out step by step; answers their ids."""
    answers = Answers(tx)
    await answers.look_up([wish.key for wish in wishes])
    results: list[Problem | Replayed | str] = []
    for wish in wishes:
        result = answers.earlier(wish.key) or await _begin(tx, wish)
        if isinstance(result, str):
            answers.keep(wish.key, result.encode())
        results.append(result)
    await answers.write()
    return results


async def _begin(tx: Transaction, wish: Bulk) -> Problem | str:
    criteria = wish.criteria
    if criteria.subscription_id is not None:
        theirs = await subscription_store.rows(tx.connection, [criteria.subscription_id], account=wish.account)
        if not theirs:
            return Problem("not-found", "There is no such subscription.")
    # of all accounts, so that only what runs is read, and not what ever ran
    running = await tx.connection.scalars(sa.select(redeliveries.c.account).where(is_running))
    if list(running).count(wish.account) >= MAX_RUNNING:
        return Problem("quota", f"Of an account at most {MAX_RUNNING} redeliveries of many run at once; wait for one.")
    # What is accepted from now on is not meant, the redeliveries themselves least of all.
    until = tx.now if criteria.until is None else min(criteria.until, tx.now)
    await tx.connection.execute(
        sa.insert(redeliveries).values(
            id=wish.id,
            account=wish.account,
            criteria={
                "states": list(criteria.states),
                "subscription_id": criteria.subscription_id,
                "type": criteria.type,
                "since": criteria.since,
                "until": until,
            },
            state="running",
            # Ids come from the clock of a process, moments from that of the database.
            cursor=id_floor(criteria.since - CLOCKS_APART_MS),
            until=id_floor(until + CLOCKS_APART_MS),
            seen=0,
            made=0,
            created_at=tx.now,
        )
    )
    tx.news.chores = True
    return wish.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What a step did."""

    #: deliveries that it looked at
    seen: int
    #: there was a wish to carry out, so there may be more to do: the rest of it, or another
    unfinished: bool


async def step(tx: Transaction, items: Sequence[None]) -> list[Stepped]:
    """Carry out a part of a wish that is not done yet, of the one that has come least far."""
    return [await _step(tx) for _ in items]


async def _step(tx: Transaction) -> Stepped:
    found = await tx.connection.execute(
        sa.select(redeliveries)
        .where(is_running)
        .order_by(redeliveries.c.seen, redeliveries.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    job = found.mappings().one_or_none()
    if job is None:
        return Stepped(seen=0, unfinished=False)
    rows = (await tx.connection.execute(_candidates(job))).mappings().all()
    made = 0
    for row in rows:
        if _fits(job["criteria"], row) and await _is_latest(tx, row):
            made += isinstance(await _send_again(tx, row), Redelivered)
    done = len(rows) < STEP
    await tx.connection.execute(
        sa.update(redeliveries)
        .where(redeliveries.c.id == job["id"])
        .values(
            cursor=rows[-1]["id"] if rows else job["cursor"],
            seen=redeliveries.c.seen + len(rows),
            made=redeliveries.c.made + made,
            state="done" if done else "running",
            finished_at=tx.now if done else None,
        )
    )
    return Stepped(seen=len(rows), unfinished=True)


def _candidates(job: sa.RowMapping) -> sa.Select[Any]:
    subscription_id = job["criteria"]["subscription_id"]
    whose = (
        deliveries.c.account == job["account"]
        if subscription_id is None
        else deliveries.c.subscription_id == subscription_id
    )
    return (
        sa.select(deliveries, sa.func.coalesce(events.c.type, tasks.c.type).label("type"))
        .select_from(
            deliveries.outerjoin(events, events.c.id == deliveries.c.source_id).outerjoin(
                tasks, tasks.c.id == deliveries.c.source_id
            )
        )
        .where(
            whose,
            deliveries.c.id > job["cursor"],
            deliveries.c.id < job["until"],
            deliveries.c.created_at >= job["criteria"]["since"],
            deliveries.c.created_at <= job["criteria"]["until"],
        )
        .order_by(deliveries.c.id)
        .limit(STEP)
    )


def _fits(criteria: dict[str, Any], row: sa.RowMapping) -> bool:
    return (
        row["state"] in criteria["states"]
        and row["kind"] == DeliveryKind.MESSAGE
        and (criteria["type"] is None or row["type"] == criteria["type"])
    )


async def _is_latest(tx: Transaction, row: sa.RowMapping) -> bool:
    if row["subscription_id"] is None:
        latest = await tx.connection.scalar(sa.select(tasks.c.delivery_id).where(tasks.c.id == row["source_id"]))
        return bool(latest == row["id"])
    return await tx.connection.scalar(_others(row).where(deliveries.c.id > row["id"]).limit(1)) is None
