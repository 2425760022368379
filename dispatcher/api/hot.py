"""What the hot routes share: they are reached past the framework, and do for themselves what it would.

Each has a handler. The busiest one also takes its requests in rounds (`dispatcher.rounds`): all that came together, as
long as nothing has to be waited for. Whatever has to, its handler awaits for that request alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dispatcher.api import failures
from dispatcher.api.problems import cut_off, unavailable
from dispatcher.errors import Problem, StoreUnavailable

Handler = Callable[[Request], Awaitable[Response]]


class Visit(Protocol):
    """A request that takes part in rounds, as its connection has it."""

    @property
    def scope(self) -> Mapping[str, Any]:
        """What was asked, as ASGI has it."""

    def whole_body(self) -> bytes | None:
        """The body; None when it is still to come, or its caller gone."""

    def wait(self) -> None:
        """Leave it to the handler: there is something to wait for."""

    def answer(self, response: Response) -> None:
        """Answer it."""


ACCEPTED = 202
#: items of a batch that are read before others have their turn
ITEMS_PER_TURN = 20


class _Named(msgspec.Struct):
    """What all answers to one thing have."""

    id: str


_read_id = msgspec.json.Decoder(_Named).decode


async def answered(request: Request, handler: Handler) -> Response:
    """What a handler answers, or the problem that it raised."""
    try:
        return await handler(request)
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - no framework in front of these routes does this
        return response_to(exc, request.method)


def response_to(error: Exception | asyncio.CancelledError, method: str) -> Response:
    """The answer to a request that ran into this."""
    match error:
        case Problem():
            return failures.response_of(error)
        case StoreUnavailable():
            return failures.response_of(unavailable())
        case asyncio.CancelledError():
            # Only a stop does that, to what outlasts its grace. The commit is not cancelled by it.
            return failures.response_of(cut_off())
        case ClientDisconnect():
            return Response(status_code=400)
        case _:
            return failures.fault(method, error)


class Accepted(Response):
    """A 202 with a JSON body. Its headers are put together here: Starlette's way to them is a longer one."""

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status_code = ACCEPTED
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *headers]
        self.background = None


def accepted(body: bytes, *, replayed: bool, resource: str | None = None) -> Response:
    """A 202 with this body; with the place of what was accepted, if it is one thing (`resource`: `/tasks`)."""
    headers = [(b"idempotency-replayed", b"true")] if replayed else []
    if resource is not None:
        headers.append((b"location", f"{resource}/{_read_id(body).id}".encode("ascii")))
    return Accepted(body, headers)
