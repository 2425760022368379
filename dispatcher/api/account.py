"""Routes of the account: its defaults, and the limits that hold for it."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from dispatcher.api import shapes
from dispatcher.api.common import answer
from dispatcher.api.openapi import documented
from dispatcher.api.reading import check_schemes, read_secret, read_shape
from dispatcher.api.services import Services
from dispatcher.store import accounts
from subscriptions.signatures import Scheme


def add_routes(router: APIRouter, services: Services) -> None:
    """Add these routes."""
    database, keyring = services.store.database, services.store.keyring

    def view(account: accounts.Account) -> shapes.Account:
        settings = services.settings
        names = shapes.Limits.__struct_fields__
        return shapes.Account(
            id=account.id,
            has_default_secret=account.default_secret is not None,
            schemes=None if account.schemes is None else [Scheme(name) for name in account.schemes],
            retry_schedule=list(settings.retry_schedule if account.retry_schedule is None else account.retry_schedule),
            limits=shapes.Limits(**{name: getattr(settings, name) for name in names}),
        )

    @router.get("/account", **documented("Read the account", shapes.Account, tag="account"))
    async def read_account(request: Request) -> Response:
        caller = await services.auth.caller(request)
        return answer(view(await accounts.read_account(database, keyring, caller.account)))

    @router.patch(
        "/account",
        **documented("Change the account's defaults", shapes.Account, tag="account", body=shapes.AccountChange),
    )
    async def change_account(request: Request) -> Response:
        caller = await services.auth.caller(request, scope="account:write")
        change = await read_shape(request, shapes.AccountChange)
        changed = await accounts.change_account(
            database, keyring, caller.account, partial(_changed, change=change), actor=f"token {caller.jti}"
        )
        services.accounts.forget(caller.account)
        return answer(view(changed))


def _changed(account: accounts.Account, change: shapes.AccountChange) -> accounts.Account:
    secret, schemes, schedule = account.default_secret, account.schemes, account.retry_schedule
    if change.default_secret is not UNSET:
        secret = read_secret(change.default_secret, "/default_secret")
    if change.schemes is not UNSET:
        schemes = None if change.schemes is None else tuple(change.schemes)
    if change.retry_schedule is not UNSET:
        schedule = None if change.retry_schedule is None else tuple(change.retry_schedule)
    if schemes is not None:
        check_schemes(schemes, secret, "/schemes")
    return accounts.Account(id=account.id, default_secret=secret, schemes=schemes, retry_schedule=schedule)
