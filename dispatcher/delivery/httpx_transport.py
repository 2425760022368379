"""Requests over httpx: for egress proxies, and for whoever wants a library that is known everywhere.

Never a second try: what a kept connection breaks is a failed attempt.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence

import httpcore
import httpx

from dispatcher.delivery.idle import IdleConnections
from dispatcher.delivery.network import Dialer
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.transport import (
    MAX_AGE_S,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIECES,
    Exchange,
    Request,
    Response,
    Timing,
    Transport,
)
from dispatcher.egress import EgressPolicy, Target, admit
from dispatcher.errors import ConfigError, EgressRefused, SendError
from dispatcher.headers import FRAMING
from dispatcher.models import Outcome


class HttpxTransport(Transport):
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
        self._idle = IdleConnections[_Slot](limit=max_idle, expiry_s=idle_s)
        self._under_way: dict[Exchange, asyncio.Task[None]] = {}

    def begin(self, exchanges: Sequence[Exchange]) -> None:
        """Send requests; see `Transport.begin`."""
        for exchange in exchanges:
            self._under_way[exchange] = asyncio.create_task(self._carry(exchange))

    def abandon(self, exchange: Exchange) -> None:
        """Close the connection that carries it."""
        task = self._under_way.pop(exchange, None)
        if task is not None:
            task.cancel()

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their answer is there."""
        self._idle.close()

    async def _carry(self, exchange: Exchange) -> None:
        try:
            exchange.answer = await self._answer(exchange)
        except asyncio.CancelledError:
            if exchange not in self._under_way:
                # It was abandoned.
                raise
            exchange.answer = SendError(Outcome.CONNECTION_ERROR, "the connection broke before an answer")
        except Exception as exc:  # noqa: BLE001 - whoever sends it judges it
            exchange.answer = exc
        del self._under_way[exchange]
        exchange.over()

    async def _answer(self, exchange: Exchange) -> Response:
        request = exchange.request
        try:
            admit(request.target, self._policy)
        except EgressRefused as exc:
            raise SendError(Outcome.EGRESS_REFUSED, exc.detail) from exc
        slot = self._idle.take(_key(request.target)) or self._new_slot(request.target)
        try:
            return await slot.exchange(request, exchange.timing)
        finally:
            if slot.reusable:
                self._idle.put(slot)
            else:
                slot.close()

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
        if stream is None or stream.stale or asyncio.get_running_loop().time() > stream.opened_at + MAX_AGE_S:
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


def _key(target: Target) -> tuple[str, str, int]:
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
