"""Deliveries to subscriptions come into being here, whatever they are for: an event, a ping, a notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from dispatcher.ids import new_id
from dispatcher.models import BodyMode, DeliveryKind, DeliveryState, lane_of, ping_lane_of
from dispatcher.store import endpoints, holding, ledger, ordering
from dispatcher.store.committer import Transaction
from dispatcher.store.deliveries import count_held
from dispatcher.store.endpoints import Standing
from dispatcher.store.leases import Leased
from dispatcher.store.statements import Statement
from dispatcher.store.tables import deliveries
from subscriptions.models import SubscriptionState

#: deliveries that are held for one subscription, beyond which new ones expire at once
MAX_HELD = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A subscription that a message goes to."""

    subscription_id: str
    #: it is active and keeps no order, as this transaction has made sure: no need to look at its row
    is_plain: bool = False
    #: the form that a plain one gets; what the others get, their rows say
    body_mode: str = BodyMode.RAW
    #: the delivery's id, where it is handed off to this process's lanes with the commit
    handed_off: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """One message, and the subscriptions that it goes to."""

    account: str
    #: the event
    source_id: str
    #: the stored body for each form; `raw` is always there
    bodies: dict[str, str]
    targets: Sequence[Target]
    ordering_key: str | None = None
    kind: DeliveryKind = DeliveryKind.MESSAGE


@dataclass(kw_only=True, slots=True)
class Made:
    """What was made."""

    #: ids in the order of the targets
    ids: list[str] = field(default_factory=list)


async def make(tx: Transaction, makings: Sequence[Making]) -> list[Made]:
    """Insert the deliveries of messages, each in the state that its subscription asks for.

    For a disabled subscription it is held, or, beyond the quota, expired. Where an order is kept, each takes its
    place, and is due only if nothing stands before it.
    """
    standing = await endpoints.standing(
        tx.connection,
        (target.subscription_id for making in makings for target in making.targets if not target.is_plain),
        lock=True,
    )
    batch = _Batch(tx, standing)
    made = [batch.add(making) for making in makings]
    await batch.place()
    await batch.insert()
    return made


class _Batch:
    """Rows that are being made in one transaction."""

    def __init__(self, tx: Transaction, standing: dict[str, Standing]) -> None:
        self._tx = tx
        self._standing = standing
        self._rows: list[dict[str, Any]] = []
        #: rows that keep an order
        self._ordered: list[dict[str, Any]] = []
        self._held: Counter[str] = Counter()

    def add(self, making: Making) -> Made:
        made = Made()
        for target in making.targets:
            standing = self._standing.get(target.subscription_id)
            row = self._row(making, target, standing["body_mode"] if standing else target.body_mode)
            if making.kind is not DeliveryKind.MESSAGE:
                row["lane"] = ping_lane_of(making.account, target.subscription_id)
            elif not target.is_plain:
                self._fit(row, standing, making.ordering_key)
            self._rows.append(row)
            if target.handed_off is not None:
                self._tx.leases.remember(Leased(*_lease(row)))
            made.ids.append(row["id"])
            if row["seq"] is not None:
                self._ordered.append(row)
            elif row["due_at"] is not None and target.handed_off is None:
                self._tx.news.lanes.add(row["lane"])
        return made

    def _row(self, making: Making, target: Target, mode: str) -> dict[str, Any]:
        id_ = target.handed_off or new_id()
        return {
            "id": id_,
            "account": making.account,
            "source_id": making.source_id,
            "subscription_id": target.subscription_id,
            "kind": making.kind.value,
            "wire_id": id_,
            "lane": lane_of(making.account, target.subscription_id),
            "state": DeliveryState.LEASED.value if target.handed_off else DeliveryState.PENDING.value,
            "reason": None,
            "attempt": int(target.handed_off is not None),
            "failures": 0,
            "repeats": 0,
            "due_at": None if target.handed_off else self._tx.now,
            "session": self._tx.session if target.handed_off else None,
            # a subscription that changed its mind since gets the payload as it came
            "body_id": making.bodies.get(mode, making.bodies[BodyMode.RAW]),
            "seq": None,
            "order_key": None,
            "hold_until": None,
            "created_at": self._tx.now,
            "finished_at": None,
        }

    def _fit(self, row: dict[str, Any], standing: Standing | None, ordering_key: str | None) -> None:
        """Give a row the state that its subscription asks for."""
        if standing is None or standing["state"] == SubscriptionState.DELETED:
            self._end(row, DeliveryState.CANCELLED, "deleted")
            return
        key = ordering.order_key(standing["ordering"], ordering_key)
        if key is not None:
            row.update(seq=-1, order_key=key)
        # During a release it is not held: what keeps an order waits behind what still is, and `place` sees to that.
        if standing["state"] == SubscriptionState.DISABLED:
            if standing["held"] + self._held[standing["id"]] >= MAX_HELD:
                row.update(seq=None, order_key=None)
                self._end(row, DeliveryState.EXPIRED, "quota")
                return
            self._held[standing["id"]] += 1
            row.update(
                state=DeliveryState.HELD.value, due_at=None, hold_until=holding.hold_until(standing, self._tx.now)
            )

    def _end(self, row: dict[str, Any], state: DeliveryState, reason: str) -> None:
        row.update(state=state.value, reason=reason, due_at=None, finished_at=self._tx.now)

    async def place(self) -> None:
        """Give those that keep an order their places, and let only the first of each group be due."""
        if not self._ordered:
            return
        next_seq = await ordering.take_places(self._tx, Counter(row["subscription_id"] for row in self._ordered))
        groups = {(row["lane"], row["order_key"]) for row in self._ordered}
        taken = set(await ordering.heads(self._tx, groups))
        for row in self._ordered:
            row["seq"] = next_seq[row["subscription_id"]]
            next_seq[row["subscription_id"]] += 1
            group = (row["lane"], row["order_key"])
            if group in taken:
                row["due_at"] = None
            elif row["due_at"] is not None:
                self._tx.news.lanes.add(row["lane"])
            taken.add(group)

    async def insert(self) -> None:
        """Store them, and count them."""
        if not self._rows:
            return
        await self._tx.run((_DELIVERY, [_values(row) for row in self._rows]))
        counts = self._tx.counts
        for row in self._rows:
            counts[row["account"], ledger.ACCEPTED] += 1
            if row["finished_at"] is not None:
                counts[row["account"], row["state"]] += 1
        await count_held(self._tx, self._held)


#: what a row says
_COLUMNS = (
    "id", "account", "source_id", "subscription_id", "kind", "wire_id", "lane", "state", "reason", "attempt",
    "failures", "repeats", "due_at", "session", "body_id", "seq", "order_key", "hold_until", "created_at",
    "finished_at",
)  # fmt: skip
_values = itemgetter(*_COLUMNS)
_DELIVERY = Statement(sa.insert(deliveries), *_COLUMNS)
#: and, where it is handed off, what `Leased` begins with
_lease = itemgetter(
    "state", "attempt", "session", "id", "account", "source_id", "subscription_id", "kind", "lane"
)  # fmt: skip
