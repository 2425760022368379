"""Places in the paces of subscriptions: what `dispatcher.pace` gives out is written down here.

A lease takes places for what it leases, in the same transaction. Nobody waits for a pace that another process is just
at: it is skipped, like rows that others are leasing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from dispatcher.pace import AHEAD, Held, Places, give
from dispatcher.store.committer import Transaction
from dispatcher.store.tables import paces


class Wish(NamedTuple):
    """Places that somebody would like to have."""

    places: int
    #: sends per second
    rate: float


async def take(tx: Transaction, wishes: Mapping[str, Wish]) -> dict[str, Places]:
    """The next places at each subscription for this process; fewer than wished for, or none."""
    if not wishes:
        return {}
    found = await tx.connection.execute(
        sa.select(paces).where(paces.c.subscription_id.in_(sorted(wishes))).with_for_update(skip_locked=True)
    )
    held = {row.subscription_id: Held(by=row.session, until=row.until) for row in found}
    given = {
        id_: give(held.get(id_), to=tx.session, wanted=wish.places, rate=wish.rate, now=tx.now)
        for id_, wish in wishes.items()
    }
    await _write(tx, {id_: places for id_, places in given.items() if id_ in held})
    begun = await _begin(tx, {id_: places for id_, places in given.items() if id_ not in held})
    for id_ in wishes.keys() - held.keys() - begun:
        # Another process is just at it.
        given[id_] = Places(at=(), ask_at=tx.now + 1000 * AHEAD)
    return given


async def _write(tx: Transaction, given: Mapping[str, Places]) -> None:
    rows = [{"id": id_, "last": places.at[-1]} for id_, places in given.items() if places.at]
    if rows:
        await tx.connection.execute(
            sa.update(paces)
            .where(paces.c.subscription_id == sa.bindparam("id"))
            .values(session=tx.session, until=sa.bindparam("last")),
            rows,
        )


async def _begin(tx: Transaction, given: Mapping[str, Places]) -> set[str]:
    """Write those down that were not yet. Answers which of them nobody else has meanwhile."""
    if not given:
        return set()
    rows = [
        {"subscription_id": id_, "session": tx.session, "until": places.at[-1]} for id_, places in sorted(given.items())
    ]
    statement = postgresql.insert(paces).values(rows).on_conflict_do_nothing()
    return set(await tx.connection.scalars(statement.returning(paces.c.subscription_id)))
