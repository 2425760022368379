"""One HTTP request to one target: the interface that the sender uses, and what every implementation keeps to.

HTTP/1.1, the path as it was given, no redirects, no cookies, no proxies from the environment, no headers but ours, one
deadline over everything.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

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


class Exchange:
    """A request on its way, and what comes of it."""

    __slots__ = ("answer", "head", "request", "timing", "until")

    request: Request
    #: what a transport makes of it: how it begins on the wire, and its deadline on the event loop's clock
    head: bytes
    until: float

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        #: what came of it: an exception where there is no usable answer
        self.answer: Response | Exception | None = None

    def over(self) -> None:
        """It has its answer."""
        raise NotImplementedError


class Transport(ABC):
    """Sends requests, each once."""

    @abstractmethod
    def begin(self, exchanges: Sequence[Exchange]) -> None:
        """Send these requests, and have each of them be `over` when its answer is there. Raises nothing.

        Together they cost less than one by one (`dispatcher.rounds`).
        """

    @abstractmethod
    def abandon(self, exchange: Exchange) -> None:
        """Close what carries it; it will not be `over`. Nothing happens where it is."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what is idle, and keep nothing open from now on."""

    async def send(self, request: Request, timing: Timing) -> Response:
        """Send one request and wait for its answer. `timing` is filled in as far as it gets.

        Raises:
            SendError: there was no usable answer; its detail holds nothing of the URL.
        """
        exchange = _Awaited(request, timing)
        self.begin([exchange])
        try:
            await exchange.is_over
        finally:
            self.abandon(exchange)
        if isinstance(exchange.answer, Response):
            return exchange.answer
        raise exchange.answer or AssertionError("an exchange is over and has no answer")


class _Awaited(Exchange):
    """One that somebody waits for."""

    __slots__ = ("is_over",)

    def __init__(self, request: Request, timing: Timing) -> None:
        super().__init__(timing)
        self.request = request
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def over(self) -> None:
        """It has its answer."""
        if not self.is_over.done():
            self.is_over.set_result(None)
