"""Rows as the JSON that callers see."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from dispatcher.api import shapes
from dispatcher.bodies import rfc3339
from dispatcher.models import BodyMode, DeliveryState, Outcome, TaskState
from dispatcher.store.records import LeasedTask
from dispatcher.window import TokenKind


def task(row: sa.RowMapping) -> shapes.Task:
    """A task."""
    scheme, _, host = row["callback_origin"].partition("://")
    return shapes.Task(
        id=row["id"],
        type=row["type"],
        state=TaskState(row["state"]),
        delivery_id=row["delivery_id"],
        delivery_state=DeliveryState(row["delivery_state"]),
        body=BodyMode(row["body_mode"]),
        callback=shapes.CallbackView(
            scheme=scheme,
            host=host,
            fingerprint=row["callback_fingerprint"],
            token=TokenKind(row["callback_token"]),
            expires_at=_moment(row["window_end"]),
            wiped=bool(row["wiped"]),
        ),
        attempt=row["attempt"],
        error=_raw(row["error"]),
        metadata=_raw(row["metadata"]),
        created_at=rfc3339(row["created_at"]),
        finished_at=_moment(row["finished_at"]),
    )


def delivery(row: sa.RowMapping) -> shapes.Delivery:
    """A delivery, without its attempts."""
    return shapes.Delivery(
        id=row["id"],
        wire_id=row["wire_id"],
        task_id=row["task_id"],
        redelivery_of=row["redelivery_of"],
        event=row["type"],
        state=DeliveryState(row["state"]),
        reason=row["reason"],
        attempt=row["attempt"],
        # its lane names where it goes or went; the task's callback may have been replaced since
        host=row["lane"].rpartition("://")[2],
        body=(
            None if row["content_type"] is None else shapes.BodyView(content_type=row["content_type"], size=row["size"])
        ),
        due_at=_moment(row["due_at"]),
        expires_at=_moment(row["window_end"]),
        created_at=rfc3339(row["created_at"]),
        finished_at=_moment(row["finished_at"]),
    )


def attempt(row: sa.RowMapping) -> shapes.Attempt:
    """An attempt."""
    return shapes.Attempt(
        number=row["number"],
        started_at=rfc3339(row["started_at"]),
        duration_ms=row["duration_ms"],
        outcome=Outcome(row["outcome"]),
        status=row["status"],
        error=row["error"],
        retry_at=_moment(row["retry_at"]),
        truncated=row["truncated"],
        response_headers=[(name, value) for name, value in row["response_headers"] or ()],
        response_body=row["response_body"],
        timing=shapes.Timing(**(row["timing"] or {})),
    )


def leased_task(task: LeasedTask) -> shapes.LeasedTask:
    """A task for a processor elsewhere."""
    return shapes.LeasedTask(
        id=task.id,
        type=task.type,
        attempt=task.attempt,
        payload=msgspec.Raw(task.payload),
        metadata=_raw(task.metadata),
        lease_until=rfc3339(task.lease_until or 0),
        created_at=rfc3339(task.created_at),
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def _raw(content: bytes | None) -> msgspec.Raw | None:
    return None if content is None else msgspec.Raw(content)
