"""Re-encrypts what older keys sealed, while servers run; and says what still hangs on each key.

Tables are walked by primary key, a batch at a time. A batch is read, resealed in memory, and written in a short
transaction of its own; each value is written only where the old one still stands, so that nothing that was wiped or
replaced meanwhile comes back. Nothing is kept about how far a run came: values that are current are skipped, so a run
that was ended at any moment is simply begun again.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from dispatcher.errors import StoreUnavailable
from dispatcher.store import accounts as account_store
from dispatcher.store import sealing
from dispatcher.store.database import BUSY_TIMEOUT_MS, Database, now_ms
from dispatcher.store.tables import accounts, installation, outbox_keys, tasks, tokens
from subscriptions import store as subscription_store
from subscriptions.keyring import NOTICED_WITHIN, SEALED_KID, Keyring, KeyringError, Place, kid_bytes
from subscriptions.schema import secrets, subscriptions

T = TypeVar("T")

#: rows that are resealed in one transaction
BATCH = 200
#: rows that one statement looks through for them
WINDOW = 5_000
#: passes over all tables before it is given up
PASSES = 10
#: seconds after a rotation in which a server may still commit what it sealed with the key before: until it notices,
#: and waits for the lock on the database
SETTLES_WITHIN = NOTICED_WITHIN + BUSY_TIMEOUT_MS / 1000 + 1.0
#: rests between transactions, in times of how long one took: servers write in them
REST = 3.0
#: seconds to wait before a batch is tried again that the database did not take
RETRIES = (0.2, 0.5, 1.0, 2.0, 5.0)
#: values that cannot be opened are named up to this many; the rest are only counted
MAX_NAMED = 1_000

#: stands for no account in the audit log: what was done to the whole installation. No account has this name.
INSTALLATION = "-"


# --- what is sealed ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedTable:
    """A table with sealed columns. Its primary key is `id`."""

    table: sa.Table
    columns: tuple[str, ...]
    #: where the value of a row (`id`, and `account` if it has one) and a column lives
    place: Callable[[sa.RowMapping, str], Place]

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name


#: Every sealed column of the database.
SEALED = (
    SealedTable(table=installation, columns=("canary",), place=lambda _row, _column: sealing.CANARY),
    SealedTable(
        table=accounts,
        columns=("default_secret",),
        place=lambda row, column: sealing.place(row["id"], column, row["id"], table="accounts"),
    ),
    SealedTable(
        table=outbox_keys,
        columns=("private_key",),
        place=lambda row, _column: sealing.outbox_key_place(row["id"]),
    ),
    SealedTable(
        table=subscriptions,
        columns=("url", "headers"),
        place=lambda row, column: subscription_store.place(row["account"], column, row["id"]),
    ),
    SealedTable(
        table=secrets,
        columns=("text", "seed"),
        place=lambda row, column: subscription_store.place(row["account"], column, row["id"], table="secrets"),
    ),
    SealedTable(
        table=tasks,
        columns=("callback_url", "callback_secret", "callback_headers"),
        place=lambda row, column: sealing.place(row["account"], column, row["id"]),
    ),
)


# --- the keys ---------------------------------------------------------------------------------------------


async def rotate(database: Database, path: Path, *, actor: str) -> Keyring:
    """Put a new key in front of those in the file, and note who did. Raises KeyringError if it cannot be changed."""
    async with database.write() as connection:
        keyring = Keyring.rotate(path)
        await account_store.write_audit(
            connection, account=INSTALLATION, actor=actor, action="keyring.rotate", subject=keyring.kids[0]
        )
    return keyring


async def retire(database: Database, path: Path, kid: str, *, change_fingerprints: bool, actor: str) -> Keyring:
    """Take a key that nothing needs out of the keyring, and note who did. Raises KeyringError as `Keyring.retire` does.

    Whether something needs it is for the caller to look up, once the keyring has settled.
    """
    async with database.write() as connection:
        keyring = Keyring.retire(path, kid, change_fingerprints=change_fingerprints)
        await account_store.write_audit(
            connection, account=INSTALLATION, actor=actor, action="keyring.retire", subject=kid
        )
    return keyring


def settles_in(keyring: Keyring) -> float:
    """Seconds until every server that runs has sealed its last value with the key before; 0 if that is long over."""
    age = time.time() - keyring.created[keyring.kids[0]].timestamp()
    return max(0.0, min(SETTLES_WITHIN, SETTLES_WITHIN - age))


# --- re-encrypting ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Unopened:
    """A value that no key opens. It is left as it is."""

    table: str
    id: str
    column: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one batch came to."""

    #: the last row that was looked at; none at the table's end
    after: Any
    #: values sealed with the first key
    resealed: int
    unopened: tuple[Unopened, ...]


@dataclass(kw_only=True, slots=True)
class Summary:
    """What a whole run came to."""

    #: the first key, as the run began
    kid: str
    #: values sealed with the first key, by table
    resealed: Counter[str] = field(default_factory=Counter)
    #: values that no key opens, by table
    unopened: Counter[str] = field(default_factory=Counter)
    #: the first MAX_NAMED of them
    named: list[Unopened] = field(default_factory=list)
    passes: int = 0
    #: whether the last pass found nothing more that could be resealed
    finished: bool = False

    @property
    def complete(self) -> bool:
        """Whether no value is left that an older key sealed."""
        return self.finished and not self.unopened


#: is told of each batch, with its table
Reporter = Callable[[str, Batch], None]


async def reseal_all(
    database: Database, keyring: Keyring, *, report: Reporter = lambda _table, _batch: None
) -> Summary:
    """Seal with the first key whatever an older one sealed: pass after pass, until one finds nothing more.

    `report` is told of each batch. Raises StoreUnavailable when the database stays away.
    """
    summary = Summary(kid=keyring.kids[0])
    while not summary.finished and summary.passes < PASSES:
        unsettled = settles_in(keyring)
        if unsettled and summary.passes:
            await asyncio.sleep(unsettled)
            unsettled = 0.0
        before = summary.resealed.total()
        await _pass(database, keyring, summary, report)
        summary.finished = not unsettled and summary.resealed.total() == before
    return summary


async def _pass(database: Database, keyring: Keyring, summary: Summary, report: Reporter) -> None:
    summary.passes += 1
    summary.unopened.clear()
    summary.named.clear()
    for sealed in SEALED:
        async for batch in _walk(database, keyring, sealed):
            summary.resealed[sealed.name] += batch.resealed
            for value in batch.unopened:
                summary.unopened[sealed.name] += 1
                if len(summary.named) < MAX_NAMED:
                    summary.named.append(value)
            report(sealed.name, batch)


async def _walk(database: Database, keyring: Keyring, sealed: SealedTable) -> AsyncIterator[Batch]:
    after: Any = None
    while True:
        started = time.monotonic()
        batch = await _patiently(functools.partial(reseal_batch, database, keyring, sealed, after))
        yield batch
        after = batch.after
        if after is None:
            return
        if batch.resealed:
            await asyncio.sleep(REST * (time.monotonic() - started))


async def reseal_batch(database: Database, keyring: Keyring, sealed: SealedTable, after: Any) -> Batch:
    """Reseal the next rows after a primary key that hold a value of an older key."""
    async with database.read() as connection:
        end = await connection.scalar(_window_end(sealed.table, after))
        rows = (await connection.execute(_older(sealed, keyring.kids[0], after, end))).mappings().all()
    changes, unopened = _reseal(keyring, sealed, rows)
    if changes:
        async with database.write() as connection:
            for column, values in changes.items():
                await connection.execute(_replacing(sealed.table.c[column]), values)
    return Batch(
        after=rows[-1]["id"] if len(rows) == BATCH else end,
        resealed=sum(map(len, changes.values())),
        unopened=tuple(unopened),
    )


def _reseal(
    keyring: Keyring, sealed: SealedTable, rows: Sequence[sa.RowMapping]
) -> tuple[dict[str, list[dict[str, Any]]], list[Unopened]]:
    """The changes to each column, as parameters of `_replacing`, and what cannot be opened."""
    changes: dict[str, list[dict[str, Any]]] = {}
    unopened: list[Unopened] = []
    for row in rows:
        for column in sealed.columns:
            old = row[column]
            if old is None or keyring.is_current(old):
                continue
            try:
                new = keyring.reseal(old, where=sealed.place(row, column))
            except KeyringError:
                unopened.append(Unopened(table=sealed.name, id=str(row["id"]), column=column))
            else:
                changes.setdefault(column, []).append({"row": row["id"], "old": old, "new": new})
    return changes, unopened


def _window_end(table: sa.Table, after: Any) -> sa.Select[Any]:
    """The last row that one statement looks through; none if it is the last window."""
    return sa.select(table.c.id).where(*_after(table, after)).order_by(table.c.id).offset(WINDOW - 1).limit(1)


def _older(sealed: SealedTable, kid: str, after: Any, end: Any) -> sa.Select[Any]:
    table = sealed.table
    names = [name for name in ("id", "account", *sealed.columns) if name in table.c]
    query = (
        sa.select(*(table.c[name] for name in names))
        .where(
            *_after(table, after), sa.or_(*(_key_id(table.c[column]) != kid_bytes(kid) for column in sealed.columns))
        )
        .order_by(table.c.id)
        .limit(BATCH)
    )
    return query if end is None else query.where(table.c.id <= end)


def _after(table: sa.Table, after: Any) -> list[sa.ColumnElement[bool]]:
    return [] if after is None else [table.c.id > after]


def _replacing(column: sa.Column[Any]) -> sa.Update:
    """Compare and set: a value that was wiped or replaced since it was read stays as it is."""
    table = column.table
    return (
        sa.update(table)
        .where(table.c.id == sa.bindparam("row"), column == sa.bindparam("old"))
        .values({column: sa.bindparam("new")})
    )


def _key_id(column: sa.Column[Any]) -> sa.ColumnElement[bytes]:
    start, stop = SEALED_KID.start, SEALED_KID.stop
    return sa.func.substr(column, start + 1, stop - start, type_=sa.LargeBinary())


async def _patiently(step: Callable[[], Awaitable[T]]) -> T:
    """Do a step again for a while when the database does not take it: servers write, too."""
    for rest in RETRIES:
        try:
            return await step()
        except StoreUnavailable:
            await asyncio.sleep(rest)
    return await step()


# --- what hangs on each key -------------------------------------------------------------------------------


async def count_values(database: Database, kids: Sequence[str]) -> dict[str, Counter[str | None]]:
    """How many values each key seals, by table. Under None: those whose key is not among `kids`."""
    counted: dict[str, Counter[str | None]] = {}
    for sealed in SEALED:
        # one look at each row, and nothing to sort
        query = sa.select(*(_count(sealed, of_key=kid) for kid in kids), _count(sealed)).select_from(sealed.table)
        async with database.read() as connection:
            *known, every = (await connection.execute(query)).one()
        found: Counter[str | None] = Counter(dict(zip(kids, known, strict=True)))
        found[None] = every - found.total()
        counted[sealed.name] = found
    return counted


def _count(sealed: SealedTable, *, of_key: str | None = None) -> sa.ColumnElement[int]:
    """How many values there are in all sealed columns of a table, or how many of them a key sealed."""
    columns = [sealed.table.c[name] for name in sealed.columns]
    wanted = [column.is_not(None) if of_key is None else _key_id(column) == kid_bytes(of_key) for column in columns]
    counts: list[sa.ColumnElement[int]] = [sa.func.count(sa.case((condition, 1))) for condition in wanted]
    return functools.reduce(operator.add, counts)


async def count_tokens(database: Database, created: Mapping[str, datetime]) -> dict[str, int]:
    """How many live API tokens each key signed, at most.

    Which key signed a token is not stored: those count that were made while the key was the first one, until a moment
    after, since the next one is not noticed at once.
    """
    counted: dict[str, int] = {}
    by_age = sorted(created, key=lambda kid: created[kid])
    async with database.read() as connection:
        for kid, newer in zip(by_age, [*by_age[1:], None], strict=True):
            query = sa.select(sa.func.count()).where(
                tokens.c.revoked_at.is_(None),
                sa.or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now_ms()),
                tokens.c.created_at >= _ms(created[kid]),
            )
            if newer is not None:
                query = query.where(tokens.c.created_at < _ms(created[newer]) + NOTICED_WITHIN * 1000)
            counted[kid] = await connection.scalar(query) or 0
    return counted


def _ms(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1000)
