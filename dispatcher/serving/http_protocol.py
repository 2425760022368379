"""Uvicorn's side of a connection, with a shorter way for the hot routes.

Reading, limits, keep-alive, pipelining and stops are uvicorn's for all requests. Those of a hot route are not taken
through ASGI's messages: their handler gives a whole answer, and that goes out by one write. Uvicorn's two, the checks
of each header on its way and the frames around them cost more than the routes' own code does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dispatcher.api.app import Front
from dispatcher.api.hot import Handler, answered

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Uvicorn calls this when the turn of a request has come."""
        handler = app.hot(cycle.scope["method"], cycle.scope["path"]) if isinstance(app, Front) else None
        if handler is None:
            super()._start_asgi_task(cycle, app)
            return
        task = self.loop.create_task(_serve(cycle, handler))
        task.add_done_callback(self.tasks.discard)
        # A stop waits for what is in here.
        self.tasks.add(task)


async def _serve(cycle: RequestResponseCycle, handler: Handler) -> None:
    try:
        response = await answered(Request(cast("Scope", cycle.scope), cast("Receive", cycle.receive)), handler)
        if cycle.flow.write_paused and not cycle.disconnected:
            # The caller does not read what it was answered before.
            await cycle.flow.drain()
        if not cycle.disconnected:
            _answer(cycle, response)
    finally:
        # It leads back to the connection, which has this cycle: apart, they need no garbage collector.
        cycle.on_response = _nothing


def _answer(cycle: RequestResponseCycle, response: Response) -> None:
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(_written(response, cycle))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def _written(response: Response, cycle: RequestResponseCycle) -> bytes:
    """An answer as it goes out. Its headers are ours: nothing of a request stands in them."""
    parts = [STATUS_LINE[response.status_code]]
    for name, value in (*cycle.default_headers, *response.raw_headers):
        parts += (name, b": ", value, b"\r\n")
    if not cycle.keep_alive:
        parts.append(b"connection: close\r\n")
    parts += (b"\r\n", bytes(response.body))
    return b"".join(parts)


def _nothing() -> None:
    pass
