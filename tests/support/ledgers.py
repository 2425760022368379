"""What the SQLite file of a dispatcher says, read beside it by nothing but sqlite3, without writing."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

#: of a delivery, in order: number, outcome, status
Attempts = list[tuple[int, str, int | None]]


def ask(data_dir: Path, question: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of an answer."""
    file = data_dir / "dispatcher.db"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(question, parameters).fetchall()


def attempts_of(data_dir: Path) -> dict[str, Attempts]:
    """Every attempt on record, by delivery."""
    found: dict[str, Attempts] = defaultdict(list)
    question = "SELECT delivery_id, number, outcome, status FROM attempts ORDER BY delivery_id, number"
    for delivery, *attempt in ask(data_dir, question):
        found[delivery].append((attempt[0], attempt[1], attempt[2]))
    return dict(found)


def deliveries_to(data_dir: Path, subscription_id: str) -> dict[str, str]:
    """The state of every message to a subscription."""
    question = "SELECT id, state FROM deliveries WHERE subscription_id = ? AND kind = 'message'"
    return dict(ask(data_dir, question, subscription_id))


def reconciles(data_dir: Path) -> dict[str, int]:
    """Deliveries by state, counted row by row, with `accepted`; fails unless the ledger says the same."""
    counted = dict(ask(data_dir, "SELECT state, count(*) FROM deliveries GROUP BY state"))
    final = {state: number for state, number in counted.items() if state not in {"pending", "leased", "held"}}
    final["accepted"] = sum(counted.values())
    noted = dict(ask(data_dir, "SELECT state, sum(count) FROM ledger GROUP BY state"))
    assert {state: number for state, number in noted.items() if number} == final
    return {**counted, "accepted": final["accepted"]}
