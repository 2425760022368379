"""Subscriptions as the rest of the program knows them: opened, typed, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from subscriptions.health import DISABLE_AFTER, DisabledReason, DisableOn, Policy
from subscriptions.secrets import Secret, SigningKey

#: seconds for which deliveries are held, where nothing else is said
HOLD_FOR = 14 * 86_400.0
#: seconds for which the old secret stays valid after a rotation, where nothing else is said
OVERLAP = 86_400.0

Headers = tuple[tuple[str, str], ...]


class SubscriptionState(StrEnum):
    """Whether a subscription gets its deliveries."""

    #: it does
    ACTIVE = "active"
    #: they are held for it
    DISABLED = "disabled"
    #: it is gone, and what waited for it is cancelled
    DELETED = "deleted"


class Movement(StrEnum):
    """What is being done, step by step, to the deliveries of a subscription that wait."""

    #: pending ones become held, since it was disabled
    HOLD = "hold"
    #: held ones become pending, in order and at a gentle pace, since it was enabled
    RELEASE = "release"
    #: held ones are cancelled, since it was enabled without them
    DISCARD = "discard"
    #: all that wait are cancelled, since it was deleted
    CANCEL = "cancel"


class Ordering(StrEnum):
    """Which deliveries of a subscription wait for each other."""

    #: none
    NONE = "none"
    #: all: one after the other
    FIFO = "fifo"
    #: those of events with the same `ordering_key`
    FIFO_BY_KEY = "fifo-by-key"


class OnExhausted(StrEnum):
    """What happens when an ordered delivery has used up every try."""

    #: the subscription is disabled, and the rest is held
    BLOCK = "block"
    #: the next one goes
    SKIP = "skip"


class Verification(StrEnum):
    """How an endpoint shows that it wants what we send, before it is enabled."""

    #: not at all at creation; a ping when it is enabled again
    NONE = "none"
    #: it answers a signed ping with 2xx
    PING = "ping"
    #: it answers the handshake of the CloudEvents webhook specification
    HANDSHAKE = "handshake"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidKey:
    """What signs, and when."""

    #: the id of the secret's row
    id: str
    key: SigningKey
    #: milliseconds since the epoch
    valid_from: int
    #: None: until it is rotated or revoked
    valid_until: int | None
    created_at: int

    def is_valid(self, now: int) -> bool:
        """Whether it may sign now (milliseconds since the epoch)."""
        return self.valid_from <= now and (self.valid_until is None or now < self.valid_until)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What an owner says of a subscription."""

    name: str
    #: event patterns
    events: tuple[str, ...]
    url: Secret
    #: scheme, host and port of the URL: all of it that may be shown
    origin: str
    #: keyed digest of the URL
    fingerprint: str
    description: str | None = None
    #: a JSON object, kept and shown as it came
    metadata: bytes | None = None
    #: custom headers; their values may be credentials
    headers: Headers = field(default=(), repr=False)
    #: an expression on the payload
    filter: str | None = None
    body_mode: str = "raw"
    #: None: the account's, or those that fit the secret
    schemes: tuple[str, ...] | None = None
    hub_method: str = "sha256"
    ordering: Ordering = Ordering.NONE
    on_exhausted: OnExhausted = OnExhausted.BLOCK
    #: requests per second
    rate_limit: float | None = None
    #: delays between tries, seconds; None: the account's
    retry_schedule: tuple[float, ...] | None = None
    #: total deadline of one attempt, seconds; None: the installation's
    timeout: float | None = None
    disable_after_4xx: int = 1
    disable_on: DisableOn = DisableOn.ANY
    #: seconds
    disable_after: float = DISABLE_AFTER
    #: seconds
    hold_for: float = HOLD_FOR
    verification: Verification = Verification.NONE
    #: it is told of the account's other subscriptions, and gets no published event
    operational: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription(Draft):
    """A subscription as it stands."""

    id: str
    account: str
    version: int
    state: SubscriptionState
    disabled_reason: DisabledReason | None = None
    #: moments are milliseconds since the epoch
    disabled_at: int | None = None
    movement: Movement | None = None
    #: the ping or handshake that is under way
    verifying: str | None = None
    refusals: int = 0
    failures: int = 0
    failing_since: int | None = None
    held: int = 0
    created_at: int
    updated_at: int
    #: newest first; those that are over are not among them
    keys: tuple[ValidKey, ...] = ()

    @property
    def policy(self) -> Policy:
        """When it is disabled."""
        return Policy(
            disable_after_4xx=self.disable_after_4xx,
            disable_on=self.disable_on,
            disable_after=self.disable_after,
        )

    def keys_at(self, now: int) -> tuple[SigningKey, ...]:
        """What signs at a moment (milliseconds since the epoch), the newest first."""
        return tuple(key.key for key in self.keys if key.is_valid(now))
