"""Routes of deliveries: list, read with attempts, send again, and the ledger that counts them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api.common import DEFAULT_PAGE, Cursor, Limit, answer, before, known
from dispatcher.api.openapi import documented
from dispatcher.api.problems import invalid, not_found
from dispatcher.api.reading import read_body
from dispatcher.api.services import Services
from dispatcher.models import DeliveryState
from dispatcher.store import queries
from dispatcher.store.records import Replayed

#: bytes of a body that says nothing
MAX_EMPTY_BODY = 1024


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    store = services.store

    @router.get("/deliveries", **documented("List deliveries", shapes.DeliveryList, tag="deliveries"))
    async def list_deliveries(
        request: Request,
        state: DeliveryState | None = None,
        task_id: str | None = None,
        limit: Limit = DEFAULT_PAGE,
        cursor: Cursor = None,
    ) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:read")
        page = await queries.list_deliveries(
            store.database,
            caller.account,
            limit=limit,
            before=before(cursor),
            state=state,
            task_id=task_id,
        )
        items = [views.delivery(row) for row in page.rows]
        return answer(shapes.DeliveryList(items=items, next_cursor=page.next_cursor))

    @router.get(
        "/deliveries/{id}",
        **documented("Read a delivery and its attempts", shapes.Delivery, tag="deliveries", problems=(404,)),
    )
    async def read_delivery(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="deliveries:read")
        return answer(await _found(services, caller.account, id))

    @router.post(
        "/deliveries/{id}/redeliver",
        **documented(
            "Send an ended delivery again, as a new one",
            shapes.Delivery,
            tag="deliveries",
            status=202,
            problems=(404, 409, 422),
            idempotent=True,
        ),
    )
    async def redeliver(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="deliveries:write")
        delivery_id = known("delivery", id)
        body = await read_body(request, limit=MAX_EMPTY_BODY)
        if body.strip() not in {b"", b"{}"}:
            raise invalid("", "this call takes no body")
        key = services.reader.idempotency_key(
            request, body, account=caller.account, route=f"POST /deliveries/{delivery_id}/redeliver"
        )
        made = await store.redeliver(caller.account, delivery_id, key)
        if isinstance(made, Replayed):
            new_id, headers = made.answer.decode(), {"Idempotency-Replayed": "true"}
        else:
            new_id, headers = made.delivery_id, {}
            services.engine.wake(made.lane)
        headers["Location"] = f"/deliveries/{new_id}"
        return answer(await _found(services, caller.account, new_id), status=202, headers=headers)

    @router.get("/ledger", **documented("Read the ledger", shapes.Ledger, tag="deliveries"))
    async def ledger(request: Request) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:read")
        counts = await store.ledger(caller.account)
        accepted = counts.pop("accepted")
        return answer(shapes.Ledger(accepted=accepted, reconciles=accepted == sum(counts.values()), **counts))


async def _found(services: Services, account: str, delivery_id: str) -> shapes.Delivery:
    found = await queries.delivery(services.store.database, account, known("delivery", delivery_id))
    if found is None:
        raise not_found("delivery")
    row, attempts = found
    view = views.delivery(row)
    view.attempts = [views.attempt(attempt) for attempt in attempts]
    return view
