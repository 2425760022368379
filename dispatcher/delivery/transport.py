"""One HTTP request to one target: the interface that the sender uses, and what every implementation keeps to.

HTTP/1.1, the path as it was given, no redirects, no cookies, no proxies from the environment, no headers but ours, one
deadline over everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from dispatcher.discreet import Discreet
from dispatcher.egress import Target

#: bytes of an answer's body that are read; what is beyond is not ours to carry
MAX_BODY_BYTES = 64 * 1024
#: pieces in which a body may come; whoever sends more of them means to keep us busy
MAX_PIECES = 2_000
#: headers of an answer that are kept
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
#: bytes on the wire of one answer: interim answers, headers, framing and body together
MAX_ANSWER_BYTES = 192 * 1024
#: a connection is not used again after this many seconds: its name may stand for other addresses by now
MAX_AGE_S = 300.0


class Timing(msgspec.Struct, gc=False):
    """How long the stages of an attempt took, in ms; None where a stage was not reached or not needed.

    The caller passes it in, so that it keeps what happened when the attempt fails.
    """

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    #: from the first byte sent to the end of the answer's headers, or to the failure
    wait: float | None = None
    #: a kept connection broke before any byte of an answer, and the request was sent again over a new one
    reconnected: bool = False


class Request(Discreet, frozen=True, kw_only=True, gc=False):
    """What is sent. Headers and body may hold secrets, so `repr` leaves them out."""

    HIDDEN = ("headers", "body")

    method: str = "POST"
    target: Target
    #: sent as they are and in this order, but for those that frame the message, which are left out
    headers: Sequence[tuple[str, str]]
    body: bytes
    #: seconds for everything: DNS, connect, TLS, sending and reading
    deadline: float


class Response(Discreet, frozen=True, kw_only=True, gc=False):
    """An answer whose status and headers arrived whole."""

    HIDDEN = ("headers", "body")

    status: int
    #: the first ones, within `MAX_HEADERS` and `MAX_HEADER_BYTES`
    headers: tuple[tuple[str, str], ...]
    #: as it was sent (no content coding is undone), the first `MAX_BODY_BYTES`
    body: bytes
    #: False when the body broke off, outlasted the deadline, or was longer than what we read
    complete: bool


class Transport(Protocol):
    """Sends one request, once."""

    async def send(self, request: Request, timing: Timing) -> Response:
        """Send it and read the answer. `timing` is filled in as far as the attempt gets.

        Raises:
            SendError: there was no usable answer; its detail holds nothing of the URL.
        """
        ...

    async def aclose(self) -> None:
        """Close what is idle, and keep nothing open from now on."""
        ...
