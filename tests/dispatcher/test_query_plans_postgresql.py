"""What PostgreSQL does for the statements of the store: an index serves each, and leasing costs what it leases.

Costs are counted in pages that are looked at, not in time. Plans are those for any parameters, as prepared statements
have them in the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from dispatcher.store import lanewise, leasing, ordering
from dispatcher.store.records import LaneClaim
from dispatcher.store.statements import Step
from tests.dispatcher.test_query_plans import GROWING, exercise, exercise_subscriptions
from tests.support.stores import Home, open_store

LONG = "acme https://long"
#: a lane that keeps an order
LINE = "acme fifo"


@asynccontextmanager
async def generic_plans(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        yield connection
    finally:
        await connection.close()


async def test_an_index_serves_every_statement(postgres_url: str, tmp_path: Path) -> None:
    """Also where tables are small, as here, the database is kept from reading them as a whole."""
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")) and "alembic" not in statement:
            seen.setdefault(statement, parameters[0] if many else parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        async with open_store(Home(data_dir=tmp_path / "data", database_url=postgres_url), alone=False) as store:
            await exercise(store)
            await exercise_subscriptions(store)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    plans: dict[str, str] = {}
    async with generic_plans(postgres_url) as connection:
        await connection.execute("SET enable_seqscan = off")
        for statement, parameters in seen.items():
            rows = await connection.fetch(f"EXPLAIN (COSTS OFF) {statement}", *parameters)
            plans[statement] = "\n".join(row[0] for row in rows)
    assert len(plans) > 80
    whole = re.compile(rf"Seq Scan on ({'|'.join(GROWING)})\b")
    assert {statement: plan for statement, plan in plans.items() if whole.search(plan)} == {}
    assert any("unnest" in statement and "SKIP LOCKED" in statement for statement in plans)


# --- at real sizes ----------------------------------------------------------------------------------------

#: deliveries that wait in one lane, and half as many that have ended there
FEW, MANY = 1_000, 40_000
#: other lanes, with one that waits in each
LANES = 2_000

FILL = """
INSERT INTO deliveries (id, account, source_id, wire_id, lane, state, attempt, failures, repeats, due_at, body_id,
                        seq, order_key, created_at)
SELECT lpad(to_hex(n), 32, '0'), 'acme', lpad(to_hex(n), 32, '0'), lpad(to_hex(n), 32, '0'), {lane}, '{state}',
       0, 0, 0, {due}, lpad(to_hex(n), 32, '0'), {seq}, {key}, 1
FROM generate_series({first}, {last}) n
"""


def filling(first: int, last: int, *, lane: str = f"'{LONG}'", state: str = "pending", due: str = "n") -> str:
    return FILL.format(first=first, last=last, lane=lane, state=state, due=due, seq="NULL", key="NULL")


def line(first: int, last: int) -> str:
    return FILL.format(first=first, last=last, lane=f"'{LINE}'", state="pending", due="NULL", seq="n", key="''")


async def cost(connection: asyncpg.Connection[Any], sql: str, *parameters: Any) -> tuple[int, float]:
    """How many pages a statement looks at, and the planner's own estimate. What it changes is undone.

    By the estimate PostgreSQL decides whether to compile a statement each time (JIT), which takes up to a second.
    """
    transaction = connection.transaction()
    await transaction.start()
    found = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", *parameters)
    await transaction.rollback()
    plan = json.loads(found)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]), float(plan["Total Cost"])


async def cost_of(connection: asyncpg.Connection[Any], step: Step) -> tuple[int, float]:
    statement, rows = step
    assert not callable(rows)
    [row] = rows
    prepared = statement.prepared(DIALECT)
    return await cost(connection, prepared.sql, *prepared.rows([row])[0])


#: the estimate for 200 deliveries of each lane is well below; one that grows with what waits is beyond it here
MOST = 10_000
DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


async def costs(connection: asyncpg.Connection[Any]) -> dict[str, tuple[int, float]]:
    """What it costs to lease from a hundred lanes, of which one is long, and all that goes with it."""
    await connection.execute("ANALYZE deliveries")
    lanes = [LONG, *(f"acme https://h{number}" for number in range(99))]
    groups = {"lanes": [LINE, "acme x"], "keys": ["", ""]}
    head = ordering._of_each(ordering._head).compile(dialect=DIALECT)
    ids = [f"{number:032x}" for number in range(1, 51)]
    return {
        "due": await cost_of(
            connection, lanewise.due(DIALECT, [LaneClaim(lane=lane, limit=20) for lane in lanes], 10**12)
        ),
        "first due": await cost_of(connection, lanewise.first_due(DIALECT, lanes)),
        "lease": await cost_of(connection, (leasing._LEASE, [("s" * 32, ids)])),
        "head": await cost(connection, str(head), *((head.params | groups)[name] for name in head.positiontup or ())),
    }


async def test_a_long_lane_costs_nothing(postgres_url: str) -> None:
    async with generic_plans(postgres_url) as connection:
        await connection.execute(filling(1, FEW))
        await connection.execute(line(4 * MANY, 4 * MANY + FEW))
        await connection.execute(filling(10**6, 10**6 + 99, lane=f"'acme https://h' || (n - {10**6})"))
        few = await costs(connection)
        await connection.execute(filling(FEW + 1, MANY))
        await connection.execute(line(4 * MANY + FEW + 1, 5 * MANY))
        await connection.execute(filling(2 * MANY, 2 * MANY + MANY // 2, state="delivered", due="NULL"))
        many = await costs(connection)
        await connection.execute(filling(10**7, 10**7 + LANES, lane="'acme https://other' || n"))
        with_lanes = await costs(connection)
    for name, (pages, _) in few.items():
        for later in (many[name], with_lanes[name]):
            # an index of more pages has a level more
            assert later[0] <= 2 * pages + 10, (name, few, many, with_lanes)
            assert later[1] <= MOST, (name, few, many, with_lanes)


@pytest.mark.parametrize("lanes", [1, 7, 100])
async def test_it_is_the_same_statement_for_any_number_of_lanes(lanes: int) -> None:
    claims = [LaneClaim(lane=f"acme https://h{number}", limit=1) for number in range(lanes)]
    statement, rows = lanewise.due(DIALECT, claims, 1)
    assert statement is lanewise.due(DIALECT, claims[:1], 1)[0]
    assert rows == [(1, [claim.lane for claim in claims], [1] * lanes)]
