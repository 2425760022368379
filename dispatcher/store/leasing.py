"""Leasing deliveries: what is due, lane by lane, with all that it takes to send it.

No query here costs more when a lane has more waiting in it. docs/states.md draws the states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
import structlog

from dispatcher.bodies import Body
from dispatcher.models import DeliveryKind, DeliveryState
from dispatcher.store import endpoints, holding, lanewise, pacing
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import end, wipe
from dispatcher.store.endpoints import Endpoints, Stamp, Standing
from dispatcher.store.leases import Leased
from dispatcher.store.records import Endpoint, LaneClaim, LeasedBatch, LeasedDelivery
from dispatcher.store.sealing import open_callback
from dispatcher.store.statements import Row, Statement, among, as_read
from dispatcher.store.tables import bodies, deliveries, events, is_waiting, tasks
from subscriptions.keyring import Keyring, KeyringError
from subscriptions.models import Subscription, SubscriptionState

log = structlog.get_logger(__name__)

# As the columns have them; asking an enum each time costs more than to look here.
_LEASED = DeliveryState.LEASED.value
_KINDS = {kind.value: kind for kind in DeliveryKind}

_decode = msgspec.json.decode
_decode_headers = msgspec.json.Decoder(tuple[tuple[str, str], ...]).decode

#: bytes of a body that SQLite packs with the rest of a row
SHORT = 4096
#: how long a delivery waits whose endpoint cannot be opened: somebody has to bring the key, milliseconds
UNREADABLE_DELAY_MS = 300_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What one process wants to lease, lane by lane."""

    lanes: Sequence[LaneClaim]
    keyring: Keyring
    endpoints: Endpoints
    #: others may lease from the same lanes, so that a pace is kept together
    shared: bool


async def lease(tx: Transaction, requests: Sequence[Claims]) -> list[LeasedBatch]:
    """Lease due deliveries, oldest first within each lane, and tell when each lane has more.

    Deliveries whose window has ended are not leased but expired; those of a subscription that is disabled are held.
    """
    return [await _lease_one(tx, request) for request in requests]


async def _lease_one(tx: Transaction, request: Claims) -> LeasedBatch:
    if not request.lanes:
        return LeasedBatch(deliveries=[], next_due={})
    dialect = tx.connection.dialect
    found, callback_rows, message_rows, long = await tx.run(
        lanewise.due(dialect, request.lanes, tx.now),
        (_CALLBACKS, lambda answers: _asked([id_ for id_, subscription_id in answers[0] if subscription_id is None])),
        (_MESSAGES, lambda answers: _asked([id_ for id_, subscription_id in answers[0] if subscription_id])),
        (_LONG, lambda answers: _asked([row[0] for rows in answers[1:] for row in rows if row[1] is None])),
    )
    leased: list[LeasedDelivery] = []
    closed: dict[str, float] = {}
    if found:
        contents: dict[str, bytes] = dict(long)
        callbacks = [_whole(row, contents) for row in map(_DueCallback._make, callback_rows)]
        leased += await _callbacks(tx, callbacks, request.keyring)
        # In the order in which they became due; the database has its own.
        by_id = {row.id: _whole(row, contents) for row in map(_DueMessage._make, message_rows)}
        messages = [by_id[id_] for id_, _ in found if id_ in by_id]
        leased += await _messages(tx, messages, request, closed)
    next_due: dict[str, float | None] = {}
    await tx.leave(
        (_LEASE, [(tx.session, [one.id for one in leased])] if leased else []),
        lanewise.first_due(dialect, [claim.lane for claim in request.lanes]),
        check=lambda _, rows: next_due.update(_seconds_until(rows, tx.now)),
    )
    return LeasedBatch(deliveries=leased, next_due=next_due, closed=closed)


def _asked(ids: Sequence[str]) -> Sequence[Row]:
    return [(ids,)] if ids else []


_LEASE = Statement(
    sa.update(deliveries)
    .where(among(deliveries.c.id, "ids"))
    .values(
        state=DeliveryState.LEASED.value,
        attempt=deliveries.c.attempt + sa.literal_column("1"),
        session=sa.bindparam("by"),
        due_at=sa.null(),
    ),
    "by",
    "ids",
)


class _DueMessage(NamedTuple):
    """A delivery to a subscription that is due, with what it takes to send it and to settle it."""

    id: str
    #: a long one comes after the rest, by the id (`_LONG`)
    content: bytes
    account: str
    source_id: str
    subscription_id: str
    kind: str
    wire_id: str
    lane: str
    state: str
    attempt: int
    failures: int
    last_outcome: str | None
    repeats: int
    seq: int | None
    order_key: str | None
    refused: bool
    other_secret: bool
    type: str
    traceparent: str | None
    content_type: str
    headers: str | None

    def leased(self, session: str) -> Leased:
        """What it is once it is leased."""
        return _lease(
            self,
            session,
            subscription_id=self.subscription_id,
            seq=self.seq,
            order_key=self.order_key,
            refused=self.refused,
        )


class _DueCallback(NamedTuple):
    """A delivery to a callback that is due, with what it takes to send it and to settle it."""

    id: str
    #: a long one comes after the rest, by the id (`_LONG`)
    content: bytes
    account: str
    source_id: str
    kind: str
    wire_id: str
    lane: str
    attempt: int
    failures: int
    last_outcome: str | None
    repeats: int
    other_secret: bool
    type: str
    traceparent: str | None
    content_type: str
    headers: str | None
    callback_url: bytes | None
    callback_secret: bytes | None
    callback_headers: bytes | None
    callback_origin: str
    callback_fingerprint: str
    callback_token: str
    schemes: str | None
    window_end: int | None

    def leased(self, session: str) -> Leased:
        """What it is once it is leased."""
        return _lease(
            self, session, subscription_id=None, window_end=self.window_end, callback_origin=self.callback_origin
        )

    def is_over(self, now: int) -> bool:
        """Whether its window has ended."""
        return self.callback_url is None or (self.window_end is not None and self.window_end <= now)

    def callback(self) -> dict[str, Any]:
        """The columns that hold its callback, as they were sealed."""
        return {
            "callback_url": self.callback_url,
            "callback_secret": self.callback_secret,
            "callback_headers": self.callback_headers,
            "callback_origin": self.callback_origin,
            "callback_fingerprint": self.callback_fingerprint,
            "callback_token": self.callback_token,
            "schemes": None if self.schemes is None else _decode(self.schemes),
            "window_end": self.window_end,
        }


_Due = TypeVar("_Due", _DueMessage, _DueCallback)


def _whole(row: _Due, contents: Mapping[str, bytes]) -> _Due:
    """A row with its content, if that came by itself."""
    return row._replace(content=contents[row.id]) if row.id in contents else row


def _lease(row: _DueCallback | _DueMessage, session: str, **own: Any) -> Leased:
    """What a row is once it is leased; `own` is what only its kind has."""
    return Leased(
        state=_LEASED,
        attempt=row.attempt + 1,
        session=session,
        id=row.id,
        account=row.account,
        source_id=row.source_id,
        kind=row.kind,
        lane=row.lane,
        failures=row.failures,
        last_outcome=row.last_outcome,
        repeats=row.repeats,
        other_secret=row.other_secret,
        **own,
    )


def _due_rows(source: sa.Table, fields: Sequence[str]) -> Statement:
    """What it takes to send deliveries that tell of a row of this table."""

    def column(name: str, dialect: str) -> sa.ColumnElement[Any]:
        found = next(table.c[name] for table in (deliveries, source, bodies) if name in table.c)
        if found is bodies.c.content and dialect == "sqlite":
            return sa.case((sa.func.length(found) <= sa.literal_column(str(SHORT)), found)).label(name)
        return as_read(found)

    def select(dialect: str) -> sa.Select[Any]:
        return (
            sa.select(*(column(name, dialect) for name in fields))
            .select_from(
                deliveries.join(source, source.c.id == deliveries.c.source_id).join(
                    bodies, bodies.c.id == deliveries.c.body_id
                )
            )
            .where(among(deliveries.c.id, "ids"))
        )

    return Statement(select, "ids", packed=True)


#: contents that did not come with the rest, since they are long
_LONG = Statement(
    sa.select(deliveries.c.id, bodies.c.content)
    .select_from(deliveries.join(bodies, bodies.c.id == deliveries.c.body_id))
    .where(among(deliveries.c.id, "ids")),
    "ids",
)
_CALLBACKS = _due_rows(tasks, _DueCallback._fields)
_MESSAGES = _due_rows(events, _DueMessage._fields)


async def _put_off(tx: Transaction, delivery_id: str, what: str) -> None:
    """The keyring cannot open what it takes to send this one: it waits, so that it holds up no other."""
    log.error(what, delivery=delivery_id, advice="the keyring lacks the key that sealed it")
    await tx.connection.execute(
        sa.update(deliveries).where(deliveries.c.id == delivery_id).values(due_at=tx.now + UNREADABLE_DELAY_MS)
    )


def _leased(
    tx: Transaction, row: _DueCallback | _DueMessage, endpoint: Endpoint, *, not_before: float = 0.0
) -> LeasedDelivery:
    lease = row.leased(tx.session)
    tx.leases.remember(lease)
    return LeasedDelivery(
        id=row.id,
        wire_id=row.wire_id,
        account=row.account,
        lane=row.lane,
        attempt=lease.attempt,
        session=tx.session,
        event=row.type,
        endpoint=endpoint,
        body=Body(row.content, row.content_type, _decode_headers(row.headers) if row.headers else ()),
        traceparent=row.traceparent,
        kind=_KINDS[row.kind],
        other_secret=bool(row.other_secret),
        not_before=not_before,
    )


# --- callbacks --------------------------------------------------------------------------------------------


async def _callbacks(tx: Transaction, rows: Sequence[_DueCallback], keyring: Keyring) -> list[LeasedDelivery]:
    over = [row for row in rows if row.is_over(tx.now)]
    if over:
        await _expire(tx, over)
        rows = [row for row in rows if not row.is_over(tx.now)]
    opened: list[LeasedDelivery] = []
    for row in rows:
        try:
            callback = open_callback(keyring, row.callback(), account=row.account, task_id=row.source_id)
        except KeyringError:
            await _put_off(tx, row.id, "callback_unreadable")
        else:
            opened.append(_leased(tx, row, Endpoint.of_callback(callback, account=row.account)))
    return opened


async def _expire(tx: Transaction, rows: Sequence[_DueCallback]) -> None:
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_([row.id for row in rows]))
        .values(state=DeliveryState.EXPIRED, reason="window", due_at=None, finished_at=tx.now)
    )
    await wipe(tx, {row.source_id for row in rows})
    tx.counts.update((row.account, DeliveryState.EXPIRED) for row in rows)


# --- subscriptions ----------------------------------------------------------------------------------------


async def _messages(
    tx: Transaction, rows: Sequence[_DueMessage], request: Claims, closed: dict[str, float]
) -> list[LeasedDelivery]:
    """Those that may be sent, and in `closed` the lanes whose pace does not let us send more."""
    if not rows:
        return []
    standing = await endpoints.standing(tx.connection, (row.subscription_id for row in rows))
    going = await _without_those_that_stay(tx, rows, standing)
    opened = await _opened(tx, going, standing, request.endpoints)
    able = [row for row in going if row.subscription_id in opened]
    places = await _places(tx, able, standing, closed) if request.shared else {}
    return [
        _leased(tx, row, Endpoint.of_subscription(opened[row.subscription_id]), not_before=places.get(row.id, 0.0))
        for row in able
        if row.id in places or row.lane not in closed
    ]


async def _places(
    tx: Transaction, rows: Sequence[_DueMessage], standing: dict[str, Standing], closed: dict[str, float]
) -> dict[str, float]:
    """When each of those may be sent that have a place in a pace, by our monotonic clock."""
    paced: dict[str, list[_DueMessage]] = {}
    for row in rows:
        if row.kind == DeliveryKind.MESSAGE and standing[row.subscription_id]["rate_limit"] is not None:
            paced.setdefault(row.subscription_id, []).append(row)
    given = await pacing.take(
        tx, {id_: pacing.Wish(len(waiting), standing[id_]["rate_limit"]) for id_, waiting in paced.items()}
    )
    starts: dict[str, float] = {}
    for id_, places in given.items():
        # Those without a place are left as they are.
        for row, at in zip(paced[id_], places.at, strict=False):
            starts[row.id] = tx.clock + (at - tx.now) / 1000
        if len(places.at) < len(paced[id_]):
            closed[paced[id_][0].lane] = (places.ask_at - tx.now) / 1000
    return starts


async def _opened(
    tx: Transaction, rows: Sequence[_DueMessage], standing: dict[str, Standing], known: Endpoints
) -> dict[str, Subscription]:
    wanted = {row.subscription_id for row in rows}
    with contextlib.suppress(KeyringError):
        return await known.get(tx.connection, [Stamp.of(standing[id_]) for id_ in wanted])
    opened: dict[str, Subscription] = {}
    for id_ in wanted:
        # One by one: what cannot be opened must not keep the others.
        try:
            opened.update(await known.get(tx.connection, [Stamp.of(standing[id_])]))
        except KeyringError:
            for row in rows:
                if row.subscription_id == id_:
                    await _put_off(tx, row.id, "subscription_unreadable")
    return opened


async def _without_those_that_stay(
    tx: Transaction, rows: Sequence[_DueMessage], standing: dict[str, Standing]
) -> list[_DueMessage]:
    """Those that may be sent. What a disabled subscription would get is held, and of a deleted one cancelled."""
    going: list[_DueMessage] = []
    deleted: list[_DueMessage] = []
    disabled: dict[str, list[str]] = {}
    for row in rows:
        subscription = standing.get(row.subscription_id)
        if subscription is None or subscription["state"] == SubscriptionState.DELETED:
            deleted.append(row)
        elif subscription["state"] == SubscriptionState.DISABLED and row.kind == DeliveryKind.MESSAGE:
            disabled.setdefault(row.subscription_id, []).append(row.id)
        else:
            going.append(row)
    # Sorted, as everybody locks subscriptions.
    for id_, ids in sorted(disabled.items()):
        await holding.hold(tx, standing[id_], ids)
    await end(tx, deleted, DeliveryState.CANCELLED, "deleted")
    return going


# --- when there is more -----------------------------------------------------------------------------------


async def next_due(tx: Transaction, lanes: Sequence[str]) -> dict[str, float | None]:
    """Seconds until each lane has something due; None where nothing waits."""
    if not lanes:
        return {}
    [rows] = await tx.run(lanewise.first_due(tx.connection.dialect, lanes))
    return _seconds_until(rows, tx.now)


def _seconds_until(rows: Sequence[tuple[str, int | None]], now: int) -> dict[str, float | None]:
    return {lane: None if due is None else max(0.0, (due - now) / 1000) for lane, due in rows}


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
