"""Routes of subscriptions: create, list, read, change, delete, ping, enable, disable, and send again what was missed.

An answer shows a secret once, to the request that made it. Where an endpoint has to show that it is there, the answer
waits for what it says.
"""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from dispatcher.api import asking, shapes, views
from dispatcher.api import subscription_reading as reading
from dispatcher.api.checking import decode
from dispatcher.api.common import DEFAULT_PAGE, Cursor, Limit, answer, before, find_subscription, known, who
from dispatcher.api.deliveries import begin_redelivery, earlier_redelivery, list_page
from dispatcher.api.openapi import documented
from dispatcher.api.reading import read_body, read_empty, read_shape
from dispatcher.api.services import Services
from dispatcher.api.shapes.subscriptions import PATH, RECENT
from dispatcher.errors import Problem, StoreUnavailable
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import TERMINAL_STATES, DeliveryState
from dispatcher.store import queries
from dispatcher.store.records import Replayed
from dispatcher.tokens import Caller
from subscriptions import store as subscription_store
from subscriptions.models import Movement, Subscription, SubscriptionState

READ = "subscriptions:read"
WRITE = "subscriptions:write"

_MOVEMENTS = {"release": Movement.RELEASE, "discard": Movement.DISCARD}


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    _add_resource(router, services)
    _add_changes(router, services)
    _add_actions(router, services)
    _add_deliveries(router, services)


def _add_resource(router: APIRouter, services: Services) -> None:
    store = services.store

    @router.post(
        PATH,
        **documented(
            "Create a subscription",
            shapes.Subscription,
            tag="subscriptions",
            status=201,
            body=shapes.SubscriptionRequest,
            problems=(404, 409),
            idempotent=True,
        ),
    )
    async def create_subscription(request: Request) -> Response:
        caller = await services.auth.caller(request, scope=WRITE)
        body = await read_body(request, limit=MAX_AROUND_PAYLOAD)
        key = services.reader.idempotency_key(request, body, account=caller.account, route=f"POST {PATH}")
        earlier = None if key is None else await store.earlier_answer(key)
        if earlier is not None:
            return await _replayed(services, caller, earlier)
        wish = decode(body, shapes.SubscriptionRequest)
        is_active = reading.wanted_active(wish)
        draft, signing = reading.new_draft(services.reader, wish, await services.accounts.get(caller.account))
        made = await store.create_subscription(
            who(services, caller), draft, signing, is_active=is_active is not False, once=key
        )
        if isinstance(made, Replayed):
            return await _replayed(services, caller, made)
        subscription, ping = made.subscription, None
        if made.asked is not None:
            # It is stored, and only this answer shows its secret: whatever happens now, there is one.
            with contextlib.suppress(StoreUnavailable, Problem):
                ping = await asking.answered(services, made.asked, subscription)
                subscription = await find_subscription(services, caller.account, subscription.id)
        view = _view(subscription, ping)
        view.config.secret = signing.secret.reveal()
        return answer(view, status=201, headers={"Location": f"{PATH}/{view.id}"})

    @router.get(PATH, **documented("List subscriptions", shapes.SubscriptionList, tag="subscriptions"))
    async def list_subscriptions(
        request: Request, *, is_active: bool | None = None, limit: Limit = DEFAULT_PAGE, cursor: Cursor = None
    ) -> Response:
        caller = await services.auth.caller(request, scope=READ)
        state = None
        if is_active is not None:
            state = SubscriptionState.ACTIVE if is_active else SubscriptionState.DISABLED
        page = await queries.list_subscriptions(
            store.database, caller.account, limit=limit, before=before(cursor), state=state
        )
        ids = [row["id"] for row in page.rows]
        async with store.database.read() as connection:
            found = await subscription_store.find(connection, store.keyring, ids, account=caller.account)
        items = [_view(found[id_]) for id_ in ids if id_ in found]
        return answer(shapes.SubscriptionList(items=items, next_cursor=page.next_cursor))

    @router.get(
        PATH + "/{id}",
        **documented(
            "Read a subscription and its recent history", shapes.Subscription, tag="subscriptions", problems=(404,)
        ),
    )
    async def read_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=READ)
        view = _view(await find_subscription(services, caller.account, id))
        view.recent = [views.recent(row) for row in await queries.recent(store.database, id, limit=RECENT)]
        return answer(view)


def _add_changes(router: APIRouter, services: Services) -> None:
    store = services.store

    @router.patch(
        PATH + "/{id}",
        **documented(
            "Change a subscription",
            shapes.Subscription,
            tag="subscriptions",
            body=shapes.SubscriptionChange,
            problems=(404, 409),
            also={202: shapes.Subscription},
        ),
    )
    async def change_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription_id = known("subscription", id)
        wish = await read_shape(request, shapes.SubscriptionChange)
        is_active = reading.wanted_active(wish)
        edit = reading.edit(services.reader, wish, await services.accounts.get(caller.account))
        subscription, asked = await find_subscription(services, caller.account, subscription_id), None
        if edit is not None:
            changed = await store.change_subscription(who(services, caller), subscription_id, edit)
            subscription, asked = changed.subscription, changed.asked
        if is_active is False:
            return answer(_view(await _disabled(services, caller, subscription_id)))
        if is_active is True and asked is None:
            enabling = await store.enable_subscription(who(services, caller), subscription_id, Movement.RELEASE)
            subscription, asked = enabling.subscription, enabling.asked
        if asked is None:
            return answer(_view(subscription))
        ping = await asking.answered(services, asked, subscription)
        subscription = await find_subscription(services, caller.account, subscription_id)
        if is_active is True:
            aside = "" if edit is None else " What else was asked for is stored."
            asking.check_enabled(subscription, ping, aside=aside)
        return answer(_view(subscription, ping), status=_status_of(ping))

    @router.delete(
        PATH + "/{id}",
        **documented("Delete a subscription", None, tag="subscriptions", status=204, problems=(404,)),
    )
    async def delete_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        await store.delete_subscription(who(services, caller), known("subscription", id))
        return Response(status_code=204)


def _add_actions(router: APIRouter, services: Services) -> None:
    store = services.store

    @router.post(
        PATH + "/{id}/ping",
        **documented(
            "Send a signed ping",
            shapes.Ping,
            tag="subscriptions",
            problems=(404, 413, 422),
            also={202: shapes.Ping},
        ),
    )
    async def ping_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription = await find_subscription(services, caller.account, id)
        await read_empty(request)
        asked = await store.ping_subscription(who(services, caller), subscription.id)
        ping = await asking.answered(services, asked, subscription)
        return answer(ping, status=_status_of(ping))

    @router.post(
        PATH + "/{id}/enable",
        **documented(
            "Enable a subscription, once its endpoint has answered a ping",
            shapes.Subscription,
            tag="subscriptions",
            body=shapes.EnableRequest,
            body_required=False,
            problems=(404, 409),
            also={202: shapes.Subscription},
        ),
    )
    async def enable_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription_id = known("subscription", id)
        wish = decode(await read_body(request, limit=MAX_AROUND_PAYLOAD) or b"{}", shapes.EnableRequest)
        changed = await store.enable_subscription(who(services, caller), subscription_id, _MOVEMENTS[wish.held])
        if changed.asked is None:
            return answer(_view(changed.subscription))
        ping = await asking.answered(services, changed.asked, changed.subscription)
        subscription = await find_subscription(services, caller.account, subscription_id)
        is_done = asking.check_enabled(subscription, ping)
        return answer(_view(subscription, ping), status=200 if is_done else 202)

    @router.post(
        PATH + "/{id}/disable",
        **documented(
            "Disable a subscription: what is for it is held",
            shapes.Subscription,
            tag="subscriptions",
            problems=(404, 413, 422),
        ),
    )
    async def disable_subscription(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription_id = known("subscription", id)
        await read_empty(request)
        return answer(_view(await _disabled(services, caller, subscription_id)))


def _add_deliveries(router: APIRouter, services: Services) -> None:
    @router.post(
        PATH + "/{id}/recover",
        **documented(
            "Send again what a subscription missed",
            shapes.Redelivery,
            tag="subscriptions",
            status=202,
            body=shapes.Recovery,
            problems=(404,),
            idempotent=True,
        ),
    )
    async def recover(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope=WRITE)
        subscription = await find_subscription(services, caller.account, id)
        body = await read_body(request, limit=MAX_AROUND_PAYLOAD)
        key = services.reader.idempotency_key(
            request, body, account=caller.account, route=f"POST {PATH}/{subscription.id}/recover"
        )
        earlier = await earlier_redelivery(services, caller.account, key)
        if earlier is not None:
            return earlier
        criteria = reading.new_criteria(decode(body, shapes.Recovery), subscription_id=subscription.id)
        return await begin_redelivery(services, caller.account, criteria, key)

    @router.get(
        PATH + "/{id}/deliveries",
        **documented("List a subscription's deliveries", shapes.DeliveryList, tag="subscriptions"),
    )
    async def list_deliveries(
        request: Request,
        id: str,  # noqa: A002 - the path parameter's name
        *,
        state: DeliveryState | None = None,
        limit: Limit = DEFAULT_PAGE,
        cursor: Cursor = None,
    ) -> Response:
        caller = await services.auth.caller(request, scope=READ)
        subscription = await find_subscription(services, caller.account, id)
        return await list_page(
            services, caller.account, limit=limit, cursor=cursor, state=state, subscription_id=subscription.id
        )


async def _replayed(services: Services, caller: Caller, earlier: Replayed) -> Response:
    """The answer to a request that was made before: the subscription as it stands, and its secret no more."""
    subscription = await find_subscription(services, caller.account, earlier.answer.decode())
    headers = {"Location": f"{PATH}/{subscription.id}", "Idempotency-Replayed": "true"}
    return answer(_view(subscription), status=201, headers=headers)


async def _disabled(services: Services, caller: Caller, subscription_id: str) -> Subscription:
    changed = await services.store.disable_subscription(who(services, caller), subscription_id)
    return changed.subscription


def _view(subscription: Subscription, ping: shapes.Ping | None = None) -> shapes.Subscription:
    view = views.subscription(subscription, now=reading.now_ms())
    view.ping = UNSET if ping is None else ping
    return view


def _status_of(ping: shapes.Ping) -> int:
    return 200 if ping.state in TERMINAL_STATES else 202
