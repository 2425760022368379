"""The outbox (PostgreSQL only): what other services asked for by their own transactions becomes tasks and events.

    waiting    read the next rows; what they come to is made of them outside any transaction
    take       in one transaction: make sure that they are still there, store what they came to, delete them

A process that dies in between has done nothing: the rows are there as before. A row is either there or taken.

Rows of one account are taken in the order of `seq`, by one process at a time (an advisory lock for the length of the
transaction). A row that cannot be taken stays, with the problem that it has; those behind it go on.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import Problem
from dispatcher.limits import MAX_AROUND_PAYLOAD
from dispatcher.store import intake, notices, outbox_keys, publishing
from dispatcher.store.accounts import write_audit
from dispatcher.store.committer import Transaction
from dispatcher.store.database import Database
from dispatcher.store.notices import Notice, NoticeType
from dispatcher.store.outbox_keys import KeyPairs
from dispatcher.store.publishing import Accepted, Outdated
from dispatcher.store.records import IdempotencyKey, NewTask, Published
from dispatcher.store.tables import accounts, is_untaken, outbox
from subscriptions.keyring import Keyring

#: rows that one step takes, and accounts that it takes them of
STEP = 100
ACCOUNTS_AT_ONCE = 20
#: the first half of our advisory locks of PostgreSQL; the second one stands for an account
_LOCKS = 0x6F757462


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row that waits. What its account is told is in `fields` and `payload`; what is sealed, only we open."""

    id: str
    account: str
    kind: str
    fields: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    sealed: bytes | None = field(repr=False)
    idempotency_key: str | None
    traceparent: str | None
    #: whether there is such an account
    is_known: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The rows that are next, and what opens them."""

    rows: list[Row]
    keys: KeyPairs
    #: the last account that they are of; those beyond it are next. Empty where there are none
    last: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task that a row came to."""

    row: Row
    task: NewTask
    rows: intake.Rows
    key: IdempotencyKey | None
    #: kept under the key
    answer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An event that a row came to."""

    row: Row
    publication: publishing.Publication


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a row cannot be taken: a problem object that repeats no value."""

    row: Row
    problem: dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What the rows of one step came to, in their order."""

    items: Sequence[Task | Event | Refusal]
    #: the `source` of CloudEvents
    source: str
    #: what is kept under an event's own id, to be answered when it is published again
    describe: Callable[[Published], bytes]


@dataclass(kw_only=True, slots=True)
class Taken:
    """What a step did."""

    #: tasks that are new
    tasks: list[NewTask] = field(default_factory=list)
    #: events that are new
    events: int = 0
    #: deliveries to subscriptions that were made
    deliveries: int = 0
    #: rows that are gone
    done: list[str] = field(default_factory=list)
    #: rows that were refused
    refused: list[Refusal] = field(default_factory=list)
    #: accounts whose subscriptions have changed: the rows that still wait are to be planned anew
    stale: frozenset[str] = frozenset()


# --- read -------------------------------------------------------------------------------------------------


async def waiting(database: Database, keyring: Keyring, *, after: str, max_body: int) -> Waiting:
    """The rows that are next: the first ones of a few accounts beyond `after`, so that none waits for another's long
    line. Of a payload no more is read than a byte over `max_body`.
    """
    async with database.read() as connection:
        names = list(await connection.scalars(_NEXT_ACCOUNTS, {"after": after})) if after else []
        if not names:
            names = list(await connection.scalars(_FIRST_ACCOUNTS))
        if not names:
            return Waiting(rows=[], keys=KeyPairs({}), last="")
        known = set(await connection.scalars(sa.select(accounts.c.id).where(accounts.c.id.in_(names))))
        rows: list[Row] = []
        for account in names:
            found = await connection.execute(_first(account, STEP // len(names), max_body))
            rows += [Row(**row, is_known=account in known) for row in found.mappings()]
        keys = await outbox_keys.opened(connection, keyring)
        return Waiting(rows=rows, keys=keys, last=names[-1] if len(names) == ACCOUNTS_AT_ONCE else "")


def _first(account: str, limit: int, max_body: int) -> sa.Select[Any]:
    def at_most(column: sa.Column[Any], size: int) -> sa.ColumnElement[Any]:
        # A byte more than is taken tells that it is too large; whoever writes rows by hand shall not fill our memory.
        return sa.func.substr(column, 1, size + 1, type_=sa.LargeBinary()).label(column.name)

    return (
        sa.select(
            outbox.c.id,
            outbox.c.account,
            outbox.c.kind,
            at_most(outbox.c.fields, MAX_AROUND_PAYLOAD),
            at_most(outbox.c.payload, max_body),
            at_most(outbox.c.sealed, MAX_AROUND_PAYLOAD),
            outbox.c.idempotency_key,
            outbox.c.traceparent,
        )
        .where(outbox.c.account == account, is_untaken)
        .order_by(outbox.c.seq)
        .limit(limit)
    )


def _next_accounts(*, beyond: sa.ColumnElement[str] | None) -> sa.Select[Any]:
    """The next accounts that have rows: a loose index scan, which hops from account to account.

    The first ones of all are not those beyond an empty name: written by hand, a row may have that.
    """
    first = sa.select(sa.func.min(outbox.c.account)).where(is_untaken)

    def first_after(account: sa.ColumnElement[str]) -> sa.ScalarSelect[str]:
        return first.where(outbox.c.account > account).scalar_subquery()

    begin = first.scalar_subquery() if beyond is None else first_after(beyond)
    hops = sa.select(begin.label("account")).cte("hops", recursive=True)
    hops = hops.union_all(sa.select(first_after(hops.c.account)).where(hops.c.account.is_not(None)))
    return sa.select(hops.c.account).where(hops.c.account.is_not(None)).limit(ACCOUNTS_AT_ONCE)


_FIRST_ACCOUNTS = _next_accounts(beyond=None)
_NEXT_ACCOUNTS = _next_accounts(beyond=sa.bindparam("after", type_=sa.String))


def weight(batch: Batch) -> int:
    """Rows that a step writes."""
    by_account: dict[str, list[publishing.Publication]] = {}
    for one in batch.items:
        if isinstance(one, Event):
            by_account.setdefault(one.row.account, []).append(one.publication)
    return len(batch.items) + sum(map(publishing.weight, by_account.values()))


# --- take -------------------------------------------------------------------------------------------------


async def take(tx: Transaction, batches: Sequence[Batch]) -> list[Taken]:
    """Store what rows came to, and delete them, or keep those that are refused."""
    return [await _take(tx, batch) for batch in batches]


async def _take(tx: Transaction, batch: Batch) -> Taken:
    ours = await _ours(tx, [one.row for one in batch.items])
    items = [one for one in batch.items if one.row.id in ours]
    taken = Taken(refused=[one for one in items if isinstance(one, Refusal)])
    await _accept_tasks(tx, [one for one in items if isinstance(one, Task)], taken)
    await _accept_events(tx, [one for one in items if isinstance(one, Event)], batch, taken)
    if taken.done:
        await tx.connection.execute(sa.delete(outbox).where(outbox.c.id.in_(taken.done)))
    await _keep(tx, taken.refused)
    return taken


async def _ours(tx: Transaction, rows: Sequence[Row]) -> set[str]:
    """Those of these rows that are still there, locked; none of an account that another process is at."""
    names = sorted({row.account for row in rows})
    locks = [
        # Their type is said: SQLAlchemy takes the least number for one of 64 bits, and for those there is no such lock.
        sa.func.pg_try_advisory_xact_lock(_LOCKS, sa.literal(_lock_of(name), sa.Integer)).label(f"lock{n}")
        for n, name in enumerate(names)
    ]
    got = (await tx.connection.execute(sa.select(*locks))).one() if locks else ()
    free = {name for name, is_free in zip(names, got, strict=True) if is_free}
    query = sa.select(outbox.c.id).where(outbox.c.id.in_([row.id for row in rows if row.account in free]), is_untaken)
    return set(await tx.connection.scalars(query.with_for_update(skip_locked=True)))


def _lock_of(account: str) -> int:
    """A number for an account, as a signed int of 32 bits. Two that share one only wait for each other."""
    return zlib.crc32(account.encode()) - (1 << 31)


async def _accept_tasks(tx: Transaction, items: Sequence[Task], taken: Taken) -> None:
    if not items:
        return
    requests = [intake.Request(rows=[one.rows], key=one.key, answer=one.answer) for one in items]
    for one, answer in zip(items, await intake.accept(tx, requests), strict=True):
        if isinstance(answer, Problem):
            taken.refused.append(Refusal(row=one.row, problem=answer.as_dict()))
            continue
        taken.done.append(one.row.id)
        if answer is None:
            taken.tasks.append(one.task)


async def _accept_events(tx: Transaction, items: Sequence[Event], batch: Batch, taken: Taken) -> None:
    """All of one account together: what has to be planned anew is not overtaken by what follows it."""
    by_account: dict[str, list[Event]] = {}
    for one in items:
        by_account.setdefault(one.row.account, []).append(one)
    groups = [_Group(events, batch) for events in by_account.values()]
    if not groups:
        return
    results = await publishing.accept(tx, [group.request for group in groups])
    for group, result in zip(groups, results, strict=True):
        if isinstance(result, Outdated):
            taken.stale |= result.accounts
        elif isinstance(result, Accepted):
            group.settle(taken)
            taken.events += result.count
            taken.deliveries += result.waiting
            taken.stale |= result.stale


class _Group:
    """An account's events, as one request to publish."""

    def __init__(self, events: Sequence[Event], batch: Batch) -> None:
        self._events = events
        self._parts: Sequence[bytes | Problem] = ()
        self.request = publishing.Request(
            publications=[one.publication for one in events],
            key=None,
            describe=batch.describe,
            answer=self._answer,
            source=batch.source,
        )

    def _answer(self, parts: Sequence[bytes | Problem]) -> bytes:
        self._parts = parts
        return b""

    def settle(self, taken: Taken) -> None:
        for one, part in zip(self._events, self._parts, strict=True):
            if isinstance(part, Problem):
                taken.refused.append(Refusal(row=one.row, problem=part.as_dict()))
            else:
                taken.done.append(one.row.id)


async def _keep(tx: Transaction, refused: Sequence[Refusal]) -> None:
    """Let rows stay with their problems, and have their accounts told."""
    for one in refused:
        await tx.connection.execute(
            sa.update(outbox).where(outbox.c.id == one.row.id).values(refused_at=tx.now, problem=one.problem)
        )
    tx.news.chores |= bool(refused)
    counts = Counter(one.row.account for one in refused if one.row.is_known)
    latest = {one.row.account: one for one in refused}
    await notices.note(
        tx,
        [
            Notice(
                account=account,
                subscription_id=notices.NO_SUBSCRIPTION,
                type=NoticeType.OUTBOX_REFUSED,
                detail={"outbox_id": latest[account].row.id, "problem": latest[account].problem},
                count=count,
            )
            for account, count in counts.items()
        ],
    )


# --- what an operator does --------------------------------------------------------------------------------


async def list_refused(database: Database, *, limit: int) -> list[sa.RowMapping]:
    """Rows that were refused, the oldest first, without what may be secret."""
    query = (
        sa.select(
            outbox.c.id, outbox.c.account, outbox.c.kind, outbox.c.created_at, outbox.c.refused_at, outbox.c.problem
        )
        .where(outbox.c.refused_at.is_not(None))
        .order_by(outbox.c.id)
        .limit(limit)
    )
    async with database.read() as connection:
        return list((await connection.execute(query)).mappings().all())


async def retry(database: Database, ids: Sequence[str], *, actor: str) -> list[str]:
    """Let rows that were refused be tried again; the ids of those that there were."""
    again = sa.update(outbox).values(refused_at=None, problem=None)
    return await _decide(database, again, ids, action="outbox.retry", actor=actor)


async def discard(database: Database, ids: Sequence[str], *, actor: str) -> list[str]:
    """Delete rows that were refused; the ids of those that there were."""
    return await _decide(database, sa.delete(outbox), ids, action="outbox.discard", actor=actor)


async def _decide(
    database: Database, change: sa.Update | sa.Delete, ids: Sequence[str], *, action: str, actor: str
) -> list[str]:
    async with database.write() as connection:
        changed = await connection.execute(
            change.where(outbox.c.id.in_(ids), outbox.c.refused_at.is_not(None)).returning(
                outbox.c.id, outbox.c.account
            )
        )
        rows = changed.all()
        await _audit(connection, rows, action=action, actor=actor)
    return [id_ for id_, _ in rows]


async def _audit(connection: AsyncConnection, rows: Sequence[Any], *, action: str, actor: str) -> None:
    for id_, account in rows:
        await write_audit(connection, account=account, actor=actor, action=action, subject=id_)
