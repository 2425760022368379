"""Accept tasks: the task, its delivery and its bytes, in one statement per table and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.bodies import JSON, Body
from dispatcher.errors import Problem
from dispatcher.models import DeliveryState, TaskState, lane_of
from dispatcher.store import ledger
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import Answers
from dispatcher.store.records import IdempotencyKey, NewTask, Replayed
from dispatcher.store.sealing import seal_callback
from dispatcher.store.tables import bodies, deliveries, tasks
from subscriptions.keyring import Keyring


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request to accept tasks, all or none of them."""

    #: rows as `rows_of` made them, one dict per table
    rows: Sequence[dict[str, dict[str, Any]]]
    key: IdempotencyKey | None
    #: what the caller will be told; kept under the key
    answer: bytes


def rows_of(task: NewTask, keyring: Keyring) -> dict[str, dict[str, Any]]:
    """The rows of a task, sealed; all but what only the transaction knows: its moment and its session."""
    has_body = task.body is not None
    content = task.body or Body(task.payload or b"null", JSON)
    return {
        "task": {
            "id": task.id,
            "account": task.account,
            "type": task.type,
            "state": TaskState.SUCCEEDED if has_body else TaskState.QUEUED,
            "body_mode": task.body_mode,
            "metadata": task.metadata,
            "traceparent": task.traceparent,
            "delivery_id": task.delivery_id,
            "attempt": 0,
            "failures": 0,
            "interruptions": 0,
            **seal_callback(keyring, task.callback, account=task.account, task_id=task.id),
        },
        "delivery": {
            "id": task.delivery_id,
            "account": task.account,
            "source_id": task.id,
            "wire_id": task.delivery_id,
            "lane": lane_of(task.account, task.callback.origin),
            "state": DeliveryState.LEASED if task.handed_off else DeliveryState.PENDING,
            "attempt": int(task.handed_off),
            "failures": 0,
            "repeats": 0,
            "body_id": task.delivery_id if has_body else None,
        },
        "body": {
            "id": task.delivery_id if has_body else task.id,
            "content": content.body,
            "content_type": content.content_type,
            "headers": [list(header) for header in content.headers] or None,
        },
    }


async def accept(tx: Transaction, requests: Sequence[Request]) -> list[Replayed | Problem | None]:
    """Store the tasks of each request. Answers None, or the earlier answer to its idempotency key."""
    answers = Answers(tx)
    await answers.look_up([request.key for request in requests])
    results: list[Replayed | Problem | None] = []
    rows: list[dict[str, dict[str, Any]]] = []
    for request in requests:
        earlier = answers.earlier(request.key)
        results.append(earlier)
        if earlier is None:
            answers.keep(request.key, request.answer)
            rows.extend(request.rows)
    if rows:
        await _insert(tx, rows)
    await answers.write()
    return results


async def _insert(tx: Transaction, rows: list[dict[str, dict[str, Any]]]) -> None:
    task_rows, delivery_rows = [], []
    for row in rows:
        done = row["task"]["state"] == TaskState.SUCCEEDED
        leased = row["delivery"]["state"] == DeliveryState.LEASED
        task_rows.append(
            row["task"]
            | {
                "created_at": tx.now,
                "due_at": None if done else tx.now,
                "finished_at": tx.now if done else None,
            }
        )
        delivery_rows.append(
            row["delivery"]
            | {
                "created_at": tx.now,
                "due_at": tx.now if done else None,
                "session": tx.session if leased else None,
            }
        )
    await tx.connection.execute(sa.insert(tasks), task_rows)
    await tx.connection.execute(sa.insert(deliveries), delivery_rows)
    await tx.connection.execute(sa.insert(bodies), [row["body"] for row in rows])
    await ledger.count(tx, Counter((row["account"], ledger.ACCEPTED) for row in task_rows))
