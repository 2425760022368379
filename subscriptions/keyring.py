"""Keys that encrypt secrets, callback URLs and header values at rest, and sign API tokens.

The file (mode 0600) is JSON: `{"keys": [{"kid": "k-<8 hex>", "key": "<base64 of 32 bytes>", "created":
"<RFC 3339>"}]}`. The first key encrypts, all decrypt. No key is ever used as it stands: HKDF-SHA256
(RFC 5869) derives one for each use, and each has its own label.

A sealed value is AES-256-GCM (NIST SP 800-38D), laid out as

    version (1 byte, 0x01) | key id (4 bytes) | day (4 bytes, days since 1970-01-01 UTC) |
    nonce (12 bytes, random) | ciphertext | tag (16 bytes)

under a data key for (key id, purpose, account, day). The additional data is the first nine bytes and the
place, each of its parts with its length before it: a value that is changed, or copied to another row,
column, table, account or purpose, cannot be opened. A data key lives for one account and one day, so random
nonces stay far below the 2**32 messages that one key may take.
"""

from __future__ import annotations

import functools
import hmac
import os
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
#: data keys kept ready; one is a few hundred bytes
CACHED_DATA_KEYS = 4096
DAY_SECONDS = 86_400

_VERSION: Final = 1
#: version, key id, day
_HEADER = struct.Struct(">B4sI")
_SEALED_FROM = _HEADER.size + NONCE_BYTES
_KID = re.compile(r"k-[0-9a-f]{8}")
#: the file is secret as a whole; anything larger is not a keyring
_MAX_FILE_BYTES = 1 << 20


class KeyringError(ValueError):
    """A keyring that cannot be used, or a value that it cannot open. The text holds nothing secret."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a sealed value lives. It can be opened there and nowhere else."""

    #: what the value is for; each purpose has its own data keys
    purpose: str
    #: the account that owns the row
    account: str
    #: the table's name
    table: str
    #: the column's name; for a map of values, with the entry's name, such as `headers.X-Secret`
    column: str
    #: the row's id
    row: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a keyring, as it stands in the file."""

    #: `k-` and 8 hex digits
    kid: str
    #: 32 random bytes
    key: bytes = field(repr=False)
    #: when the key was made
    created: datetime

    def __post_init__(self) -> None:
        if not _KID.fullmatch(self.kid):
            raise KeyringError("A key's `kid` is `k-` and 8 hex digits.")
        if len(self.key) != KEY_BYTES:
            raise KeyringError(f"Key {self.kid} does not have {KEY_BYTES} bytes.")
        if self.created.tzinfo is None:
            raise KeyringError(f"The `created` time of key {self.kid} has no time zone.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    keys: list[Key]


class Keyring:
    """Seals and opens values, derives token keys, and makes fingerprints. It never changes once made."""

    __slots__ = ("_cipher", "_fingerprint_key", "_first", "_keys", "_signing_key")

    def __init__(self, keys: Iterable[Key]) -> None:
        keys = tuple(keys)
        self._keys: dict[bytes, Key] = {_kid_bytes(key.kid): key for key in keys}
        if not keys:
            raise KeyringError("A keyring has at least one key.")
        if len(self._keys) != len(keys):
            raise KeyringError("Two keys of the keyring have the same `kid`.")
        self._first = next(iter(self._keys))
        # Fingerprints of wiped URLs cannot be made again, so they must outlive rotation: the key made first
        # derives them, wherever in the file it stands. Among equals the last one is the oldest, since new
        # keys go in front. They change only when that key is taken out of the file.
        oldest = min(reversed(keys), key=lambda key: key.created)
        self._fingerprint_key = _derive(oldest, "fingerprint")
        self._cipher: Callable[[bytes, str, str, int], AESGCM] = functools.lru_cache(CACHED_DATA_KEYS)(
            self._derive_cipher
        )
        self._signing_key: Callable[[bytes, str], bytes] = functools.lru_cache(64)(self._derive_signing_key)

    @classmethod
    def generate(cls) -> Keyring:
        """A keyring with one new key, in memory only."""
        return cls([_new_key()])

    @classmethod
    def create(cls, path: Path) -> Keyring:
        """A new keyring, on disk before this returns. Raises KeyringError if the file exists."""
        key = _new_key()
        try:
            _write_new(path, [key])
        except FileExistsError as exc:
            raise KeyringError(f"There is a keyring at {path} already; it is never overwritten.") from exc
        except OSError as exc:
            raise KeyringError(f"The keyring cannot be written to {path}: {exc.strerror}.") from exc
        return cls([key])

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """The keyring in a file that only its owner can read. Raises KeyringError."""
        try:
            with path.open("rb") as file:
                exposed = os.fstat(file.fileno()).st_mode & 0o077
                content = file.read(_MAX_FILE_BYTES)
        except OSError as exc:
            raise KeyringError(f"The keyring at {path} cannot be read: {exc.strerror}.") from exc
        if exposed:
            raise KeyringError(f"Others can reach the keyring at {path}: run chmod 600 on it.")
        try:
            return cls(msgspec.json.decode(content, type=_File).keys)
        except (msgspec.MsgspecError, RecursionError) as exc:
            # these texts name places in the file, never what stands there
            raise KeyringError(f"The file at {path} is not a keyring: {exc}") from exc

    @classmethod
    def rotate(cls, path: Path) -> Keyring:
        """Put a new key in front of those in the file: it encrypts from now on, and all still decrypt.

        The file is replaced as a whole, and is on disk before this returns. Raises KeyringError.
        """
        path = path.resolve()  # through a link, so that the link stays
        keys = [_new_key(), *cls.load(path)._keys.values()]
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _write_new(fresh, keys)
            try:
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            _sync_directory(path.parent)
        except OSError as exc:
            raise KeyringError(f"The keyring cannot be written to {path}: {exc.strerror}.") from exc
        return cls(keys)

    @property
    def kids(self) -> tuple[str, ...]:
        """The ids of the keys; the first one encrypts."""
        return tuple(key.kid for key in self._keys.values())

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.kids)})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A Keyring is not pickled: load it from its file in each process.")

    def seal(self, plaintext: str | bytes, *, where: Place) -> bytes:
        """`plaintext` (a str as UTF-8), encrypted so that only `open` with the same place gives it back."""
        if isinstance(plaintext, str):
            plaintext = plaintext.encode()
        kid, day = self._first, int(time.time()) // DAY_SECONDS
        header = _HEADER.pack(_VERSION, kid, day)
        nonce = os.urandom(NONCE_BYTES)
        cipher = self._cipher(kid, where.purpose, where.account, day)
        return header + nonce + cipher.encrypt(nonce, plaintext, header + _placed(where))

    def open(self, sealed: bytes, *, where: Place) -> bytes:
        """What was sealed there. Raises KeyringError if it was changed, moved, or its key is not here."""
        if len(sealed) < _SEALED_FROM + TAG_BYTES or sealed[0] != _VERSION:
            raise KeyringError("This is not a sealed value.")
        header = sealed[: _HEADER.size]
        _, kid, day = _HEADER.unpack(header)
        if kid not in self._keys:
            raise KeyringError(f"The key k-{kid.hex()} is not in the keyring.")
        cipher = self._cipher(kid, where.purpose, where.account, day)
        try:
            return cipher.decrypt(sealed[_HEADER.size : _SEALED_FROM], sealed[_SEALED_FROM:], header + _placed(where))
        except InvalidTag as exc:
            raise KeyringError("The sealed value was changed, or does not belong here.") from exc

    def fingerprint(self, text: str, *, account: str) -> str:
        """16 hex digits that are equal for equal texts of one account, and tell nothing else about them.

        Rotation does not change them (see `__init__` for the key).
        """
        message = _with_length(account) + text.encode("utf-8", "surrogatepass")
        return hmac.digest(self._fingerprint_key, message, "sha256").hex()[:16]

    def signing_key(self, purpose: str, kid: str | None = None) -> tuple[str, bytes]:
        """The id and the 32 bytes of the key that signs for `purpose`, such as API tokens (HS256).

        Without `kid` the first key is meant, to sign with; with it that one, to verify. Raises KeyringError
        if `kid` is not in the keyring.
        """
        wanted = self._first if kid is None else _kid_bytes(kid)
        key = self._keys.get(wanted)
        if key is None:
            raise KeyringError("The key that is named is not in the keyring.")
        return key.kid, self._signing_key(wanted, purpose)

    def _derive_cipher(self, kid: bytes, purpose: str, account: str, day: int) -> AESGCM:
        return AESGCM(_derive(self._keys[kid], "seal", purpose, account, str(day)))

    def _derive_signing_key(self, kid: bytes, purpose: str) -> bytes:
        return _derive(self._keys[kid], "sign", purpose)


def _derive(key: Key, *labels: str) -> bytes:
    info = b"".join(map(_with_length, ("webhook-dispatcher", key.kid, *labels)))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key.key)


def _placed(where: Place) -> bytes:
    # each part with its length in characters before it; one f-string, since this runs for every value
    purpose, account, table, column, row = (
        where.purpose,
        where.account,
        where.table,
        where.column,
        where.row,
    )
    return (
        f"{len(purpose)}:{purpose}{len(account)}:{account}{len(table)}:{table}{len(column)}:{column}{len(row)}:{row}"
    ).encode("utf-8", "surrogatepass")


def _with_length(text: str) -> bytes:
    return f"{len(text)}:{text}".encode("utf-8", "surrogatepass")


def _kid_bytes(kid: str) -> bytes:
    # b"" is no key's id
    return bytes.fromhex(kid[2:]) if _KID.fullmatch(kid) else b""


def _new_key() -> Key:
    return Key(kid=f"k-{secrets.token_hex(4)}", key=secrets.token_bytes(KEY_BYTES), created=datetime.now(tz=UTC))


def _write_new(path: Path, keys: list[Key]) -> None:
    """Make the file whole or not at all, whenever the process may end. Raises FileExistsError if there is one."""
    content = msgspec.json.format(msgspec.json.encode(_File(keys=keys)), indent=2) + b"\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # unlike a rename, a link never replaces what is there
        path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
