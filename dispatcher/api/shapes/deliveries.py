"""Deliveries, their attempts, and the ledger that counts them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dispatcher.api.shapes.fields import Moment, Request, Time
from dispatcher.models import DeliveryKind, DeliveryState, Outcome


class Timing(Struct, kw_only=True):
    """Milliseconds that an attempt spent; null where it did not get there or reused a connection."""

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    wait: float | None = None
    #: a kept connection broke before any byte of an answer came, and the request was sent again over a new one
    reconnected: bool = False


class Attempt(Struct, kw_only=True):
    """One HTTP request of a delivery, with its outcome."""

    number: int
    started_at: Time
    duration_ms: float
    outcome: Outcome
    status: int | None
    error: str | None
    retry_at: Time | None
    truncated: Annotated[bool, Meta(description="The answer's body broke, or was longer than what is read.")]
    response_headers: list[tuple[str, str]]
    response_body: str | None
    timing: Timing


class BodyView(Struct, kw_only=True):
    """What a delivery sends."""

    content_type: str
    size: int


class Delivery(Struct, kw_only=True, omit_defaults=True):
    """One message for one endpoint. `wire_id` is its `X-Webhook-Delivery`.

    It tells of a task, or of an event; then it goes to a subscription.
    """

    id: str
    wire_id: str
    task_id: str | None
    event_id: str | None
    subscription_id: str | None
    kind: DeliveryKind
    redelivery_of: str | None
    event: str
    state: DeliveryState
    reason: str | None
    attempt: int
    host: str
    body: BodyView | None
    due_at: Time | None
    expires_at: Annotated[Time | None, Meta(description="When its window, or its time as held, ends.")]
    created_at: Time
    finished_at: Time | None
    attempts: list[Attempt] | UnsetType = UNSET


class DeliveryList(Struct, kw_only=True):
    """Deliveries, newest first, without their attempts."""

    items: list[Delivery]
    next_cursor: str | None


EndedState = Literal["delivered", "exhausted", "rejected", "expired", "cancelled"]


class Recovery(Request):
    """Which deliveries are sent again that did not arrive: those accepted in this span."""

    since: Moment
    until: Annotated[Moment, Meta(description="Left out: this moment.")] | None = None


class RedeliverRequest(Recovery):
    """Which ended deliveries are sent again: those accepted in this span, of these states."""

    states: (
        Annotated[
            list[EndedState], Meta(min_length=1, max_length=5, description="Left out: exhausted, rejected and expired.")
        ]
        | None
    ) = None
    subscription_id: str | None = None
    type: (
        Annotated[str, Meta(min_length=1, max_length=100, description="The type of the event, or of the task.")] | None
    ) = None


class Redelivery(Struct, kw_only=True):
    """A redelivery of many, and how far it has got."""

    id: str
    state: Literal["running", "done"]
    seen: Annotated[int, Meta(description="Deliveries that were looked at.")]
    made: Annotated[int, Meta(description="Deliveries that are sent again.")]
    states: list[DeliveryState]
    subscription_id: str | None
    type: str | None
    since: Time
    until: Time
    created_at: Time
    finished_at: Time | None


class RedeliveryList(Struct, kw_only=True):
    """Redeliveries of many, newest first."""

    items: list[Redelivery]
    next_cursor: str | None


class Ledger(Struct, kw_only=True):
    """Deliveries, counted as they were accepted, as they ended, and as they stand.

    accepted = delivered + exhausted + rejected + expired + cancelled + pending + leased + held
    """

    accepted: int
    delivered: int
    exhausted: int
    rejected: int
    expired: int
    cancelled: int
    pending: int
    leased: int
    held: int
    reconciles: bool
