"""Events."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from dispatcher.api.shapes.fields import WITHOUT_NUL, ProblemObject, Request, Time, TypeName


class EventRequest(Request):
    """Something that happened, for every subscription that wants it."""

    type: TypeName
    payload: Annotated[Raw, Meta(description="Any JSON. Its bytes are delivered as they came.")]
    id: (
        Annotated[
            str,
            Meta(
                pattern=r"^[!-~]{1,255}$(?!\n)",
                description="Your id of it: published again within 24 hours, it is the same event.",
            ),
        ]
        | None
    ) = None
    subject: (
        Annotated[
            str,
            Meta(
                min_length=1, max_length=255, pattern=WITHOUT_NUL, description="What it is about; CloudEvents carry it."
            ),
        ]
        | None
    ) = None
    ordering_key: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=255,
                pattern=WITHOUT_NUL,
                description="Subscriptions with `ordering: fifo-by-key` get events of one key in order.",
            ),
        ]
        | None
    ) = None


class EventBatchRequest(Request):
    """Up to 1,000 events, stored by one commit. Those that are not valid are refused one by one."""

    events: Annotated[
        list[Raw],
        Meta(min_length=1, max_length=1000, extra_json_schema={"items": {"$ref": "#/components/schemas/EventRequest"}}),
    ]


class Skipped(Struct, kw_only=True):
    """A subscription that wanted an event and does not get it."""

    subscription_id: str
    reason: Annotated[str, Meta(description="`filter`: its filter could not be evaluated; `gone`: it answered 410.")]
    detail: str


FanOut = Literal["complete", "in_progress"]


class EventAccepted(Struct, kw_only=True):
    """An event that is on disk, and how many deliveries it has or will have."""

    id: str
    deliveries: int
    fan_out: FanOut
    skipped: list[Skipped]


class EventBatchItem(Struct, kw_only=True, omit_defaults=True):
    """What became of one event of a batch."""

    index: int
    status: int
    event: Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/EventAccepted"})] | UnsetType = UNSET
    problem: ProblemObject | UnsetType = UNSET


class EventBatchAccepted(Struct, kw_only=True):
    """What became of a batch of events."""

    items: list[EventBatchItem]


class Event(Struct, kw_only=True, omit_defaults=True):
    """An event. `event_id` is its publisher's id of it."""

    id: str
    event_id: str | None
    type: str
    subject: str | None
    ordering_key: str | None
    deliveries: int
    fan_out: FanOut
    skipped: list[Skipped]
    created_at: Time
    payload: Raw | UnsetType = UNSET


class EventList(Struct, kw_only=True):
    """Events, newest first, without their payloads."""

    items: list[Event]
    next_cursor: str | None
