"""How an endpoint on the stage answers who asks whether he may send: the handshake of CloudEvents' webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.requests import Received, Reply

ORIGIN = "WebHook-Request-Origin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Consent:
    """What an endpoint answers to a handshake. As it stands it lets everybody send who asks, as fast as they like."""

    #: of the asking origin, the one that is allowed; None: the answer names none
    allowed: Callable[[str], str | None] = lambda origin: origin
    #: requests a minute, or `*`
    rate: str = "*"
    status: int = 200
    #: seconds until it is answered
    after: float = 0.0

    def reply(self, request: Received) -> Reply:
        """The answer to a handshake."""
        allowed = self.allowed(request.header(ORIGIN) or "")
        headers = [("Allow", "POST")]
        if allowed is not None:
            headers += [("WebHook-Allowed-Origin", allowed), ("WebHook-Allowed-Rate", self.rate)]
        return Reply(status=self.status, headers=tuple(headers))


@dataclass(kw_only=True, slots=True)
class Handshake:
    """One time that a sender asked."""

    request: Received = field(repr=False)
    #: when it was answered, by the monotonic clock; None while it is not
    answered: float | None = None


def is_handshake(request: Received) -> bool:
    """Whether a request asks for consent; it is then no message."""
    return request.method == "OPTIONS" and bool(request.values(ORIGIN))


async def answer(exchange: Exchange, consent: Consent, handshake: Handshake, clock: Callable[[], float]) -> None:
    """Answer a handshake. Its moment is noted before a byte has left: what comes earlier came without consent."""
    if consent.after:
        await asyncio.sleep(consent.after)
    reply = consent.reply(handshake.request)
    # an origin that no header can hold is allowed to nobody
    if any(not value.isprintable() for _, value in reply.headers):
        reply = Reply(status=400)
    handshake.answered = clock()
    await exchange.reply(reply)
