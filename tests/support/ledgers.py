"""What a dispatcher's database says, read beside it by nothing of ours: sqlite3, or asyncpg."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support import postgres

#: where a dispatcher keeps what it knows: a data directory with SQLite's file in it, or the URL of a PostgreSQL
Place = Path | str
#: a question in SQL, and what stands for its `?`
Question = tuple[str, tuple[Any, ...]]
#: of a delivery, in order: number, outcome, status
Attempts = list[tuple[int, str, int | None]]


def ask(place: Place, question: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of an answer."""
    [rows] = answers(place, (question, parameters))
    return rows


def answers(place: Place, *questions: Question) -> list[list[tuple[Any, ...]]]:
    """The rows of several answers, all of the same moment."""
    if isinstance(place, str):
        return postgres.answers(place, questions)
    file = place / "dispatcher.db"
    # Nothing is written, not even what a dead process left in the log.
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as connection:
        connection.execute("BEGIN")
        return [connection.execute(question, parameters).fetchall() for question, parameters in questions]


def change(place: Place, statement: str, *parameters: Any) -> int:
    """Change the database of a dispatcher that is stopped; how many rows changed."""
    if isinstance(place, str):
        return postgres.change(place, statement, parameters)
    with closing(sqlite3.connect(place / "dispatcher.db", timeout=10)) as connection, connection:
        return connection.execute(statement, parameters).rowcount


def attempts_of(place: Place) -> dict[str, Attempts]:
    """Every attempt on record, by delivery."""
    found: dict[str, Attempts] = defaultdict(list)
    question = "SELECT delivery_id, number, outcome, status FROM attempts ORDER BY delivery_id, number"
    for delivery, *attempt in ask(place, question):
        found[delivery].append((attempt[0], attempt[1], attempt[2]))
    return dict(found)


def deliveries_to(place: Place, subscription_id: str) -> dict[str, str]:
    """The state of every message to a subscription."""
    question = "SELECT id, state FROM deliveries WHERE subscription_id = ? AND kind = 'message'"
    return dict(ask(place, question, subscription_id))


def reconciles(place: Place) -> dict[str, int]:
    """Deliveries by state, counted row by row, with `accepted`; fails unless the ledger says the same."""
    counted = dict(ask(place, "SELECT state, count(*) FROM deliveries GROUP BY state"))
    final = {state: number for state, number in counted.items() if state not in {"pending", "leased", "held"}}
    final["accepted"] = sum(counted.values())
    noted = dict(ask(place, "SELECT state, CAST(sum(count) AS bigint) FROM ledger GROUP BY state"))
    assert {state: number for state, number in noted.items() if number} == final
    return {**counted, "accepted": final["accepted"]}
