"""Rows as the JSON that callers see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
import sqlalchemy as sa
from msgspec import UNSET

from dispatcher.api import shapes
from dispatcher.api.subscription_reading import content_type_of
from dispatcher.bodies import rfc3339
from dispatcher.models import BodyMode, DeliveryKind, DeliveryState, EventState, Outcome, TaskState
from dispatcher.store.records import LeasedTask
from dispatcher.store.workers import Worker
from dispatcher.window import TokenKind
from subscriptions.models import Subscription, SubscriptionState, ValidKey
from subscriptions.signatures import Scheme


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
        task_id=row["source_id"] if row["subscription_id"] is None else None,
        event_id=None if row["subscription_id"] is None else row["source_id"],
        subscription_id=row["subscription_id"],
        kind=DeliveryKind(row["kind"]),
        redelivery_of=row["redelivery_of"],
        event=row["type"],
        state=DeliveryState(row["state"]),
        reason=row["reason"],
        attempt=row["attempt"],
        # the lane of a callback names where it goes or went; it may have been replaced since
        host=(row["lane"] if row["subscription_id"] is None else row["origin"] or "").rpartition("://")[2],
        body=(
            None if row["content_type"] is None else shapes.BodyView(content_type=row["content_type"], size=row["size"])
        ),
        due_at=_moment(row["due_at"]),
        expires_at=_moment(row["hold_until"] or row["window_end"]),
        created_at=rfc3339(row["created_at"]),
        finished_at=_moment(row["finished_at"]),
    )


def event(row: sa.RowMapping) -> shapes.Event:
    """An event; with its payload, where that was read."""
    return shapes.Event(
        id=row["id"],
        event_id=row["reference"],
        type=row["type"],
        subject=row["subject"],
        ordering_key=row["ordering_key"],
        deliveries=row["deliveries"],
        fan_out=fan_out(complete=row["state"] == EventState.FANNED_OUT),
        skipped=[
            shapes.Skipped(subscription_id=id_, reason=reason, detail=detail)
            for id_, reason, detail in row["skipped"] or ()
        ],
        created_at=rfc3339(row["created_at"]),
        payload=_raw(row["content"]) or UNSET if "content" in row else UNSET,
    )


def fan_out(*, complete: bool) -> shapes.FanOut:
    """Whether every delivery of an event is there."""
    return "complete" if complete else "in_progress"


def subscription(one: Subscription, *, now: int) -> shapes.Subscription:
    """A subscription as it stands now (milliseconds since the epoch): no secret, and of its URL only the origin."""
    signing = one.keys_at(now)
    return shapes.Subscription(
        id=one.id,
        name=one.name,
        description=one.description,
        events=list(one.events),
        config=shapes.ConfigView(
            url=one.origin,
            fingerprint=one.fingerprint,
            content_type=content_type_of(BodyMode(one.body_mode)),
            public_key=signing[0].public_key if signing else None,
        ),
        is_active=one.state is SubscriptionState.ACTIVE,
        disabled=(
            None
            if one.disabled_reason is None
            else shapes.Disabled(reason=one.disabled_reason, at=rfc3339(one.disabled_at or one.updated_at))
        ),
        operational=one.operational,
        metadata=_raw(one.metadata),
        schemes=None if one.schemes is None else [Scheme(name) for name in one.schemes],
        hub_method=cast("shapes.HubMethod", one.hub_method),
        headers=[name for name, _ in one.headers],
        body=BodyMode(one.body_mode),
        filter=one.filter,
        ordering=one.ordering,
        on_exhausted=one.on_exhausted,
        rate_limit=one.rate_limit,
        retry_schedule=None if one.retry_schedule is None else list(one.retry_schedule),
        timeout=one.timeout,
        disable_after_4xx=one.disable_after_4xx,
        disable_on=one.disable_on,
        disable_after=one.disable_after,
        hold_for=one.hold_for,
        verification=one.verification,
        verifying=one.verifying,
        held=one.held,
        refusals=one.refusals,
        failures=one.failures,
        failing_since=_moment(one.failing_since),
        created_at=rfc3339(one.created_at),
        updated_at=rfc3339(one.updated_at),
    )


def recent(row: sa.RowMapping) -> shapes.RecentDelivery:
    """One of a subscription's latest deliveries."""
    return shapes.RecentDelivery(
        id=row["id"],
        event=row["type"],
        kind=DeliveryKind(row["kind"]),
        state=DeliveryState(row["state"]),
        attempts=row["attempt"],
        outcome=None if row["last_outcome"] is None else Outcome(row["last_outcome"]),
        status=row["status"],
        created_at=rfc3339(row["created_at"]),
    )


def ping(row: sa.RowMapping, attempts: Sequence[sa.RowMapping]) -> shapes.Ping:
    """What became of a ping or handshake."""
    last = attempts[-1] if attempts else None
    return shapes.Ping(
        delivery_id=row["id"],
        kind=DeliveryKind(row["kind"]),
        state=DeliveryState(row["state"]),
        outcome=None if last is None else Outcome(last["outcome"]),
        status=None if last is None else last["status"],
        error=None if last is None else last["error"],
        duration_ms=None if last is None else last["duration_ms"],
    )


def secrets(keys: Sequence[ValidKey], *, now: int) -> list[shapes.SecretView]:
    """Secrets of a subscription (the newest first) that are not over by now, without their text."""
    current = next((key.id for key in keys if key.is_valid(now)), None)
    return [
        secret(key, state="current" if key.id == current else "future" if key.valid_from > now else "previous")
        for key in keys
        if key.valid_until is None or key.valid_until > now
    ]


def secret(key: ValidKey, *, state: shapes.SecretState) -> shapes.SecretView:
    """A secret of a subscription, without its text."""
    return shapes.SecretView(
        id=key.id,
        state=state,
        public_key=key.key.public_key,
        valid_from=rfc3339(key.valid_from),
        valid_until=_moment(key.valid_until),
        created_at=rfc3339(key.created_at),
    )


def redelivery(row: sa.RowMapping) -> shapes.Redelivery:
    """A redelivery of many."""
    criteria = row["criteria"]
    return shapes.Redelivery(
        id=row["id"],
        state=row["state"],
        seen=row["seen"],
        made=row["made"],
        states=[DeliveryState(state) for state in criteria["states"]],
        subscription_id=criteria["subscription_id"],
        type=criteria["type"],
        since=rfc3339(criteria["since"]),
        until=rfc3339(criteria["until"]),
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


def worker(one: Worker) -> shapes.Worker:
    """A process."""
    return shapes.Worker(
        id=one.id,
        host=one.host,
        pid=one.pid,
        role=one.role,
        version=one.version,
        state="overdue" if one.overdue else "live",
        started_at=rfc3339(one.started_at),
        heartbeat_age=one.heartbeat_age,
        deliveries=one.deliveries,
        tasks=one.tasks,
        paces=one.paces,
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def _raw(content: bytes | None) -> msgspec.Raw | None:
    return None if content is None else msgspec.Raw(content)
