"""Order: deliveries of one group (lane and order key) go out one after the other, by their place.

Only the first of a group that can still move is ever due; the others are pending without a due time. So leasing needs
to know nothing of order, and costs the same however long the line is. Whoever ends the first, or puts one before it,
calls `promote`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import sqlalchemy as sa

from dispatcher.models import DeliveryState
from dispatcher.store import lanewise
from dispatcher.store.committer import Transaction
from dispatcher.store.statements import Ids
from dispatcher.store.tables import deliveries, is_in_turn, is_ordered, subscriptions
from subscriptions.models import Ordering

#: a lane and an order key
Group = tuple[str, str]

#: groups asked in one statement; each is an arm of a UNION, and SQLite allows 500 of them
MAX_GROUPS_PER_QUERY = 100


def order_key(ordering: str, ordering_key: str | None) -> str | None:
    """The key under which an event keeps its order at a subscription; None if it keeps none."""
    match Ordering(ordering):
        case Ordering.FIFO:
            return ""
        case Ordering.FIFO_BY_KEY:
            return ordering_key
        case Ordering.NONE:
            return None


class Placed(Protocol):
    """What tells of a delivery where it stands."""

    @property
    def lane(self) -> str:
        """Its lane."""

    @property
    def seq(self) -> int | None:
        """Its place in order."""

    @property
    def order_key(self) -> str | None:
        """What keeps an order together."""


def groups_of(rows: Iterable[Placed | sa.Row[Any]]) -> set[Group]:
    """The groups of those deliveries that keep an order."""
    return {(row.lane, row.order_key or "") for row in rows if row.seq is not None}


async def take_places(tx: Transaction, counts: Mapping[str, int]) -> dict[str, int]:
    """Reserve so many places at each subscription, under its row's lock; answers the first of each."""
    first: dict[str, int] = {}
    for id_, count in sorted(counts.items()):
        after = await tx.connection.scalar(
            sa.update(subscriptions)
            .where(subscriptions.c.id == id_)
            .values(next_seq=subscriptions.c.next_seq + count)
            .returning(subscriptions.c.next_seq)
        )
        first[id_] = int(after) - count if after is not None else 0
    return first


async def heads(tx: Transaction, groups: Iterable[Group]) -> dict[Group, sa.RowMapping]:
    """The first delivery of each group that can still move."""
    return await _one_of_each(tx, groups, _head)


async def promote(tx: Transaction, groups: Iterable[Group]) -> set[str]:
    """Let the first of each group have its turn, if it waits for nothing else. Answers the lanes where one became due.

    What is being sent is waited for, even where something that is sent again stands before it now; what only waits
    to be tried again is not.
    """
    found = await heads(tx, groups)
    waiting = {
        group: head for group, head in found.items() if head["state"] != DeliveryState.LEASED and head["due_at"] is None
    }
    in_turn = await _one_of_each(tx, waiting, _in_turn)
    sending = {group for group, row in in_turn.items() if row["state"] == DeliveryState.LEASED}
    await _set_due(tx, [row["id"] for group, row in in_turn.items() if group not in sending], None)
    promoted = [
        head for group, head in waiting.items() if group not in sending and head["state"] == DeliveryState.PENDING
    ]
    await _set_due(tx, [head["id"] for head in promoted], tx.now)
    return {head["lane"] for head in promoted}


async def _set_due(tx: Transaction, ids: list[str], due_at: int | None) -> None:
    if ids:
        await tx.connection.execute(sa.update(deliveries).where(deliveries.c.id.in_(ids)).values(due_at=due_at))


# --- the rows of a group ----------------------------------------------------------------------------------

_Row = sa.Select[tuple[str, str, str, str, int | None]]
_Name = str | sa.ColumnElement[str]
_Query = Callable[[_Name, _Name], _Row]


async def _one_of_each(tx: Transaction, groups: Iterable[Group], query: _Query) -> dict[Group, sa.RowMapping]:
    wanted = sorted(set(groups))
    if not wanted:
        return {}
    if lanewise.has_lateral(tx.connection.dialect):
        lanes, keys = map(list, zip(*wanted, strict=True))
        rows = await tx.connection.execute(_of_each(query), {"lanes": lanes, "keys": keys})
        return {(row["lane"], row["order_key"]): row for row in rows.mappings()}
    found: dict[Group, sa.RowMapping] = {}
    for start in range(0, len(wanted), MAX_GROUPS_PER_QUERY):
        arms = [sa.select(query(*group).subquery()) for group in wanted[start : start + MAX_GROUPS_PER_QUERY]]
        rows = await tx.connection.execute(sa.union_all(*arms) if len(arms) > 1 else arms[0])
        found.update({(row["lane"], row["order_key"]): row for row in rows.mappings()})
    return found


@functools.cache
def _of_each(query: _Query) -> sa.Select[Any]:
    asked = (
        sa.func.unnest(sa.bindparam("lanes", type_=Ids()), sa.bindparam("keys", type_=Ids()))
        .table_valued("lane", "key")
        .render_derived()
    )
    found = query(asked.c.lane, asked.c.key).lateral()
    return sa.select(found).select_from(asked.join(found, sa.true()))


def _head(lane: _Name, key: _Name) -> _Row:
    return _of_group(lane, key).where(is_ordered).order_by(deliveries.c.seq).limit(1)


def _in_turn(lane: _Name, key: _Name) -> _Row:
    return _of_group(lane, key).where(is_in_turn).limit(1)


def _of_group(lane: _Name, key: _Name) -> _Row:
    return sa.select(
        deliveries.c.id, deliveries.c.lane, deliveries.c.order_key, deliveries.c.state, deliveries.c.due_at
    ).where(deliveries.c.lane == lane, deliveries.c.order_key == key)
