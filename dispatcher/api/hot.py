"""What the hot routes share: they are reached past the framework, and do for themselves what it would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dispatcher.api import failures
from dispatcher.api.problems import unavailable
from dispatcher.errors import Problem, StoreUnavailable

Handler = Callable[[Request], Awaitable[Response]]

ACCEPTED = 202
#: items of a batch that are read before others have their turn
ITEMS_PER_TURN = 20


async def answered(request: Request, handler: Handler) -> Response:
    """What a handler answers, or the problem that it raised."""
    try:
        return await handler(request)
    except Problem as problem:
        return failures.response_of(problem)
    except StoreUnavailable:
        return failures.response_of(unavailable())
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as exc:  # noqa: BLE001 - no framework in front of these routes does this
        return failures.fault(request, exc)


def accepted(body: bytes, *, replayed: bool, resource: str | None = None) -> Response:
    """A 202 with this body; with the place of what was accepted, if it is one thing (`resource`: `/tasks`)."""
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    if resource is not None:
        headers["Location"] = f"{resource}/{msgspec.json.decode(body)['id']}"
    return Response(body, status_code=ACCEPTED, headers=headers, media_type="application/json")
