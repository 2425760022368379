"""Senders under examination, and how they are driven: ours, and any other that speaks a small protocol.

The protocol for others: a command that reads one JSON object a line from stdin and answers with one a line on stdout,
in any order. `{"id": 1, "call": "subscribe", "url": …}` is answered by `{"id": 1, "result": …}`, or by
`{"id": 1, "refused": "why"}` where the sender does not take what was asked. docs/conformance.md has all calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

#: what a sender may be able to do; a scenario that needs what it lacks is skipped
ABILITIES = {
    "subscribe": "make standing subscriptions",
    "callback": "send one answer to a URL that comes with a task",
    "schedule": "take a retry schedule in fractions of a second",
    "timeout": "take a deadline for each subscription",
    "state": "tell whether a subscription is active",
    "enable": "enable a disabled subscription",
    "rotate": "rotate a secret with an overlap",
    "strict": "send one message as it runs in production, where loopback and private addresses are refused",
    "resolver": "ask the kit's name server, and admit a network and ports of the kit's, as it runs in production",
    "authority": "trust a certificate authority of the kit's",
    "handshake": "ask an endpoint by the handshake of CloudEvents webhooks before it sends",
    "body:cloudevents-binary": "send CloudEvents in binary mode",
    "body:cloudevents-structured": "send CloudEvents in structured mode",
    "scheme:websub": "sign by WebSub",
    "scheme:github": "sign as GitHub does",
    "scheme:standard": "sign by Standard Webhooks",
    "scheme:standard-ed25519": "sign by Standard Webhooks, asymmetrically",
    "scheme:timestamped": "sign the body, with the time in a header",
    "scheme:servicestack": "sign as ServiceStack.Webhooks does",
    "scheme:rfc9421": "sign by RFC 9421 with a shared secret",
    "scheme:rfc9421-ed25519": "sign by RFC 9421 with a key pair",
}


#: where the kit looks for the id and the time if the sender says nothing else
ID_HEADERS = ("webhook-id", "X-Webhook-Delivery", "X-GitHub-Delivery", "ce-id", "X-Delivery-Id")
TIME_HEADERS = ("webhook-timestamp", "X-Webhook-Timestamp")


class Refused(Exception):
    """The sender does not take what it was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A subscription as a scenario wants it."""

    url: str = field(repr=False)
    #: the one event type that it wants
    event: str
    secret: str = field(repr=False)
    schemes: tuple[str, ...] = ()
    #: seconds between tries
    schedule: Sequence[float] = ()
    #: seconds for one request
    timeout: float = 5.0
    #: the endpoint is asked by a handshake first
    handshake: bool = False
    #: `cloudevents-binary` or `cloudevents-structured`; empty: what the sender does by itself
    body: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Headers that mean the same by different names; of each, the first that is there counts."""

    #: of a message's id
    id: tuple[str, ...] = ID_HEADERS
    #: of the time of an attempt
    timestamp: tuple[str, ...] = TIME_HEADERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribed:
    """A subscription as the sender made it."""

    id: str
    #: `whpk_…`, where there is a key pair
    public_key: str | None = None


class Sender(Protocol):
    """One sender. An async context manager: it runs within."""

    #: what it is, for the report: "webhook-dispatcher 0.1.0"
    name: str
    abilities: frozenset[str]
    #: what its headers are called
    names: Names

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def subscribe(self, wish: Wish) -> Subscribed:
        """Make a subscription. Raises Refused."""
        ...

    async def publish(self, event: str, payload: bytes) -> None:
        """Publish an event with these bytes as its payload. Raises Refused."""
        ...

    async def call_back(self, url: str, payload: bytes, *, secret: str) -> None:
        """Send one answer to a URL, signed with this secret. Raises Refused."""
        ...

    async def is_active(self, subscription_id: str) -> bool:
        """Whether a subscription is sent to."""
        ...

    async def enable(self, subscription_id: str) -> None:
        """Enable a subscription. Raises Refused."""
        ...

    async def rotate(self, subscription_id: str, secret: str, *, overlap: float) -> None:
        """Sign with another secret; the old one is good for `overlap` seconds more."""
        ...

    async def send_strictly(self, url: str) -> bool:
        """Have the sender, run as in production, take this URL and send a message there; whether it took it.

        The URL leads to this machine and no further.
        """
        ...
