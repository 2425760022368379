"""Routes that tell how a process is: health and metrics. Every process has them, a worker no others."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher import metrics
from dispatcher.api import shapes
from dispatcher.api.common import answer
from dispatcher.api.openapi import documented
from dispatcher.api.services import Services
from dispatcher.store import accounts


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""

    @router.get("/healthz", **documented("Is the process alive?", shapes.Health, tag="installation", open_to_all=True))
    async def healthz() -> Response:
        return answer(shapes.Health(status="ok"))

    @router.get(
        "/readyz",
        **documented("Can it take tasks?", shapes.Health, tag="installation", open_to_all=True, problems=(503,)),
    )
    async def readyz() -> Response:
        await accounts.issuer(services.store.database)
        return answer(shapes.Health(status="ready"))

    @router.get("/metrics", include_in_schema=False)
    async def read_metrics(request: Request) -> Response:
        await services.auth.caller(request, scope="operator")
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")
