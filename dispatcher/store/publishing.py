"""Accept events: the event, its bytes, and the deliveries to all that want it, by one commit.

Who wants it is found beforehand, in memory (`plan`). The transaction checks that the account's subscriptions are
still those; where they are not, it asks those that changed, or, if that takes too long while others wait for the
transaction, has the caller plan anew. Of an event for very many, only those deliveries are made by its own commit that
keep an order, and `fan_out` makes the others step by step.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import Any

import sqlalchemy as sa

from dispatcher.bodies import Body, Message, compose
from dispatcher.errors import Problem, StoreContended
from dispatcher.ids import new_id
from dispatcher.models import BodyMode, EventState
from dispatcher.store import making
from dispatcher.store.accounts import lock_versions
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import Answers
from dispatcher.store.making import Making, Target
from dispatcher.store.records import IdempotencyKey, NewEvent, Published, Replayed, Skipped
from dispatcher.store.rosters import Roster, Subscriber, changes, current_versions, is_good
from dispatcher.store.statements import Statement, as_json
from dispatcher.store.tables import bodies, events, fan_out_targets, fan_outs
from subscriptions.health import DisabledReason
from subscriptions.matching import Audience, evaluate
from subscriptions.models import Ordering, SubscriptionState

#: deliveries that one request makes at once; an event for more commits alone
AT_ONCE = 500
#: deliveries that one step of a fan-out makes
STEP = 20
#: events that one step is shared by
AT_A_TIME = 4
#: candidates without a filter that are looked at before others have their turn
SLICE = 100
#: seconds for which filters are asked before others have their turn
TURN = 0.001
#: changed subscriptions that a transaction asks, and seconds that it takes for it
MAX_CHANGED = 200
CHANGED_WITHIN = 0.05
#: bytes of an id where many are stored together
_ID_BYTES = 16
#: subscriptions that are named as skipped by one event, and by all of one request
MAX_SKIPPED = 1_000
MAX_SKIPPED_TOGETHER = 50_000


#: What the caller is told of several events, made of what each one's part says. Raises Problem to store nothing.
Join = Callable[[Sequence[bytes | Problem]], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who gets an event, by one version of the account's subscriptions."""

    version: int
    subscribers: tuple[Subscriber, ...]
    skipped: tuple[Skipped, ...]
    #: monotonic clock when those subscriptions were read, seconds
    read_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """An event that is to be stored, with what is planned for it."""

    event: NewEvent
    plan: Plan
    #: its body in each form that is wanted, and as it came
    bodies: dict[str, Body]
    #: deliveries that are handed off to this process's lanes with the commit: {subscription: id}
    handed_off: dict[str, str]
    #: made of the id that its publisher gave it: published again, it is the same event
    key: IdempotencyKey | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request to publish, all or nothing."""

    publications: Sequence[Publication]
    key: IdempotencyKey | None
    #: what the caller is told of one event
    describe: Callable[[Published], bytes]
    #: and of all of them
    answer: Join
    #: the `source` of CloudEvents
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A request that is on disk."""

    answer: bytes
    #: deliveries that were handed off; those of a plan that was out of date were not
    handed_off: frozenset[str]
    #: how many were not, of those that were made with it
    waiting: int
    #: accounts whose plan was out of date
    stale: frozenset[str]
    #: one of the events had been published before
    replayed: bool
    #: events that are new
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outdated:
    """A request that was not stored: so much changed since it was planned that it is to be planned anew."""

    accounts: frozenset[str]


# --- plan -------------------------------------------------------------------------------------------------


async def plan(roster: Roster, event: NewEvent) -> Plan:
    """Who gets an event. Others have their turn while a long list is gone through."""
    steps = _planned(roster, event)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Plan = done.value
            return result
        await asyncio.sleep(0)


def _planned(roster: Roster, event: NewEvent) -> Generator[None, None, Plan]:
    candidates = roster.audience.candidates(event.type)
    payload = _parsed(event.payload) if any(listener.filter is not None for listener in candidates) else None
    subscribers: list[Subscriber] = []
    skipped: list[Skipped] = []
    # one by one where there are filters: one may take milliseconds
    size = SLICE if payload is None else 1
    began = monotonic()
    for start in range(0, len(candidates), size):
        matched = evaluate(candidates[start : start + size], payload)
        skipped.extend(
            Skipped(subscription_id=skip.subscription_id, reason=skip.reason, detail=skip.detail)
            for skip in matched.skipped
        )
        for subscriber in (roster.subscribers[id_] for id_ in matched.ids):
            if subscriber.state is SubscriptionState.DISABLED and subscriber.disabled_reason is DisabledReason.GONE:
                skipped.append(_gone(subscriber.id))
            else:
                subscribers.append(subscriber)
        if size > 1 or monotonic() - began >= TURN:
            yield
            began = monotonic()
    return Plan(version=roster.version, subscribers=tuple(subscribers), skipped=tuple(skipped), read_at=roster.read_at)


def _parsed(payload: bytes) -> object:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        # numbers beyond any use; a filter that looks at them fails by itself
        return None


def _gone(id_: str) -> Skipped:
    return Skipped(subscription_id=id_, reason="gone", detail="its endpoint answered 410")


def compose_bodies(event: NewEvent, plan: Plan, *, created_at: int, source: str) -> dict[str, Body]:
    """The event's body in each form that its subscribers want, and as it came. One is shared by all who want it."""
    message = Message(
        wire_id=event.reference or event.id,
        type=event.type,
        payload=event.payload,
        created_at_ms=created_at,
        subject=event.subject,
    )
    modes = {BodyMode.RAW, *(BodyMode(subscriber.body_mode) for subscriber in plan.subscribers)}
    return {mode: compose(mode, message, source=source) for mode in modes}


def weight(publications: Sequence[Publication]) -> int:
    """Rows that a request writes by its own commit; more deliveries than these are made step by step."""
    return len(publications) + min(AT_ONCE, sum(len(one.plan.subscribers) for one in publications))


# --- accept -----------------------------------------------------------------------------------------------


async def accept(tx: Transaction, requests: Sequence[Request]) -> list[Replayed | Problem | Accepted | Outdated]:
    """Store the events of each request. Answers what the caller is told, or the earlier answer to its key."""
    answers = Answers(tx)
    await answers.look_up(
        [
            *(request.key for request in requests),
            *(one.key for request in requests for one in request.publications),
        ]
    )
    planned = {one.event.account for request in requests for one in request.publications}
    versions = await _versions(tx, planned)
    prepared: list[Replayed | Problem | Outdated | _Prepared] = []
    for request in requests:
        earlier = answers.earlier(request.key)
        result = await _prepare(tx, request, versions, answers) if earlier is None else earlier
        if isinstance(result, _Prepared):
            answers.keep(request.key, result.answer)
        prepared.append(result)
    made = iter(await _write(tx, [one.rows for one in prepared if isinstance(one, _Prepared)]))
    results = [one.accepted(next(made)) if isinstance(one, _Prepared) else one for one in prepared]
    await answers.write()
    await _confirm(tx, versions, results)
    return results


async def _confirm(
    tx: Transaction, versions: dict[str, int], results: Sequence[Replayed | Problem | Accepted | Outdated]
) -> None:
    """Make sure that events commit before whatever changes the subscriptions that they were planned by.

    It comes last: who changes a subscription locks its row first, and so do we. Raises StoreContended: somebody was
    faster, and all is to be done again.
    """
    if tx.connection.dialect.name == "sqlite":
        # One writes at a time.
        return
    if any(isinstance(result, Accepted) and result.count for result in results):
        await lock_versions(tx.connection, versions, shared=True)
        if await _versions(tx, versions) != versions:
            raise StoreContended("subscriptions were changed meanwhile")


async def _versions(tx: Transaction, accounts: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(accounts, 0) | await current_versions(tx.connection, accounts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A request whose events are to be stored, with those of the others."""

    answer: bytes
    rows: _Rows
    stale: frozenset[str]
    replayed: bool

    def accepted(self, made: Sequence[making.Made]) -> Accepted:
        """What became of it."""
        handed_off = self.rows.handed_off
        return Accepted(
            answer=self.answer,
            handed_off=handed_off,
            waiting=sum(len(one.ids) for one in made) - len(handed_off),
            stale=self.stale,
            replayed=self.replayed,
            count=len(self.rows.events),
        )


async def _prepare(
    tx: Transaction, request: Request, versions: dict[str, int], answers: Answers
) -> _Prepared | Problem | Outdated:
    new = [one for one in request.publications if answers.earlier(one.key) is None]
    stale = {one.event.account for one in new if one.plan.version != versions.get(one.event.account, 0)}
    try:
        current = {one.event.id: one for one in await _current(tx, new, stale, versions, request.source)}
    except _TooMuchChangedError:
        return Outdated(accounts=frozenset(stale))
    rows = _Rows(tx.now)
    parts: list[bytes | Problem] = []
    replayed = False
    for one in request.publications:
        # looked at again: one request may hold an event twice
        earlier = answers.earlier(one.key)
        if earlier is not None:
            replayed = True
            parts.append(earlier.answer if isinstance(earlier, Replayed) else earlier)
            continue
        part = request.describe(rows.add(current[one.event.id]))
        answers.keep(one.key, part)
        parts.append(part)
    try:
        answer = request.answer(parts)
    except Problem as problem:
        # It answers for one event only, and that one is another's.
        return problem
    return _Prepared(answer=answer, rows=rows, stale=frozenset(stale), replayed=replayed)


class _TooMuchChangedError(Exception):
    """Bringing plans up to date takes longer than others should wait for the transaction."""


async def _current(
    tx: Transaction, publications: Sequence[Publication], stale: set[str], versions: dict[str, int], source: str
) -> list[Publication]:
    """The publications as planned by the subscriptions that there are now. Raises _TooMuchChangedError."""
    deadline = monotonic() + CHANGED_WITHIN
    changed: dict[tuple[str, int], dict[str, Subscriber | None]] = {}
    current: list[Publication] = []
    for one in publications:
        account, before = one.event.account, one.plan
        if account not in stale:
            current.append(one)
            continue
        if not is_good(before.read_at):
            # what was deleted since then may have left no row behind that says so
            raise _TooMuchChangedError
        since = account, before.version
        if since not in changed:
            changed[since] = await changes(tx.connection, *since, limit=MAX_CHANGED + 1)
            if len(changed[since]) > MAX_CHANGED:
                raise _TooMuchChangedError
        roster = _roster_of(account, versions.get(account, 0), changed[since], before.read_at)
        plan = _replanned(one, roster, changed[since], deadline)
        current.append(_planned_as(one, plan, created_at=tx.now, source=source))
    return current


def _roster_of(account: str, version: int, changed: dict[str, Subscriber | None], read_at: float) -> Roster:
    left = {id_: subscriber for id_, subscriber in changed.items() if subscriber is not None}
    audience = Audience(subscriber.listener for subscriber in left.values())
    return Roster(account=account, version=version, subscribers=left, audience=audience, read_at=read_at)


def _replanned(one: Publication, roster: Roster, changed: dict[str, Subscriber | None], deadline: float) -> Plan:
    """The plan with those asked anew that changed. Raises _TooMuchChangedError."""
    before = one.plan
    steps = _planned(roster, one.event)
    while True:
        if monotonic() > deadline:
            raise _TooMuchChangedError
        try:
            next(steps)
        except StopIteration as done:
            asked: Plan = done.value
            break
    subscribers = [subscriber for subscriber in before.subscribers if subscriber.id not in changed]
    skipped = [skip for skip in before.skipped if skip.subscription_id not in changed]
    return replace(
        asked,
        # in the order of a roster
        subscribers=tuple(sorted([*subscribers, *asked.subscribers], key=lambda subscriber: subscriber.id)),
        skipped=tuple(sorted([*skipped, *asked.skipped], key=lambda skip: skip.subscription_id)),
    )


async def plan_anew(roster: Roster, one: Publication, *, created_at: int, source: str) -> Publication:
    """A publication as planned by another roster, with nothing handed off."""
    return _planned_as(one, await plan(roster, one.event), created_at=created_at, source=source)


def _planned_as(one: Publication, plan: Plan, *, created_at: int, source: str) -> Publication:
    bodies = compose_bodies(one.event, plan, created_at=created_at, source=source)
    return replace(one, plan=plan, bodies=bodies, handed_off={})


class _Rows:
    """Rows of one request's events."""

    def __init__(self, now: int) -> None:
        self._now = now
        self.events: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[Any, ...]] = []
        self.fan_outs: list[dict[str, Any]] = []
        self.targets: list[dict[str, Any]] = []
        self.makings: list[Making] = []
        self._room = AT_ONCE
        self._skips = MAX_SKIPPED_TOGETHER

    @property
    def handed_off(self) -> frozenset[str]:
        """Deliveries that go in as leased; those that a fan-out makes later do not."""
        targets = (target for making in self.makings for target in making.targets)
        return frozenset(target.handed_off for target in targets if target.handed_off is not None)

    def add(self, one: Publication, *, deliveries: int = 0) -> Published:
        event, subscribers = one.event, one.plan.subscribers
        ids = self._add_bodies(event.id, one.bodies)
        now = subscribers
        if len(subscribers) > self._room:
            now = tuple(one for one in subscribers if one.ordering != Ordering.NONE)
        at_once = len(now) == len(subscribers)
        self._room -= len(now)
        self.makings.append(_making(one, now, ids))
        if not at_once:
            later = [subscriber.id for subscriber in subscribers if subscriber.ordering == Ordering.NONE]
            self.fan_outs.append(
                {
                    "event_id": event.id,
                    "account": event.account,
                    "size": len(later),
                    "done": 0,
                    "steps": 0,
                    "bodies": ids,
                }
            )
            self.targets.append({"event_id": event.id, "ids": b"".join(map(bytes.fromhex, later))})
        skipped = one.plan.skipped[: min(MAX_SKIPPED, self._skips)]
        self._skips -= len(skipped)
        self.events.append(
            (
                event.id,
                event.account,
                event.type,
                event.reference,
                event.subject,
                event.ordering_key,
                event.traceparent,
                len(subscribers) + deliveries,
                EventState.FANNED_OUT.value if at_once else EventState.ACCEPTED.value,
                as_json([[skip.subscription_id, skip.reason, skip.detail] for skip in skipped] or None),
                self._now,
                self._now if at_once else None,
            )
        )
        return Published(event_id=event.id, deliveries=len(subscribers), complete=at_once, skipped=skipped)

    def _add_bodies(self, event_id: str, composed: dict[str, Body]) -> dict[str, str]:
        ids = {}
        for mode, body in composed.items():
            is_raw = mode == BodyMode.RAW
            ids[str(mode)] = event_id if is_raw else new_id()
            self.bodies.append(_body_row(ids[str(mode)], body, event_id=None if is_raw else event_id))
        return ids


async def _write(tx: Transaction, requests: Sequence[_Rows]) -> list[list[making.Made]]:
    """Store the rows of all requests, by one statement for each table; answers the deliveries of each."""
    stored = [row for rows in requests for row in rows.events]
    if stored:
        await tx.run((_EVENT, stored), (_BODY, [row for rows in requests for row in rows.bodies]))
    large = [row for rows in requests for row in rows.fan_outs]
    if large:
        tx.news.chores = True
        await tx.connection.execute(sa.insert(fan_outs), large)
        await tx.connection.execute(sa.insert(fan_out_targets), [row for rows in requests for row in rows.targets])
    made = iter(await making.make(tx, [one for rows in requests for one in rows.makings]))
    return [list(islice(made, len(rows.makings))) for rows in requests]


_EVENT = Statement(
    sa.insert(events),
    "id", "account", "type", "reference", "subject", "ordering_key", "traceparent", "deliveries", "state", "skipped",
    "created_at", "finished_at",
)  # fmt: skip
_BODY = Statement(sa.insert(bodies), "id", "content", "content_type", "event_id", "headers")


async def insert_one(tx: Transaction, event: NewEvent, body: Body, *, deliveries: int) -> None:
    """Store an event of our own, whose deliveries the caller makes with the same transaction."""
    stored = Publication(
        event=event,
        plan=Plan(version=0, subscribers=(), skipped=(), read_at=0.0),
        bodies={BodyMode.RAW: body},
        handed_off={},
    )
    rows = _Rows(tx.now)
    rows.add(stored, deliveries=deliveries)
    await _write(tx, [rows])


def _body_row(id_: str, body: Body, *, event_id: str | None) -> tuple[Any, ...]:
    return (id_, body.body, body.content_type, event_id, as_json(body.headers or None))


def _making(one: Publication, subscribers: Sequence[Subscriber], ids: dict[str, str]) -> Making:
    return Making(
        account=one.event.account,
        source_id=one.event.id,
        bodies=ids,
        targets=[
            Target(
                subscription_id=subscriber.id,
                is_plain=subscriber.is_plain,
                body_mode=subscriber.body_mode,
                handed_off=one.handed_off.get(subscriber.id),
            )
            for subscriber in subscribers
        ],
        ordering_key=one.event.ordering_key,
    )


# --- fan out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FannedOut:
    """What a step of a fan-out did."""

    #: deliveries that were made
    count: int


async def fan_out(tx: Transaction, items: Sequence[None]) -> list[FannedOut]:
    """Make the next deliveries of events that are not fanned out yet, of those first that had fewest steps."""
    return [await _fan_out(tx) for _ in items]


async def _fan_out(tx: Transaction) -> FannedOut:
    parts = await _next_parts(tx)
    await making.make(
        tx,
        [
            Making(
                account=part.row["account"],
                source_id=part.row["event_id"],
                bodies=part.row["bodies"],
                targets=[Target(subscription_id=id_) for id_ in part.ids],
                ordering_key=part.row["ordering_key"],
            )
            for part in parts
        ],
    )
    for part in parts:
        if not part.is_last:
            this = fan_outs.c.event_id == part.row["event_id"]
            await tx.connection.execute(
                sa.update(fan_outs).where(this).values(done=part.done, steps=fan_outs.c.steps + 1)
            )
    ended = [part.row["event_id"] for part in parts if part.is_last]
    if ended:
        for table in (fan_outs, fan_out_targets):
            await tx.connection.execute(sa.delete(table).where(table.c.event_id.in_(ended)))
        await tx.connection.execute(
            sa.update(events).where(events.c.id.in_(ended)).values(state=EventState.FANNED_OUT, finished_at=tx.now)
        )
    return FannedOut(count=sum(len(part.ids) for part in parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What a step makes of one event."""

    row: sa.RowMapping
    ids: list[str]

    @property
    def done(self) -> int:
        return int(self.row["done"]) + len(self.ids)

    @property
    def is_last(self) -> bool:
        return self.done >= int(self.row["size"])


async def _next_parts(tx: Transaction) -> list[_Part]:
    """Targets for one step: a share for each of a few events, so that none waits for another's long list.

    They are of as many accounts as can be, so that nobody waits for another's long row of events either.
    """
    accounts = list(await tx.connection.scalars(_ACCOUNTS_WITH_FAN_OUTS))
    if not accounts:
        return []
    chosen = random.sample(accounts, min(len(accounts), AT_A_TIME))
    arms = [
        sa.select(
            sa.select(fan_outs.c.event_id)
            .where(fan_outs.c.account == account)
            .order_by(fan_outs.c.steps, fan_outs.c.event_id)
            .limit(AT_A_TIME // len(chosen))
            .subquery()
        )
        for account in chosen
    ]
    ids = list(await tx.connection.scalars(sa.union_all(*arms) if len(arms) > 1 else arms[0]))
    found = await tx.connection.execute(
        sa.select(fan_outs, events.c.ordering_key)
        .join(events, events.c.id == fan_outs.c.event_id)
        .where(fan_outs.c.event_id.in_(ids))
        .order_by(fan_outs.c.event_id)
        .with_for_update(skip_locked=True, of=fan_outs)
    )
    rows = found.mappings().all()
    share = STEP // max(1, len(rows))
    return [_Part(row=row, ids=await _next_targets(tx, row, share)) for row in rows]


def _accounts_with_fan_outs() -> sa.Select[tuple[str]]:
    """The accounts whose events are being fanned out: a loose index scan, which hops from account to account."""

    def first_after(account: sa.ColumnElement[str] | str) -> sa.ScalarSelect[str]:
        return sa.select(sa.func.min(fan_outs.c.account)).where(fan_outs.c.account > account).scalar_subquery()

    hops = sa.select(first_after("").label("account")).cte("hops", recursive=True)
    hops = hops.union_all(sa.select(first_after(hops.c.account)).where(hops.c.account.is_not(None)))
    return sa.select(hops.c.account).where(hops.c.account.is_not(None))


_ACCOUNTS_WITH_FAN_OUTS = _accounts_with_fan_outs()


async def _next_targets(tx: Transaction, row: sa.RowMapping, limit: int) -> list[str]:
    part = sa.func.substr(fan_out_targets.c.ids, row["done"] * _ID_BYTES + 1, limit * _ID_BYTES, type_=sa.LargeBinary)
    ids = await tx.connection.scalar(sa.select(part).where(fan_out_targets.c.event_id == row["event_id"])) or b""
    return [ids[start : start + _ID_BYTES].hex() for start in range(0, len(ids), _ID_BYTES)]
