"""Routes of the account: its defaults, and the limits that hold for it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from dispatcher.api import shapes
from dispatcher.api.checking import check_schemes, read_secret
from dispatcher.api.common import answer, who
from dispatcher.api.openapi import documented
from dispatcher.api.reading import read_shape
from dispatcher.api.services import Services
from dispatcher.api.subscription_reading import operational_draft
from dispatcher.store import accounts
from subscriptions import store as subscription_store
from subscriptions.models import Draft, SubscriptionState, Verification
from subscriptions.secrets import Secret, SigningKey
from subscriptions.signatures import Scheme

#: what of a change is in the account's own row
_DEFAULTS = ("default_secret", "schemes", "retry_schedule", "verification")


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    database, keyring = services.store.database, services.store.keyring

    async def view(account: accounts.Account, secret: Secret | None = None) -> shapes.Account:
        settings = services.settings
        names = shapes.Limits.__struct_fields__
        return shapes.Account(
            id=account.id,
            has_default_secret=account.default_secret is not None,
            schemes=None if account.schemes is None else [Scheme(name) for name in account.schemes],
            retry_schedule=list(settings.retry_schedule if account.retry_schedule is None else account.retry_schedule),
            verification=account.verification,
            operational_endpoint=await _operational(services, account, secret),
            limits=shapes.Limits(**{name: getattr(settings, name) for name in names}),
        )

    @router.get("/account", **documented("Read the account", shapes.Account, tag="account"))
    async def read_account(request: Request) -> Response:
        caller = await services.auth.caller(request)
        return answer(await view(await accounts.read_account(database, keyring, caller.account)))

    @router.patch(
        "/account",
        **documented("Change the account's defaults", shapes.Account, tag="account", body=shapes.AccountChange),
    )
    async def change_account(request: Request) -> Response:
        caller = await services.auth.caller(request, scope="account:write")
        change = await read_shape(request, shapes.AccountChange)
        present = await accounts.read_account(database, keyring, caller.account)
        # Everything is checked before anything is written: a secret that is made here is shown by this answer only.
        endpoint = _endpoint(services, change, _changed(present, change))
        if any(getattr(change, name) is not UNSET for name in _DEFAULTS):
            await accounts.change_account(
                database, keyring, caller.account, partial(_changed, change=change), actor=f"token {caller.jti}"
            )
        if endpoint is not UNSET:
            draft, key = endpoint or (None, None)
            await services.store.set_operational(who(services, caller), draft, key)
        services.accounts.forget(caller.account)
        made = endpoint[1].secret if endpoint and not _is_given(change) else None
        return answer(await view(await accounts.read_account(database, keyring, caller.account), made))


def _endpoint(
    services: Services, change: shapes.AccountChange, changed: accounts.Account
) -> tuple[Draft, SigningKey] | UnsetType | None:
    wish = change.operational_endpoint
    return operational_draft(services.reader, wish, changed) if isinstance(wish, shapes.OperationalRequest) else wish


def _is_given(change: shapes.AccountChange) -> bool:
    wish = change.operational_endpoint
    return isinstance(wish, shapes.OperationalRequest) and wish.secret is not None


async def _operational(
    services: Services, account: accounts.Account, secret: Secret | None
) -> shapes.OperationalView | None:
    if account.operational_id is None:
        return None
    async with services.store.database.read() as connection:
        rows = await subscription_store.rows(connection, [account.operational_id], account=account.id)
    row = rows.get(account.operational_id)
    if row is None:
        return None
    return shapes.OperationalView(
        subscription_id=row["id"],
        host=row["origin"].partition("://")[2],
        is_active=row["state"] == SubscriptionState.ACTIVE,
        secret=UNSET if secret is None else secret.reveal(),
    )


def _changed(account: accounts.Account, change: shapes.AccountChange) -> accounts.Account:
    secret, schemes, schedule = account.default_secret, account.schemes, account.retry_schedule
    verification = account.verification
    if change.verification is not UNSET:
        verification = change.verification or Verification.NONE
    if change.default_secret is not UNSET:
        secret = read_secret(change.default_secret, "/default_secret")
    if change.schemes is not UNSET:
        schemes = None if change.schemes is None else tuple(change.schemes)
    if change.retry_schedule is not UNSET:
        schedule = None if change.retry_schedule is None else tuple(change.retry_schedule)
    if schemes is not None:
        check_schemes(schemes, secret, "/schemes")
    return replace(account, default_secret=secret, schemes=schemes, retry_schedule=schedule, verification=verification)
