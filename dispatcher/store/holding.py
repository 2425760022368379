"""Disabling and enabling: what it does to a subscription, and to the deliveries that wait for it.

The subscription changes at once; its deliveries follow in small steps (`move`), so that a long line of them never
keeps the database busy. Until they have, leasing holds what it comes across. docs/states.md draws the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.models import DeliveryState, Mark, lane_of
from dispatcher.store import accounts, notices, ordering
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import count_held, end
from dispatcher.store.endpoints import Standing
from dispatcher.store.notices import Notice, NoticeType
from dispatcher.store.tables import deliveries, is_behind, is_held, is_live, is_waiting, subscriptions
from subscriptions.health import DisabledReason
from subscriptions.models import Movement, Ordering, SubscriptionState
from subscriptions.schema import is_moving

#: deliveries that one step of a movement handles
STEP = 200


# --- the subscription -------------------------------------------------------------------------------------


async def disable(tx: Transaction, row: Standing, reason: DisabledReason, *, status: int | None = None) -> None:
    """Disable a subscription, and tell its account. What waits for it will be held."""
    await tx.connection.execute(
        sa.update(subscriptions)
        .where(subscriptions.c.id == row["id"])
        .values(
            state=SubscriptionState.DISABLED,
            disabled_reason=reason,
            disabled_at=tx.now,
            movement=Movement.HOLD,
            version=await accounts.next_version(tx.connection, row["account"]),
            updated_at=tx.now,
        )
    )
    tx.news.chores = True
    detail: dict[str, Any] = {"reason": reason}
    if status is not None:
        detail["status"] = status
    await tell(tx, row, NoticeType.DISABLED, detail)


async def activate(tx: Transaction, row: Standing, *, granted_rate: float | None = None) -> None:
    """Enable a subscription that has just shown that its endpoint is there, and begin to release what is held.

    `granted_rate` (requests per second) is the most that its endpoint allows.
    """
    rates = [rate for rate in (row["rate_limit"], granted_rate) if rate is not None]
    await tx.connection.execute(
        sa.update(subscriptions)
        .where(subscriptions.c.id == row["id"])
        .values(
            state=SubscriptionState.ACTIVE,
            disabled_reason=None,
            disabled_at=None,
            enabled_at=tx.now,
            verifying=None,
            granting=None,
            then=None,
            rate_limit=min(rates, default=None),
            movement=row["then"] or Movement.RELEASE,
            refusals=0,
            failures=0,
            failing_since=None,
            version=await accounts.next_version(tx.connection, row["account"]),
            updated_at=tx.now,
        )
    )
    tx.news.chores = True
    await tell(tx, row, NoticeType.ENABLED, {})


async def tell(tx: Transaction, row: Standing, type_: NoticeType, detail: dict[str, Any], *, count: int = 1) -> None:
    """Note what happened to a subscription. What happens to the operational one is told to nobody."""
    if not row["operational"]:
        notice = Notice(account=row["account"], subscription_id=row["id"], type=type_, detail=detail, count=count)
        await notices.note(tx, [notice])


# --- its deliveries, one at a time ------------------------------------------------------------------------


def hold_until(row: Standing, now: int) -> int:
    """When a delivery that is held now for this subscription expires."""
    return now + round(float(row["hold_for"]) * 1000)


async def hold(tx: Transaction, row: Standing, ids: Sequence[str]) -> None:
    """Hold deliveries that wait, or that were about to be leased, for their disabled subscription."""
    if not ids:
        return
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(state=DeliveryState.HELD, due_at=None, hold_until=hold_until(row, tx.now))
    )
    await count_held(tx, {row["id"]: len(ids)})


# --- its deliveries, step by step -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What a step did."""

    #: deliveries that changed
    count: int
    #: subscriptions that still have deliveries to move
    unfinished: int


async def move(tx: Transaction, limits: Sequence[int]) -> list[Moved]:
    """Take one step for every subscription whose deliveries are to move; release `limit` of each at most."""
    return [await _move(tx, limit) for limit in limits]


async def _move(tx: Transaction, release_limit: int) -> Moved:
    found = await tx.connection.execute(
        sa.select(subscriptions)
        .where(is_moving)
        # by chance, so that each has its turn where there are more than one step takes
        .order_by(sa.func.random())
        .limit(STEP)
        .with_for_update(skip_locked=True)
    )
    rows = found.mappings().all()
    # A share for each, so that a long line keeps no other waiting.
    share = max(1, STEP // max(1, len(rows)))
    count, unfinished = 0, 0
    for row in rows:
        moved = await _step(tx, row, share, release_limit)
        count += moved
        if moved:
            unfinished += 1
        else:
            await tx.connection.execute(
                sa.update(subscriptions).where(subscriptions.c.id == row["id"]).values(movement=None)
            )
    if len(rows) == STEP:
        # there may be others that this step had no place for
        unfinished = max(1, unfinished)
    return Moved(count=count, unfinished=unfinished)


async def _step(tx: Transaction, row: sa.RowMapping, limit: int, release_limit: int) -> int:
    match Movement(row["movement"]):
        case Movement.HOLD:
            waiting = await _waiting(tx, row, limit)
            await hold(tx, row, [delivery.id for delivery in waiting])
            return len(waiting)
        case Movement.RELEASE:
            # Of a line only the first becomes due: its pace is the endpoint's own.
            in_line = row["ordering"] == Ordering.FIFO
            return await _release(tx, row, limit if in_line else min(limit, release_limit))
        case Movement.DISCARD:
            # What it had not come to hold yet is discarded, too; what was published since is not.
            before = deliveries.c.created_at < row["enabled_at"]
            left = [*await _held(tx, row, limit), *await _waiting(tx, row, limit, before)]
            await end(tx, left, DeliveryState.CANCELLED, "discarded")
            return len(left)
        case Movement.CANCEL:
            await _mark_leased(tx, row)
            left = [*await _held(tx, row, limit), *await _waiting(tx, row, limit)]
            await end(tx, left, DeliveryState.CANCELLED, "deleted")
            return len(left)


async def _waiting(
    tx: Transaction, row: sa.RowMapping, limit: int, which: sa.ColumnElement[bool] | None = None
) -> Sequence[sa.Row[Any]]:
    """Pending messages for a subscription: those that are due some time, and those behind others in order.

    What somebody else is at he leases at this moment, or holds: he may wait for this subscription's row, so he is not
    waited for.
    """
    lane = lane_of(row["account"], row["id"])
    wanted = sa.and_(deliveries.c.lane == lane, sa.true() if which is None else which)
    rows = await tx.connection.execute(
        sa.select(deliveries).where(is_waiting, wanted).limit(limit).with_for_update(skip_locked=True)
    )
    found = rows.all()
    if found:
        return found
    rows = await tx.connection.execute(
        sa.select(deliveries)
        .where(is_behind, wanted)
        .order_by(deliveries.c.seq)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return rows.all()


async def _held(tx: Transaction, row: sa.RowMapping, limit: int) -> Sequence[sa.Row[Any]]:
    """Held deliveries of a subscription, in order; but for those that somebody expires at this moment."""
    rows = await tx.connection.execute(
        sa.select(deliveries)
        .where(is_held, deliveries.c.subscription_id == row["id"])
        .order_by(deliveries.c.seq, deliveries.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return rows.all()


async def _release(tx: Transaction, row: sa.RowMapping, limit: int) -> int:
    held = await _held(tx, row, limit)
    if not held:
        return 0
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id == sa.bindparam("key"))
        .values(
            state=DeliveryState.PENDING,
            due_at=sa.bindparam("due"),
            hold_until=None,
            failures=0,
            repeats=0,
            last_outcome=None,
            # which secret its endpoint has may have changed meanwhile
            other_secret=False,
        ),
        # Whatever keeps an order waits until it is the first.
        [{"key": delivery.id, "due": tx.now if delivery.seq is None else None} for delivery in held],
    )
    await count_held(tx, {row["id"]: -len(held)})
    tx.news.lanes.update(delivery.lane for delivery in held if delivery.seq is None)
    tx.news.lanes |= await ordering.promote(tx, ordering.groups_of(held))
    return len(held)


async def _mark_leased(tx: Transaction, row: sa.RowMapping) -> None:
    """Mark what is being sent. What is settled at this moment finds the subscription deleted by itself."""
    leased = (
        sa.select(deliveries.c.id)
        .where(
            is_live,
            deliveries.c.state == DeliveryState.LEASED,
            deliveries.c.account == row["account"],
            deliveries.c.subscription_id == row["id"],
        )
        .with_for_update(skip_locked=True)
    )
    mark = sa.update(deliveries).where(deliveries.c.id.in_(leased)).values(mark=Mark.CANCEL).returning(deliveries.c.id)
    tx.leases.forget(await tx.connection.scalars(mark))


async def end_holds(tx: Transaction, limits: Sequence[int]) -> list[int]:
    """Expire deliveries that were held for as long as they may be. Answers how many."""
    return [await _end_holds(tx, limit) for limit in limits]


async def _end_holds(tx: Transaction, limit: int) -> int:
    rows = await tx.connection.execute(
        sa.select(deliveries)
        .where(is_held, deliveries.c.hold_until <= tx.now)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    over = rows.all()
    await end(tx, over, DeliveryState.EXPIRED, "hold")
    return len(over)
