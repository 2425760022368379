"""How long the query takes that leases from a hundred lanes, of which one has ever more waiting, on PostgreSQL.

`python -m scripts.benchmark.claims postgresql://… --plot claims.svg`, on a database with nothing in it. Rows are made
by the database itself, and only those of `deliveries`: that is all that the query looks at.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from time import perf_counter

import sqlalchemy as sa
from rich.console import Console

from dispatcher.store import lanewise, migrations
from dispatcher.store.database import Database, now_ms
from dispatcher.store.records import LaneClaim
from dispatcher.store.statements import run
from dispatcher.store.tables import deliveries
from scripts.benchmark.figures import percentile

SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
#: how often each query is asked, after as many that are not counted as it takes until plans are kept
TIMES, BEFORE = 300, 20
#: rows that one statement makes
PART = 100_000
#: the lane that grows, and others that have ten each
LONG, OTHERS, EACH = "acme https://long", 99, 10
#: deliveries that are leased of each lane at most
LIMIT = 2

_FILL = sa.text("""
    INSERT INTO deliveries (id, account, source_id, wire_id, lane, state, attempt, failures, repeats, due_at, body_id,
                            created_at)
    SELECT lpad(to_hex(n), 32, '0'), 'acme', lpad(to_hex(n), 32, '1'), lpad(to_hex(n), 32, '0'),
           CAST(:lane AS text) || CASE WHEN :spread THEN n % 99 || '' ELSE '' END, 'pending', 0, 0, 0, 1000000 + n,
           lpad(to_hex(n), 32, '0'), 1
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) n
""")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a query took with so many rows waiting, milliseconds."""

    waiting: int
    query: str
    median: float
    slow: float


async def measure(url: str, sizes: Sequence[int]) -> list[Measured]:
    """Fill, and ask; again and again."""
    say = Console(stderr=True).print
    database = Database(url)
    try:
        async with database.setup() as connection:
            await connection.run_sync(migrations.upgrade)
            if await connection.scalar(sa.select(sa.func.count()).select_from(deliveries)):
                sys.exit("this database has deliveries: name one with nothing in it")
        await _fill(database, "acme https://other", first=10**9, last=10**9 + OTHERS * EACH - 1, spread=True)
        measured: list[Measured] = []
        made = 0
        for size in sizes:
            began = perf_counter()
            for first in range(made + 1, size + 1, PART):
                await _fill(database, LONG, first=first, last=min(size, first + PART - 1), spread=False)
            made = size
            async with database.write() as connection:
                await connection.execute(sa.text("ANALYZE deliveries"))
            say(f"{size:,} rows in {perf_counter() - began:.0f} s")
            measured += [await _timed(database, size, query) for query in QUERIES]
        return measured
    finally:
        await database.close()


async def _fill(database: Database, lane: str, **values: int | bool) -> None:
    async with database.write() as connection:
        await connection.execute(_FILL, {"lane": lane, **values})


#: what is asked
QUERIES = ("lease from 100 lanes", "when 100 lanes are due")


async def _timed(database: Database, waiting: int, query: str) -> Measured:
    lanes = [LONG, *(f"acme https://other{number}" for number in range(OTHERS))]
    claims = [LaneClaim(lane=lane, limit=LIMIT) for lane in lanes]
    took: list[float] = []
    async with database.hold() as held:
        for _ in range(BEFORE + TIMES):
            transaction = await held.begin()
            now = await held.scalar(sa.select(now_ms())) or 0
            dialect = held.dialect
            step = lanewise.due(dialect, claims, now) if query == QUERIES[0] else lanewise.first_due(dialect, lanes)
            began = perf_counter()
            [rows] = await run(held, step)
            took.append(1000 * (perf_counter() - began))
            # What was locked is free again; nothing was changed.
            await transaction.rollback()
            if len(rows) != (len(lanes) * LIMIT if query == QUERIES[0] else len(lanes)):
                sys.exit(f"{query}: {len(rows)} rows are not what waits there")
    counted = sorted(took[BEFORE:])
    return Measured(waiting=waiting, query=query, median=percentile(counted, 0.5), slow=percentile(counted, 0.99))


# --- what is shown ----------------------------------------------------------------------------------------


def table(measured: Sequence[Measured]) -> str:
    """A table in Markdown."""
    lines = [f"| waiting | {' | '.join(f'{query}, ms (p99)' for query in QUERIES)} |", f"|---|{'---|' * len(QUERIES)}"]
    for waiting in dict.fromkeys(one.waiting for one in measured):
        cells = [f"{one.median:.1f} ({one.slow:.1f})" for one in measured if one.waiting == waiting]
        lines.append(f"| {waiting:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 820, 320, 60, 210, 40, 40
_COLOURS = ("#0b6e4f", "#8a5a00")


def draw(measured: Sequence[Measured]) -> str:
    """The median of each query by the number of rows that wait; one step to the right is ten times as many."""
    sizes = list(dict.fromkeys(one.waiting for one in measured))
    top = max(one.slow for one in measured) * 1.1
    positions = {size: _LEFT + n * (_WIDTH - _LEFT - _RIGHT) / max(1, len(sizes) - 1) for n, size in enumerate(sizes)}

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM), 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">Milliseconds, by deliveries that wait in one lane</text>',
    ]
    lines += [
        f'<line x1="{_LEFT}" y1="{y(value)}" x2="{_WIDTH - _RIGHT}" y2="{y(value)}" stroke="#e3e5e8"/>'
        f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end" fill="#5b6069">{value:.0f}</text>'
        for value in (0.0, top / 2, top / 1.1)
    ]
    lines += [
        f'<text x="{x:.0f}" y="{_HEIGHT - 14}" text-anchor="middle" fill="#5b6069">{size:,}</text>'
        for size, x in positions.items()
    ]
    for query, colour in zip(QUERIES, _COLOURS, strict=True):
        mine = [one for one in measured if one.query == query]
        for name, values, dash in (
            ("median", [one.median for one in mine], ""),
            ("p99", [one.slow for one in mine], ' stroke-dasharray="4 4"'),
        ):
            points = " ".join(
                f"{positions[one.waiting]:.0f},{y(value)}" for one, value in zip(mine, values, strict=True)
            )
            lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            lines.append(
                f'<text x="{_WIDTH - _RIGHT + 10}" y="{y(values[-1]) + 4}" fill="{colour}" '
                f'font-size="12">{escape(query)}, {name}</text>'
            )
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.claims", description=__doc__)
    parser.add_argument("url", help="a database of PostgreSQL with nothing in it")
    parser.add_argument("--sizes", type=lambda text: [int(one) for one in text.split(",")], default=SIZES)
    parser.add_argument("--plot", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    measured = asyncio.run(measure(arguments.url, arguments.sizes))
    sys.stdout.write(table(measured) + "\n")
    if arguments.plot is not None:
        arguments.plot.write_text(draw(measured))


if __name__ == "__main__":
    main()
