"""Key pairs of the outbox: the public half stands in clear, the private one sealed by the keyring."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.ids import new_id
from dispatcher.public_keys import KeyPair, PublicKey, SealingError
from dispatcher.store.accounts import write_audit
from dispatcher.store.database import now_ms
from dispatcher.store.rekeying import INSTALLATION
from dispatcher.store.sealing import outbox_key_place
from dispatcher.store.tables import outbox_keys
from subscriptions.keyring import Keyring


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredKey:
    """A public key, and when it was made."""

    id: str
    public: PublicKey
    #: milliseconds since the epoch
    created_at: int


class KeyPairs:
    """The key pairs that are in use, and older ones."""

    def __init__(self, pairs: dict[bytes, KeyPair]) -> None:
        self._pairs = pairs

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """What was sealed to one of them. Raises SealingError."""
        pair = self._pairs.get(PublicKey.kid_of(sealed))
        if pair is None:
            raise SealingError("the value was sealed for a key that is not here")
        return pair.open(sealed, info)


async def ensure(connection: AsyncConnection, keyring: Keyring) -> None:
    """Make the first key pair, if there is none."""
    if not await stored(connection):
        await add(connection, keyring, actor="set-up")


async def add(connection: AsyncConnection, keyring: Keyring, *, actor: str) -> PublicKey:
    """Make a key pair that is used from now on, and note who did. What was sealed to older ones is still opened."""
    pair, id_ = KeyPair.generate(), new_id()
    newest = await connection.scalar(sa.select(sa.func.max(outbox_keys.c.id)))
    if newest is not None and newest >= id_:
        # The clock that made that one was ahead of ours. The greatest id is the key in use.
        id_ = f"{int(newest, 16) + 1:032x}"
    await connection.execute(
        sa.insert(outbox_keys).values(
            id=id_,
            public_key=pair.public.raw,
            private_key=keyring.seal(pair.private_bytes(), where=outbox_key_place(id_)),
            created_at=now_ms(),
        )
    )
    await write_audit(connection, account=INSTALLATION, actor=actor, action="outbox.key.create", subject=id_)
    return pair.public


async def remove_older(connection: AsyncConnection, *, actor: str) -> int:
    """Delete all but the newest; how many there were. What is sealed to them can never be opened again."""
    newest = sa.select(sa.func.max(outbox_keys.c.id)).scalar_subquery()
    removed = await connection.execute(
        sa.delete(outbox_keys).where(outbox_keys.c.id < newest).returning(outbox_keys.c.id)
    )
    ids = removed.scalars().all()
    for id_ in ids:
        await write_audit(connection, account=INSTALLATION, actor=actor, action="outbox.key.delete", subject=id_)
    return len(ids)


async def stored(connection: AsyncConnection) -> list[StoredKey]:
    """The public keys, the newest first."""
    query = sa.select(outbox_keys.c.id, outbox_keys.c.public_key, outbox_keys.c.created_at)
    rows = await connection.execute(query.order_by(outbox_keys.c.id.desc()))
    return [StoredKey(id=id_, public=PublicKey(raw), created_at=made) for id_, raw, made in rows]


async def opened(connection: AsyncConnection, keyring: Keyring) -> KeyPairs:
    """All key pairs, opened. Raises KeyringError."""
    rows = await connection.execute(sa.select(outbox_keys.c.id, outbox_keys.c.private_key))
    pairs = (KeyPair(keyring.open(sealed, where=outbox_key_place(id_))) for id_, sealed in rows)
    return KeyPairs({pair.public.kid: pair for pair in pairs})
