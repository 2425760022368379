"""Requests over connections of our own, made for delivering webhooks.

What httpx does for a request costs more than the request. This knows one protocol, HTTP/1.1, and one way to use it.
It is an httpx transport, too: `httpx.AsyncClient(transport=…)` sends through it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable, Sequence

import httpx
from msgspec.structs import replace

from dispatcher.delivery.connection import BrokenBeforeAnswer, Connection
from dispatcher.delivery.deadlines import Deadlines
from dispatcher.delivery.dialing import addresses_of, dial, vetted
from dispatcher.delivery.head import head_of
from dispatcher.delivery.idle import IdleConnections
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.tls import ClientContext, client_context
from dispatcher.delivery.transport import Exchange, Request, Response, Timing, Transport
from dispatcher.egress import Address, EgressPolicy, Target, admit, parse
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import Outcome
from dispatcher.rounds import Rounds, each

#: schemes, hosts and ports that were admitted lately and are remembered
_MAX_ADMITTED = 4096
#: seconds, where an httpx client sets no timeout
_HTTPX_DEADLINE = 30.0


class Http1Transport(Transport, httpx.AsyncBaseTransport):
    """Sends requests over connections that are kept.

    `max_idle` bounds the idle connections of all hosts together, `idle_s` is how long one of them is kept.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        policy: EgressPolicy,
        context: ClientContext | None = None,
        max_idle: int = 2048,
        idle_s: float = 30.0,
    ) -> None:
        self._resolver = resolver
        self._policy = policy
        self._context = context or client_context()
        self._idle = IdleConnections[Connection](limit=max_idle, expiry_s=idle_s)
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        self._admitted: set[tuple[str, str, int]] = set()
        #: what carries a request until it is over, or opens a connection to carry it
        self._under_way: dict[Exchange, Connection | asyncio.Task[None]] = {}
        self._over = Rounds(self._finish)

    def begin(self, exchanges: Sequence[Exchange]) -> None:
        """Send requests; see `Transport.begin`.

        A kept connection may have been closed by the peer in the moment of its next use. If it breaks before any byte
        of an answer, the request is sent once more over a new one, and `timing.reconnected` says so.
        """
        now = self._loop.time()
        prepared = each(lambda exchange: self._prepare(exchange, now), exchanges, failed=self._end)
        for exchange in each(self._find_carrier, prepared, failed=self._end):
            carrier = self._under_way[exchange]
            if isinstance(carrier, Connection):
                self._carry(carrier, exchange)

    def abandon(self, exchange: Exchange) -> None:
        """Close what carries it, or is being opened to carry it."""
        carrier = self._under_way.pop(exchange, None)
        if isinstance(carrier, Connection):
            carrier.abandon()
        elif carrier is not None:
            carrier.cancel()

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

    def _prepare(self, exchange: Exchange, now: float) -> None:
        exchange.until = now + exchange.request.deadline
        self._admit(exchange.request.target)
        exchange.head = head_of(exchange.request)

    def _find_carrier(self, exchange: Exchange) -> None:
        connection = self._kept(exchange.request.target)
        self._under_way[exchange] = connection or self._loop.create_task(self._begin_anew(exchange))

    def _admit(self, target: Target) -> None:
        """Refuse what can be refused without DNS. That depends on nothing but the policy, so it is looked at once."""
        place = target.scheme, target.host, target.port
        if place in self._admitted:
            return
        try:
            admit(target, self._policy)
        except EgressRefused as exc:
            raise SendError(Outcome.EGRESS_REFUSED, exc.detail) from exc
        if len(self._admitted) >= _MAX_ADMITTED:
            self._admitted.clear()
        self._admitted.add(place)

    def _kept(self, target: Target) -> Connection | None:
        """A kept connection to where it may go, as far as that is known without asking."""
        literal = target.literal
        if literal is not None:
            return self._idle.take(_key(literal, target))
        cached = self._resolver.cached(target.host)
        return None if cached is None else self._kept_to(vetted(cached, target, self._policy), target)

    def _kept_to(self, addresses: tuple[Address, ...], target: Target) -> Connection | None:
        for address in addresses:
            connection = self._idle.take(_key(address, target))
            if connection is not None:
                return connection
        return None

    async def _begin_anew(self, exchange: Exchange) -> None:
        """Send what no kept connection was known for, or what one of them broke under."""
        try:
            async with asyncio.timeout_at(exchange.until):
                addresses = await self._addresses(exchange)
                connection: Connection | None = None
                if not exchange.timing.reconnected:
                    connection = self._kept_to(addresses, exchange.request.target)
                connection = connection or await self._open(addresses, exchange)
        except TimeoutError:
            self._end(exchange, SendError(Outcome.TIMEOUT, "no complete answer within the deadline"))
        except asyncio.CancelledError:
            if exchange not in self._under_way:
                # It was abandoned.
                raise
            self._end(exchange, SendError(Outcome.CONNECTION_ERROR, "no connection could be made"))
        except Exception as exc:  # noqa: BLE001 - whoever sends it judges it
            self._end(exchange, exc)
        else:
            self._carry(connection, exchange)

    async def _addresses(self, exchange: Exchange) -> tuple[Address, ...]:
        """Where it may go. Asked for every request: what a name stands for may have changed, and the policy decides."""
        target = exchange.request.target
        found = self._resolver.cached(target.host)
        if found is None:
            found = await addresses_of(target.host, self._resolver, exchange.timing)
        return vetted(found, target, self._policy)

    async def _open(self, addresses: tuple[Address, ...], exchange: Exchange) -> Connection:
        target, timing = exchange.request.target, exchange.timing
        make = functools.partial(Connection, self._deadlines, self._over.join)
        address, connection = await dial(addresses, target.port, make, timing, until=exchange.until)
        try:
            connection.key = _key(address, target)
            if target.scheme == "https":
                await connection.start_tls(self._context, target.host, timing)
        except BaseException:
            connection.close()
            raise
        return connection

    def _carry(self, connection: Connection, exchange: Exchange) -> None:
        self._under_way[exchange] = connection
        try:
            connection.begin(exchange)
        except Exception as exc:  # noqa: BLE001 - the others go all the same
            self.abandon(exchange)
            self._end(exchange, exc)

    def _finish(self, connections: list[Connection]) -> None:
        """Take the answers that have come in, or what there is in place of one."""
        answered: list[tuple[Exchange, Response | Exception]] = []
        for connection in connections:
            exchange = connection.exchange
            if exchange is None:
                # It was abandoned meanwhile.
                continue
            try:
                answered.append((exchange, connection.finish()))
            except BrokenBeforeAnswer:
                exchange.timing.reconnected = True
                self._under_way[exchange] = self._loop.create_task(self._begin_anew(exchange))
            except Exception as exc:  # noqa: BLE001 - whoever sends it judges it
                answered.append((exchange, exc))
        each(self._keep, connections, failed=_close)
        for exchange, answer in answered:
            self._end(exchange, answer)

    def _end(self, exchange: Exchange, answer: Response | Exception) -> None:
        self._under_way.pop(exchange, None)
        exchange.answer = answer
        exchange.over()

    def _keep(self, connection: Connection) -> None:
        if connection.is_at_start:
            connection.forget_answer()
            connection.keep_session()
            self._idle.put(connection)
        else:
            connection.close()


def _close(connection: Connection, _error: Exception) -> None:
    connection.close()


def _key(address: Address, target: Target) -> Hashable:
    # By name, too, also without TLS: two hosts of one machine must not be able to answer for each other.
    # Packed, since an address object takes its time to be hashed; a literal host says it already.
    packed = address.packed if target.literal is None else None
    return packed, target.port, target.scheme, target.host


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
