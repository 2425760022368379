"""Keys that encrypt secrets, callback URLs and header values at rest, and sign API tokens.

The file (mode 0600) is JSON: `{"keys": [{"kid": "k-<8 hex>", "key": "<base64 of 32 bytes>", "created":
"<RFC 3339>"}]}`. The first key encrypts, all decrypt; `rotate` puts a new one in front, and processes that have the
file loaded follow. No key is ever used as it stands: HKDF-SHA256 (RFC 5869) derives one for each use, and each has its
own label.

A sealed value is AES-256-GCM (NIST SP 800-38D), laid out as

    version (1 byte, 0x01) | key id (4 bytes) | day (4 bytes, days since 1970-01-01 UTC) |
    nonce (12 bytes, random) | ciphertext | tag (16 bytes)

under a data key for (key id, purpose, account, day). The additional data is the first nine bytes and the
place, each of its parts with its length before it: a value that is changed, or copied to another row,
column, table, account or purpose, cannot be opened. A data key lives for one account and one day, so random
nonces stay far below the 2**32 messages that one key may take.
"""

from __future__ import annotations

import fcntl
import functools
import hmac
import logging
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, NoReturn

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
#: seconds after which a change of the file is seen by a process that uses the keyring
NOTICED_WITHIN = 1.0
#: where in a sealed value the id of its key stands
SEALED_KID = slice(1, 5)

log = logging.getLogger(__name__)

_VERSION: Final = 1
#: version, key id, day
_HEADER = struct.Struct(">B4sI")
_SEALED_FROM = _HEADER.size + NONCE_BYTES
_KID = re.compile(r"k-[0-9a-f]{8}")
#: the file is secret as a whole; anything larger is not a keyring
_MAX_FILE_BYTES = 1 << 20


class KeyringError(ValueError):
    """A keyring that cannot be used, or a value that it cannot open. The text holds nothing secret."""


class Place(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class _Stamp(NamedTuple):
    """What tells two versions of a file apart."""

    device: int
    inode: int
    size: int
    #: nanoseconds
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Keys:
    """The keys as one version of the file has them, and what is derived from them. It never changes."""

    __slots__ = ("by_id", "cipher", "fingerprints", "first", "oldest", "signing_key", "stamp")

    def __init__(self, keys: Iterable[Key], *, stamp: _Stamp | None = None) -> None:
        keys = tuple(keys)
        self.by_id: dict[bytes, Key] = {kid_bytes(key.kid): key for key in keys}
        if not keys:
            raise KeyringError("A keyring has at least one key.")
        if len(self.by_id) != len(keys):
            raise KeyringError("Two keys of the keyring have the same `kid`.")
        self.first = next(iter(self.by_id))
        # Fingerprints of wiped URLs cannot be made again, so they must outlive rotation: the key made first
        # derives them, wherever in the file it stands. Among equals the last one is the oldest, since new
        # keys go in front. They change only when that key is taken out of the file.
        self.oldest = min(reversed(keys), key=lambda key: key.created)
        #: to be copied: to set up an HMAC each time costs more than to use it
        self.fingerprints = hmac.new(_derive(self.oldest, "fingerprint"), digestmod="sha256")
        #: the version of the file
        self.stamp = stamp
        self.cipher: Callable[[bytes, str, str, int], AESGCM] = functools.lru_cache(CACHED_DATA_KEYS)(
            self._derive_cipher
        )
        self.signing_key: Callable[[bytes, str], bytes] = functools.lru_cache(64)(self._derive_signing_key)

    def _derive_cipher(self, kid: bytes, purpose: str, account: str, day: int) -> AESGCM:
        return AESGCM(_derive(self.by_id[kid], "seal", purpose, account, str(day)))

    def _derive_signing_key(self, kid: bytes, purpose: str) -> bytes:
        return _derive(self.by_id[kid], "sign", purpose)


class Keyring:
    """Seals and opens values, derives token keys, and makes fingerprints.

    One that came from a file follows it: another process may rotate the keys, and this one has them within
    NOTICED_WITHIN seconds of use, or as soon as it is given a value that a new key sealed. A file that is missing or
    broken changes nothing. Safe to use from several threads.
    """

    __slots__ = ("_ask_at", "_complaint", "_known", "_lock", "_look_at", "_path", "_rest_until")

    def __init__(self, keys: Iterable[Key]) -> None:
        self._start(_Keys(keys), path=None)

    def _start(self, keys: _Keys, *, path: Path | None) -> None:
        self._path = path
        self._known = keys
        self._lock = threading.Lock()
        #: when to look at the file next, whatever happens; monotonic
        self._look_at = monotonic() + NOTICED_WITHIN
        #: before this, strangers' key ids are no reason to look
        self._ask_at = 0.0
        #: before this, nothing is: the file could not be read
        self._rest_until = 0.0
        #: what was wrong with the file, once it was logged
        self._complaint = ""

    @classmethod
    def generate(cls) -> Keyring:
        """A keyring with one new key, in memory only."""
        return cls([_new_key()])

    @classmethod
    def create(cls, path: Path) -> Keyring:
        """A new keyring, on disk before this returns. Raises KeyringError if the file exists."""
        try:
            _write_new(path, [_new_key()])
        except FileExistsError as exc:
            raise KeyringError(f"There is a keyring at {path} already; it is never overwritten.") from exc
        except OSError as exc:
            raise KeyringError(f"The keyring cannot be written to {path}: {exc.strerror}.") from exc
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """The keyring in a file that only its owner can read. Raises KeyringError."""
        keyring = cls.__new__(cls)
        keyring._start(_read(path), path=path.absolute())
        return keyring

    @classmethod
    def rotate(cls, path: Path) -> Keyring:
        """Put a new key in front of those in the file: it encrypts from now on, and all still decrypt.

        The file is replaced as a whole, and is on disk before this returns. Raises KeyringError.
        """
        with _file_to_change(path) as file:
            keys = list(_read(file).by_id.values())
            new = _new_key(after=max(key.created for key in keys))
            # A running process may seal with a new first key as soon as it sees one. So the key is on disk, in the
            # last place, before it is put in the first one: a loss of power between the two loses no key.
            _replace(file, [*keys, new])
            _replace(file, [new, *keys])
        return cls.load(path)

    @classmethod
    def retire(cls, path: Path, kid: str, *, change_fingerprints: bool = False) -> Keyring:
        """Take a key out of the file, for good: what it sealed can never be opened again.

        Raises KeyringError if it is the first key, or if fingerprints hang on it and `change_fingerprints` is not set.
        """
        with _file_to_change(path) as file:
            keys = _read(file)
            if kid_bytes(kid) not in keys.by_id:
                raise KeyringError("The key that is named is not in the keyring.")
            if kid_bytes(kid) == keys.first:
                raise KeyringError(f"{kid} is the key that encrypts: rotate first.")
            if kid == keys.oldest.kid and not change_fingerprints:
                raise KeyringError(f"{kid} is the oldest key, which makes the fingerprints.")
            _replace(file, [key for key in keys.by_id.values() if key.kid != kid])
        return cls.load(path)

    @property
    def path(self) -> Path | None:
        """The file that it came from; none if it is in memory only."""
        return self._path

    @property
    def kids(self) -> tuple[str, ...]:
        """The ids of the keys; the first one encrypts."""
        return tuple(self.created)

    @property
    def created(self) -> dict[str, datetime]:
        """When each key was made, in the order of the keys."""
        return {key.kid: key.created for key in self._now().by_id.values()}

    @property
    def fingerprint_kid(self) -> str:
        """The id of the key that makes fingerprints: the oldest one."""
        return self._now().oldest.kid

    def __repr__(self) -> str:
        return f"Keyring({', '.join(key.kid for key in self._known.by_id.values())})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A Keyring is not pickled: load it from its file in each process.")

    def seal(self, plaintext: str | bytes, *, where: Place) -> bytes:
        """`plaintext` (a str as UTF-8), encrypted so that only `open` with the same place gives it back."""
        if isinstance(plaintext, str):
            plaintext = plaintext.encode()
        keys = self._now()
        kid, day = keys.first, int(time.time()) // DAY_SECONDS
        header = _HEADER.pack(_VERSION, kid, day)
        nonce = os.urandom(NONCE_BYTES)
        cipher = keys.cipher(kid, where.purpose, where.account, day)
        return header + nonce + cipher.encrypt(nonce, plaintext, header + _placed(where))

    def open(self, sealed: bytes, *, where: Place) -> bytes:
        """What was sealed there. Raises KeyringError if it was changed, moved, or its key is not here."""
        if len(sealed) < _SEALED_FROM + TAG_BYTES or sealed[0] != _VERSION:
            raise KeyringError("This is not a sealed value.")
        header = sealed[: _HEADER.size]
        _, kid, day = _HEADER.unpack(header)
        keys = self._now()
        if kid not in keys.by_id:
            keys = self._look()  # at once: sealed values are our own, no stranger can send them
        if kid not in keys.by_id:
            raise KeyringError(f"The key k-{kid.hex()} is not in the keyring.")
        cipher = keys.cipher(kid, where.purpose, where.account, day)
        try:
            return cipher.decrypt(sealed[_HEADER.size : _SEALED_FROM], sealed[_SEALED_FROM:], header + _placed(where))
        except InvalidTag as exc:
            raise KeyringError("The sealed value was changed, or does not belong here.") from exc

    def reseal(self, sealed: bytes, *, where: Place) -> bytes:
        """The same value, sealed there with the first key. Raises KeyringError as `open` does."""
        return self.seal(self.open(sealed, where=where), where=where)

    def is_current(self, sealed: bytes) -> bool:
        """Whether the first key sealed this."""
        return sealed[SEALED_KID] == self._now().first

    def fingerprint(self, text: str, *, account: str) -> str:
        """16 hex digits that are equal for equal texts of one account, and tell nothing else about them.

        Rotation does not change them (see `_Keys` for the key).
        """
        digest = self._now().fingerprints.copy()
        digest.update(f"{len(account)}:{account}{text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def signing_key(self, purpose: str, kid: str | None = None) -> tuple[str, bytes]:
        """The id and the 32 bytes of the key that signs for `purpose`, such as API tokens (HS256).

        Without `kid` the first key is meant, to sign with; with it that one, to verify. Raises KeyringError
        if `kid` is not in the keyring.
        """
        keys = self._now()
        wanted = keys.first if kid is None else kid_bytes(kid)
        if wanted not in keys.by_id and monotonic() >= self._ask_at:
            # anybody can send a token with any key id: that is no reason to look at the file all the time
            self._ask_at = monotonic() + NOTICED_WITHIN
            keys = self._look()
        key = keys.by_id.get(wanted)
        if key is None:
            raise KeyringError("The key that is named is not in the keyring.")
        return key.kid, keys.signing_key(wanted, purpose)

    # --- following the file -----------------------------------------------------------------------------------

    def _now(self) -> _Keys:
        """The keys, as the file had them at most NOTICED_WITHIN ago."""
        if self._path is None or monotonic() < self._look_at:
            return self._known
        return self._look()

    def _look(self) -> _Keys:
        """The keys as the file has them now; those known if there is nothing new or it cannot be used."""
        if self._path is None:
            return self._known
        with self._lock:
            now = monotonic()
            self._look_at = now + NOTICED_WITHIN
            if now < self._rest_until:
                return self._known
            try:
                if _Stamp.of(self._path.stat()) != self._known.stamp:
                    self._known = _read(self._path)
                    self._complaint = ""
            except (OSError, KeyringError) as exc:
                self._rest_until = now + NOTICED_WITHIN
                if str(exc) != self._complaint:
                    self._complaint = str(exc)
                    log.error("the keys known before stay in use: %s", self._complaint)
            return self._known


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


def kid_bytes(kid: str) -> bytes:
    """A key's id as it stands in sealed values, at SEALED_KID; b"", which is no key's, if it is no id."""
    return bytes.fromhex(kid[2:]) if _KID.fullmatch(kid) else b""


def kid_of(sealed: bytes) -> str:
    """The id of the key that sealed this."""
    return f"k-{sealed[SEALED_KID].hex()}"


def _new_key(*, after: datetime | None = None) -> Key:
    created = datetime.now(tz=UTC)
    if after is not None:  # a clock that was set back must not make it the oldest
        created = max(created, after + timedelta(microseconds=1))
    return Key(kid=f"k-{secrets.token_hex(4)}", key=secrets.token_bytes(KEY_BYTES), created=created)


def _read(path: Path) -> _Keys:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE_BYTES)
    except OSError as exc:
        raise KeyringError(f"The keyring at {path} cannot be read: {exc.strerror}.") from exc
    if status.st_mode & 0o077:
        raise KeyringError(f"Others can reach the keyring at {path}: run chmod 600 on it.")
    try:
        return _Keys(msgspec.json.decode(content, type=_File).keys, stamp=_Stamp.of(status))
    except (msgspec.MsgspecError, RecursionError) as exc:
        # these texts name places in the file, never what stands there
        raise KeyringError(f"The file at {path} is not a keyring: {exc}") from exc


@contextmanager
def _file_to_change(path: Path) -> Iterator[Path]:
    """The file behind `path`, which nobody else changes within the block: two rotations at once would lose a key."""
    path = path.resolve()  # through a link, so that the link stays
    try:
        # the directory is locked, since the file itself is another one after each change
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise KeyringError(f"The keyring at {path} cannot be changed: {exc.strerror}.") from exc


def _replace(path: Path, keys: list[Key]) -> None:
    """Put a new file in place of the old one, as a whole, on disk before this returns."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _write_new(fresh, keys)
    try:
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


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
