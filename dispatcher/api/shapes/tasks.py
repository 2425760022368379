"""Tasks and their callbacks."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from dispatcher.api.shapes.fields import (
    CustomHeaders,
    Moment,
    ProblemObject,
    Request,
    Schemes,
    SecretText,
    Time,
    TypeName,
    Url,
    null,
)
from dispatcher.models import BodyMode, DeliveryState, TaskState
from dispatcher.window import TokenKind


class TaskRequest(Request):
    """A task: work to do, or a payload to relay, and where to deliver the result."""

    payload: Annotated[Raw, Meta(description="Any JSON. For `relay` its bytes are delivered as they came.")]
    callback_url: Url
    type: TypeName = "relay"
    deliver_before: Moment | None = None
    secret: SecretText | None = None
    schemes: Schemes | None = None
    body: BodyMode | None = None
    headers: CustomHeaders | None = None
    # made by a factory: msgspec cannot write a default of raw JSON into a schema
    metadata: Annotated[
        Raw,
        Meta(
            description="A JSON object of yours, kept and shown as it came.",
            extra_json_schema={"type": ["object", "null"]},
        ),
    ] = field(default_factory=null)


class BatchRequest(Request):
    """Up to 1,000 tasks, stored by one commit. Those that are not valid are refused one by one."""

    tasks: Annotated[
        list[Raw],
        Meta(min_length=1, max_length=1000, extra_json_schema={"items": {"$ref": "#/components/schemas/TaskRequest"}}),
    ]


class CallbackRequest(Request):
    """A callback that replaces a task's present one."""

    callback_url: Url
    deliver_before: Moment | None = None
    secret: SecretText | None = None
    schemes: Schemes | None = None
    headers: CustomHeaders | None = None


class CallbackSummary(Struct, kw_only=True):
    """What we understood of a callback URL."""

    host: str
    token: TokenKind
    expires_at: Time | None
    warnings: list[str]


class TaskAccepted(Struct, kw_only=True):
    """A task that is on disk."""

    id: str
    delivery_id: str
    state: TaskState
    callback: CallbackSummary


class BatchItem(Struct, kw_only=True, omit_defaults=True):
    """What became of one task of a batch."""

    index: int
    status: int
    task: TaskAccepted | UnsetType = UNSET
    problem: ProblemObject | UnsetType = UNSET


class BatchAccepted(Struct, kw_only=True):
    """What became of a batch."""

    items: list[BatchItem]


class CallbackView(Struct, kw_only=True):
    """What may be shown of a callback. `fingerprint` is equal for equal URLs of one account."""

    scheme: str
    host: str
    fingerprint: str
    token: TokenKind
    expires_at: Time | None
    wiped: bool


class Task(Struct, kw_only=True):
    """A task."""

    id: str
    type: str
    state: TaskState
    delivery_id: str
    delivery_state: DeliveryState
    body: BodyMode
    callback: CallbackView
    attempt: Annotated[int, Meta(description="How many times its processor was given it.")]
    error: Raw | None
    metadata: Raw | None
    created_at: Time
    finished_at: Time | None


class TaskList(Struct, kw_only=True):
    """Tasks, newest first."""

    items: list[Task]
    next_cursor: str | None
