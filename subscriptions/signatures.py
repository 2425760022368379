"""How a delivery proves that it is ours: the signature schemes.

A scheme is one function from a `Signable` to its headers, entered in `_SIGNERS`.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from subscriptions.secrets import Secret, SecretError, standard_key

#: the hashes that W3C WebSub recognises ("Authenticated Content Distribution")
HUB_METHODS = ("sha1", "sha256", "sha384", "sha512")


class SignatureError(ValueError):
    """Schemes, or a method, that cannot be used. The text says what would be right."""


class Scheme(StrEnum):
    """A way to sign a delivery."""

    #: `X-Hub-Signature: <method>=<hex>` over the body, as in W3C WebSub and GitHub's first webhooks
    WEBSUB = "websub"
    #: `webhook-signature: v1,<base64>` over `id.timestamp.body` (Standard Webhooks)
    STANDARD = "standard"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signable:
    """One attempt of a delivery, as far as signatures cover it."""

    #: the text that signs
    secret: Secret
    #: the wire id
    delivery_id: str
    #: Unix seconds of this attempt
    timestamp: int
    #: the exact bytes that are sent
    body: bytes
    #: the hash that `websub` uses
    hub_method: str


def sign(
    schemes: Iterable[Scheme],
    *,
    secret: Secret,
    delivery_id: str,
    timestamp: int,
    body: bytes,
    hub_method: str = "sha256",
) -> list[tuple[str, str]]:
    """The signature headers of one attempt, scheme by scheme, in the order given.

    Raises SignatureError for an unknown `hub_method`, and SecretError where `standard` meets a secret that is
    not base64; `check_schemes` finds that earlier.
    """
    signable = Signable(secret=secret, delivery_id=delivery_id, timestamp=timestamp, body=body, hub_method=hub_method)
    return [header for scheme in schemes for header in _SIGNERS[scheme](signable)]


def default_schemes(secret: Secret) -> tuple[Scheme, ...]:
    """The schemes that apply when none are asked for: those of the two defaults that the secret can serve."""
    if _has_standard_key(secret):
        return (Scheme.WEBSUB, Scheme.STANDARD)
    return (Scheme.WEBSUB,)


def check_schemes(schemes: Sequence[Scheme], secret: Secret) -> None:
    """Raise SignatureError unless these schemes can be used together and with this secret."""
    if not schemes:
        raise SignatureError("Name at least one scheme, or leave `schemes` out to get the default ones.")
    if len(set(schemes)) != len(schemes):
        raise SignatureError("Name each scheme once.")
    if Scheme.STANDARD in schemes and not _has_standard_key(secret):
        raise SignatureError(
            "The scheme `standard` needs a base64 secret: the standard alphabet, padded, `whsec_` before it"
            " or not. Use such a secret, or the scheme `websub` alone."
        )


def _websub(signable: Signable) -> list[tuple[str, str]]:
    # W3C WebSub, "Authenticated Content Distribution": the key is the text as the subscriber knows it, so
    # `whsec_` is a part of it
    method = signable.hub_method
    if method not in HUB_METHODS:
        raise SignatureError(f"The hub method is one of {', '.join(HUB_METHODS)}.")
    digest = hmac.digest(signable.secret.reveal().encode(), signable.body, method)
    return [("X-Hub-Signature", f"{method}={digest.hex()}")]


def _standard(signable: Signable) -> list[tuple[str, str]]:
    # Standard Webhooks 1.0.0, "Signature scheme" and "Webhook headers"
    timestamp = str(signable.timestamp)
    signed = f"{signable.delivery_id}.{timestamp}.".encode() + signable.body
    digest = hmac.digest(standard_key(signable.secret), signed, "sha256")
    return [
        ("webhook-id", signable.delivery_id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", "v1," + base64.b64encode(digest).decode("ascii")),
    ]


_SIGNERS: dict[Scheme, Callable[[Signable], list[tuple[str, str]]]] = {
    Scheme.WEBSUB: _websub,
    Scheme.STANDARD: _standard,
}


def _has_standard_key(secret: Secret) -> bool:
    try:
        standard_key(secret)
    except SecretError:
        return False
    return True
