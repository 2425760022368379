"""Subscriptions and their secrets."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from dispatcher.api.shapes.fields import (
    CustomHeaders,
    Moment,
    Request,
    RetrySchedule,
    Schemes,
    SecretText,
    Time,
    Url,
)
from dispatcher.models import BodyMode, DeliveryKind, DeliveryState, Outcome
from subscriptions.health import DisabledReason, DisableOn
from subscriptions.models import OnExhausted, Ordering, Verification
from subscriptions.signatures import Scheme

#: seconds
DAY = 86_400.0
#: longest that deliveries may be held, that an endpoint may fail, and that two secrets may overlap, seconds
LONGEST = 30 * DAY
#: shortest that an endpoint may fail before it is disabled for that, seconds
SHORTEST_FAILURE = 60.0

Name = Annotated[str, Meta(min_length=1, max_length=200, description="Printable characters.")]
Description = Annotated[str, Meta(max_length=1000)]
EventPatterns = Annotated[
    list[str],
    Meta(
        min_length=1,
        max_length=50,
        description="Event types; a whole segment may be `*`, the last one `**`: `order.paid`, `order.*`, `**`.",
        extra_json_schema={"items": {"type": "string", "minLength": 1, "maxLength": 100}},
    ),
]
ContentType = Literal["application/json", "application/x-www-form-urlencoded", "application/cloudevents+json"]
HubMethod = Literal["sha1", "sha256", "sha384", "sha512"]
FilterText = Annotated[
    str,
    Meta(
        description="A JMESPath expression on the payload; only events for which it is true are sent.",
        extra_json_schema={"minLength": 1, "maxLength": 1000},
    ),
]
RateLimit = Annotated[float, Meta(ge=0.001, le=10_000, description="Requests per second.")]
Timeout = Annotated[float, Meta(gt=0, description="Total deadline of one attempt, seconds.")]
Metadata = Annotated[
    Raw,
    Meta(
        description="A JSON object of yours, kept and shown as it came.",
        extra_json_schema={"type": ["object", "null"]},
    ),
]

#: where they are
PATH = "/webhooks/subscriptions"
#: deliveries that are shown with a subscription
RECENT = 20


# --- requests ---------------------------------------------------------------------------------------------


class _ContentType(Request):
    """The content type, in two spellings."""

    content_type: ContentType | UnsetType | None = UNSET
    content_type_alias: ContentType | UnsetType | None = field(default=UNSET, name="contentType")


class SubscriptionConfig(_ContentType, kw_only=True):
    """Where deliveries go, and what signs them. `contentType` is another spelling of `content_type`."""

    url: Url
    secret: Annotated[SecretText, Meta(description="Left out, one is made. It is shown this once.")] | None = None


class SubscriptionConfigChange(_ContentType):
    """Where deliveries go from now on. Secrets are rotated, not changed."""

    url: Url | UnsetType = UNSET


class SubscriptionFields(Request):
    """What may be said of a subscription. Left out, it stays, or has its default; null is the default."""

    is_active: bool | UnsetType = UNSET
    is_active_alias: bool | UnsetType = field(default=UNSET, name="isActive")
    description: Description | UnsetType | None = UNSET
    # made by a factory: msgspec cannot write a default of raw JSON into a schema
    metadata: Metadata = field(default_factory=Raw)
    schemes: Schemes | UnsetType | None = UNSET
    hub_method: HubMethod | UnsetType | None = UNSET
    headers: CustomHeaders | UnsetType | None = UNSET
    body: BodyMode | UnsetType | None = UNSET
    filter: FilterText | UnsetType | None = UNSET
    ordering: Ordering | UnsetType | None = UNSET
    on_exhausted: OnExhausted | UnsetType | None = UNSET
    rate_limit: RateLimit | UnsetType | None = UNSET
    retry_schedule: RetrySchedule | UnsetType | None = UNSET
    timeout: Timeout | UnsetType | None = UNSET
    disable_after_4xx: (
        Annotated[int, Meta(ge=0, le=1000, description="Refusals in a row that disable it; 0 means never.")]
        | UnsetType
        | None
    ) = UNSET
    disable_on: DisableOn | UnsetType | None = UNSET
    disable_after: (
        Annotated[
            float,
            Meta(
                ge=SHORTEST_FAILURE,
                le=LONGEST,
                description="Seconds of nothing but failures after which it is disabled.",
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    hold_for: (
        Annotated[
            float, Meta(gt=0, le=LONGEST, description="Seconds for which deliveries are held while it is disabled.")
        ]
        | UnsetType
        | None
    ) = UNSET
    verification: (
        Annotated[Verification, Meta(description="How its endpoint proves itself; the default is the account's.")]
        | UnsetType
        | None
    ) = UNSET


class SubscriptionRequest(SubscriptionFields, kw_only=True):
    """A standing endpoint for events. `isActive` is another spelling of `is_active`."""

    name: Name
    events: EventPatterns
    config: SubscriptionConfig


class SubscriptionChange(SubscriptionFields, kw_only=True):
    """What to change; what is left out stays, and null goes back to the default."""

    name: Name | UnsetType = UNSET
    events: EventPatterns | UnsetType = UNSET
    config: SubscriptionConfigChange | UnsetType = UNSET


class EnableRequest(Request):
    """What becomes of the deliveries that were held."""

    held: Literal["release", "discard"] = "release"


class RotateRequest(Request):
    """A new secret, and how long the present ones stay valid beside it."""

    secret: Annotated[SecretText, Meta(description="Left out, one is made.")] | None = None
    overlap: (
        Annotated[float, Meta(ge=0, le=LONGEST, description="Seconds for which older secrets stay valid.")] | UnsetType
    ) = UNSET
    revoke_now: Annotated[bool, Meta(description="End the older secrets at once.")] = False
    valid_from: Annotated[Moment, Meta(description="Left out: now.")] | None = None
    valid_until: Annotated[Moment, Meta(description="Left out: until it is rotated or revoked.")] | None = None


# --- answers ----------------------------------------------------------------------------------------------


class ConfigView(Struct, kw_only=True, omit_defaults=True):
    """What may be shown of where deliveries go: scheme and host of the URL, and what tells equal URLs apart.

    `secret` is shown once, in the answer to the request that made the subscription.
    """

    url: str
    fingerprint: Annotated[str, Meta(description="Equal for equal URLs of one account.")]
    content_type: ContentType
    public_key: Annotated[str | None, Meta(description="Verifies Ed25519 signatures by the current secret.")]
    secret: str | UnsetType = UNSET


class Disabled(Struct, kw_only=True):
    """Why and since when a subscription is disabled."""

    reason: DisabledReason
    at: Time


class Ping(Struct, kw_only=True):
    """What became of a ping or handshake."""

    delivery_id: str
    kind: DeliveryKind
    state: DeliveryState
    outcome: Outcome | None
    status: Annotated[int | None, Meta(description="The status that the endpoint answered.")]
    error: str | None
    duration_ms: float | None


class RecentDelivery(Struct, kw_only=True):
    """One of a subscription's latest deliveries."""

    id: str
    event: str
    kind: DeliveryKind
    state: DeliveryState
    attempts: int
    outcome: Outcome | None
    status: int | None
    created_at: Time


class Subscription(Struct, kw_only=True, omit_defaults=True):
    """A standing endpoint. `ping` tells how its endpoint was asked by this very request, if it was."""

    id: str
    name: str
    description: str | None
    events: list[str]
    config: ConfigView
    is_active: bool
    disabled: Disabled | None
    operational: bool
    metadata: Raw | None
    schemes: list[Scheme] | None
    hub_method: HubMethod
    headers: Annotated[list[str], Meta(description="The names of its custom headers.")]
    body: BodyMode
    filter: str | None
    ordering: Ordering
    on_exhausted: OnExhausted
    rate_limit: float | None
    retry_schedule: list[float] | None
    timeout: float | None
    disable_after_4xx: int
    disable_on: DisableOn
    disable_after: float
    hold_for: float
    verification: Verification
    verifying: Annotated[str | None, Meta(description="The ping or handshake that is under way.")]
    held: Annotated[int, Meta(description="Deliveries that are held for it.")]
    refusals: Annotated[int, Meta(description="Refusals since the last success.")]
    failures: Annotated[int, Meta(description="Failures since the last success.")]
    failing_since: Time | None
    created_at: Time
    updated_at: Time
    ping: Ping | UnsetType = UNSET
    recent: list[RecentDelivery] | UnsetType = UNSET


class SubscriptionList(Struct, kw_only=True):
    """Subscriptions, newest first, without their history."""

    items: list[Subscription]
    next_cursor: str | None


SecretState = Literal["current", "previous", "future"]


class SecretView(Struct, kw_only=True, omit_defaults=True):
    """A secret of a subscription. Its text is shown once, in the answer to the request that made it."""

    id: str
    state: SecretState
    public_key: str | None
    valid_from: Time
    valid_until: Time | None
    created_at: Time
    secret: str | UnsetType = UNSET


class SecretList(Struct, kw_only=True):
    """The secrets of a subscription, the newest first."""

    items: list[SecretView]


class Granted(Struct, kw_only=True):
    """A handshake that was granted."""

    status: Literal["granted"]
