"""`GET /workers`: which processes work on this installation, and what each has in hand."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api.common import answer
from dispatcher.api.openapi import documented
from dispatcher.api.services import Services
from dispatcher.store import workers


def add_routes(router: APIRouter, services: Services) -> None:
    """Add this route."""

    @router.get("/workers", **documented("List processes", shapes.WorkerList, tag="installation", problems=()))
    async def list_workers(request: Request) -> Response:
        await services.auth.caller(request, scope="operator")
        found = await workers.list_workers(services.store.database)
        return answer(shapes.WorkerList(items=[views.worker(one) for one in found]))
