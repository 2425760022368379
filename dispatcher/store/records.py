"""What goes into the store and comes out of it. Callback URLs and secrets are in clear here, and only here.

Those that there is one of for each delivery cannot be part of a cycle, so the garbage collector need not look at them
(`gc=False`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from dispatcher import retry
from dispatcher.bodies import Body
from dispatcher.discreet import Discreet
from dispatcher.models import BodyMode, DeliveryKind, DeliveryState, Outcome, TaskState
from subscriptions.models import Headers, Subscription, ValidKey, Verification
from subscriptions.secrets import Secret, SigningKey


class Callback(Discreet, frozen=True, kw_only=True, gc=False):
    """Where and how the result of a task is delivered."""

    HIDDEN = ("headers",)

    url: Secret
    #: signs the deliveries; None leaves it to the account's default
    secret: Secret | None
    #: custom headers; their values may be credentials
    headers: Headers
    #: signature schemes; None means the account's, or those that fit the secret
    schemes: tuple[str, ...] | None
    #: scheme, host and port; all of the URL that may be shown
    origin: str
    #: keyed digest of the whole URL
    fingerprint: str
    #: `none`, `opaque` or `jwt`: what kind of credential the URL seems to hold
    token: str
    #: end of the window in which it can be used, milliseconds since the epoch
    window_end: int | None


class Endpoint(Discreet, frozen=True, kw_only=True, gc=False):
    """Where a delivery goes and how it is sent: what a callback and a subscription have in common."""

    HIDDEN = ("headers",)

    url: Secret
    #: scheme, host and port; all of the URL that may be shown
    origin: str
    #: names whose key signs: the subscription, or the account of a callback
    key_id: str
    #: custom headers; their values may be credentials
    headers: Headers = ()
    #: what signs, the newest first; none leaves it to the account's default
    keys: tuple[ValidKey, ...] = ()
    #: signature schemes; None means the account's, or those that fit the secret
    schemes: tuple[str, ...] | None = None
    hub_method: str = "sha256"
    #: delays between tries, seconds; None means the account's
    retry_schedule: tuple[float, ...] | None = None
    #: total deadline of one attempt, seconds; None means the installation's
    timeout: float | None = None
    #: requests per second
    rate_limit: float | None = None
    #: end of the window in which it can be used, milliseconds since the epoch
    window_end: int | None = None
    #: it has agreed by a handshake to what comes under our name: each request says it
    by_handshake: bool = False
    #: set for a subscription: it is never sent to unsigned
    subscription_id: str | None = None
    #: which state of the subscription this is
    version: int | None = None

    @classmethod
    def of_callback(cls, callback: Callback, *, account: str) -> Endpoint:
        """A task's callback."""
        keys: tuple[ValidKey, ...] = ()
        if callback.secret is not None:
            key = SigningKey(secret=callback.secret)
            keys = (ValidKey(id="", key=key, valid_from=0, valid_until=None, created_at=0),)
        return cls(
            url=callback.url,
            origin=callback.origin,
            key_id=account,
            headers=callback.headers,
            keys=keys,
            schemes=callback.schemes,
            window_end=callback.window_end,
        )

    @classmethod
    def of_subscription(cls, subscription: Subscription) -> Endpoint:
        """A subscription's endpoint."""
        return cls(
            url=subscription.url,
            origin=subscription.origin,
            key_id=subscription.id,
            headers=subscription.headers,
            keys=subscription.keys,
            schemes=subscription.schemes,
            hub_method=subscription.hub_method,
            retry_schedule=subscription.retry_schedule,
            timeout=subscription.timeout,
            rate_limit=subscription.rate_limit,
            by_handshake=subscription.verification is Verification.HANDSHAKE,
            subscription_id=subscription.id,
            version=subscription.version,
        )

    def keys_at(self, now: int) -> tuple[SigningKey, ...]:
        """What signs at a moment (milliseconds since the epoch), the newest first."""
        return tuple(key.key for key in self.keys if key.is_valid(now))


class NewTask(Discreet, frozen=True, kw_only=True, gc=False):
    """A task as it was accepted. Either `payload` (there is work to do) or `body` (there is none) is given."""

    HIDDEN = ("payload",)

    id: str
    delivery_id: str
    account: str
    type: str
    body_mode: BodyMode
    callback: Callback
    payload: bytes | None = None
    body: Body | None = None
    #: JSON object of the caller's, kept and shown as it came
    metadata: bytes | None = None
    traceparent: str | None = None
    #: hand the delivery to this process's lanes with the commit, instead of leaving it to be leased
    handed_off: bool = False


class IdempotencyKey(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The caller's promise that requests with this key are the same request."""

    account: str
    route: str
    key: str
    #: keyed digest of the request's body
    fingerprint: bytes
    #: where it stands in the body, as a JSON pointer; None where it is the Idempotency-Key header
    field: str | None = None


class Replayed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer that was given to an earlier request with the same idempotency key."""

    answer: bytes


class Submission(msgspec.Struct, kw_only=True):
    """One request to accept tasks, all or none of them."""

    tasks: Sequence[NewTask]
    key: IdempotencyKey | None
    #: what the caller will be told; kept under the key
    answer: bytes


class LeasedDelivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A delivery that this process may send, with all that it takes."""

    id: str
    wire_id: str
    account: str
    lane: str
    #: number of this attempt and fencing token of the lease
    attempt: int
    #: the session that the lease hangs on: when that is over, it must not be sent
    session: str
    #: the event type, or the task's type
    event: str
    endpoint: Endpoint
    body: Body
    traceparent: str | None
    kind: DeliveryKind = DeliveryKind.MESSAGE
    #: sign with the older secret this time: the newer one was just refused
    other_secret: bool = False
    #: monotonic clock before which it is not to be sent, seconds: its place in a pace that several processes keep
    not_before: float = 0.0
    #: monotonic clock when its endpoint was looked at, seconds
    seen_at: float = msgspec.field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Bytes of memory that it holds, roughly."""
        return len(self.body.body)


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is kept of one attempt. Texts are scrubbed of the delivery's URL and secrets before they get here."""

    outcome: Outcome
    status: int | None = None
    error: str | None = None
    #: monotonic clock at its start, seconds
    started: float
    #: monotonic clock at its end, seconds
    ended: float
    truncated: bool = False
    response_headers: Headers = ()
    response_body: str | None = None
    #: milliseconds spent on dns, connect, tls and wait; and whether it was `reconnected`, if it was
    timing: dict[str, float | bool] | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an attempt ended, for `settle`."""

    delivery_id: str
    attempt: int
    answer: retry.Answer
    record: AttemptRecord
    #: delays between tries, seconds
    schedule: Sequence[float]
    #: from -1 to 1
    jitter: float
    #: requests per second that a handshake granted
    granted_rate: float | None = None
    #: the state of the subscription that it was sent by
    version: int | None = None


class Settled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of a delivery with this attempt."""

    state: DeliveryState
    lane: str
    #: seconds until it is due again, when it is pending
    delay: float | None
    #: another delivery of the lane is due now: it was behind this one in order
    promoted: bool = False


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """Where a delivery waits whose lease was given back."""

    lane: str
    #: seconds until it is due
    delay: float


class LaneClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A wish to lease up to `limit` due deliveries of a lane."""

    lane: str
    limit: int


class LeasedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease brought: deliveries, and for each lane asked the seconds until more is due (None: nothing waits)."""

    deliveries: list[LeasedDelivery]
    next_due: dict[str, float | None]
    #: lanes whose pace has no more places for us, and the seconds until it is worth to ask again
    closed: dict[str, float] = msgspec.field(default_factory=dict)


class TaskClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A wish to lease up to `limit` due tasks of some types."""

    types: tuple[str, ...]
    limit: int
    #: only this account's tasks; None for every account's
    account: str | None = None
    #: seconds for each type, for a processor outside our processes; None hangs the lease on our session
    lease_for: dict[str, float] | None = None


class LeasedTask(Discreet, frozen=True, kw_only=True):
    """A task that may be worked on. It does not hold the callback: processors never see it."""

    HIDDEN = ("payload",)

    id: str
    account: str
    type: str
    payload: bytes
    #: fencing token of the lease
    attempt: int
    #: tries that failed before
    failures: int
    #: leases in a row that ended without a report
    interruptions: int
    body_mode: BodyMode
    delivery_id: str
    metadata: bytes | None
    #: milliseconds since the epoch
    created_at: int
    window_end: int | None
    lease_until: int | None
    state: TaskState = TaskState.PROCESSING


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a try at a task ended: with a result (`state` and `body`), or with another try after `retry_in` seconds."""

    task_id: str
    attempt: int
    #: set for processors outside our processes: only this account's tasks (None: every account's)
    account: str | None = None
    remote: bool = False
    state: TaskState | None = None
    body: Body | None = None
    error: bytes | None = None
    retry_in: float | None = None


class TaskSettled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task."""

    state: TaskState


class NewEvent(Discreet, frozen=True, kw_only=True):
    """An event as it was accepted."""

    HIDDEN = ("payload",)

    id: str
    account: str
    type: str
    payload: bytes
    #: the id that its publisher gave it
    reference: str | None = None
    subject: str | None = None
    ordering_key: str | None = None
    traceparent: str | None = None


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription that wanted an event and does not get it."""

    subscription_id: str
    #: `filter`: its filter could not be evaluated; `gone`: its endpoint has said that it will not come back
    reason: str
    #: a sentence for its owner
    detail: str


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event: it is on disk, and so are its deliveries, or they will be."""

    event_id: str
    #: deliveries that it has or will have
    deliveries: int
    #: whether they are all there
    complete: bool
    skipped: tuple[Skipped, ...]
