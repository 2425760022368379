"""Asking for each of many lanes at once, at the cost of one index range each: a long lane costs the others nothing.

On PostgreSQL it is one statement, however many lanes there are: LATERAL. A UNION with an arm for each would have to be
planned anew for each number of them, which takes a hundred times as long as to execute it. SQLite has no LATERAL, and
plans in no time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dispatcher.store.records import LaneClaim
from dispatcher.store.statements import Ids, Statement, Step
from dispatcher.store.tables import deliveries, is_waiting

#: lanes asked in one statement; each is an arm of a UNION, and SQLite allows 500 of them
MAX_LANES = 100
#: deliveries that PostgreSQL finds of one lane at most
MAX_OF_A_LANE = 200


def has_lateral(dialect: sa.Dialect) -> bool:
    """Whether a database can do it by one statement."""
    return dialect.name == "postgresql"


# --- due deliveries ---------------------------------------------------------------------------------------


def due(dialect: sa.Dialect, claims: Sequence[LaneClaim], now: int) -> Step:
    """What leases due deliveries, oldest first within each lane: their ids and subscriptions."""
    if has_lateral(dialect):
        return _DUE, [(now, [claim.lane for claim in claims], [claim.limit for claim in claims])]
    return _due_arms(len(claims)), [(now, *(value for claim in claims for value in (claim.lane, claim.limit)))]


def _due_of(lane: sa.ColumnElement[Any], limit: sa.ColumnElement[int]) -> sa.Select[tuple[str, str | None]]:
    return (
        sa.select(deliveries.c.id, deliveries.c.subscription_id)
        .where(is_waiting, deliveries.c.lane == lane, deliveries.c.due_at <= sa.bindparam("now"))
        .order_by(deliveries.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def _due_laterally() -> Statement:
    asked = (
        sa.func.unnest(sa.bindparam("lanes", type_=Ids()), sa.bindparam("limits", type_=sa.ARRAY(sa.Integer)))
        .table_valued("lane", "most")
        .render_derived()
    )
    # The inner limit is for the planner, which cannot know the outer one: it would expect a tenth of all that waits,
    # and compile the statement anew each time (JIT), for a second. Rows are locked one by one, as they are wanted.
    some = _due_of(asked.c.lane, sa.literal_column(str(MAX_OF_A_LANE))).correlate(asked).lateral()
    found = sa.select(some).limit(asked.c.most).lateral()
    return Statement(
        sa.select(found.c.id, found.c.subscription_id).select_from(asked.join(found, sa.true())),
        "now",
        "lanes",
        "limits",
    )


_DUE = _due_laterally()


@functools.cache
def _due_arms(lanes: int) -> Statement:
    arms = [
        sa.select(_due_of(sa.bindparam(f"lane{n}"), sa.bindparam(f"limit{n}", type_=sa.Integer)).subquery())
        for n in range(lanes)
    ]
    names = [name for n in range(lanes) for name in (f"lane{n}", f"limit{n}")]
    return Statement(sa.union_all(*arms) if len(arms) > 1 else arms[0], "now", *names, packed=True)


# --- when something is due --------------------------------------------------------------------------------


def first_due(dialect: sa.Dialect, lanes: Sequence[str]) -> Step:
    """What finds for each lane when the first of it is due; nothing where nothing waits."""
    if has_lateral(dialect):
        return _FIRST_DUE, [(lanes,)]
    return _first_due_arms(len(lanes)), [lanes]


def _first_due_of(lane: sa.ColumnElement[Any]) -> sa.ScalarSelect[int | None]:
    return sa.select(sa.func.min(deliveries.c.due_at)).where(is_waiting, deliveries.c.lane == lane).scalar_subquery()


def _first_due_of_each() -> Statement:
    asked = sa.func.unnest(sa.bindparam("lanes", type_=Ids())).table_valued("lane").render_derived()
    return Statement(sa.select(asked.c.lane, _first_due_of(asked.c.lane)), "lanes")


_FIRST_DUE = _first_due_of_each()


@functools.lru_cache(2 * MAX_LANES)
def _first_due_arms(lanes: int) -> Statement:
    arms = [
        sa.select(sa.bindparam(f"lane{n}", type_=sa.String), _first_due_of(sa.bindparam(f"lane{n}")))
        for n in range(lanes)
    ]
    asked = sa.union_all(*arms) if len(arms) > 1 else arms[0]
    return Statement(asked, *(f"lane{n}" for n in range(lanes)), packed=True)
