"""What the hot routes share: they are reached past the framework, and do for themselves what it would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dispatcher.api import failures
from dispatcher.api.problems import cut_off, unavailable
from dispatcher.errors import Problem, StoreUnavailable

Handler = Callable[[Request], Awaitable[Response]]

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
    except Problem as problem:
        return failures.response_of(problem)
    except StoreUnavailable:
        return failures.response_of(unavailable())
    except asyncio.CancelledError:
        # Only a stop does that, to what outlasts its grace. The commit is not cancelled by it.
        return failures.response_of(cut_off())
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as exc:  # noqa: BLE001 - no framework in front of these routes does this
        return failures.fault(request, exc)


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
