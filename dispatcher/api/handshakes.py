"""The URL that a handshake names, so that an endpoint can grant it later.

HTTP 1.1 Web Hooks for Event Delivery (CloudEvents, version 1.0.2), section 4.1.3: by GET, as from a browser, or POST.
Whoever knows the URL may call it; it holds a token of ours, and is written into no log.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from dispatcher.api import shapes
from dispatcher.api.common import answer
from dispatcher.api.openapi import documented
from dispatcher.api.problems import not_found
from dispatcher.api.services import Services
from dispatcher.delivery import handshake
from dispatcher.errors import Problem
from dispatcher.ids import is_id

Rate = Annotated[
    str | None,
    Query(description="Requests per minute that are allowed, or `*`; as WebHook-Allowed-Rate."),
]


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""

    async def grant(request: Request, delivery_id: str, token: str, rate: Rate = None) -> Response:
        if not is_id(delivery_id) or not handshake.is_token(services.store.keyring, delivery_id, token):
            raise not_found("handshake")
        allowed = request.headers.get("webhook-allowed-rate", rate or "")
        try:
            await services.store.grant_handshake(delivery_id, handshake.rate_of(allowed))
        except Problem:
            raise not_found("handshake") from None
        return answer(shapes.Granted(status="granted"), headers={"Cache-Control": "no-store"})

    for method in ("GET", "POST"):
        router.add_api_route(
            "/webhooks/handshakes/{delivery_id}/{token}",
            grant,
            methods=[method],
            operation_id=f"grant_handshake_{method.lower()}",
            **documented(
                "Grant a handshake",
                shapes.Granted,
                tag="subscriptions",
                open_to_all=True,
                problems=(404, 422, 503),
            ),
        )
