"""How a receiver agrees to be sent to: the handshake of CloudEvents' webhooks, from the side that is asked.

HTTP 1.1 Web Hooks for Event Delivery 1.0.2, section 4: a sender asks by OPTIONS, under the name that it goes by, and is
answered whether, and how fast, it may send. A grant is given in the answer or not at all: the URL that a request names
for a later one is never dialled, since whoever asks could name any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dispatcher.conformance.wire.requests import Received, Reply

#: stands for every origin
ANY_ORIGIN = "*"
#: requests a minute that may be granted at most
MAX_RATE = 1_000_000_000

_ASKING = "WebHook-Request-Origin"
_ORIGIN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)


def is_handshake(request: Received) -> bool:
    """Whether a request asks to send here; it is then no message."""
    return request.method == "OPTIONS" and bool(request.values(_ASKING))


def is_origin(text: str) -> bool:
    """Whether a text is a DNS name, as an origin has to be (section 4.1.1)."""
    return _ORIGIN.fullmatch(text) is not None


def grant(request: Received, origins: Sequence[str], rate: int | None) -> Reply | str:
    """The answer that lets the asking origin send; or why it may not, without what it sent.

    `rate` is in requests a minute, None for any. The rate is always told: it has to be where one was asked for.
    """
    asking = request.values(_ASKING)
    if len(asking) != 1:
        return "it names several origins"
    if not is_origin(asking[0]):
        return "its origin is no DNS name"
    is_any = ANY_ORIGIN in origins
    if not is_any and asking[0].lower() not in {origin.lower() for origin in origins}:
        return "its origin may not send here"
    headers = (
        ("Allow", "POST"),
        ("WebHook-Allowed-Origin", ANY_ORIGIN if is_any else asking[0]),
        ("WebHook-Allowed-Rate", "*" if rate is None else str(rate)),
    )
    return Reply(status=200, headers=headers)
