"""What else moves a delivery: giving a lease back, cancelling, wiping its callback, sending it again.

docs/states.md draws the states.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from msgspec.structs import replace

from dispatcher.models import DeliveryState, Mark, lane_of
from dispatcher.store import ledger, ordering
from dispatcher.store.committer import Transaction
from dispatcher.store.leases import Leased
from dispatcher.store.records import Released
from dispatcher.store.statements import Statement, Step, among
from dispatcher.store.tables import deliveries, subscriptions, tasks


async def leased_rows(tx: Transaction, ids: Sequence[str]) -> dict[str, Leased]:
    """Leased deliveries by id, as they are now. Their leases are about to end: no more is remembered of them."""
    if not ids:
        return {}
    tx.leases.forget(ids)
    [rows] = await tx.run((_LEASED, [(ids,)]))
    return {row.id: row for row in (Leased(*values) for values in rows)}


_LEASED = Statement(
    sa.select(
        *(
            (tasks if name in {"window_end", "callback_origin"} else deliveries).c[name]
            for name in Leased.__struct_fields__
        )
    )
    .select_from(deliveries.outerjoin(tasks, tasks.c.id == deliveries.c.source_id))
    .where(among(deliveries.c.id, "ids"), deliveries.c.state == DeliveryState.LEASED.value)
    .with_for_update(of=deliveries),
    "ids",
)


def lane_after(row: Leased) -> str:
    """The lane where a delivery goes on: that of its callback as it is now, or of its subscription."""
    if row.callback_origin is None:
        return row.lane
    return lane_of(row.account, row.callback_origin)


def cancel_reason(row: Leased) -> str:
    """Why a delivery that was marked is cancelled: its task was withdrawn, or its subscription deleted."""
    return "cancelled" if row.subscription_id is None else "deleted"


# --- end ---------------------------------------------------------------------------------------------------


async def count_held(tx: Transaction, counts: dict[str, int]) -> None:
    """Add to the numbers of deliveries that are held for subscriptions."""
    rows = [{"key": id_, "number": number} for id_, number in sorted(counts.items()) if number]
    if rows:
        await tx.connection.execute(
            sa.update(subscriptions)
            .where(subscriptions.c.id == sa.bindparam("key"))
            .values(held=subscriptions.c.held + sa.bindparam("number")),
            rows,
        )


class Moving(ordering.Placed, Protocol):
    """What tells of a delivery what it takes to end it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def account(self) -> str:
        """Its account."""

    @property
    def subscription_id(self) -> str | None:
        """Whom it goes to; none means a callback."""

    @property
    def state(self) -> str:
        """Where it stands until now."""


async def end(tx: Transaction, rows: Sequence[Moving | sa.Row[Any]], state: DeliveryState, reason: str) -> None:
    """End deliveries that nobody is sending, and let those have their turn that stood behind them."""
    if not rows:
        return
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_([row.id for row in rows]))
        .values(state=state, reason=reason, mark=None, session=None, due_at=None, hold_until=None, finished_at=tx.now)
    )
    held = Counter(str(row.subscription_id) for row in rows if row.state == DeliveryState.HELD)
    await count_held(tx, {id_: -number for id_, number in held.items()})
    tx.counts.update((row.account, state) for row in rows)
    tx.news.lanes |= await ordering.promote(tx, ordering.groups_of(rows))


async def wipe(tx: Transaction, task_ids: set[str]) -> None:
    """Forget callback URLs, and the secrets and headers that went with them, for good."""
    if task_ids:
        await tx.run(wiping(task_ids))


def wiping(task_ids: set[str]) -> Step:
    """What forgets callback URLs, and the secrets and headers that went with them."""
    return _WIPE, [(sorted(task_ids),)] if task_ids else []


_WIPE = Statement(
    sa.update(tasks)
    .where(among(tasks.c.id, "ids"))
    .values(callback_url=sa.null(), callback_secret=sa.null(), callback_headers=sa.null()),
    "ids",
)


# --- give back --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A lease given back before anything was sent, to be due again after `delay` seconds."""

    delivery_id: str
    attempt: int
    delay: float = 0.0


async def release(tx: Transaction, releases: Sequence[Release]) -> list[Released | None]:
    """Give leases back as if they had never been taken: the attempt's number is free again.

    That is safe because only the holder does this, and it has forgotten the delivery. A mark that was put meanwhile
    is applied; a new callback URL owes the old one's pause nothing. Answers where each waits, None where none does.
    """
    rows = await leased_rows(tx, [release.delivery_id for release in releases])
    results: list[Released | None] = []
    cancelled: list[Leased] = []
    #: ids of those that go on in the same lane at the same moment
    pending: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    groups: set[ordering.Group] = set()
    for release in releases:
        row = rows.get(release.delivery_id)
        if row is None or row.attempt != release.attempt or row.session != tx.session:
            results.append(None)
        elif row.mark == Mark.CANCEL:
            cancelled.append(row)
            results.append(None)
        else:
            delay = 0.0 if row.mark == Mark.RETARGET else release.delay
            released = Released(lane=lane_after(row), delay=delay)
            pending[released.lane, tx.now + round(delay * 1000)].append(row.id)
            groups |= ordering.groups_of([row])
            results.append(released)
    for reason in ("cancelled", "deleted"):
        await end(tx, [row for row in cancelled if cancel_reason(row) == reason], DeliveryState.CANCELLED, reason)
    await tx.run((_RELEASE, [(*where, ids) for where, ids in pending.items()]))
    promoted = await ordering.promote(tx, groups)
    return [replace(one, delay=0.0) if one is not None and one.lane in promoted else one for one in results]


_RELEASE = Statement(
    sa.update(deliveries)
    .where(among(deliveries.c.id, "ids"))
    .values(
        state=DeliveryState.PENDING.value,
        attempt=deliveries.c.attempt - sa.literal_column("1"),
        session=sa.null(),
        mark=sa.null(),
        lane=sa.bindparam("lane"),
        due_at=sa.bindparam("due_at"),
    ),
    "lane",
    "due_at",
    "ids",
)


# --- send again -------------------------------------------------------------------------------------------


async def insert_redelivery(tx: Transaction, row: sa.RowMapping, *, delivery_id: str, lane: str) -> None:
    """Make a new delivery of a task's ended one, due now. It keeps the wire id, so that receivers recognise it."""
    await tx.connection.execute(
        sa.insert(deliveries).values(
            id=delivery_id,
            account=row["account"],
            source_id=row["source_id"],
            wire_id=row["wire_id"],
            redelivery_of=row["id"],
            lane=lane,
            state=DeliveryState.PENDING,
            attempt=0,
            failures=0,
            repeats=0,
            due_at=tx.now,
            body_id=row["body_id"],
            created_at=tx.now,
        )
    )
    await tx.connection.execute(sa.update(tasks).where(tasks.c.id == row["source_id"]).values(delivery_id=delivery_id))
    tx.counts[row["account"], ledger.ACCEPTED] += 1
    tx.news.lanes.add(lane)
