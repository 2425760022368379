"""Secrets that sign deliveries: made here, checked here, and never printed."""

from __future__ import annotations

import base64
import functools
import hmac
import secrets
import unicodedata
from dataclasses import dataclass, field
from typing import NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: what marks a secret as ours; the Standard Webhooks libraries strip it before they decode
PREFIX = "whsec_"
#: what marks an Ed25519 public key (Standard Webhooks 1.0.0, "Signature scheme")
PUBLIC_PREFIX = "whpk_"
#: of an Ed25519 private key (its seed, RFC 8032, section 5.1.5), and of a public one
ED25519_BYTES = 32
#: private keys kept loaded, because loading takes as long as signing; one is about 1 KiB
CACHED_PRIVATE_KEYS = 1024
#: random bytes in a secret that we make
GENERATED_BYTES = 24
#: characters, both ends included
MIN_LENGTH = 8
MAX_LENGTH = 255


class SecretError(ValueError):
    """A secret or key that cannot be used. The text says what would be right, and never repeats the secret."""


class Secret:
    """A text that cannot be printed by accident: only `reveal()` gives it back.

    Equal to another `Secret` of the same text, compared in constant time. It cannot be pickled.
    """

    __slots__ = ("_decoded", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoded: bytes | None = None

    def reveal(self) -> str:
        """The text itself. Call this only where the text is used, never where it could be shown."""
        return self._text

    def decoded(self) -> bytes:
        """The text without `whsec_`, decoded from base64, once for all attempts; empty where it is no base64."""
        if self._decoded is None:
            self._decoded = _decoded(self._text.removeprefix(PREFIX))
        return self._decoded

    def __repr__(self) -> str:
        return "Secret(…)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_exact_bytes(self._text), _exact_bytes(other._text))

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A Secret is not pickled: pass it on sealed by the keyring, or reveal it on purpose.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """What signs deliveries at one time: a secret, and for a subscription the private half of its key pair.

    Raises SecretError for a seed that is not 32 bytes long.
    """

    #: the text that the HMAC schemes sign with
    secret: Secret
    #: Ed25519 private key (RFC 8032), 32 bytes; None where there is no key pair, as for callbacks
    seed: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.seed is not None and len(self.seed) != ED25519_BYTES:
            raise SecretError(f"A seed has {ED25519_BYTES} bytes.")

    @property
    def public_key(self) -> str | None:
        """What its subscriber verifies Ed25519 signatures with: `whpk_` and base64; None without a key pair."""
        if self.seed is None:
            return None
        public = private_key(self.seed).public_key().public_bytes_raw()
        return PUBLIC_PREFIX + base64.b64encode(public).decode("ascii")


def generate() -> Secret:
    """A new secret: `whsec_` and the padded base64 of 24 random bytes."""
    return Secret(PREFIX + base64.b64encode(secrets.token_bytes(GENERATED_BYTES)).decode("ascii"))


def generate_seed() -> bytes:
    """A new Ed25519 private key, as its 32 random bytes."""
    return secrets.token_bytes(ED25519_BYTES)


def check(text: str) -> Secret:
    """`text` as a secret, if it can be one.

    Raises SecretError unless it has 8 to 255 characters, none of them a control character (a pasted line
    end, mostly) or a lone surrogate, which no encoding can sign with.
    """
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        raise SecretError(f"A secret has {MIN_LENGTH} to {MAX_LENGTH} characters.")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise SecretError("A secret has no control characters, such as a line end.")
    return Secret(text)


def standard_key(secret: Secret) -> bytes:
    """The key bytes that Standard Webhooks signs with: `whsec_` stripped, the rest decoded from base64.

    Only the form that every verifier decodes alike is taken: the standard alphabet, padded, nothing beside
    it, and no stray bits in the last character. Raises SecretError for any other.
    """
    key = secret.decoded()
    if not key:
        raise SecretError("The secret is not padded base64 in the standard alphabet.")
    return key


def _decoded(encoded: str) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        return b""
    return key if base64.b64encode(key).decode("ascii") == encoded else b""


@functools.lru_cache(maxsize=CACHED_PRIVATE_KEYS)
def private_key(seed: bytes) -> Ed25519PrivateKey:
    """The Ed25519 private key of a seed, ready to sign."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def public_key_bytes(text: str) -> bytes:
    """The 32 bytes of an Ed25519 public key written as `whpk_` and padded base64, with or without the prefix.

    Raises SecretError for anything else.
    """
    try:
        public = base64.b64decode(text.removeprefix(PUBLIC_PREFIX), validate=True)
    except ValueError:
        public = b""
    if len(public) != ED25519_BYTES:
        raise SecretError(f"A public key is `{PUBLIC_PREFIX}` and the base64 of {ED25519_BYTES} bytes.")
    return public


def _exact_bytes(text: str) -> bytes:
    # every str has its own bytes this way, lone surrogates too, so comparing never fails
    return text.encode("utf-8", "surrogatepass")
