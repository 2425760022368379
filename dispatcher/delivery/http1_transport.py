"""Requests over connections of our own, made for delivering webhooks.

What httpx does for a request costs more than the request. This knows one protocol, HTTP/1.1, and one way to use it.
It is an httpx transport, too: `httpx.AsyncClient(transport=…)` sends through it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable

import httpx
from msgspec.structs import replace

from dispatcher.delivery.connection import BrokenBeforeAnswer, Connection
from dispatcher.delivery.deadlines import Deadlines
from dispatcher.delivery.dialing import addresses_of, dial, vetted
from dispatcher.delivery.head import head_of
from dispatcher.delivery.idle import IdleConnections
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.tls import ClientContext, client_context
from dispatcher.delivery.transport import Request, Response, Timing
from dispatcher.egress import Address, EgressPolicy, Target, admit, parse
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import Outcome

#: schemes, hosts and ports that were admitted lately and are remembered
_MAX_ADMITTED = 4096
#: seconds, where an httpx client sets no timeout
_HTTPX_DEADLINE = 30.0


class Http1Transport(httpx.AsyncBaseTransport):
    """Sends requests over connections that are kept.

    `max_idle` bounds the idle connections of all hosts together, `idle_s` is how long one of them is kept.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        policy: EgressPolicy,
        context: ClientContext | None = None,
        max_idle: int = 512,
        idle_s: float = 30.0,
    ) -> None:
        self._resolver = resolver
        self._policy = policy
        self._context = context or client_context()
        self._idle = IdleConnections[Connection](limit=max_idle, expiry_s=idle_s)
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        self._admitted: set[tuple[str, str, int]] = set()

    async def send(self, request: Request, timing: Timing) -> Response:
        """Send a request and read its answer; see `Transport.send`.

        A kept connection may have been closed by the peer in the moment of its next use. If it breaks before any byte
        of an answer, the request is sent once more over a new one, and `timing.reconnected` says so.
        """
        target = request.target
        if (target.scheme, target.host, target.port) not in self._admitted:
            self._admit(target)
        head = head_of(request)
        has_body = request.method != "HEAD"
        until = self._loop.time() + request.deadline
        literal = target.literal
        addresses = (literal,) if literal is not None else await self._addresses(request, timing, until)
        connection = self._kept(addresses, target)
        if connection is not None:
            try:
                response = await connection.exchange(head, request.body, until=until, timing=timing, has_body=has_body)
            except BrokenBeforeAnswer:
                timing.reconnected = True
            else:
                self._keep(connection)
                return response
        connection = await self._open(addresses, request, timing, until)
        response = await connection.exchange(head, request.body, until=until, timing=timing, has_body=has_body)
        self._keep(connection)
        return response

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their answer is there."""
        self._idle.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of an httpx client: its read timeout is the deadline over everything.

        Raises httpx.TransportError, as httpx does: a ConnectError or ConnectTimeout means that nothing was sent.
        """
        try:
            target = parse(str(request.url.copy_with(raw_path=b"/")))
        except EgressRefused as exc:
            raise httpx.UnsupportedProtocol(exc.detail, request=request) from exc
        try:
            headers = [(name.decode("ascii"), value.decode()) for name, value in request.headers.raw]
        except UnicodeDecodeError as exc:
            raise httpx.LocalProtocolError("headers are sent as UTF-8", request=request) from exc
        wanted = Request(
            method=request.method,
            target=replace(target, path=request.url.raw_path.decode("ascii")),
            headers=headers,
            body=await request.aread(),
            deadline=request.extensions.get("timeout", {}).get("read") or _HTTPX_DEADLINE,
        )
        timing = Timing()
        try:
            answer = await self.send(wanted, timing)
        except SendError as exc:
            raise _httpx_error(exc.outcome, was_sent=timing.wait is not None)(exc.detail, request=request) from exc
        if not answer.complete:
            raise httpx.RemoteProtocolError("the answer broke off, or is too large", request=request)
        body = httpx.ByteStream(answer.body)
        return httpx.Response(answer.status, headers=list(answer.headers), stream=body, request=request)

    def _admit(self, target: Target) -> None:
        """Refuse what can be refused without DNS. That depends on nothing but the policy, so it is looked at once."""
        try:
            admit(target, self._policy)
        except EgressRefused as exc:
            raise SendError(Outcome.EGRESS_REFUSED, exc.detail) from exc
        if len(self._admitted) >= _MAX_ADMITTED:
            self._admitted.clear()
        self._admitted.add((target.scheme, target.host, target.port))

    async def _addresses(self, request: Request, timing: Timing, until: float) -> tuple[Address, ...]:
        """Where it may go. Asked for every request: what a name stands for may have changed, and the policy decides."""
        target = request.target
        cached = self._resolver.cached(target.host)
        if cached is None:
            try:
                async with asyncio.timeout_at(until):
                    cached = await addresses_of(target.host, self._resolver, timing)
            except TimeoutError as exc:
                raise _late() from exc
        return vetted(cached, target, self._policy)

    def _kept(self, addresses: tuple[Address, ...], target: Target) -> Connection | None:
        for address in addresses:
            connection = self._idle.take(_key(address, target))
            if connection is not None:
                return connection
        return None

    async def _open(self, addresses: tuple[Address, ...], request: Request, timing: Timing, until: float) -> Connection:
        target = request.target
        connection: Connection | None = None
        try:
            async with asyncio.timeout_at(until):
                make = functools.partial(Connection, self._deadlines)
                address, connection = await dial(addresses, target.port, make, timing, until=until)
                connection.key = _key(address, target)
                if target.scheme == "https":
                    await connection.start_tls(self._context, target.host, timing)
        except BaseException as exc:
            if connection is not None:
                connection.close()
            if isinstance(exc, TimeoutError):
                raise _late() from exc
            raise
        return connection

    def _keep(self, connection: Connection) -> None:
        if connection.is_at_start:
            connection.keep_session()
            self._idle.put(connection)
        else:
            connection.close()


def _key(address: Address, target: Target) -> Hashable:
    # By name, too, also without TLS: two hosts of one machine must not be able to answer for each other.
    # Packed, since an address object takes its time to be hashed; a literal host says it already.
    packed = address.packed if target.literal is None else None
    return packed, target.port, target.scheme, target.host


def _late() -> SendError:
    return SendError(Outcome.TIMEOUT, "no complete answer within the deadline")


def _httpx_error(outcome: Outcome, *, was_sent: bool) -> type[httpx.TransportError]:
    match outcome:
        case Outcome.TIMEOUT:
            return httpx.ReadTimeout if was_sent else httpx.ConnectTimeout
        case Outcome.PROTOCOL_ERROR:
            return httpx.RemoteProtocolError
        case Outcome.INTERNAL_ERROR:
            return httpx.LocalProtocolError
        case _:
            return httpx.ReadError if was_sent else httpx.ConnectError
