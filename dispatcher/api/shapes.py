"""The JSON that goes in and out, field by field. msgspec checks requests against it, and OpenAPI documents it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from dispatcher.config import MAX_RETRIES, MAX_RETRY_DELAY
from dispatcher.models import BodyMode, DeliveryState, Outcome, TaskState
from dispatcher.window import TokenKind
from subscriptions.signatures import Scheme

TypeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="The name of a task type.")]
Url = Annotated[
    str,
    Meta(
        min_length=1,
        description="An https URL. It is treated as a credential: encrypted, never shown, wiped after use.",
        examples=["https://api.example.com/results/42/eyJhbGciOiJIUzI1NiJ9.eyJyZXNfaWQiOjQyfQ.c2lnbmF0dXJl"],
        extra_json_schema={"format": "uri", "maxLength": 8192},
    ),
]
SecretText = Annotated[
    str, Meta(min_length=8, max_length=255, description="Signs the deliveries. It is never shown again.")
]
Moment = Annotated[datetime, Meta(tz=True, description="A time with its offset (RFC 3339).")]
Schemes = Annotated[list[Scheme], Meta(min_length=1, description="Signature schemes to use.")]
CustomHeaders = Annotated[
    dict[str, str],
    Meta(
        description="Further headers of the deliveries. Their values are stored encrypted.",
        extra_json_schema={"maxProperties": 20},
    ),
]
#: a moment as it is shown
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


def _null() -> Raw:
    return Raw(b"null")


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """What all requests have in common: a field we do not know is an error."""


# --- tasks ------------------------------------------------------------------------------------------------


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
    ] = field(default_factory=_null)


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
    problem: (
        Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/ProblemDetails"})] | UnsetType
    ) = UNSET


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


# --- deliveries -------------------------------------------------------------------------------------------


class Timing(Struct, kw_only=True):
    """Milliseconds that an attempt spent; null where it did not get there or reused a connection."""

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    wait: float | None = None


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
    """One message for one endpoint. `wire_id` is its `X-Webhook-Delivery`."""

    id: str
    wire_id: str
    task_id: str
    redelivery_of: str | None
    event: str
    state: DeliveryState
    reason: str | None
    attempt: int
    host: str
    body: BodyView | None
    due_at: Time | None
    expires_at: Time | None
    created_at: Time
    finished_at: Time | None
    attempts: list[Attempt] | UnsetType = UNSET


class DeliveryList(Struct, kw_only=True):
    """Deliveries, newest first, without their attempts."""

    items: list[Delivery]
    next_cursor: str | None


# --- processors elsewhere ---------------------------------------------------------------------------------


class LeaseRequest(Request):
    """A wish for tasks to work on."""

    types: Annotated[list[TypeName], Meta(min_length=1, max_length=100)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 1


class LeasedTask(Struct, kw_only=True):
    """A task to work on. `attempt` must be sent back with the result."""

    id: str
    type: str
    attempt: int
    payload: Raw
    metadata: Raw | None
    lease_until: Time
    created_at: Time


class LeasedTasks(Struct, kw_only=True):
    """Tasks to work on; none when nothing is due."""

    items: list[LeasedTask]


class RenewRequest(Request):
    """A wish to keep a lease for another span of the type's timeout."""

    attempt: Annotated[int, Meta(ge=1)]


class Renewed(Struct, kw_only=True):
    """A lease's new end."""

    lease_until: Time


class TaskFailure(Request):
    """Why a task failed, in words that the callback's receiver may read."""

    message: Annotated[str, Meta(min_length=1, max_length=1000)]


class ResultRequest(Request):
    """The result of a task, or why there is none. `retry: true` asks for another try, if any is left."""

    attempt: Annotated[int, Meta(ge=1)]
    result: Annotated[Raw, Meta(description="Any JSON; it is delivered as it came.")] = field(default_factory=Raw)
    error: TaskFailure | UnsetType = UNSET
    retry: bool = False


# --- account ----------------------------------------------------------------------------------------------


class Limits(Struct, kw_only=True):
    """What a request may hold: bytes, characters and counts."""

    max_body: int
    max_batch: int
    max_batch_items: int
    max_nesting: int
    max_url: int
    max_headers: int
    max_header: int


class Account(Struct, kw_only=True):
    """An account's defaults, and the limits that hold for it."""

    id: str
    has_default_secret: bool
    schemes: list[Scheme] | None
    retry_schedule: list[float]
    limits: Limits


class AccountChange(Request):
    """What to change; what is left out stays, and null goes back to the installation's default."""

    default_secret: SecretText | UnsetType | None = UNSET
    schemes: Schemes | UnsetType | None = UNSET
    retry_schedule: (
        Annotated[list[Annotated[float, Meta(gt=0, le=MAX_RETRY_DELAY)]], Meta(max_length=MAX_RETRIES)]
        | UnsetType
        | None
    ) = UNSET


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


class ProcessorView(Struct, kw_only=True):
    """A task type, and the time that one try at it is given: choose a token's `exp` beyond it."""

    type: str
    kind: str
    timeout: float
    tries: int


class ProcessorList(Struct, kw_only=True):
    """Every task type that is taken."""

    items: list[ProcessorView]


class EgressAddresses(Struct, kw_only=True):
    """The addresses that deliveries come from, as the operator stated them."""

    items: list[str]


class Health(Struct, kw_only=True):
    """A probe's answer."""

    status: str


# --- problems ---------------------------------------------------------------------------------------------


class ProblemField(Struct, kw_only=True):
    """A field that was wrong: a JSON pointer, and what would be right."""

    field: str
    detail: str


class ProblemDetails(Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str | UnsetType = UNSET
    errors: list[ProblemField] | UnsetType = UNSET
    earliest_exp: Time | UnsetType = UNSET


#: every shape that the OpenAPI document describes
ALL: tuple[type[msgspec.Struct], ...] = (
    TaskRequest,
    BatchRequest,
    CallbackRequest,
    TaskAccepted,
    BatchAccepted,
    Task,
    TaskList,
    Delivery,
    DeliveryList,
    LeaseRequest,
    LeasedTasks,
    RenewRequest,
    Renewed,
    ResultRequest,
    Account,
    AccountChange,
    Ledger,
    ProcessorList,
    EgressAddresses,
    Health,
    ProblemDetails,
)
