"""Secrets of subscriptions: rotate, revoke, and what happens when their time is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dispatcher.bodies import rfc3339
from dispatcher.errors import Problem
from dispatcher.ids import new_id
from dispatcher.store import holding
from dispatcher.store.committer import Transaction
from dispatcher.store.notices import NoticeType
from dispatcher.store.subscribing import Who, audit, found, touch
from dispatcher.store.tables import secrets, subscriptions
from subscriptions import store as subscription_store
from subscriptions.models import Subscription, ValidKey
from subscriptions.schema import is_ending
from subscriptions.secrets import SigningKey

#: secrets of one subscription that are valid now or later
MAX_KEYS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """A new secret, and what becomes of the others."""

    key: SigningKey
    #: milliseconds since the epoch; None means now
    valid_from: int | None = None
    #: None means until it is rotated or revoked
    valid_until: int | None = None
    #: seconds for which the others stay valid once it is; 0 ends them with its commit
    overlap: float


async def rotate(
    tx: Transaction, who: Who, id_: str, rotation: Rotation, check: Callable[[Subscription, SigningKey], None]
) -> ValidKey:
    """Add a secret and let the others end. `check` raises Problem if it cannot serve the subscription's schemes."""
    subscription = await found(tx, who, id_, lock=True)
    check(subscription, rotation.key)
    start = tx.now if rotation.valid_from is None else max(tx.now, rotation.valid_from)
    others = [key for key in subscription.keys if key.valid_until is None or key.valid_until > tx.now]
    if any(key.key.secret == rotation.key.secret for key in others):
        raise Problem("conflict", "The subscription has this secret already.")
    end = start + round(rotation.overlap * 1000)
    await subscription_store.end_keys(tx.connection, [key.id for key in others], at=end, now=tx.now)
    kept = others if end > tx.now else []
    if len(kept) >= MAX_KEYS:
        raise Problem("conflict", f"A subscription has at most {MAX_KEYS} secrets; revoke one first.")
    key = ValidKey(id=new_id(), key=rotation.key, valid_from=start, valid_until=rotation.valid_until, created_at=tx.now)
    await subscription_store.add_key(tx.connection, who.keyring, key, account=who.account, subscription_id=id_)
    await touch(tx, who, id_)
    await audit(tx, who, "secret.rotate", key.id)
    return key


async def revoke(tx: Transaction, who: Who, id_: str, secret_id: str) -> None:
    """End a secret at once. The last one that is valid stays: nothing is ever sent unsigned."""
    subscription = await found(tx, who, id_, lock=True)
    if all(key.id != secret_id for key in subscription.keys):
        raise Problem("not-found", "There is no such secret.")
    if not any(key.id != secret_id and key.is_valid(tx.now) for key in subscription.keys):
        raise Problem("conflict", "This is the only secret that is valid now; rotate it instead.")
    await subscription_store.end_keys(tx.connection, [secret_id], at=tx.now, now=tx.now)
    await touch(tx, who, id_)
    await audit(tx, who, "secret.revoke", secret_id)


async def end_secrets(tx: Transaction, limits: Sequence[int]) -> list[int]:
    """Note secrets that end soon, and delete those that have ended. Answers how many."""
    return [await _end_secrets(tx, limit) for limit in limits]


async def _end_secrets(tx: Transaction, limit: int) -> int:
    found = await tx.connection.execute(
        sa.select(
            secrets.c.id.label("secret_id"),
            secrets.c.valid_until,
            subscriptions.c.id,
            subscriptions.c.account,
            subscriptions.c.operational,
        )
        .join(subscriptions, subscriptions.c.id == secrets.c.subscription_id)
        .where(is_ending, secrets.c.notice_at <= tx.now)
        .order_by(secrets.c.notice_at)
        .limit(limit)
        .with_for_update(of=secrets, skip_locked=True)
    )
    ending = found.mappings().all()
    for row in ending:
        this = secrets.c.id == row["secret_id"]
        if row["valid_until"] <= tx.now:
            await tx.connection.execute(sa.delete(secrets).where(this))
            continue
        # Looked at again when it is over.
        await tx.connection.execute(sa.update(secrets).where(this).values(notice_at=secrets.c.valid_until))
        detail = {"secret_id": row["secret_id"], "valid_until": rfc3339(row["valid_until"])}
        await holding.tell(tx, row, NoticeType.SECRET_EXPIRING, detail)
    return len(ending)
