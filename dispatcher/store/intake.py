"""Accept tasks: the task, its delivery and its bytes, in one statement per table and batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from dispatcher.bodies import JSON, Body
from dispatcher.errors import Problem
from dispatcher.models import DeliveryKind, DeliveryState, TaskState, lane_of
from dispatcher.store import ledger
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import Answers
from dispatcher.store.leases import Leased
from dispatcher.store.records import IdempotencyKey, NewTask, Replayed
from dispatcher.store.sealing import seal_credentials
from dispatcher.store.statements import Statement, as_json
from dispatcher.store.tables import bodies, deliveries, tasks
from subscriptions.keyring import Keyring

# As the columns have them; asking an enum each time costs more than to insert it.
_QUEUED, _SUCCEEDED = TaskState.QUEUED.value, TaskState.SUCCEEDED.value
_PENDING, _LEASED = DeliveryState.PENDING.value, DeliveryState.LEASED.value
_MESSAGE = DeliveryKind.MESSAGE.value


class Rows(NamedTuple):
    """The rows of a task, sealed; all but what only the transaction knows: its moment and its session."""

    account: str
    #: there is no work to do: its delivery is due at once
    is_done: bool
    is_handed_off: bool
    lane: str
    #: the values that `_TASK`, `_DELIVERY` and `_BODY` begin with
    task: tuple[Any, ...]
    delivery: tuple[Any, ...]
    body: tuple[Any, ...]

    def leased(self, session: str) -> Leased:
        """Its delivery, where that is leased from the start."""
        return Leased(
            state=_LEASED,
            attempt=1,
            session=session,
            id=self.delivery[0],
            account=self.account,
            source_id=self.task[0],
            subscription_id=None,
            kind=_MESSAGE,
            lane=self.lane,
            window_end=self.task[_WINDOW_END],
            callback_origin=self.task[_CALLBACK_ORIGIN],
        )


#: where in a task's values these stand
_CALLBACK_ORIGIN, _WINDOW_END = -5, -1


class Request(NamedTuple):
    """One request to accept tasks, all or none of them."""

    rows: Sequence[Rows]
    key: IdempotencyKey | None
    #: what the caller will be told; kept under the key
    answer: bytes


def rows_of(task: NewTask, keyring: Keyring) -> Rows:
    """A task as rows."""
    has_body = task.body is not None
    content = task.body or Body(task.payload or b"null", JSON)
    callback = task.callback
    url, secret, headers = seal_credentials(keyring, callback, account=task.account, task_id=task.id)
    lane = lane_of(task.account, callback.origin)
    return Rows(
        account=task.account,
        is_done=has_body,
        is_handed_off=task.handed_off,
        lane=lane,
        task=(
            task.id,
            task.account,
            task.type,
            _SUCCEEDED if has_body else _QUEUED,
            task.body_mode.value,
            task.metadata,
            task.traceparent,
            task.delivery_id,
            *(0, 0, 0),
            *(url, secret, headers),
            callback.origin,
            callback.fingerprint,
            callback.token,
            as_json(callback.schemes),
            callback.window_end,
        ),
        delivery=(
            task.delivery_id,
            task.account,
            task.id,
            task.delivery_id,
            lane,
            _LEASED if task.handed_off else _PENDING,
            int(task.handed_off),
            *(0, 0),
            task.delivery_id if has_body else None,
        ),
        body=(
            task.delivery_id if has_body else task.id,
            content.body,
            content.content_type,
            as_json(content.headers or None),
        ),
    )


_TASK = Statement(
    sa.insert(tasks),
    "id", "account", "type", "state", "body_mode", "metadata", "traceparent", "delivery_id",
    "attempt", "failures", "interruptions",
    "callback_url", "callback_secret", "callback_headers", "callback_origin", "callback_fingerprint",
    "callback_token", "schemes", "window_end",
    "due_at", "created_at", "finished_at",
)  # fmt: skip
_DELIVERY = Statement(
    sa.insert(deliveries),
    "id", "account", "source_id", "wire_id", "lane", "state", "attempt", "failures", "repeats", "body_id",
    "due_at", "session", "created_at",
)  # fmt: skip
_BODY = Statement(sa.insert(bodies), "id", "content", "content_type", "headers")


async def accept(tx: Transaction, requests: Sequence[Request]) -> list[Replayed | Problem | None]:
    """Store the tasks of each request. Answers None, or the earlier answer to its idempotency key."""
    answers = Answers(tx)
    await answers.look_up([request.key for request in requests])
    results: list[Replayed | Problem | None] = []
    rows: list[Rows] = []
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


async def _insert(tx: Transaction, rows: Sequence[Rows]) -> None:
    now, session = tx.now, tx.session
    tx.news.lanes.update(row.lane for row in rows if row.is_done and not row.is_handed_off)
    tx.news.tasks |= not all(row.is_done for row in rows)
    await tx.leave(
        (_TASK, [(*row.task, *((None, now, now) if row.is_done else (now, now, None))) for row in rows]),
        (
            _DELIVERY,
            [
                (
                    *row.delivery,
                    now if row.is_done and not row.is_handed_off else None,
                    session if row.is_handed_off else None,
                    now,
                )
                for row in rows
            ],
        ),
        (_BODY, [row.body for row in rows]),
    )
    tx.counts.update((row.account, ledger.ACCEPTED) for row in rows)
    for row in rows:
        if row.is_handed_off:
            tx.leases.remember(row.leased(session))
