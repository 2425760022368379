"""What routes share: answers, pages, and looking things up."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Query
from starlette.responses import Response

from dispatcher.api import shapes, views
from dispatcher.api.problems import invalid, not_found
from dispatcher.api.services import Services
from dispatcher.api.shapes.fields import WITHOUT_NUL
from dispatcher.ids import is_id
from dispatcher.store import queries
from dispatcher.store.subscribing import Who
from dispatcher.tokens import Caller
from subscriptions import store as subscription_store
from subscriptions.models import Subscription

DEFAULT_PAGE = 50
MAX_PAGE = 200

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many items, at most.")]
#: a value that a list is asked for
Wanted = Annotated[str | None, Query(pattern=WITHOUT_NUL)]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.")]


def answer(shape: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A shape as a JSON response."""
    return Response(msgspec.json.encode(shape), status_code=status, headers=headers, media_type="application/json")


def who(services: Services, caller: Caller) -> Who:
    """Whose subscriptions a caller changes, and by which token."""
    return Who(
        account=caller.account,
        actor=f"token {caller.jti}",
        keyring=services.store.keyring,
        source=services.settings.event_source,
    )


def before(cursor: str | None) -> str | None:
    """The id that a page starts below. Raises Problem."""
    if cursor is not None and not is_id(cursor):
        raise invalid("/cursor", "must be the next_cursor of an earlier page")
    return cursor


def known(kind: str, identifier: str) -> str:
    """An id that may exist. Raises Problem for a text that is none."""
    if not is_id(identifier):
        raise not_found(kind)
    return identifier


async def find_subscription(services: Services, account: str, subscription_id: str) -> Subscription:
    """One of the account's subscriptions, opened. Raises Problem."""
    known("subscription", subscription_id)
    async with services.store.database.read() as connection:
        found = await subscription_store.find(connection, services.store.keyring, [subscription_id], account=account)
    if subscription_id not in found:
        raise not_found("subscription")
    return found[subscription_id]


async def find_task(services: Services, account: str, task_id: str) -> shapes.Task:
    """One of the account's tasks. Raises Problem."""
    row = await queries.task(services.store.database, account, known("task", task_id))
    if row is None:
        raise not_found("task")
    return views.task(row)
