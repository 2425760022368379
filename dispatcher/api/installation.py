"""Routes of the installation as a whole: task types, and our addresses."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes
from dispatcher.api.common import answer
from dispatcher.api.openapi import documented
from dispatcher.api.services import Services


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""

    @router.get("/processors", **documented("List task types", shapes.ProcessorList, tag="installation"))
    async def processors(request: Request) -> Response:
        await services.auth.caller(request)
        relay = shapes.ProcessorView(type="relay", kind="relay", timeout=0.0, tries=1)
        items = [
            shapes.ProcessorView(type=entry.name, kind=entry.kind, timeout=entry.timeout, tries=entry.tries)
            for entry in services.registry.all()
        ]
        return answer(shapes.ProcessorList(items=[relay, *items]))

    @router.get(
        "/egress-addresses",
        **documented("List the addresses we send from", shapes.EgressAddresses, tag="installation"),
    )
    async def egress_addresses(request: Request) -> Response:
        await services.auth.caller(request)
        return answer(shapes.EgressAddresses(items=list(services.settings.egress_addresses)))
