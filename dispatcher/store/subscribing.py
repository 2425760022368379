"""What an owner does with subscriptions: create, change, delete, enable, disable, ping.

Each change is one transaction of its own within the committer's, so that one that is refused leaves nothing behind.
What it means for deliveries follows from the subscription's state; see `holding`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import sqlalchemy as sa

from dispatcher.bodies import Message, compose
from dispatcher.errors import FieldError, Problem
from dispatcher.ids import new_id
from dispatcher.models import PING_EVENT, BodyMode, DeliveryKind, ping_lane_of
from dispatcher.store import accounts, holding, making, publishing
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import Answers
from dispatcher.store.making import Making, Target
from dispatcher.store.records import IdempotencyKey, NewEvent
from dispatcher.store.tables import accounts as account_table
from dispatcher.store.tables import subscriptions
from subscriptions import store as subscription_store
from subscriptions.health import DisabledReason
from subscriptions.keyring import Keyring
from subscriptions.models import (
    Draft,
    Movement,
    Ordering,
    Subscription,
    SubscriptionState,
    ValidKey,
    Verification,
)
from subscriptions.secrets import SigningKey

#: subscriptions of one account, those that were deleted within the last day included
MAX_SUBSCRIPTIONS = 100_000
#: those of them that keep an order: each takes its place in the transaction that accepts an event
MAX_ORDERED = 1_000

#: One change; raises Problem to refuse it.
Change = Callable[[Transaction], Awaitable[Any]]


async def apply(tx: Transaction, changes: Sequence[Change]) -> list[Any]:
    """Carry out changes, each as a whole or not at all."""
    results: list[Any] = []
    for change in changes:
        try:
            async with tx.part():
                results.append(await change(tx))
        except Problem as problem:
            results.append(problem)
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class Who:
    """Whose subscriptions, and who changes them."""

    account: str
    #: for the audit log
    actor: str
    keyring: Keyring
    #: what a CloudEvent of our own, such as a ping, names as its source
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that asks an endpoint whether it is there."""

    delivery_id: str
    lane: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A subscription after a change."""

    subscription: Subscription
    #: what it is being asked, if it has to show first that it is there
    asked: Asked | None = None


# --- create, change, delete -------------------------------------------------------------------------------


async def create(tx: Transaction, who: Who, draft: Draft, key: SigningKey, *, is_active: bool) -> Changed:
    """Store a new subscription. One that has to verify itself is disabled until it has."""
    await _refuse_twin(tx, who, draft)
    await _check_quota(tx, who, is_new=True, is_ordered=draft.ordering is not Ordering.NONE)
    verified = draft.verification is Verification.NONE
    reason = DisabledReason.MANUAL if not is_active else None if verified else DisabledReason.UNVERIFIED
    id_ = new_id()
    subscription = Subscription(
        **_fields(draft),
        id=id_,
        account=who.account,
        version=await accounts.next_version(tx.connection, who.account),
        state=SubscriptionState.ACTIVE if reason is None else SubscriptionState.DISABLED,
        disabled_reason=reason,
        disabled_at=None if reason is None else tx.now,
        created_at=tx.now,
        updated_at=tx.now,
        keys=(ValidKey(id=new_id(), key=key, valid_from=tx.now, valid_until=None, created_at=tx.now),),
    )
    await subscription_store.insert(tx.connection, who.keyring, subscription)
    await audit(tx, who, "subscription.create", id_)
    asked = await _verify(tx, who, id_, Movement.RELEASE) if reason is DisabledReason.UNVERIFIED else None
    return Changed(subscription=await found(tx, who, id_), asked=asked)


async def change(tx: Transaction, who: Who, id_: str, edit: Callable[[Subscription], Draft]) -> Changed:
    """Change what an owner says of a subscription. One that verifies itself does so again at a new URL."""
    before = await found(tx, who, id_, lock=True)
    draft = edit(before)
    moved = draft.url != before.url
    if subscription_store.identity(who.keyring, draft, account=who.account) != subscription_store.identity(
        who.keyring, before, account=who.account
    ):
        await _refuse_twin(tx, who, draft)
    if before.ordering is Ordering.NONE:
        await _check_quota(tx, who, is_new=False, is_ordered=draft.ordering is not Ordering.NONE)
    version = await accounts.next_version(tx.connection, who.account)
    after = replace(before, **_fields(draft), version=version, updated_at=tx.now)
    await subscription_store.rewrite(tx.connection, who.keyring, after)
    if moved:
        # What its old endpoint was asked, and may still grant, says nothing about the new one.
        await subscription_store.update(
            tx.connection, id_, refusals=0, failures=0, failing_since=None, verifying=None, granting=None
        )
    await audit(tx, who, "subscription.update", id_)
    asked = None
    if moved and after.state is SubscriptionState.ACTIVE and after.verification is not Verification.NONE:
        await holding.disable(tx, await row(tx, who, id_), DisabledReason.UNVERIFIED)
        asked = await _verify(tx, who, id_, Movement.RELEASE)
    return Changed(subscription=await found(tx, who, id_), asked=asked)


async def delete(tx: Transaction, who: Who, id_: str) -> None:
    """Delete a subscription with its secrets. What waits for it is cancelled."""
    await row(tx, who, id_)
    version = await accounts.next_version(tx.connection, who.account)
    await subscription_store.wipe(tx.connection, id_, version=version, now=tx.now)
    tx.news.chores = True
    await tx.connection.execute(
        sa.update(account_table)
        .where(account_table.c.id == who.account, account_table.c.operational_id == id_)
        .values(operational_id=None)
    )
    await audit(tx, who, "subscription.delete", id_)


async def once(tx: Transaction, key: IdempotencyKey | None, change: Change, id_of: Callable[[Any], str]) -> Any:
    """Carry out a change that makes something, or answer what was made by an earlier request under the same key.

    Of its answer only the id is kept: the rest may hold a secret. Raises Problem when the key had another body.
    """
    answers = Answers(tx)
    await answers.look_up([key])
    earlier = answers.earlier(key)
    if isinstance(earlier, Problem):
        raise earlier
    if earlier is not None:
        return earlier
    made = await change(tx)
    answers.keep(key, id_of(made).encode())
    await answers.write()
    return made


async def set_operational(tx: Transaction, who: Who, draft: Draft | None, key: SigningKey | None) -> None:
    """Put another endpoint in place, or none, that is told of the account's subscriptions."""
    await accounts.ensure(tx.connection, who.account)
    of_account = account_table.c.id == who.account
    present = await tx.connection.scalar(sa.select(account_table.c.operational_id).where(of_account).with_for_update())
    if present is not None:
        await delete(tx, who, present)
    made = None
    if draft is not None and key is not None:
        made = (await create(tx, who, draft, key, is_active=True)).subscription.id
    await tx.connection.execute(sa.update(account_table).where(of_account).values(operational_id=made))


# --- enable, disable, ping --------------------------------------------------------------------------------


async def enable(tx: Transaction, who: Who, id_: str, then: Movement) -> Changed:
    """Ask a disabled subscription's endpoint whether it is there. If it is, it is enabled with the answer's commit."""
    subscription = await found(tx, who, id_, lock=True)
    if subscription.state is SubscriptionState.ACTIVE:
        return Changed(subscription=subscription)
    asked = await _verify(tx, who, id_, then)
    await audit(tx, who, "subscription.enable", id_)
    return Changed(subscription=await found(tx, who, id_), asked=asked)


async def disable(tx: Transaction, who: Who, id_: str) -> Changed:
    """Disable a subscription until its owner enables it again."""
    standing = await row(tx, who, id_)
    if standing["state"] == SubscriptionState.ACTIVE:
        await holding.disable(tx, standing, DisabledReason.MANUAL)
    # One that is being verified at this moment is not to be enabled by that any more.
    await subscription_store.update(tx.connection, id_, verifying=None, granting=None)
    await audit(tx, who, "subscription.disable", id_)
    return Changed(subscription=await found(tx, who, id_))


async def grant(tx: Transaction, delivery_id: str, rate: float | None) -> None:
    """Enable a subscription whose endpoint grants its handshake later, at the URL that it was given."""
    rows = await tx.connection.execute(
        sa.select(subscriptions).where(subscriptions.c.granting == delivery_id).with_for_update()
    )
    one = rows.mappings().one_or_none()
    if one is None or one["state"] != SubscriptionState.DISABLED:
        raise Problem("not-found", "There is no such handshake.")
    await holding.activate(tx, one, granted_rate=rate)
    await accounts.write_audit(
        tx.connection, account=one["account"], actor="its endpoint", action="subscription.grant", subject=one["id"]
    )


async def ping(tx: Transaction, who: Who, id_: str) -> Asked:
    """Send a signed ping, whatever the subscription's state."""
    return await _ask(tx, who, await row(tx, who, id_), DeliveryKind.PING)


async def _verify(tx: Transaction, who: Who, id_: str, then: Movement) -> Asked:
    to = await row(tx, who, id_)
    by_handshake = to["verification"] == Verification.HANDSHAKE
    asked = await _ask(tx, who, to, DeliveryKind.HANDSHAKE if by_handshake else DeliveryKind.PING)
    await subscription_store.update(
        tx.connection,
        id_,
        verifying=asked.delivery_id,
        then=then,
        granting=asked.delivery_id if by_handshake else None,
    )
    return asked


async def _ask(tx: Transaction, who: Who, to: sa.RowMapping, kind: DeliveryKind) -> Asked:
    payload = msgspec.json.encode({"type": PING_EVENT, "subscription_id": to["id"]})
    made = await send_own(tx, to, PING_EVENT, payload, kind=kind, source=who.source)
    return Asked(delivery_id=made.ids[0], lane=ping_lane_of(to["account"], to["id"]))


async def send_own(
    tx: Transaction, to: sa.RowMapping, type_: str, payload: bytes, *, kind: DeliveryKind, source: str
) -> making.Made:
    """One event of our own, for the subscription in this row, in the form that it wants."""
    event = NewEvent(id=new_id(), account=to["account"], type=type_, payload=payload)
    message = Message(wire_id=event.id, type=type_, payload=payload, created_at_ms=tx.now)
    body = compose(BodyMode(to["body_mode"]), message, source=source)
    await publishing.insert_one(tx, event, body, deliveries=1)
    [made] = await making.make(
        tx,
        [
            Making(
                account=to["account"],
                source_id=event.id,
                bodies={BodyMode.RAW: event.id},
                targets=[Target(subscription_id=to["id"])],
                kind=kind,
            )
        ],
    )
    return made


# --- what they share --------------------------------------------------------------------------------------


async def found(tx: Transaction, who: Who, id_: str, *, lock: bool = False) -> Subscription:
    """One of the account's subscriptions, opened. Raises Problem."""
    found = await subscription_store.find(tx.connection, who.keyring, [id_], account=who.account, lock=lock)
    if id_ not in found:
        raise Problem("not-found", "There is no such subscription.")
    return found[id_]


async def row(tx: Transaction, who: Who, id_: str) -> sa.RowMapping:
    """The row of one of the account's subscriptions, locked. Raises Problem."""
    found = await subscription_store.rows(tx.connection, [id_], account=who.account, lock=True)
    if id_ not in found:
        raise Problem("not-found", "There is no such subscription.")
    return found[id_]


async def touch(tx: Transaction, who: Who, id_: str) -> None:
    """Make what is cached of a subscription old."""
    version = await accounts.next_version(tx.connection, who.account)
    await subscription_store.update(tx.connection, id_, version=version, updated_at=tx.now)


async def _refuse_twin(tx: Transaction, who: Who, draft: Draft) -> None:
    twin = await subscription_store.twin(tx.connection, who.keyring, draft, account=who.account)
    if twin is not None:
        raise Problem(
            "conflict",
            "There is a subscription with this URL and these event patterns already.",
            errors=[FieldError(field="/config/url", detail="is subscribed to the same events already")],
            extra={"subscription_id": twin},
        )


async def _check_quota(tx: Transaction, who: Who, *, is_new: bool, is_ordered: bool) -> None:
    if is_new and await subscription_store.count(tx.connection, who.account) >= MAX_SUBSCRIPTIONS:
        raise Problem("quota", f"An account has at most {MAX_SUBSCRIPTIONS} subscriptions; delete one.")
    if is_ordered and await subscription_store.count_ordered(tx.connection, who.account) >= MAX_ORDERED:
        raise Problem(
            "quota",
            f"An account has at most {MAX_ORDERED} subscriptions that keep an order.",
            errors=[FieldError(field="/ordering", detail='must be "none"')],
        )


async def audit(tx: Transaction, who: Who, action: str, subject: str) -> None:
    """Note who did what to which object."""
    await accounts.write_audit(tx.connection, account=who.account, actor=who.actor, action=action, subject=subject)


def _fields(draft: Draft) -> dict[str, Any]:
    return {name: getattr(draft, name) for name in Draft.__dataclass_fields__}
