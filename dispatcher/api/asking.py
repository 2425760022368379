"""Asks endpoints whether they are there, and waits for what they answer: pings and handshakes."""

from __future__ import annotations

import asyncio
from time import monotonic

from dispatcher.api import shapes, views
from dispatcher.api.problems import not_found
from dispatcher.api.services import Services
from dispatcher.errors import Problem
from dispatcher.models import TERMINAL_STATES, DeliveryKind, DeliveryState
from dispatcher.store import queries
from dispatcher.store.subscribing import Asked
from subscriptions.models import Subscription, SubscriptionState

#: seconds beyond an attempt's deadline for which its end is waited for: it may have to wait for its turn
SLACK = 5.0
#: seconds between two looks, at first and at last
FIRST_LOOK = 0.01
LAST_LOOK = 0.25
#: requests of one account that wait at once; further ones are told at once how far it has got
MAX_WAITING = 20


async def answered(services: Services, asked: Asked, to: Subscription) -> shapes.Ping:
    """What an endpoint answered; or, if that takes too long, how far it has got."""
    if services.waiting[to.account] < MAX_WAITING:
        services.waiting[to.account] += 1
        try:
            await _ended(services, asked.delivery_id, within=(to.timeout or services.settings.send_timeout) + SLACK)
        finally:
            services.waiting[to.account] -= 1
            if not services.waiting[to.account]:
                del services.waiting[to.account]
    found = await queries.delivery(services.store.database, to.account, asked.delivery_id)
    if found is None:
        raise not_found("delivery")
    return views.ping(*found)


async def _ended(services: Services, delivery_id: str, *, within: float) -> None:
    end, pause = monotonic() + within, FIRST_LOOK
    while await queries.delivery_state(services.store.database, delivery_id) not in TERMINAL_STATES:
        if monotonic() >= end:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LAST_LOOK)


def check_enabled(subscription: Subscription, ping: shapes.Ping, *, aside: str = "") -> bool:
    """Whether a subscription is active after this ping; False while that is open. Raises Problem if it is not."""
    if subscription.state is SubscriptionState.ACTIVE:
        return True
    if ping.state not in TERMINAL_STATES:
        return False
    what = "handshake" if ping.kind is DeliveryKind.HANDSHAKE else "ping"
    status = "" if ping.status is None else f", status {ping.status}"
    detail = f"The subscription stays disabled: the {what} of its endpoint ended with {ping.outcome}{status}."
    if ping.state is DeliveryState.DELIVERED:
        detail = f"Its endpoint answered the {what}, but the subscription has been disabled since."
    raise Problem("conflict", detail + aside, extra={"ping": ping})
