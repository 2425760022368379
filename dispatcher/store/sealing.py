"""Callbacks and secrets as columns: sealed on the way in, opened on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from dispatcher.store.records import Callback
from subscriptions.keyring import Keyring, Place
from subscriptions.secrets import Secret

_encode = msgspec.json.encode
_decode_headers = msgspec.json.Decoder(tuple[tuple[str, str], ...]).decode


#: the value that tells whether a keyring belongs to a database
CANARY = Place(purpose="canary", account="", table="installation", column="canary", row="1")


def place(account: str, column: str, row: str, *, table: str = "tasks") -> Place:
    """Where a sealed column's value lives."""
    return Place(purpose=column, account=account, table=table, column=column, row=row)


def outbox_key_place(row: str) -> Place:
    """Where the private half of one of the outbox's key pairs lives."""
    return place("", "private_key", row, table="outbox_keys")


def seal_credentials(
    keyring: Keyring, callback: Callback, *, account: str, task_id: str
) -> tuple[bytes, bytes | None, bytes | None]:
    """What of a callback may be a credential: its URL, its secret and its headers."""
    secret, headers = callback.secret, callback.headers
    return (
        keyring.seal(callback.url.reveal(), where=place(account, "callback_url", task_id)),
        keyring.seal(secret.reveal(), where=place(account, "callback_secret", task_id)) if secret else None,
        keyring.seal(_encode(headers), where=place(account, "callback_headers", task_id)) if headers else None,
    )


def seal_callback(keyring: Keyring, callback: Callback, *, account: str, task_id: str) -> dict[str, Any]:
    """The columns of `tasks` that hold a callback."""
    url, secret, headers = seal_credentials(keyring, callback, account=account, task_id=task_id)
    return {
        "callback_url": url,
        "callback_secret": secret,
        "callback_headers": headers,
        "callback_origin": callback.origin,
        "callback_fingerprint": callback.fingerprint,
        "callback_token": callback.token,
        "schemes": list(callback.schemes) if callback.schemes is not None else None,
        "window_end": callback.window_end,
    }


def open_callback(keyring: Keyring, row: Mapping[str, Any] | sa.RowMapping, *, account: str, task_id: str) -> Callback:
    """The callback in a row of `tasks` that has not been wiped."""
    url, secret, headers = row["callback_url"], row["callback_secret"], row["callback_headers"]
    schemes = row["schemes"]
    if url is None:
        raise ValueError("this callback has been wiped")
    return Callback(
        url=Secret(keyring.open(url, where=place(account, "callback_url", task_id)).decode()),
        secret=None
        if secret is None
        else Secret(keyring.open(secret, where=place(account, "callback_secret", task_id)).decode()),
        headers=()
        if headers is None
        else _decode_headers(keyring.open(headers, where=place(account, "callback_headers", task_id))),
        schemes=None if schemes is None else tuple(schemes),
        origin=row["callback_origin"],
        fingerprint=row["callback_fingerprint"],
        token=row["callback_token"],
        window_end=row["window_end"],
    )


def seal_account_secret(keyring: Keyring, secret: Secret, *, account: str) -> bytes:
    """An account's default secret as a column."""
    return keyring.seal(secret.reveal(), where=place(account, "default_secret", account, table="accounts"))


def open_account_secret(keyring: Keyring, sealed: bytes, *, account: str) -> Secret:
    """An account's default secret."""
    where = place(account, "default_secret", account, table="accounts")
    return Secret(keyring.open(sealed, where=where).decode())
