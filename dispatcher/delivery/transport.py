"""One HTTP request to one target: the interface that the sender uses, and its httpx implementation.

What holds for every request: HTTP/1.1, the path as it was given, no redirects, no cookies, no proxies from
the environment, no headers but ours, one deadline over everything, and never a second try.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpcore
import httpx

from dispatcher.delivery.network import Dialer, Timing
from dispatcher.delivery.resolver import Resolver
from dispatcher.egress import EgressPolicy, Target, admit
from dispatcher.errors import ConfigError, EgressRefused, SendError
from dispatcher.headers import FRAMING
from dispatcher.models import Outcome

__all__ = ["HttpxTransport", "Request", "Response", "Timing", "Transport"]

#: bytes of an answer's body that are read; what is beyond is not ours to carry
MAX_BODY_BYTES = 64 * 1024
#: pieces in which a body may come; whoever sends more of them means to keep us busy
MAX_PIECES = 2_000
#: headers of an answer that are kept; httpcore refuses more than 100 KiB of them outright
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024

#: a connection is not used again after this long: its name may stand for other addresses by now
_MAX_AGE_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is sent. Headers and body may hold secrets, so `repr` leaves them out."""

    method: str = "POST"
    target: Target
    #: sent as they are and in this order, but for those that frame the message, which are left out
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    #: seconds for everything: DNS, connect, TLS, sending and reading
    deadline: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer whose status and headers arrived whole."""

    status: int
    #: the first ones, within `MAX_HEADERS` and `MAX_HEADER_BYTES`
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    #: as it was sent (no content coding is undone), the first `MAX_BODY_BYTES`
    body: bytes = field(repr=False)
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


class HttpxTransport:
    """Sends over httpx, one transport of one connection per request in flight.

    A shared httpcore pool looks at all connections for each request; with thousands of them that is
    quadratic. Here idle connections are kept by origin, the last used one first, and nothing is searched.

    `proxy` is the URL of an egress proxy, with its credentials if it wants any. It then resolves and guards
    by itself; what `egress.admit` can check without DNS is still checked here. `max_idle` bounds the idle
    connections of all origins together, `idle_s` is how long one of them is kept.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        policy: EgressPolicy,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        max_idle: int = 512,
        idle_s: float = 30.0,
    ) -> None:
        self._resolver = resolver
        self._policy = policy
        self._ssl_context = ssl_context or ssl.create_default_context()
        self._proxy = None if proxy is None else _read_proxy(proxy)
        self._idle = _IdleSlots(limit=max_idle, expiry_s=idle_s)

    async def send(self, request: Request, timing: Timing) -> Response:
        """Send a request and read its answer; see `Transport.send`."""
        try:
            admit(request.target, self._policy)
        except EgressRefused as exc:
            raise SendError(Outcome.EGRESS_REFUSED, exc.detail) from exc
        slot = self._idle.take(request.target) or self._new_slot(request.target)
        try:
            return await slot.exchange(request, timing)
        finally:
            if slot.reusable:
                self._idle.put(slot)
            else:
                slot.close()

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their answer is there."""
        self._idle.close()

    def _new_slot(self, target: Target) -> _Slot:
        dialer = Dialer(self._resolver, target, self._policy if self._proxy is None else None)
        pool = _ExactPool(
            ssl_context=self._ssl_context,
            proxy=self._proxy,
            max_connections=1,
            http1=True,
            http2=False,
            network_backend=dialer,
        )
        return _Slot(target, dialer, pool, self._ssl_context)


class _ExactPool(httpcore.AsyncConnectionPool):
    """A pool that hands on the raw target, and forgets that it was an extension.

    httpcore has applied the extension by the time the request is here; left in, it would replace the target
    of the CONNECT request to a proxy, too, and show the proxy the path.
    """

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        request.extensions = {key: value for key, value in request.extensions.items() if key != "target"}
        return await super().handle_async_request(request)


class _Slot:
    """One connection at most, the httpx transport that speaks over it, and one request at a time."""

    def __init__(
        self, target: Target, dialer: Dialer, pool: httpcore.AsyncConnectionPool, ssl_context: ssl.SSLContext
    ) -> None:
        self.key = _key(target)
        #: when it became idle, on the event loop's clock
        self.idle_since = 0.0
        self._dialer = dialer
        self._pool = pool
        self._url = httpx.URL(scheme=target.scheme, host=target.host, port=target.port, path="/")
        self._transport = httpx.AsyncHTTPTransport(verify=ssl_context, trust_env=False)
        # httpx has no argument for a network backend; its transport is a thin layer over this pool
        self._transport._pool = pool

    async def exchange(self, request: Request, timing: Timing) -> Response:
        """Send, wait for status and headers, read the body; on any failure the connection is closed."""
        deadline = asyncio.get_running_loop().time() + request.deadline
        self._dialer.begin(timing, deadline)
        try:
            answer = await self._await_headers(request, timing, deadline)
            if answer.status_code == 101:
                raise SendError(Outcome.PROTOCOL_ERROR, "the answer switches to another protocol")
            body, complete = await self._read_body(answer, deadline)
        except BaseException:
            self.close()
            raise
        return Response(
            status=answer.status_code, headers=_cap_headers(answer.headers.raw), body=body, complete=complete
        )

    async def _await_headers(self, request: Request, timing: Timing, deadline: float) -> httpx.Response:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._transport.handle_async_request(self._build(request))
        except TimeoutError as exc:
            raise SendError(Outcome.TIMEOUT, "no complete answer within the deadline") from exc
        except httpx.TransportError as exc:
            raise self._translate(exc) from exc
        finally:
            stream = self._dialer.stream
            if stream is not None and stream.sent_at is not None:
                timing.wait = (time.perf_counter() - stream.sent_at) * 1000.0

    async def _read_body(self, answer: httpx.Response, deadline: float) -> tuple[bytes, bool]:
        """The body and whether it is whole. The answer stands already: nothing that fails here undoes it."""
        body, pieces = bytearray(), 0
        try:
            async with asyncio.timeout_at(deadline):
                # raw: httpx would undo content codings, and a small body can unpack to a huge one
                async for chunk in _raw(answer):
                    body += chunk
                    pieces += 1
                    if len(body) > MAX_BODY_BYTES or pieces > MAX_PIECES:
                        # not `break`: closed, the connection ends the loop through every generator below
                        self.close()
                await answer.aclose()  # makes the connection ready for its next request
        except (TimeoutError, httpx.TransportError, SendError):
            return bytes(body[:MAX_BODY_BYTES]), False
        return bytes(body[:MAX_BODY_BYTES]), len(body) <= MAX_BODY_BYTES and pieces <= MAX_PIECES

    @property
    def reusable(self) -> bool:
        """Whether the connection is open, not too old, and at the start of its next request."""
        stream = self._dialer.stream
        if stream is None or stream.stale or asyncio.get_running_loop().time() > stream.opened_at + _MAX_AGE_S:
            return False
        return any(connection.is_idle() and not _has_leftover(connection) for connection in self._pool.connections)

    def close(self) -> None:
        """Close the connection at once; there is nothing to await."""
        if self._dialer.stream is not None:
            self._dialer.stream.abort()

    def _build(self, request: Request) -> httpx.Request:
        headers = [(b"Host", request.target.authority.encode("ascii"))]
        headers += [(name.encode(), value.encode()) for name, value in request.headers if name.lower() not in FRAMING]
        return httpx.Request(
            request.method,
            self._url,
            headers=headers,
            content=request.body,
            extensions={"target": request.target.path.encode("ascii")},
        )

    def _translate(self, exc: httpx.TransportError) -> SendError:
        if isinstance(exc, httpx.LocalProtocolError):
            return SendError(Outcome.INTERNAL_ERROR, "the request cannot be written as HTTP")
        if isinstance(exc, httpx.ProxyError):
            return SendError(Outcome.CONNECTION_ERROR, "the egress proxy made no connection")
        stream = self._dialer.stream
        if isinstance(exc, httpx.RemoteProtocolError) and stream is not None and not stream.ended:
            return SendError(Outcome.PROTOCOL_ERROR, "the answer is not HTTP")
        return SendError(Outcome.CONNECTION_ERROR, "the connection broke before an answer")


def _has_leftover(connection: object) -> bool:
    """Whether more was read than the last answer: whatever it is, it is no answer to the next request (RFC 9112 §6.3).

    httpcore does not tell, so its parts are opened; where they are not as expected, the connection is not trusted.
    """
    while (inner := getattr(connection, "_connection", None)) is not None:
        connection = inner
    state = getattr(connection, "_h11_state", None)
    return state is None or bool(state.trailing_data[0])


class _IdleSlots:
    """Open connections that wait for their next request: last in, first out by origin, and bounded."""

    def __init__(self, *, limit: int, expiry_s: float) -> None:
        self._limit = limit
        self._expiry_s = expiry_s
        #: all of them, the longest idle first
        self._by_age: OrderedDict[_Slot, None] = OrderedDict()
        #: the same ones by origin, the longest idle first
        self._by_key: dict[_Key, OrderedDict[_Slot, None]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, target: Target) -> _Slot | None:
        """The origin's connection that was used last, if one is still good."""
        key = _key(target)
        while (slots := self._by_key.get(key)) is not None:
            slot = next(reversed(slots))
            self._remove(slot)
            if slot.reusable:
                return slot
            slot.close()
        return None

    def put(self, slot: _Slot) -> None:
        """Keep an open connection; the longest idle one of all makes room."""
        if self._closed:
            slot.close()
            return
        slot.idle_since = asyncio.get_running_loop().time()
        self._by_age[slot] = None
        self._by_key.setdefault(slot.key, OrderedDict())[slot] = None
        while len(self._by_age) > self._limit:
            self._drop_oldest()
        self._schedule()

    def close(self) -> None:
        """Close them all, and keep none from now on."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._by_age:
            self._drop_oldest()

    def _schedule(self) -> None:
        if self._sweep is None and self._by_age:
            oldest = next(iter(self._by_age))
            self._sweep = asyncio.get_running_loop().call_at(oldest.idle_since + self._expiry_s, self._expire)

    def _expire(self) -> None:
        self._sweep = None
        ended_before = asyncio.get_running_loop().time() - self._expiry_s
        while self._by_age and next(iter(self._by_age)).idle_since <= ended_before:
            self._drop_oldest()
        self._schedule()

    def _drop_oldest(self) -> None:
        slot = next(iter(self._by_age))
        self._remove(slot)
        slot.close()

    def _remove(self, slot: _Slot) -> None:
        del self._by_age[slot]
        slots = self._by_key[slot.key]
        del slots[slot]
        if not slots:
            del self._by_key[slot.key]


_Key = tuple[str, str, int]


def _key(target: Target) -> _Key:
    return target.scheme, target.host, target.port


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    if not isinstance(answer.stream, httpx.AsyncByteStream):
        raise TypeError("an answer of an asynchronous transport has an asynchronous body")
    async for chunk in answer.stream:
        yield chunk


def _cap_headers(raw: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    kept: list[tuple[str, str]] = []
    size = 0
    for name, value in raw[:MAX_HEADERS]:
        size += len(name) + len(value)
        if size > MAX_HEADER_BYTES:
            break
        kept.append((name.decode("latin-1"), value.decode("latin-1")))
    return tuple(kept)


def _read_proxy(url: str) -> httpcore.Proxy:
    """The proxy's URL, its credentials apart.

    Raises:
        ConfigError: it is not an http or https URL. The text does not repeat it.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigError("the egress proxy is not a valid URL") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError("the egress proxy must be an http:// or https:// URL")
    return httpcore.Proxy(
        url=httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=b"/"),
        auth=(parsed.username, parsed.password) if parsed.userinfo else None,
    )
