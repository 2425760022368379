"""Routes of a subscription's secrets: rotate, list, revoke. A secret is shown once, by the answer that made it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api import subscription_reading as reading
from dispatcher.api.checking import decode
from dispatcher.api.common import answer, find_subscription, known, who
from dispatcher.api.openapi import documented
from dispatcher.api.problems import not_found
from dispatcher.api.reading import read_body
from dispatcher.api.services import Services
from dispatcher.api.shapes.subscriptions import PATH
from dispatcher.api.subscriptions import READ, WRITE
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.store.records import Replayed


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    store = services.store

    @router.post(
        PATH + "/{id}/secrets",
        **documented(
            "Rotate a subscription's secret",
            shapes.SecretView,
            tag="secrets",
            status=201,
            body=shapes.RotateRequest,
            body_required=False,
            problems=(404, 409),
            idempotent=True,
        ),
    )
    async def rotate_secret(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription_id = known("subscription", id)
        body = await read_body(request, limit=MAX_AROUND_PAYLOAD) or b"{}"
        key = services.reader.idempotency_key(
            request, body, account=caller.account, route=f"POST {PATH}/{subscription_id}/secrets"
        )
        made = None if key is None else await store.earlier_answer(key)
        if made is None:
            rotation = reading.new_rotation(decode(body, shapes.RotateRequest))
            check = reading.rotation_check(await services.accounts.get(caller.account))
            rotated = await store.rotate_secret(who(services, caller), subscription_id, rotation, check, once=key)
            if not isinstance(rotated, Replayed):
                # Nothing is read for this answer: only it shows the secret.
                view = views.secret(rotated, state="future" if rotated.valid_from > rotated.created_at else "current")
                view.secret = rotation.key.secret.reveal()
                return answer(view, status=201)
            made = rotated
        view = await _shown(services, caller.account, subscription_id, made.answer.decode())
        return answer(view, status=201, headers={"Idempotency-Replayed": "true"})

    @router.get(
        PATH + "/{id}/secrets",
        **documented("List a subscription's secrets", shapes.SecretList, tag="secrets", problems=(404,)),
    )
    async def list_secrets(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=READ)
        return answer(shapes.SecretList(items=await _list(services, caller.account, id)))

    @router.delete(
        PATH + "/{id}/secrets/{secret_id}",
        **documented("Revoke a secret at once", None, tag="secrets", status=204, problems=(404, 409)),
    )
    async def revoke_secret(request: Request, id: str, secret_id: str) -> Response:  # noqa: A002 - as above
        caller = await services.auth.caller(request, scope=WRITE)
        await store.revoke_secret(who(services, caller), known("subscription", id), known("secret", secret_id))
        return Response(status_code=204)


async def _list(services: Services, account: str, subscription_id: str) -> list[shapes.SecretView]:
    subscription = await find_subscription(services, account, subscription_id)
    return views.secrets(subscription.keys, now=reading.now_ms())


async def _shown(services: Services, account: str, subscription_id: str, secret_id: str) -> shapes.SecretView:
    for view in await _list(services, account, subscription_id):
        if view.id == secret_id:
            return view
    raise not_found("secret")
