"""What mutants of several kinds are made of."""

from __future__ import annotations

import json

from examples.other_sender.sender import Message, Sender, Subscription
from tests.conformance.good_senders import Headers, Wire


class OtherHeader(Sender):
    """One header is another."""

    header = ""
    value: str | None = None

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), self.header, self.value)


class PlainWire(Wire):
    """Writes HTTP itself, without chunks and with the names as they are."""

    is_chunked = False

    def spelt(self, name: str) -> str:
        return name


def with_header(headers: Headers, name: str, value: str | None) -> Headers:
    """Headers with another value for one name, or without it."""
    kept = [one for one in headers if one[0].lower() != name.lower()]
    return kept if value is None else [*kept, (name, value)]


def rewritten(body: bytes) -> bytes:
    return json.dumps(json.loads(body)).encode()
