"""Which defences a webhook handler has up, and how each is set."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dispatcher.conformance.receiver.addresses import parse_networks
from dispatcher.conformance.receiver.callbacks import CallbackIssuer
from dispatcher.conformance.receiver.event_schemas import compile_schemas
from dispatcher.conformance.receiver.handshakes import ANY_ORIGIN, MAX_RATE, is_origin
from dispatcher.conformance.signatures.schemes import HUB_METHODS, SCHEMES, Key
from dispatcher.errors import ConfigError

#: the defences, in the order in which they are asked
#:
#: Nothing dear is done for somebody who has not proved who they are. So the comparisons come first, and what is counted
#: by address. Of those: who may not come at all is told nothing else. A handshake has no secret to show, nor has
#: whoever asks by another method what is taken here, so both are answered before the secret is asked for; what a body
#: has to be is told behind it. Then comes the signature, over the raw bytes and of a size that has been bounded. Only
#: behind it is anything remembered or parsed. The time is judged after the signature that vouches for it; the
#: delivery's id after the time, since it is remembered for a time only; the body last, since it costs most. And a
#: delivery counts as seen only when all have passed: else anybody could use up an id, and the genuine delivery would be
#: the repeat.
DEFENCES = (
    "https",
    "allow-list",
    "handshake",
    "method",
    "shared-secret",
    "content-type",
    "limits",
    "rate",
    "signature",
    "timestamp",
    "replay",
    "callback",
    "schema",
)

#: seconds around now, for what needs a tolerance when no timestamp is asked for
DEFAULT_TOLERANCE = 300.0

#: a method, or one side of a media type (RFC 9110 §5.6.2)
_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"

#: settings of which an empty list, maybe of an environment variable that is not set, must not switch a defence off
_LISTS = (
    "allowed_networks",
    "handshake_origins",
    "methods",
    "shared_secrets",
    "content_types",
    "signature_schemes",
    "schemas",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How a handler defends itself. ConfigError says which setting is wrong.

    Every defence is off unless it is set, but for one: messages are POSTs, so whatever comes otherwise is refused.
    """

    #: https: refuse what came over plain http (403, never a redirect: what it carried has been seen already)
    https_only: bool = False
    #: where a trusted proxy says how the client came, such as X-Forwarded-Proto
    forwarded_proto_header: str = ""

    #: allow-list: networks such as 192.0.2.0/24 and single addresses; all others get 403
    allowed_networks: tuple[str, ...] | None = None
    #: where a trusted proxy says who the client is, such as X-Forwarded-For
    forwarded_for_header: str = ""
    #: networks of the proxies that are believed
    trusted_proxies: tuple[str, ...] = ()

    #: handshake: the origins (DNS names, or `*`) that may send: asked by OPTIONS with WebHook-Request-Origin, it grants
    #: it to them, and answers others 403. None: such a request is one like any other
    handshake_origins: tuple[str, ...] | None = None
    #: handshake: requests a minute that are granted; None: any number
    handshake_rate: int | None = None

    #: method: others get 405; None: any will do
    methods: tuple[str, ...] | None = ("POST",)

    #: content-type: media types such as application/json, whatever their parameters; others get 415, and so does what
    #: is compressed: a small body could become a huge one
    content_types: tuple[str, ...] | None = None

    #: shared-secret: the values that its header may have; several while they are being changed
    shared_secrets: tuple[str, ...] | None = field(default=None, repr=False)
    shared_secret_header: str = "X-Secret"  # noqa: S105 - the name of a header

    #: limits: bytes; more gets 413
    max_body_bytes: int | None = None
    #: limits: bytes of all header lines with their ends, without the request line; more gets 431
    max_header_bytes: int | None = None
    #: limits: header lines; more gets 431
    max_headers: int | None = None

    #: rate: requests a second from one address (of IPv6, from one /64); more gets 429 with Retry-After
    rate: float | None = None
    #: rate: requests that may come at once after a rest
    burst: int = 10
    #: rate: addresses that are counted; the one that has rested longest is forgotten first
    rate_addresses: int = 10_000

    #: signature: names of schemes (`dispatcher.conformance.signatures.schemes.SCHEMES`)
    signature_schemes: tuple[str, ...] | None = None
    #: signature: any one of the schemes has to hold, or all of them. Where only websub, github, timestamped or
    #: servicestack holds, neither time nor id is signed: both are open to whoever has seen one request
    signatures: Literal["any", "all"] = "any"
    #: signature: any of these has to match; several while they are being rotated
    keys: tuple[Key, ...] = field(default=(), repr=False)
    #: signature: digest of `websub`
    hub_method: str = "sha256"

    #: timestamp: seconds that a request may be old, or ahead
    tolerance: float | None = None

    #: replay: a delivery that was accepted is answered 409 ("refuse"), or 2xx and not processed again ("quiet")
    replay: Literal["off", "refuse", "quiet"] = "off"
    #: replay: headers that carry the delivery's id, where no scheme signs it; the first that is present counts
    delivery_headers: tuple[str, ...] = ("X-Webhook-Delivery", "webhook-id")
    #: replay: seconds that a delivery is remembered while there is room: senders retry for a day and more. It is twice
    #: the tolerance at least, room or not
    replay_seconds: float = 86_400.0
    #: replay: deliveries that are remembered; when all are younger than twice the tolerance, new ones get 503
    replay_capacity: int = 100_000

    #: callback: the path carries a token of this issuer
    callback: CallbackIssuer | None = None

    #: schema: JSON Schema by event type (X-Webhook-Event, else the body's member `type`)
    schemas: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)
    #: schema: event types that have none get 422, or pass
    unknown_events: Literal["refuse", "pass"] = "refuse"

    def __post_init__(self) -> None:
        for name in _LISTS:
            if (value := getattr(self, name)) is not None and not value:
                raise ConfigError(f"{name} is empty: name at least one, or None to have that defence off")
        self._check_numbers()
        self._check_choices()
        self._check_forwarding()
        self._check_requests()
        self._check_signatures()
        if self.schemas is not None:
            compile_schemas(self.schemas)

    @property
    def on(self) -> tuple[str, ...]:
        """The defences that are up, in their order."""
        up = {
            "https": self.https_only,
            "allow-list": self.allowed_networks is not None,
            "handshake": self.handshake_origins is not None,
            "method": self.methods is not None,
            "shared-secret": self.shared_secrets is not None,
            "content-type": self.content_types is not None,
            "limits": (self.max_body_bytes, self.max_header_bytes, self.max_headers) != (None, None, None),
            "rate": self.rate is not None,
            "signature": self.signature_schemes is not None,
            "timestamp": self.tolerance is not None,
            "replay": self.replay != "off",
            "callback": self.callback is not None,
            "schema": self.schemas is not None,
        }
        return tuple(name for name in DEFENCES if up[name])

    @property
    def replay_window(self) -> float:
        """Seconds that a delivery has to be remembered: one that is as far ahead as may be stays good so long."""
        return 2 * (DEFAULT_TOLERANCE if self.tolerance is None else self.tolerance)

    def _check_numbers(self) -> None:
        least = {
            "max_body_bytes": 0,
            "max_header_bytes": 1,
            "max_headers": 1,
            "burst": 1,
            "rate_addresses": 1,
            "tolerance": 0,
            "replay_seconds": 0,
            "replay_capacity": 1,
        }
        for name in (one.name for one in fields(self) if one.name in least):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least[name]):
                raise ConfigError(f"{name} is a number of at least {least[name]}")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError("rate is a number of requests a second above 0")

    def _check_choices(self) -> None:
        choices = {
            "signatures": ("any", "all"),
            "replay": ("off", "refuse", "quiet"),
            "unknown_events": ("refuse", "pass"),
            "hub_method": HUB_METHODS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of: {', '.join(known)}")

    def _check_forwarding(self) -> None:
        parse_networks(self.allowed_networks or (), setting="allowed_networks")
        parse_networks(self.trusted_proxies, setting="trusted_proxies")
        if (self.forwarded_for_header or self.forwarded_proto_header) and not self.trusted_proxies:
            raise ConfigError("a forwarded header counts from trusted proxies only: set trusted_proxies")

    def _check_requests(self) -> None:
        if not all(origin == ANY_ORIGIN or is_origin(origin) for origin in self.handshake_origins or ()):
            raise ConfigError("handshake_origins are DNS names, or * for any")
        rate = self.handshake_rate
        if rate is not None and not 1 <= rate <= MAX_RATE:
            raise ConfigError(f"handshake_rate is a whole number of requests a minute, from 1 to {MAX_RATE}")
        if rate is not None and self.handshake_origins is None:
            raise ConfigError("handshake_rate needs handshake_origins to grant it to")
        if not all(re.fullmatch(_WORD, method) for method in self.methods or ()):
            raise ConfigError("methods are names such as POST")
        if not all(re.fullmatch(f"{_WORD}/{_WORD}", kind) for kind in self.content_types or ()):
            raise ConfigError("content_types are media types such as application/json, without parameters")

    def _check_signatures(self) -> None:
        if self.shared_secrets is not None and not (all(self.shared_secrets) and self.shared_secret_header):
            raise ConfigError("shared_secrets and shared_secret_header are not empty")
        if self.replay != "off" and not self.delivery_headers:
            raise ConfigError("delivery_headers names at least one header")
        if self.signature_schemes is None:
            return
        if unknown := [scheme for scheme in self.signature_schemes if scheme not in SCHEMES]:
            raise ConfigError(f"signature_schemes: no scheme is called {unknown[0]}; there are {', '.join(SCHEMES)}")
        if not self.keys:
            raise ConfigError("signature_schemes needs keys to verify with")
