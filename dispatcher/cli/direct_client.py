"""Subscriptions on the database itself, by the functions that the server uses, while it runs or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from dispatcher.api import shapes, views
from dispatcher.api import subscription_reading as reading
from dispatcher.api.checking import decode
from dispatcher.api.problems import not_found, too_large
from dispatcher.api.reading import Reader
from dispatcher.api.shapes.subscriptions import RECENT
from dispatcher.cli.clients import Revealed
from dispatcher.config import Settings
from dispatcher.egress import EgressPolicy
from dispatcher.installation import Installation
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.processors.registry import Registry
from dispatcher.store import accounts, direct, queries, rotating, subscribing
from dispatcher.store.accounts import Account
from dispatcher.store.committer import Transaction
from dispatcher.store.subscribing import Changed, Who
from subscriptions import store as subscription_store
from subscriptions.models import Movement, Subscription, SubscriptionState
from subscriptions.secrets import SigningKey

T = TypeVar("T")
Shape = TypeVar("Shape", bound=msgspec.Struct)

#: subscriptions that are read at a time
PAGE = 200


class DirectClient:
    """One account's subscriptions in an opened installation."""

    later = "a running server sends the ping within a minute, or when one starts; `show` tells what came of it"
    takes_seeds = True

    def __init__(self, installation: Installation, settings: Settings, *, account: str, actor: str) -> None:
        self._database = installation.database
        self._keyring = installation.keyring
        self._who = Who(account=account, actor=actor, keyring=installation.keyring, source=settings.event_source)
        self._reader = Reader(
            settings=settings,
            policy=EgressPolicy.of(settings),
            registry=Registry(),
            keyring=installation.keyring,
        )

    async def create(self, body: bytes, *, seed: bytes | None = None) -> shapes.Subscription:
        """Create a subscription."""
        changed, key = await self._create(body, seed=seed, keep=True)
        view = _view(changed.subscription)
        view.config.secret = key.secret.reveal()
        return view

    async def check(self, body: bytes) -> None:
        """Create a subscription, and take it back."""
        await self._create(body, seed=None, keep=False)

    async def list_all(self, *, is_active: bool | None) -> list[shapes.Subscription]:
        """All subscriptions, newest first."""
        state = None
        if is_active is not None:
            state = SubscriptionState.ACTIVE if is_active else SubscriptionState.DISABLED
        items: list[shapes.Subscription] = []
        cursor: str | None = None
        while True:
            page = await queries.list_subscriptions(
                self._database, self._who.account, limit=PAGE, before=cursor, state=state
            )
            ids = [row["id"] for row in page.rows]
            found = await self._found(ids)
            items += [_view(found[id_]) for id_ in ids if id_ in found]
            if page.next_cursor is None:
                return items
            cursor = page.next_cursor

    async def read(self, id_: str) -> shapes.Subscription:
        """One subscription, with its recent history."""
        view = _view(await self._one(id_))
        view.recent = [views.recent(row) for row in await queries.recent(self._database, id_, limit=RECENT)]
        return view

    async def secrets(self, id_: str) -> list[shapes.SecretView]:
        """A subscription's secrets, newest first."""
        return views.secrets((await self._one(id_)).keys, now=reading.now_ms())

    async def rotate(self, id_: str, body: bytes) -> shapes.SecretView:
        """Give a subscription a new secret."""
        rotation = reading.new_rotation(_decoded(body, shapes.RotateRequest))
        check = reading.rotation_check(await self._account())
        made = await self._apply(lambda tx: rotating.rotate(tx, self._who, id_, rotation, check))
        [view] = views.secrets([made], now=max(reading.now_ms(), made.created_at))
        view.secret = rotation.key.secret.reveal()
        return view

    async def revoke(self, id_: str, secret_id: str) -> None:
        """End a secret at once."""
        await self._apply(lambda tx: rotating.revoke(tx, self._who, id_, secret_id))

    async def enable(self, id_: str, body: bytes) -> shapes.Subscription:
        """Have a subscription enabled, once its endpoint has answered the server."""
        held = _decoded(body, shapes.EnableRequest).held
        then = Movement.DISCARD if held == "discard" else Movement.RELEASE
        changed = await self._apply(lambda tx: subscribing.enable(tx, self._who, id_, then))
        return _view(changed.subscription)

    async def disable(self, id_: str) -> shapes.Subscription:
        """Disable a subscription."""
        changed = await self._apply(lambda tx: subscribing.disable(tx, self._who, id_))
        return _view(changed.subscription)

    async def ping(self, id_: str) -> shapes.Ping:
        """Have a signed ping sent by the server."""
        asked = await self._apply(lambda tx: subscribing.ping(tx, self._who, id_))
        found = await queries.delivery(self._database, self._who.account, asked.delivery_id)
        if found is None:
            raise not_found("delivery")
        return views.ping(*found)

    async def delete(self, id_: str) -> None:
        """Delete a subscription."""
        await self._apply(lambda tx: subscribing.delete(tx, self._who, id_))

    async def reveal(self, ids: Sequence[str]) -> dict[str, Revealed]:
        """What is secret of subscriptions. The audit log tells that it was taken."""

        async def note(tx: Transaction) -> dict[str, Subscription]:
            found = await subscription_store.find(tx.connection, self._keyring, ids, account=self._who.account)
            for id_ in found:
                await subscribing.audit(tx, self._who, "subscription.export", id_)
            return found

        now = reading.now_ms()
        return {
            id_: Revealed(url=one.url, headers=one.headers, key=next(iter(one.keys_at(now)), None))
            for id_, one in (await self._apply(note)).items()
        }

    async def _create(self, body: bytes, *, seed: bytes | None, keep: bool) -> tuple[Changed, SigningKey]:
        request = _decoded(body, shapes.SubscriptionRequest)
        is_active = reading.wanted_active(request)
        draft, key = reading.new_draft(self._reader, request, await self._account())
        if seed is not None:
            key = SigningKey(secret=key.secret, seed=seed)
        changed = await self._apply(
            lambda tx: subscribing.create(tx, self._who, draft, key, is_active=is_active is not False), keep=keep
        )
        return changed, key

    async def _account(self) -> Account:
        return await accounts.read_account(self._database, self._keyring, self._who.account)

    async def _apply(self, change: Callable[[Transaction], Awaitable[T]], *, keep: bool = True) -> T:
        return await direct.apply(self._database, change, keep=keep)

    async def _found(self, ids: Sequence[str]) -> dict[str, Subscription]:
        async with self._database.read() as connection:
            return await subscription_store.find(connection, self._keyring, ids, account=self._who.account)

    async def _one(self, id_: str) -> Subscription:
        found = await self._found([id_])
        if id_ not in found:
            raise not_found("subscription")
        return found[id_]


def _decoded(body: bytes, shape: type[Shape]) -> Shape:
    if len(body) > MAX_AROUND_PAYLOAD:
        raise too_large("", MAX_AROUND_PAYLOAD)
    return decode(body, shape)


def _view(subscription: Subscription) -> shapes.Subscription:
    return views.subscription(subscription, now=reading.now_ms())
