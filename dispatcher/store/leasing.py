"""Leasing deliveries: what is due, lane by lane, with all that it takes to send it.

No query here costs more when a lane has more waiting in it. docs/states.md draws the states.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from dispatcher.bodies import Body
from dispatcher.models import DeliveryKind, DeliveryState
from dispatcher.store import endpoints, holding, ledger
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import end, wipe
from dispatcher.store.endpoints import Endpoints, Stamp
from dispatcher.store.records import Endpoint, LaneClaim, LeasedBatch, LeasedDelivery
from dispatcher.store.sealing import open_callback
from dispatcher.store.tables import bodies, deliveries, events, is_waiting, tasks
from subscriptions.keyring import Keyring, KeyringError
from subscriptions.models import Subscription, SubscriptionState

log = structlog.get_logger(__name__)

#: lanes asked in one statement; each is an arm of a UNION, and SQLite allows 500 of them
MAX_LANES_PER_CLAIM = 100
#: how long a delivery waits whose endpoint cannot be opened: somebody has to bring the key, milliseconds
UNREADABLE_DELAY_MS = 300_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What one process wants to lease, lane by lane."""

    lanes: Sequence[LaneClaim]
    keyring: Keyring
    endpoints: Endpoints


async def lease(tx: Transaction, requests: Sequence[Claims]) -> list[LeasedBatch]:
    """Lease due deliveries, oldest first within each lane, and tell when each lane has more.

    Deliveries whose window has ended are not leased but expired; those of a subscription that is disabled are held.
    """
    return [await _lease_one(tx, request) for request in requests]


async def _lease_one(tx: Transaction, request: Claims) -> LeasedBatch:
    if not request.lanes:
        return LeasedBatch(deliveries=[], next_due={})
    wanted = {f"lane{n}": claim.lane for n, claim in enumerate(request.lanes)}
    limits = {f"limit{n}": claim.limit for n, claim in enumerate(request.lanes)}
    found = (await tx.connection.execute(_due(len(request.lanes)), {"now": tx.now} | wanted | limits)).all()
    callbacks = [id_ for id_, subscription_id in found if subscription_id is None]
    others = [id_ for id_, subscription_id in found if subscription_id is not None]
    leased = [
        *(await _callbacks(tx, callbacks, request.keyring) if callbacks else ()),
        *(await _messages(tx, others, request.endpoints) if others else ()),
    ]
    if leased:
        ids = [delivery.id for delivery in leased]
        await tx.connection.execute(_LEASE, {"ids": ids, "by": tx.session})
    return LeasedBatch(
        deliveries=leased,
        next_due=await next_due(tx, [claim.lane for claim in request.lanes]),
    )


_LEASE = (
    sa.update(deliveries)
    .where(deliveries.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(state=DeliveryState.LEASED, attempt=deliveries.c.attempt + 1, session=sa.bindparam("by"), due_at=sa.null())
)


@functools.cache
def _due(lanes: int) -> sa.Executable:
    """Ids of due deliveries of so many lanes: one index range each, so that a long lane costs the others nothing."""
    arms = [
        sa.select(
            sa.select(deliveries.c.id, deliveries.c.subscription_id)
            .where(
                is_waiting,
                deliveries.c.lane == sa.bindparam(f"lane{n}"),
                deliveries.c.due_at <= sa.bindparam("now"),
            )
            .order_by(deliveries.c.due_at)
            .limit(sa.bindparam(f"limit{n}", type_=sa.Integer))
            .with_for_update(skip_locked=True)
            .subquery()
        )
        for n in range(lanes)
    ]
    return sa.union_all(*arms) if len(arms) > 1 else arms[0]


async def _put_off(tx: Transaction, row: sa.RowMapping, what: str) -> None:
    """The keyring cannot open what it takes to send this one: it waits, so that it holds up no other."""
    log.error(what, delivery=row["id"], advice="the keyring lacks the key that sealed it")
    await tx.connection.execute(
        sa.update(deliveries).where(deliveries.c.id == row["id"]).values(due_at=tx.now + UNREADABLE_DELAY_MS)
    )


# --- callbacks --------------------------------------------------------------------------------------------


async def _callbacks(tx: Transaction, ids: Sequence[str], keyring: Keyring) -> list[LeasedDelivery]:
    rows = (await tx.connection.execute(_CALLBACKS, {"ids": ids})).mappings().all()
    await _expire(tx, [row for row in rows if _window_is_over(row, tx.now)])
    opened: list[LeasedDelivery] = []
    for row in rows:
        if _window_is_over(row, tx.now):
            continue
        try:
            callback = open_callback(keyring, row, account=row["account"], task_id=row["source_id"])
        except KeyringError:
            await _put_off(tx, row, "callback_unreadable")
        else:
            opened.append(_leased(row, Endpoint.of_callback(callback, account=row["account"])))
    return opened


_CALLBACKS = (
    sa.select(
        deliveries,
        tasks.c.type,
        tasks.c.traceparent,
        tasks.c.callback_url,
        tasks.c.callback_secret,
        tasks.c.callback_headers,
        tasks.c.callback_origin,
        tasks.c.callback_fingerprint,
        tasks.c.callback_token,
        tasks.c.schemes,
        tasks.c.window_end,
        bodies.c.content,
        bodies.c.content_type,
        bodies.c.headers,
    )
    .select_from(
        deliveries.join(tasks, tasks.c.id == deliveries.c.source_id).join(bodies, bodies.c.id == deliveries.c.body_id)
    )
    .where(deliveries.c.id.in_(sa.bindparam("ids", expanding=True)))
)


def _window_is_over(row: sa.RowMapping, now: int) -> bool:
    return row["callback_url"] is None or (row["window_end"] is not None and row["window_end"] <= now)


async def _expire(tx: Transaction, rows: Sequence[sa.RowMapping]) -> None:
    if not rows:
        return
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_([row["id"] for row in rows]))
        .values(state=DeliveryState.EXPIRED, reason="window", due_at=None, finished_at=tx.now)
    )
    await wipe(tx, {row["source_id"] for row in rows})
    await ledger.count(tx, Counter((row["account"], DeliveryState.EXPIRED) for row in rows))


# --- subscriptions ----------------------------------------------------------------------------------------


async def _messages(tx: Transaction, ids: Sequence[str], known: Endpoints) -> list[LeasedDelivery]:
    rows = (await tx.connection.execute(_MESSAGES, {"ids": ids})).mappings().all()
    standing = await endpoints.standing(tx.connection, (row["subscription_id"] for row in rows))
    going = await _without_those_that_stay(tx, rows, standing)
    opened = await _opened(tx, going, standing, known)
    return [
        _leased(row, Endpoint.of_subscription(opened[row["subscription_id"]]))
        for row in going
        if row["subscription_id"] in opened
    ]


async def _opened(
    tx: Transaction, rows: Sequence[sa.RowMapping], standing: dict[str, sa.RowMapping], known: Endpoints
) -> dict[str, Subscription]:
    wanted = {row["subscription_id"] for row in rows}
    with contextlib.suppress(KeyringError):
        return await known.get(tx.connection, [Stamp.of(standing[id_]) for id_ in wanted])
    opened: dict[str, Subscription] = {}
    for id_ in wanted:
        # One by one: what cannot be opened must not keep the others.
        try:
            opened.update(await known.get(tx.connection, [Stamp.of(standing[id_])]))
        except KeyringError:
            for row in rows:
                if row["subscription_id"] == id_:
                    await _put_off(tx, row, "subscription_unreadable")
    return opened


_MESSAGES = (
    sa.select(
        deliveries,
        events.c.type,
        events.c.traceparent,
        bodies.c.content,
        bodies.c.content_type,
        bodies.c.headers,
    )
    .select_from(
        deliveries.join(events, events.c.id == deliveries.c.source_id).join(bodies, bodies.c.id == deliveries.c.body_id)
    )
    .where(deliveries.c.id.in_(sa.bindparam("ids", expanding=True)))
)


async def _without_those_that_stay(
    tx: Transaction, rows: Sequence[sa.RowMapping], standing: dict[str, sa.RowMapping]
) -> list[sa.RowMapping]:
    """Those that may be sent. What a disabled subscription would get is held, and of a deleted one cancelled."""
    going: list[sa.RowMapping] = []
    deleted: list[sa.RowMapping] = []
    disabled: dict[str, list[str]] = {}
    for row in rows:
        subscription = standing.get(row["subscription_id"])
        if subscription is None or subscription["state"] == SubscriptionState.DELETED:
            deleted.append(row)
        elif subscription["state"] == SubscriptionState.DISABLED and row["kind"] == DeliveryKind.MESSAGE:
            disabled.setdefault(row["subscription_id"], []).append(row["id"])
        else:
            going.append(row)
    for id_, ids in disabled.items():
        await holding.hold(tx, standing[id_], ids)
    await end(tx, deleted, DeliveryState.CANCELLED, "deleted")
    return going


def _leased(row: sa.RowMapping, endpoint: Endpoint) -> LeasedDelivery:
    return LeasedDelivery(
        id=row["id"],
        wire_id=row["wire_id"],
        account=row["account"],
        lane=row["lane"],
        attempt=row["attempt"] + 1,
        event=row["type"],
        endpoint=endpoint,
        body=Body(row["content"], row["content_type"], tuple((n, v) for n, v in row["headers"] or ())),
        traceparent=row["traceparent"],
        kind=DeliveryKind(row["kind"]),
        other_secret=row["other_secret"],
    )


# --- when there is more -----------------------------------------------------------------------------------


async def next_due(tx: Transaction, lanes: Sequence[str]) -> dict[str, float | None]:
    """Seconds until each lane has something due; None where nothing waits."""
    if not lanes:
        return {}
    rows = await tx.connection.execute(_first_due(len(lanes)), {f"lane{n}": lane for n, lane in enumerate(lanes)})
    return {lane: None if due is None else max(0.0, (due - tx.now) / 1000) for lane, due in rows}


@functools.lru_cache(2 * MAX_LANES_PER_CLAIM)
def _first_due(lanes: int) -> sa.Executable:
    arms = [
        sa.select(
            sa.bindparam(f"lane{n}", type_=sa.String),
            sa.select(sa.func.min(deliveries.c.due_at))
            .where(is_waiting, deliveries.c.lane == sa.bindparam(f"lane{n}"))
            .scalar_subquery(),
        )
        for n in range(lanes)
    ]
    return sa.union_all(*arms) if len(arms) > 1 else arms[0]


async def due_lanes(tx: Transaction, pages: Sequence[tuple[str, int]]) -> list[dict[str, float]]:
    """For each (lane to start after, limit): the lanes that have pending work, and the seconds until it is due.

    A loose index scan: it hops from lane to lane, so its cost grows with lanes and not with what waits in them.
    """
    return [await _due_lanes(tx, after, limit) for after, limit in pages]


async def _due_lanes(tx: Transaction, after: str, limit: int) -> dict[str, float]:
    def first_after(lane: sa.ColumnElement[str] | str) -> sa.ScalarSelect[str]:
        return sa.select(sa.func.min(deliveries.c.lane)).where(is_waiting, deliveries.c.lane > lane).scalar_subquery()

    hops = sa.select(first_after(after).label("lane")).cte("hops", recursive=True)
    hops = hops.union_all(sa.select(first_after(hops.c.lane)).where(hops.c.lane.is_not(None)))
    lanes = list(await tx.connection.scalars(sa.select(hops.c.lane).where(hops.c.lane.is_not(None)).limit(limit)))
    return {lane: due for lane, due in (await next_due(tx, lanes)).items() if due is not None}
