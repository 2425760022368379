"""Routes of deliveries: list, read with attempts, send again, and the ledger that counts them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api.checking import decode
from dispatcher.api.common import DEFAULT_PAGE, Cursor, Limit, Wanted, answer, before, known
from dispatcher.api.openapi import documented
from dispatcher.api.problems import invalid, not_found
from dispatcher.api.reading import read_body, read_empty
from dispatcher.api.services import Services
from dispatcher.api.subscription_reading import new_criteria
from dispatcher.ids import is_id, new_id
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import DeliveryState
from dispatcher.store import queries
from dispatcher.store.records import IdempotencyKey, Replayed
from dispatcher.store.redelivering import Bulk, Criteria


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    store = services.store

    @router.get("/deliveries", **documented("List deliveries", shapes.DeliveryList, tag="deliveries"))
    async def list_deliveries(
        request: Request,
        *,
        state: DeliveryState | None = None,
        task_id: Wanted = None,
        event_id: Wanted = None,
        subscription_id: Wanted = None,
        limit: Limit = DEFAULT_PAGE,
        cursor: Cursor = None,
    ) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:read")
        if task_id is not None and event_id is not None:
            raise invalid("/event_id", "must not be given together with task_id")
        return await list_page(
            services,
            caller.account,
            limit=limit,
            cursor=cursor,
            state=state,
            source_id=task_id or event_id,
            subscription_id=subscription_id,
        )

    # before those with an id in their path
    _add_redeliveries(router, services)

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
        body = await read_empty(request)
        key = services.reader.idempotency_key(
            request, body, account=caller.account, route=f"POST /deliveries/{delivery_id}/redeliver"
        )
        made = await store.redeliver(caller.account, delivery_id, key)
        if isinstance(made, Replayed):
            new_id, headers = made.answer.decode(), {"Idempotency-Replayed": "true"}
        else:
            new_id, headers = made.delivery_id, {}
        headers["Location"] = f"/deliveries/{new_id}"
        return answer(await _found(services, caller.account, new_id), status=202, headers=headers)

    @router.get("/ledger", **documented("Read the ledger", shapes.Ledger, tag="deliveries"))
    async def ledger(request: Request) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:read")
        counts = await store.ledger(caller.account)
        accepted = counts.pop("accepted")
        return answer(shapes.Ledger(accepted=accepted, reconciles=accepted == sum(counts.values()), **counts))


def _add_redeliveries(router: APIRouter, services: Services) -> None:
    database = services.store.database

    @router.post(
        "/deliveries/redeliver",
        **documented(
            "Send many ended deliveries again",
            shapes.Redelivery,
            tag="deliveries",
            status=202,
            body=shapes.RedeliverRequest,
            problems=(404,),
            idempotent=True,
        ),
    )
    async def redeliver_many(request: Request) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:write")
        body = await read_body(request, limit=MAX_AROUND_PAYLOAD)
        key = services.reader.idempotency_key(request, body, account=caller.account, route="POST /deliveries/redeliver")
        earlier = await earlier_redelivery(services, caller.account, key)
        if earlier is not None:
            return earlier
        wish = decode(body, shapes.RedeliverRequest)
        id_ = wish.subscription_id
        if id_ is not None and not (is_id(id_) and await queries.is_subscription(database, caller.account, id_)):
            raise invalid("/subscription_id", "must be the id of a subscription")
        return await begin_redelivery(services, caller.account, new_criteria(wish, subscription_id=id_), key)

    @router.get(
        "/deliveries/redeliveries",
        **documented("List redeliveries of many", shapes.RedeliveryList, tag="deliveries"),
    )
    async def list_redeliveries(request: Request, limit: Limit = DEFAULT_PAGE, cursor: Cursor = None) -> Response:
        caller = await services.auth.caller(request, scope="deliveries:read")
        page = await queries.list_redeliveries(database, caller.account, limit=limit, before=before(cursor))
        items = [views.redelivery(row) for row in page.rows]
        return answer(shapes.RedeliveryList(items=items, next_cursor=page.next_cursor))

    @router.get(
        "/deliveries/redeliveries/{id}",
        **documented("Read how far a redelivery of many has got", shapes.Redelivery, tag="deliveries", problems=(404,)),
    )
    async def read_redelivery(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="deliveries:read")
        return answer(await _redelivery(services, caller.account, id))


async def list_page(
    services: Services, account: str, *, limit: int, cursor: str | None, **equal: str | None
) -> Response:
    """A page of the account's deliveries, where columns have the given values. Raises Problem."""
    page = await queries.list_deliveries(services.store.database, account, limit=limit, before=before(cursor), **equal)
    items = [views.delivery(row) for row in page.rows]
    return answer(shapes.DeliveryList(items=items, next_cursor=page.next_cursor))


async def begin_redelivery(
    services: Services, account: str, criteria: Criteria, key: IdempotencyKey | None
) -> Response:
    """Begin to send all ended deliveries again that fit. Raises Problem."""
    begun = await services.store.redeliver_all(Bulk(id=new_id(), account=account, criteria=criteria, key=key))
    if isinstance(begun, Replayed):
        return await _begun(services, account, begun.answer.decode(), replayed=True)
    return await _begun(services, account, begun)


async def earlier_redelivery(services: Services, account: str, key: IdempotencyKey | None) -> Response | None:
    """The answer to a request that was made before under this key, if it was. Raises Problem."""
    earlier = None if key is None else await services.store.earlier_answer(key)
    return None if earlier is None else await _begun(services, account, earlier.answer.decode(), replayed=True)


async def _begun(services: Services, account: str, redelivery_id: str, *, replayed: bool = False) -> Response:
    headers = {"Location": f"/deliveries/redeliveries/{redelivery_id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return answer(await _redelivery(services, account, redelivery_id), status=202, headers=headers)


async def _redelivery(services: Services, account: str, redelivery_id: str) -> shapes.Redelivery:
    row = await queries.redelivery(services.store.database, account, known("redelivery", redelivery_id))
    if row is None:
        raise not_found("redelivery")
    return views.redelivery(row)


async def _found(services: Services, account: str, delivery_id: str) -> shapes.Delivery:
    found = await queries.delivery(services.store.database, account, known("delivery", delivery_id))
    if found is None:
        raise not_found("delivery")
    row, attempts = found
    view = views.delivery(row)
    view.attempts = [views.attempt(attempt) for attempt in attempts]
    return view
