"""The ledger: deliveries counted as they are accepted and as they end.

A transaction gathers what it counts (`Transaction.counts`) and writes it last. So a row of the ledger, which other
processes want, too, is locked for no longer than the COMMIT takes, and all lock them in one order.

The live states are counted by row when somebody asks. So the two sides of

    accepted = delivered + exhausted + rejected + expired + cancelled + pending + leased + held

come from different places, and a delivery that vanished would show.
"""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.models import LIVE_STATES, TERMINAL_STATES
from dispatcher.store.database import upsert
from dispatcher.store.statements import Statement, Step
from dispatcher.store.tables import deliveries, is_live, ledger

ACCEPTED = "accepted"
#: how many rows one account's count is spread over
SLOTS = 16


def counting(counts: Counter[tuple[str, str]], *, session: str) -> Step:
    """What adds to the counts of (account, state), in the slot of this session."""
    slot = int(session[-4:], 16) % SLOTS
    return _ADD, [(account, slot, str(state), number) for (account, state), number in sorted(counts.items())]


def _addition(dialect: str) -> sa.ClauseElement:
    insert = upsert(dialect, ledger)
    return insert.on_conflict_do_update(
        index_elements=[ledger.c.account, ledger.c.slot, ledger.c.state],
        set_={"count": ledger.c.count + insert.excluded.count},
    )


_ADD = Statement(_addition, "account", "slot", "state", "count")


async def read(connection: AsyncConnection, account: str) -> dict[str, int]:
    """One account's counts: accepted, then every state of a delivery."""
    counted = await connection.execute(
        sa.select(ledger.c.state, sa.func.sum(ledger.c.count))
        .where(ledger.c.account == account)
        .group_by(ledger.c.state)
    )
    live = await connection.execute(
        sa.select(deliveries.c.state, sa.func.count())
        .where(is_live, deliveries.c.account == account)
        .group_by(deliveries.c.state)
    )
    found = {state: int(number) for state, number in (*counted, *live)}
    return {str(state): found.get(state, 0) for state in (ACCEPTED, *TERMINAL_STATES, *LIVE_STATES)}
