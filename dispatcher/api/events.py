"""Events: publish one or many (hot routes), list and read them.

Who gets an event is planned before the commit, from what is in memory; the commit makes sure that it still holds. A
delivery whose lane has room is committed as leased to this process and handed to its lane at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dispatcher import metrics
from dispatcher.api import shapes, views
from dispatcher.api.checking import check_text, decode
from dispatcher.api.common import DEFAULT_PAGE, Cursor, Limit, Wanted, answer, before, known
from dispatcher.api.hot import ACCEPTED, ITEMS_PER_TURN, accepted
from dispatcher.api.openapi import documented
from dispatcher.api.problems import invalid, not_found, too_large
from dispatcher.api.reading import read_body, traceparent
from dispatcher.api.services import Services
from dispatcher.errors import Problem
from dispatcher.ids import new_id
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.models import lane_of
from dispatcher.store import publishing, queries
from dispatcher.store.publishing import Accepted, Outdated, Publication
from dispatcher.store.records import Endpoint, IdempotencyKey, LeasedDelivery, NewEvent, Published, Replayed
from dispatcher.store.rosters import Roster, Subscriber
from subscriptions.models import Subscription

_encode = msgspec.json.encode

#: deliveries that the events of one batch may make: who gets them is held in memory, and stored by one commit
MAX_TOGETHER = 500_000


class Publishing:
    """Accepts events."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def post_event(self, request: Request) -> Response:
        """Publish one event. Raises Problem."""
        caller = await self._services.auth.caller(request, scope="events:write")
        body = await read_body(request, limit=self._services.settings.max_body + MAX_AROUND_PAYLOAD)
        check_text(body)
        reader = self._services.reader
        key = reader.idempotency_key(request, body, account=caller.account, route="POST /events")
        event, own_key = reader.event(body, account=caller.account, trace=traceparent(request))
        result = await self._publish([(event, own_key)], account=caller.account, key=key, join=_only)
        replayed = isinstance(result, Replayed) or result.replayed
        return accepted(result.answer, replayed=replayed, resource="/events")

    async def post_batch(self, request: Request) -> Response:
        """Publish many events by one commit. Raises Problem."""
        caller = await self._services.auth.caller(request, scope="events:write")
        settings, reader = self._services.settings, self._services.reader
        body = await read_body(request, limit=settings.max_batch)
        key = reader.idempotency_key(request, body, account=caller.account, route="POST /events/batch")
        batch = decode(body, shapes.EventBatchRequest)
        if len(batch.events) > settings.max_batch_items:
            raise invalid("/events", f"must be array of length <= {settings.max_batch_items}")
        trace = traceparent(request)
        events: list[tuple[NewEvent, IdempotencyKey | None]] = []
        refused: dict[int, Problem] = {}
        for index, raw in enumerate(batch.events):
            if index % ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                events.append(reader.event(raw, account=caller.account, trace=trace, prefix=f"/events/{index}"))
            except Problem as problem:
                refused[index] = problem

        def join(parts: Sequence[bytes | Problem]) -> bytes:
            left = iter(parts)
            items = [_item(index, refused.get(index) or next(left)) for index in range(len(batch.events))]
            return _encode(shapes.EventBatchAccepted(items=items))

        result = await self._publish(events, account=caller.account, key=key, join=join)
        return accepted(result.answer, replayed=isinstance(result, Replayed))

    async def _publish(
        self,
        events: Sequence[tuple[NewEvent, IdempotencyKey | None]],
        *,
        account: str,
        key: IdempotencyKey | None,
        join: publishing.Join,
    ) -> Accepted | Replayed:
        services = self._services
        roster = await services.store.roster(account)
        planned: list[Publication] = []
        count = 0
        for event, own_key in events:
            async with services.store.planning(account):
                planned.append(await self._planned(roster, event, own_key))
            count += len(planned[-1].plan.subscribers)
            if count > MAX_TOGETHER and len(events) > 1:
                raise too_large("/events", MAX_TOGETHER, unit="deliveries")
        opened = await services.store.opened(_eager(planned))
        # From here to the commit nothing waits: what is reserved is always given back.
        hand_off = _HandOff(services, planned, opened)
        return await services.store.publish(
            hand_off.publications,
            key=key,
            describe=described,
            answer=join,
            source=services.settings.event_source,
            then=hand_off.committed,
        )

    async def _planned(self, roster: Roster, event: NewEvent, key: IdempotencyKey | None) -> Publication:
        plan = await publishing.plan(roster, event)
        now, source = time.time_ns() // 1_000_000, self._services.settings.event_source
        bodies = publishing.compose_bodies(event, plan, created_at=now, source=source)
        return Publication(event=event, plan=plan, bodies=bodies, handed_off={}, key=key)


def _eager(planned: Sequence[Publication]) -> dict[str, Subscriber]:
    """Subscribers whose deliveries may be handed off: they wait for nothing but a place in their lane."""
    room = publishing.AT_ONCE
    eager: dict[str, Subscriber] = {}
    for publication in planned:
        room -= len(publication.plan.subscribers)
        if room < 0:
            break
        eager.update({one.id: one for one in publication.plan.subscribers if one.is_plain and one.rate_limit is None})
    return eager


class _HandOff:
    """Reserves places in lanes before the commit, and fills them or gives them back after it."""

    def __init__(self, services: Services, planned: Sequence[Publication], opened: Mapping[str, Subscription]) -> None:
        self._services = services
        self._deliveries: list[LeasedDelivery] = []
        self.publications = [self._reserved_for(publication, opened) for publication in planned]

    def _reserved_for(self, publication: Publication, opened: Mapping[str, Subscription]) -> Publication:
        if len(publication.plan.subscribers) > publishing.AT_ONCE:
            return publication
        handed_off = {}
        for subscriber in publication.plan.subscribers:
            if subscriber.id in opened and subscriber.is_plain and subscriber.rate_limit is None:
                delivery = self._reserved(publication, subscriber, opened[subscriber.id])
                if delivery is not None:
                    handed_off[subscriber.id] = delivery.id
        return replace(publication, handed_off=handed_off)

    def _reserved(
        self, publication: Publication, subscriber: Subscriber, subscription: Subscription
    ) -> LeasedDelivery | None:
        event, body = publication.event, publication.bodies[subscriber.body_mode]
        lane = lane_of(event.account, subscriber.id)
        if not self._services.engine.reserve(lane, len(body.body)):
            return None
        id_ = new_id()
        delivery = LeasedDelivery(
            id=id_,
            wire_id=id_,
            account=event.account,
            lane=lane,
            attempt=1,
            session=self._services.store.session,
            event=event.type,
            endpoint=Endpoint.of_subscription(subscription),
            body=body,
            traceparent=event.traceparent,
        )
        self._deliveries.append(delivery)
        return delivery

    def committed(self, result: Accepted | Replayed | Outdated | Exception) -> None:
        """What a commit brought. What is reserved is filled or given back by the first one."""
        stored = result.handed_off if isinstance(result, Accepted) else frozenset()
        engine = self._services.engine
        reserved, self._deliveries = self._deliveries, []
        engine.hand_off([delivery for delivery in reserved if delivery.id in stored])
        for delivery in reserved:
            if delivery.id not in stored:
                engine.cancel_reservation(delivery.lane, delivery.size)
        if isinstance(result, Accepted):
            metrics.events_accepted.inc(result.count)
            engine.expect(result.waiting)


def described(published: Published) -> bytes:
    """What the publisher is told about an event that was accepted."""
    return _encode(
        shapes.EventAccepted(
            id=published.event_id,
            deliveries=published.deliveries,
            fan_out=views.fan_out(complete=published.complete),
            skipped=[
                shapes.Skipped(subscription_id=skip.subscription_id, reason=skip.reason, detail=skip.detail)
                for skip in published.skipped
            ],
        )
    )


def _only(parts: Sequence[bytes | Problem]) -> bytes:
    [part] = parts
    if isinstance(part, Problem):
        raise part
    return part


def _item(index: int, part: bytes | Problem) -> shapes.EventBatchItem:
    if isinstance(part, Problem):
        return shapes.EventBatchItem(index=index, status=part.status, problem=part.as_dict())
    return shapes.EventBatchItem(index=index, status=ACCEPTED, event=msgspec.Raw(part))


def add_routes(router: APIRouter, services: Services) -> None:
    """Add the routes that read events."""
    database = services.store.database

    @router.get("/events", **documented("List events", shapes.EventList, tag="events"))
    async def list_events(
        request: Request,
        type: Wanted = None,  # noqa: A002 - the query parameter's name
        limit: Limit = DEFAULT_PAGE,
        cursor: Cursor = None,
    ) -> Response:
        caller = await services.auth.caller(request, scope="events:read")
        page = await queries.list_events(database, caller.account, limit=limit, before=before(cursor), type=type)
        items = [views.event(row) for row in page.rows]
        return answer(shapes.EventList(items=items, next_cursor=page.next_cursor))

    @router.get("/events/{id}", **documented("Read an event", shapes.Event, tag="events", problems=(404,)))
    async def read_event(request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name
        caller = await services.auth.caller(request, scope="events:read")
        row = await queries.event(database, caller.account, known("event", id))
        if row is None:
            raise not_found("event")
        return answer(views.event(row))
