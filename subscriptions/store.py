"""Subscriptions and their secrets in the database: every statement on their own rows.

What a change means for deliveries stands in `dispatcher.store`; it calls these within its transactions. Everything
here takes the open connection. Moments are milliseconds since the epoch, by the database's clock.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from subscriptions.health import DisabledReason, DisableOn
from subscriptions.keyring import Keyring, Place
from subscriptions.models import (
    Draft,
    Headers,
    Movement,
    OnExhausted,
    Ordering,
    Subscription,
    SubscriptionState,
    ValidKey,
    Verification,
)
from subscriptions.schema import secrets, subscriptions
from subscriptions.secrets import Secret, SigningKey

_encode = msgspec.json.encode
_decode_headers = msgspec.json.Decoder(tuple[tuple[str, str], ...]).decode


# --- subscriptions ----------------------------------------------------------------------------------------


async def find(
    connection: AsyncConnection,
    keyring: Keyring,
    ids: Sequence[str],
    *,
    account: str | None = None,
    lock: bool = False,
) -> dict[str, Subscription]:
    """Subscriptions by id, opened, with their keys; of one account only, if it is named. Deleted ones are not found.

    Raises KeyringError when the keyring lacks what sealed one of them.
    """
    found = await _found(connection, ids, account=account, lock=lock)
    keys = await _keys(connection, keyring, [row["id"] for row in found])
    return {row["id"]: _opened(keyring, row, tuple(keys.get(row["id"], ()))) for row in found}


async def rows(
    connection: AsyncConnection, ids: Sequence[str], *, account: str | None = None, lock: bool = False
) -> dict[str, sa.RowMapping]:
    """Rows of subscriptions by id, sealed as they are. Deleted ones are not found."""
    return {row["id"]: row for row in await _found(connection, ids, account=account, lock=lock)}


async def _found(
    connection: AsyncConnection, ids: Sequence[str], *, account: str | None, lock: bool
) -> Sequence[sa.RowMapping]:
    query = _find(lock=lock) if account is None else _find(lock=lock).where(subscriptions.c.account == account)
    found: Sequence[sa.RowMapping] = (await connection.execute(query, {"ids": ids})).mappings().all()
    return found


@functools.cache
def _find(*, lock: bool) -> sa.Select[Any]:
    # in one order everywhere, so that two transactions never wait for each other
    query = (
        sa.select(subscriptions)
        .where(
            subscriptions.c.id.in_(sa.bindparam("ids", expanding=True)),
            subscriptions.c.state != SubscriptionState.DELETED,
        )
        .order_by(subscriptions.c.id)
    )
    return query.with_for_update() if lock else query


async def count(connection: AsyncConnection, account: str) -> int:
    """How many subscriptions an account has, those that were deleted lately included: it reads nothing but an index."""
    return await connection.scalar(sa.select(sa.func.count()).where(subscriptions.c.account == account)) or 0


async def count_ordered(connection: AsyncConnection, account: str) -> int:
    """How many of an account's subscriptions keep an order."""
    return (
        await connection.scalar(
            sa.select(sa.func.count()).where(
                subscriptions.c.account == account,
                subscriptions.c.ordering != Ordering.NONE,
                subscriptions.c.state != SubscriptionState.DELETED,
            )
        )
        or 0
    )


async def changed_since(
    connection: AsyncConnection, account: str, version: int, *, limit: int | None = None
) -> Sequence[sa.RowMapping]:
    """An account's subscriptions that changed after a version, deleted ones too; `limit` at most, the first ones."""
    rows = await connection.execute(
        sa.select(subscriptions)
        .where(subscriptions.c.account == account, subscriptions.c.version > version)
        .order_by(subscriptions.c.version)
        .limit(limit)
    )
    return rows.mappings().all()


async def insert(connection: AsyncConnection, keyring: Keyring, subscription: Subscription) -> None:
    """Store a new subscription and its keys."""
    await connection.execute(
        sa.insert(subscriptions).values(
            id=subscription.id,
            account=subscription.account,
            version=subscription.version,
            state=subscription.state,
            disabled_reason=subscription.disabled_reason,
            disabled_at=subscription.disabled_at,
            verifying=subscription.verifying,
            refusals=0,
            failures=0,
            held=0,
            next_seq=0,
            created_at=subscription.created_at,
            updated_at=subscription.updated_at,
            **_columns(keyring, subscription, account=subscription.account, id=subscription.id),
        )
    )
    for key in subscription.keys:
        await add_key(connection, keyring, key, account=subscription.account, subscription_id=subscription.id)


async def rewrite(connection: AsyncConnection, keyring: Keyring, subscription: Subscription) -> None:
    """Store what its owner changed."""
    await update(
        connection,
        subscription.id,
        version=subscription.version,
        updated_at=subscription.updated_at,
        **_columns(keyring, subscription, account=subscription.account, id=subscription.id),
    )


async def update(connection: AsyncConnection, id: str, **values: Any) -> None:  # noqa: A002 - the column's name
    """Change columns of one subscription."""
    await connection.execute(sa.update(subscriptions).where(subscriptions.c.id == id).values(values))


async def wipe(connection: AsyncConnection, id: str, *, version: int, now: int) -> None:  # noqa: A002 - as above
    """Delete a subscription: all that is secret is gone at once, and the row says that it was there."""
    await update(
        connection,
        id,
        version=version,
        updated_at=now,
        state=SubscriptionState.DELETED,
        disabled_reason=None,
        movement=Movement.CANCEL,
        verifying=None,
        granting=None,
        identity=None,
        url=None,
        headers=None,
        metadata=None,
        description=None,
    )
    await connection.execute(sa.delete(secrets).where(secrets.c.subscription_id == id))


async def twin(connection: AsyncConnection, keyring: Keyring, draft: Draft, *, account: str) -> str | None:
    """The id of the account's subscription with the same URL and patterns, if there is one."""
    found: str | None = await connection.scalar(
        sa.select(subscriptions.c.id).where(
            subscriptions.c.account == account, subscriptions.c.identity == identity(keyring, draft, account=account)
        )
    )
    return found


def identity(keyring: Keyring, draft: Draft, *, account: str) -> str:
    """A keyed digest that is equal for equal URLs and patterns of one account."""
    kind = "operational" if draft.operational else "published"
    return keyring.fingerprint("\n".join([kind, draft.url.reveal(), *sorted(set(draft.events))]), account=account)


# --- secrets ----------------------------------------------------------------------------------------------


async def add_key(
    connection: AsyncConnection, keyring: Keyring, key: ValidKey, *, account: str, subscription_id: str
) -> None:
    """Store what signs, sealed."""
    if key.key.seed is None or key.key.public_key is None:
        raise ValueError("a subscription's key has an Ed25519 pair")
    await connection.execute(
        sa.insert(secrets).values(
            id=key.id,
            account=account,
            subscription_id=subscription_id,
            text=keyring.seal(key.key.secret.reveal(), where=place(account, "text", key.id, table="secrets")),
            seed=keyring.seal(key.key.seed, where=place(account, "seed", key.id, table="secrets")),
            public_key=key.key.public_key,
            valid_from=key.valid_from,
            valid_until=key.valid_until,
            notice_at=notice_at(key.valid_from, key.valid_until),
            created_at=key.created_at,
        )
    )


async def end_keys(connection: AsyncConnection, ids: Iterable[str], *, at: int, now: int) -> None:
    """Let secrets be valid until then, at most. One that is over by now is deleted: nothing of it is kept."""
    for id_ in ids:
        row = (await connection.execute(sa.select(secrets).where(secrets.c.id == id_))).mappings().one_or_none()
        if row is None:
            continue
        end = at if row["valid_until"] is None else min(at, row["valid_until"])
        if end <= now:
            await connection.execute(sa.delete(secrets).where(secrets.c.id == id_))
        else:
            await connection.execute(
                sa.update(secrets)
                .where(secrets.c.id == id_)
                .values(valid_until=end, notice_at=notice_at(max(row["valid_from"], now), end))
            )


def notice_at(valid_from: int, valid_until: int | None) -> int | None:
    """When an owner is told that a secret ends soon: after three quarters of its time, a week before at most."""
    if valid_until is None:
        return None
    return valid_until - min((valid_until - valid_from) // 4, 7 * 86_400_000)


async def _keys(connection: AsyncConnection, keyring: Keyring, ids: Sequence[str]) -> dict[str, list[ValidKey]]:
    if not ids:
        return {}
    rows = await connection.execute(_KEYS, {"ids": ids})
    keys: dict[str, list[ValidKey]] = {}
    for row in rows.mappings():
        keys.setdefault(row["subscription_id"], []).append(_key(keyring, row))
    return keys


_KEYS = (
    sa.select(secrets)
    .where(secrets.c.subscription_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(secrets.c.valid_from.desc(), secrets.c.id.desc())
)


def _key(keyring: Keyring, row: sa.RowMapping) -> ValidKey:
    def opened(column: str) -> bytes:
        return keyring.open(row[column], where=place(row["account"], column, row["id"], table="secrets"))

    return ValidKey(
        id=row["id"],
        key=SigningKey(secret=Secret(opened("text").decode()), seed=opened("seed")),
        valid_from=row["valid_from"],
        valid_until=row["valid_until"],
        created_at=row["created_at"],
    )


# --- columns ----------------------------------------------------------------------------------------------


def place(account: str, column: str, row: str, *, table: str = "subscriptions") -> Place:
    """Where a sealed column's value lives."""
    return Place(purpose=f"{table}.{column}", account=account, table=table, column=column, row=row)


def _columns(keyring: Keyring, draft: Draft, *, account: str, id: str) -> dict[str, Any]:  # noqa: A002 - the column
    headers = _encode(draft.headers) if draft.headers else None
    return {
        "operational": draft.operational,
        "name": draft.name,
        "description": draft.description,
        "metadata": draft.metadata,
        "url": keyring.seal(draft.url.reveal(), where=place(account, "url", id)),
        "origin": draft.origin,
        "fingerprint": draft.fingerprint,
        "identity": identity(keyring, draft, account=account),
        "headers": keyring.seal(headers, where=place(account, "headers", id)) if headers else None,
        "events": list(draft.events),
        "filter": draft.filter,
        "body_mode": draft.body_mode,
        "schemes": _list(draft.schemes),
        "hub_method": draft.hub_method,
        "ordering": draft.ordering,
        "on_exhausted": draft.on_exhausted,
        "rate_limit": draft.rate_limit,
        "retry_schedule": _list(draft.retry_schedule),
        "timeout": draft.timeout,
        "disable_after_4xx": draft.disable_after_4xx,
        "disable_on": draft.disable_on,
        "disable_after": draft.disable_after,
        "hold_for": draft.hold_for,
        "verification": draft.verification,
    }


def _opened(keyring: Keyring, row: sa.RowMapping, keys: tuple[ValidKey, ...]) -> Subscription:
    account, id_ = row["account"], row["id"]
    headers: Headers = ()
    if row["headers"] is not None:
        headers = _decode_headers(keyring.open(row["headers"], where=place(account, "headers", id_)))
    return Subscription(
        id=id_,
        account=account,
        version=row["version"],
        operational=row["operational"],
        name=row["name"],
        description=row["description"],
        metadata=row["metadata"],
        url=Secret(keyring.open(row["url"], where=place(account, "url", id_)).decode()),
        origin=row["origin"],
        fingerprint=row["fingerprint"],
        headers=headers,
        events=tuple(row["events"]),
        filter=row["filter"],
        body_mode=row["body_mode"],
        schemes=_tuple(row["schemes"]),
        hub_method=row["hub_method"],
        ordering=Ordering(row["ordering"]),
        on_exhausted=OnExhausted(row["on_exhausted"]),
        rate_limit=row["rate_limit"],
        retry_schedule=_tuple(row["retry_schedule"]),
        timeout=row["timeout"],
        disable_after_4xx=row["disable_after_4xx"],
        disable_on=DisableOn(row["disable_on"]),
        disable_after=row["disable_after"],
        hold_for=row["hold_for"],
        verification=Verification(row["verification"]),
        state=SubscriptionState(row["state"]),
        disabled_reason=None if row["disabled_reason"] is None else DisabledReason(row["disabled_reason"]),
        disabled_at=row["disabled_at"],
        movement=None if row["movement"] is None else Movement(row["movement"]),
        verifying=row["verifying"],
        refusals=row["refusals"],
        failures=row["failures"],
        failing_since=row["failing_since"],
        held=row["held"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        keys=keys,
    )


def _list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
