"""A key that everybody may have, and that only this installation opens: HPKE (RFC 9180), base mode.

A sealed value is

    version (1 byte, 0x01) | key id (4 bytes) | encapsulated key (32 bytes) | ciphertext | tag (16 bytes)

with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. The key id is the start of the public key's SHA-256. What
the value belongs to (`info`) goes into the key schedule: copied to another place, it cannot be opened.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

#: what marks a public key as one of ours
PREFIX = "whok_"
#: of a public key, and of a private one
KEY_BYTES = 32
#: where in a sealed value the id of its key stands
SEALED_KID = slice(1, 5)

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_VERSION = b"\x01"


class SealingError(ValueError):
    """A key that is none, or a value that cannot be opened. The text holds nothing secret."""


class PublicKey:
    """Seals values."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise SealingError(f"a public key has {KEY_BYTES} bytes")
        self.raw = raw
        self.kid = hashlib.sha256(raw).digest()[:4]
        self._key = X25519PublicKey.from_public_bytes(raw)

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """The key that `dispatcher outbox key` prints. Raises SealingError."""
        try:
            raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except ValueError:
            raw = b""
        if not text.startswith(PREFIX) or len(raw) != KEY_BYTES:
            raise SealingError(f"a public key is {PREFIX} and {KEY_BYTES} bytes in base64")
        return cls(raw)

    @staticmethod
    def kid_of(sealed: bytes) -> bytes:
        """The id of the key that a value was sealed for."""
        return sealed[SEALED_KID]

    def __str__(self) -> str:
        return PREFIX + base64.b64encode(self.raw).decode()

    def seal(self, plaintext: bytes, info: bytes) -> bytes:
        """`plaintext`, so that only the owner of the private key opens it, and only with the same `info`."""
        try:
            return _VERSION + self.kid + _SUITE.encrypt(plaintext, self._key, info)
        except ValueError:
            raise SealingError("this public key cannot be used") from None


class KeyPair:
    """Opens values. It cannot be printed or pickled by accident."""

    def __init__(self, private: bytes) -> None:
        """`private` is what `private_bytes` gives. Raises SealingError."""
        try:
            self._key = X25519PrivateKey.from_private_bytes(private)
        except ValueError:
            raise SealingError(f"a private key has {KEY_BYTES} bytes") from None
        self.public = PublicKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> KeyPair:
        """A new one."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    def private_bytes(self) -> bytes:
        """The private key itself, to be stored sealed."""
        return self._key.private_bytes_raw()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A KeyPair is not pickled: open it where it is stored.")

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """What was sealed. Raises SealingError if it was changed, or belongs elsewhere."""
        if sealed[:1] != _VERSION or sealed[SEALED_KID] != self.public.kid:
            raise SealingError("the value was not sealed for this key")
        try:
            return _SUITE.decrypt(sealed[SEALED_KID.stop :], self._key, info)
        except (InvalidTag, ValueError):
            raise SealingError("the sealed value was changed, or does not belong here") from None
