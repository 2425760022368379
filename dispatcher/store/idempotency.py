"""Idempotency keys: the same key and the same body give the same answer, for a day.

Equal keys within one batch merge here too: the first request is carried out, the others get its answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from dispatcher.errors import FieldError, Problem
from dispatcher.store.committer import Transaction
from dispatcher.store.database import Database, now_ms
from dispatcher.store.records import IdempotencyKey, Replayed
from dispatcher.store.tables import idempotency

#: how long an answer is kept, milliseconds
KEPT_MS = 24 * 3600 * 1000

_Identity = tuple[str, str, str]


class Answers:
    """What earlier requests under the same keys were answered, within one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._known: dict[_Identity, tuple[bytes, bytes]] = {}
        self._fresh: dict[_Identity, tuple[bytes, bytes]] = {}

    async def look_up(self, keys: Sequence[IdempotencyKey | None]) -> None:
        """Read the answers of these keys; those past their time are removed."""
        wanted = {_identity(key) for key in keys if key is not None}
        if not wanted:
            return
        columns = sa.tuple_(idempotency.c.account, idempotency.c.route, idempotency.c.key)
        oldest = self._tx.now - KEPT_MS
        await self._tx.connection.execute(
            sa.delete(idempotency).where(columns.in_(wanted), idempotency.c.created_at < oldest)
        )
        rows = await self._tx.connection.execute(sa.select(idempotency).where(columns.in_(wanted)))
        for row in rows:
            self._known[(row.account, row.route, row.key)] = (row.fingerprint, row.answer)

    def earlier(self, key: IdempotencyKey | None) -> Replayed | Problem | None:
        """The earlier answer to this key, a problem if it belongs to another body, None if there is none."""
        if key is None:
            return None
        found = self._known.get(_identity(key)) or self._fresh.get(_identity(key))
        if found is None:
            return None
        fingerprint, answer = found
        if fingerprint != key.fingerprint:
            return _mismatch(key)
        return Replayed(answer=answer)

    def keep(self, key: IdempotencyKey | None, answer: bytes) -> None:
        """Remember the answer to a key that was not known."""
        if key is not None:
            self._fresh[_identity(key)] = (key.fingerprint, answer)

    async def write(self) -> None:
        """Store what was kept."""
        if not self._fresh:
            return
        await self._tx.connection.execute(
            sa.insert(idempotency),
            [
                {
                    "account": account,
                    "route": route,
                    "key": key,
                    "fingerprint": fingerprint,
                    "answer": answer,
                    "created_at": self._tx.now,
                }
                for (account, route, key), (fingerprint, answer) in self._fresh.items()
            ],
        )


async def earlier_answer(database: Database, key: IdempotencyKey) -> Replayed | None:
    """The answer to an earlier request under this key. Raises Problem when it belongs to another body.

    For a request that fails its checks: what was accepted once stays accepted, though it could not be now.
    """
    async with database.read() as connection:
        rows = await connection.execute(
            sa.select(idempotency.c.fingerprint, idempotency.c.answer).where(
                idempotency.c.account == key.account,
                idempotency.c.route == key.route,
                idempotency.c.key == key.key,
                idempotency.c.created_at >= now_ms() - KEPT_MS,
            )
        )
        row = rows.one_or_none()
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise _mismatch(key)
    return Replayed(answer=row.answer)


def _mismatch(key: IdempotencyKey) -> Problem:
    """The key was used with another body."""
    if key.field is None:
        return Problem("idempotency-mismatch", "This Idempotency-Key was used before with another body; use a new key.")
    error = FieldError(field=key.field, detail="was used before with another body; use a new one")
    return Problem(
        "idempotency-mismatch", "An event with this id was published before, and was another.", errors=[error]
    )


def _identity(key: IdempotencyKey) -> _Identity:
    return (key.account, key.route, key.key)
