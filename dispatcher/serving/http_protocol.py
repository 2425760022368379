"""Uvicorn's side of a connection, with a shorter way for the hot routes.

Limits, keep-alive, pipelining and stops are uvicorn's for all requests. What comes in one round of the event loop is
parsed together, and answers of the hot routes are written together (`dispatcher.rounds` says why).

Requests of a hot route are not taken through ASGI's messages: their handler gives a whole answer, and that goes out by
one write. Uvicorn's two, the checks of each header on its way and the frames around them cost more than the routes' own
code does. Where a hot route takes its requests in rounds, one for which nothing has to be waited for needs no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

import structlog
from httptools import HttpParserError
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dispatcher.api.app import Front
from dispatcher.api.hot import Handler, answered, response_to
from dispatcher.rounds import Rounds, each

if TYPE_CHECKING:
    from starlette.types import Receive, Scope
    from uvicorn._types import ASGI3Application

log = structlog.get_logger(__name__)

NO_UPGRADE = "Send the request without Upgrade: this service speaks HTTP/1.1 only."


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, traffic: Traffic, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.traffic = traffic
        #: why what came is refused, where that is known; in ASCII
        self._reason: str | None = None
        #: what came is no HTTP: nothing that follows is read
        self._is_deaf = False

    def data_received(self, data: bytes) -> None:
        """Have it parsed with what comes on other connections."""
        self._unset_keepalive_if_required()
        if len(data) > HIGH_WATER_LIMIT:
            # Until that is parsed, and says whether it is wanted, the kernel keeps what follows.
            self.transport.pause_reading()
        self.traffic.arrived.join((self, data))

    def parse(self, data: bytes) -> None:
        """Parse what came, unless the connection was closed since."""
        if self.transport.is_closing():
            return
        if len(data) > HIGH_WATER_LIMIT and not self.flow.read_paused:
            self.transport.resume_reading()
        if not self._is_deaf:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        """Uvicorn's, but for the requests of hot routes, and for those that are to speak another protocol."""
        if self.parser.should_upgrade():
            # The parser would pass over the body, and then take it for the next request.
            self._reason = NO_UPGRADE
            raise HttpParserError(NO_UPGRADE)
        visit = self._visit()
        if visit is None:
            super().on_headers_complete()
        else:
            self._give_turn(visit)
        # The request has its headers. What comes after its body is none of them (RFC 9110, 6.5.1).
        self.headers = []

    def _give_turn(self, visit: Visit) -> None:
        before, self.cycle = self.cycle, visit
        if _is_over(before):
            visit.begin()
        else:
            # Its turn comes when that is answered.
            self.flow.pause_reading()
            self.pipeline.appendleft((visit, self.app))

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's, with the reason; but a 400 is no answer to the whole requests before it, which have their own."""
        self._is_deaf = True
        has_waited = bool(self.pipeline) and self.cycle.more_body
        if has_waited:
            # It is the broken one itself. It never has its turn.
            self.pipeline.popleft()
        if has_waited or not (_is_over(self.cycle) or self.cycle.more_body):
            # What comes now is dropped: a side that closes with something unread has the other lose its answers.
            self.flow.resume_reading()
        else:
            super().send_400_response(self._reason or msg)

    def on_response_complete(self) -> None:
        """Uvicorn's; and the last answer closes a connection that is not read any more."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._is_deaf and is_last:
            self.transport.close()

    def _visit(self) -> Visit | None:
        if not isinstance(self.app, Front):
            return None
        url, _, query = self.url.partition(b"?")
        method, path = self.parser.get_method().decode("ascii"), url.decode("latin-1")
        handler = self.app.hot(method, path)
        if handler is None:
            return None
        version = self.parser.get_http_version()
        scope = self.scope
        scope["method"], scope["path"], scope["http_version"] = method, path, version
        scope["raw_path"], scope["query_string"] = url, query
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        return Visit(self, handler, self.app.together(path), keep_alive=keep_alive)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Uvicorn calls this when the turn of a request has come."""
        if isinstance(cycle, Visit):
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)


def _is_over(cycle: RequestResponseCycle | None) -> bool:
    return cycle is None or cycle.response_complete


class Traffic:
    """What the connections of a server have in common.

    All of a round is parsed, and written: what is put off would only wait in memory.
    """

    def __init__(self) -> None:
        self.arrived: Rounds[tuple[HttpProtocol, bytes]] = Rounds(_parse_all, most=None)
        self.answered: Rounds[Visit] = Rounds(_write_all, most=None)


def _parse_all(arrived: list[tuple[HttpProtocol, bytes]]) -> None:
    each(_parse, arrived, failed=_stop_parsing)


def _parse(arrived: tuple[HttpProtocol, bytes]) -> None:
    connection, data = arrived
    connection.parse(data)


def _stop_parsing(arrived: tuple[HttpProtocol, bytes], error: Exception) -> None:
    connection, _ = arrived
    _break_off(connection.transport, error)


def _write_all(visits: list[Visit]) -> None:
    heard = [visit for visit in visits if visit.is_heard()]
    for step in (Visit.compose, Visit.write, Visit.leave):
        heard = each(step, heard, failed=_stop_writing)


def _stop_writing(visit: Visit, error: Exception) -> None:
    visit.end()
    _break_off(visit.transport, error)


def _break_off(transport: asyncio.Transport, error: Exception) -> None:
    """It is our fault. Only its kind is logged: its text may hold anything."""
    log.error("connection_failed_inside", error=type(error).__qualname__)
    transport.abort()


class _Nobody:
    """Stands for an event that nobody waits for."""

    def set(self) -> None:
        """Tell them."""


class Visit(RequestResponseCycle):
    """A request of a hot route, from its headers to its answer.

    To uvicorn's connection it is what it makes of any request. Among the server's tasks, a stop waits for it, and
    cancels it when its grace is over.
    """

    disconnected = False
    response_started = False
    response_complete = False
    more_body = True
    #: as long as nobody waits for anything
    message_event = cast("asyncio.Event", _Nobody())

    def __init__(
        self,
        connection: HttpProtocol,
        handler: Handler,
        take: Callable[[Visit], None] | None,
        *,
        keep_alive: bool,
    ) -> None:
        self.scope = connection.scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = connection.expect_100_continue
        self.body = bytearray()
        self._handler = handler
        self._take = take
        self._traffic = connection.traffic
        self._server = connection.server_state
        self._under_way: set[Any] = connection.tasks
        self._is_answered = False
        self.on_response = connection.on_response_complete

    def begin(self) -> None:
        """Its turn has come."""
        if self._take is None:
            self.wait()
        else:
            self._under_way.add(self)
            self._take(self)

    def whole_body(self) -> bytes | None:
        """The body; None when it is still to come, or its caller gone."""
        return None if self.more_body or self.disconnected else bytes(self.body)

    def wait(self) -> None:
        """Leave it to the handler: there is something to wait for."""
        self._under_way.discard(self)
        self.message_event = asyncio.Event()
        if self.body or self.disconnected or not self.more_body:
            self.message_event.set()
        self._spawn(self._handled())

    def answer(self, response: Response) -> None:
        """Answer it, with the others that are answered now. What comes after the first answer is too late."""
        if not self._is_answered:
            self._is_answered, self._response = True, response
            self._traffic.answered.join(self)

    def cancel(self, msg: str | None = None) -> None:
        """Answer that a stop does not wait any longer. It goes through what is under way just now."""
        cut_off = response_to(asyncio.CancelledError(msg), self.scope["method"])
        asyncio.get_running_loop().call_soon(self.answer, cut_off)

    # The steps of an answer

    def is_heard(self) -> bool:
        """Whether the caller takes its answer now."""
        if self.disconnected or self.transport.is_closing():
            # Uvicorn says of a connection's last request only that its caller has gone.
            self.end()
            return False
        if self.flow.write_paused:
            # It does not read what it was answered before: this waits until it does.
            self._under_way.discard(self)
            self._spawn(self._drained())
            return False
        return True

    def compose(self) -> None:
        """Put its bytes together. Its headers are ours: nothing of a request stands in them."""
        response = self._response
        parts = [STATUS_LINE[response.status_code]]
        for name, value in (*self._server.default_headers, *response.raw_headers):
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", bytes(response.body))
        self._written = b"".join(parts)

    def write(self) -> None:
        """Have them sent."""
        self.transport.write(self._written)

    def leave(self) -> None:
        """It is over: the next request of its connection has its turn."""
        self.response_started = self.response_complete = True
        self.body.clear()
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        self.end()

    def end(self) -> None:
        """Nothing more is done with it."""
        self._under_way.discard(self)
        # It leads back to the connection, which has this request: apart, they need no garbage collector.
        self.on_response = _nothing

    async def _handled(self) -> None:
        request = Request(cast("Scope", self.scope), cast("Receive", self.receive))
        self.answer(await answered(request, self._handler))

    async def _drained(self) -> None:
        await self.flow.drain()
        self._traffic.answered.join(self)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._under_way.discard)
        self._under_way.add(task)


def _nothing() -> None:
    pass
