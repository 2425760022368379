"""Accounts, their API tokens, and the audit log of who changed them.

The command line and the API both write here; the command line does so while the server runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.ids import new_id
from dispatcher.store.database import Database, now_ms, upsert
from dispatcher.store.sealing import open_account_secret, seal_account_secret
from dispatcher.store.tables import accounts, audit, installation, tokens
from subscriptions.keyring import Keyring
from subscriptions.models import Verification
from subscriptions.secrets import Secret

#: the first half of the advisory locks of PostgreSQL by which versions stay as they are: a number that nobody else uses
_VERSION_LOCK = 0x76657273


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A tenant and its defaults."""

    id: str
    #: signs deliveries whose task brought no secret
    default_secret: Secret | None = None
    #: signature schemes for tasks that name none
    schemes: tuple[str, ...] | None = None
    #: delays between tries, seconds; None means the installation's
    retry_schedule: tuple[float, ...] | None = None
    #: how new subscriptions prove themselves that do not say
    verification: Verification = Verification.NONE
    #: the subscription that is told of the others
    operational_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token that was issued, without the token."""

    jti: str
    account: str
    scopes: tuple[str, ...]
    note: str | None
    #: milliseconds since the epoch
    created_at: int
    expires_at: int | None
    revoked_at: int | None


async def issuer(database: Database) -> str:
    """The id of this installation, which its tokens name as `iss`."""
    async with database.read() as connection:
        return str(await connection.scalar(sa.select(installation.c.issuer)))


async def read_account(database: Database, keyring: Keyring, account: str) -> Account:
    """An account's settings; defaults where it has none."""
    async with database.read() as connection:
        return await _read(connection, keyring, account)


async def _read(connection: AsyncConnection, keyring: Keyring, account: str, *, lock: bool = False) -> Account:
    query = sa.select(accounts).where(accounts.c.id == account)
    rows = await connection.execute(query.with_for_update() if lock else query)
    row = rows.mappings().one_or_none()
    if row is None:
        return Account(id=account)
    sealed = row["default_secret"]
    return Account(
        id=account,
        default_secret=open_account_secret(keyring, sealed, account=account) if sealed else None,
        schemes=tuple(row["schemes"]) if row["schemes"] is not None else None,
        retry_schedule=tuple(row["retry_schedule"]) if row["retry_schedule"] is not None else None,
        verification=Verification(row["verification"]),
        operational_id=row["operational_id"],
    )


async def change_account(
    database: Database, keyring: Keyring, account: str, change: Callable[[Account], Account], *, actor: str
) -> Account:
    """Change an account's settings, and note who did: read, change and write are one transaction."""
    async with database.write() as connection:
        await ensure(connection, account)
        changed = change(await _read(connection, keyring, account, lock=True))
        secret = changed.default_secret
        await connection.execute(
            sa.update(accounts)
            .where(accounts.c.id == account)
            .values(
                default_secret=seal_account_secret(keyring, secret, account=account) if secret else None,
                schemes=list(changed.schemes) if changed.schemes is not None else None,
                retry_schedule=list(changed.retry_schedule) if changed.retry_schedule is not None else None,
                verification=changed.verification,
            )
        )
        await write_audit(connection, account=account, actor=actor, action="account.update", subject=account)
    return changed


async def lock_versions(connection: AsyncConnection, ids: Iterable[str], *, shared: bool = False) -> None:
    """Let the versions of accounts' subscriptions stay as they are until this transaction ends (PostgreSQL).

    Those who only rely on them share the lock; whoever waits for it is before those who come later. It is none of the
    accounts' rows, which there need not be, and which many would then write to for nothing but the lock.
    """
    lock = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
    number = sa.func.hashtext(sa.func.unnest(sa.cast(sorted(set(ids)), sa.ARRAY(sa.Text)))).label("number")
    # in one order everywhere
    wanted = sa.select(number).distinct().order_by(number).subquery()
    await connection.execute(sa.select(lock(_VERSION_LOCK, wanted.c.number)))


async def next_version(connection: AsyncConnection, account: str) -> int:
    """Count one more change to an account's subscriptions; what is cached of them is old from now on.

    Until this transaction ends, nobody accepts an event by the subscriptions that there were before.
    """
    if connection.dialect.name == "postgresql":
        await lock_versions(connection, [account])
    statement = (
        sa.update(accounts)
        .where(accounts.c.id == account)
        .values(subscriptions_version=accounts.c.subscriptions_version + 1)
        .returning(accounts.c.subscriptions_version)
    )
    version = await connection.scalar(statement)
    if version is None:
        await ensure(connection, account)
        version = await connection.scalar(statement)
    return int(version or 0)


async def add_token(
    database: Database,
    *,
    jti: str,
    account: str,
    scopes: Sequence[str],
    note: str | None,
    expires_at: int | None,
    actor: str,
) -> None:
    """Record a token that is about to be issued."""
    async with database.write() as connection:
        await ensure(connection, account)
        await connection.execute(
            sa.insert(tokens).values(
                jti=jti,
                account=account,
                scopes=list(scopes),
                note=note,
                created_at=now_ms(),
                expires_at=expires_at,
            )
        )
        await write_audit(connection, account=account, actor=actor, action="token.create", subject=jti)


async def revoke_token(database: Database, jti: str, *, actor: str) -> Token | None:
    """Revoke a token for good. None if there is no such token."""
    async with database.write() as connection:
        await connection.execute(
            sa.update(tokens).where(tokens.c.jti == jti, tokens.c.revoked_at.is_(None)).values(revoked_at=now_ms())
        )
        row = (await connection.execute(sa.select(tokens).where(tokens.c.jti == jti))).mappings().one_or_none()
        if row is None:
            return None
        await write_audit(connection, account=row["account"], actor=actor, action="token.revoke", subject=jti)
        return _token(row)


async def revoke_noted(database: Database, note: str, *, actor: str) -> None:
    """Revoke every token that was made with this note."""
    async with database.write() as connection:
        revoked = await connection.execute(
            sa.update(tokens)
            .where(tokens.c.note == note, tokens.c.revoked_at.is_(None))
            .values(revoked_at=now_ms())
            .returning(tokens.c.jti, tokens.c.account)
        )
        for jti, account in revoked.all():
            await write_audit(connection, account=account, actor=actor, action="token.revoke", subject=jti)


async def list_tokens(database: Database, account: str | None = None) -> list[Token]:
    """Tokens in the order they were made."""
    query = sa.select(tokens).order_by(tokens.c.jti)
    if account is not None:
        query = query.where(tokens.c.account == account)
    async with database.read() as connection:
        return [_token(row) for row in (await connection.execute(query)).mappings()]


async def is_token_live(database: Database, jti: str) -> bool:
    """Whether a token was issued here and has not been revoked."""
    async with database.read() as connection:
        found = await connection.scalar(
            sa.select(sa.literal(1)).where(tokens.c.jti == jti, tokens.c.revoked_at.is_(None))
        )
        return found is not None


async def ensure(connection: AsyncConnection, account: str) -> None:
    """Make sure that there is a row for an account."""
    insert = upsert(connection.dialect.name, accounts).values(id=account, created_at=now_ms())
    await connection.execute(insert.on_conflict_do_nothing())


async def write_audit(connection: AsyncConnection, *, account: str, actor: str, action: str, subject: str) -> None:
    """Write into the audit log who did what to which object."""
    await connection.execute(
        sa.insert(audit).values(id=new_id(), account=account, actor=actor, action=action, subject=subject, at=now_ms())
    )


def _token(row: sa.RowMapping) -> Token:
    return Token(
        jti=row["jti"],
        account=row["account"],
        scopes=tuple(row["scopes"]),
        note=row["note"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
