"""How a delivery proves that it is ours: the signature schemes.

A scheme is one function from a `Signable` to its headers, entered in `_SIGNERS`. `verification` has the other side.
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

import msgspec

from subscriptions import message_signatures
from subscriptions.message_signatures import MessageSignatureError
from subscriptions.secrets import Secret, SecretError, SigningKey, private_key, standard_key

#: the hashes that W3C WebSub recognises ("Authenticated Content Distribution")
HUB_METHODS = ("sha1", "sha256", "sha384", "sha512")
#: the label of our signature in Signature-Input and Signature
MESSAGE_LABEL = "webhook"
#: what `rfc9421` covers
MESSAGE_COMPONENTS = ("@method", "@target-uri", "content-digest", "content-type", "x-webhook-delivery")


class SignatureError(ValueError):
    """Schemes, a method or a key that cannot be used. The text says what would be right."""


class Scheme(StrEnum):
    """A way to sign a delivery."""

    #: `X-Hub-Signature: <method>=<hex>` over the body, as in W3C WebSub and GitHub's first webhooks
    WEBSUB = "websub"
    #: `X-Hub-Signature-256: sha256=<hex>`, and a true SHA-1 in `X-Hub-Signature`, over the body, as GitHub sends them
    GITHUB = "github"
    #: `webhook-signature: v1,<base64>` over `id.timestamp.body` (Standard Webhooks)
    STANDARD = "standard"
    #: `webhook-signature: v1a,<base64>` over the same, with Ed25519 (Standard Webhooks)
    STANDARD_ED25519 = "standard-ed25519"
    #: `X-Webhook-Signature: <hex>` over the body, HMAC-SHA256
    TIMESTAMPED = "timestamped"
    #: `X-Hub-Signature: sha1=<hex>` over the body, HMAC-SHA256 in spite of its label, as ServiceStack.Webhooks sends it
    SERVICESTACK = "servicestack"
    #: `Content-Digest`, `Signature-Input` and `Signature` (RFC 9421), HMAC-SHA256
    RFC9421 = "rfc9421"
    #: the same with Ed25519
    RFC9421_ED25519 = "rfc9421-ed25519"


#: these carry one signature, so during a rotation they cannot serve receivers of both secrets at once
SINGLE_VALUED = frozenset(
    {
        Scheme.WEBSUB,
        Scheme.GITHUB,
        Scheme.TIMESTAMPED,
        Scheme.SERVICESTACK,
        Scheme.RFC9421,
        Scheme.RFC9421_ED25519,
    }
)
#: these sign with a key pair, which only subscriptions have
ASYMMETRIC = frozenset({Scheme.STANDARD_ED25519, Scheme.RFC9421_ED25519})

#: schemes that write the same header, and what that header is
_EXCLUSIVE = (
    ((Scheme.WEBSUB, Scheme.GITHUB, Scheme.SERVICESTACK), "X-Hub-Signature"),
    ((Scheme.RFC9421, Scheme.RFC9421_ED25519), "Signature"),
)
#: the one header that takes several signatures, a space between them
_SHARED_HEADER = "webhook-signature"


class Signable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt of a delivery, as far as signatures cover it."""

    #: what signs: schemes with one signature use the first; the others all, in this order
    keys: tuple[SigningKey, ...]
    #: the wire id
    delivery_id: str
    #: Unix seconds of this attempt
    timestamp: int
    #: the exact bytes that are sent
    body: bytes
    content_type: str
    #: the absolute URL as the endpoint sees it: scheme, Host, path and query
    target_uri: str
    #: tells the receiver which key to verify with
    key_id: str
    method: str
    #: the hash that `websub` uses
    hub_method: str

    def __repr__(self) -> str:
        # The rest may be a credential, or the payload.
        return f"Signable(delivery_id={self.delivery_id!r}, timestamp={self.timestamp!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("delivery_id", self.delivery_id), ("timestamp", self.timestamp)]


def sign(
    schemes: Iterable[Scheme],
    *,
    keys: Sequence[SigningKey],
    delivery_id: str,
    timestamp: int,
    body: bytes,
    content_type: str,
    target_uri: str,
    key_id: str,
    method: str = "POST",
    hub_method: str = "sha256",
) -> list[tuple[str, str]]:
    """The signature headers of one attempt, scheme by scheme, in the order given; each header occurs once.

    `keys[0]` signs. Schemes whose header takes several signatures carry one by each further key too, unless that
    key cannot serve the scheme: whoever still knows only that one cannot have verified the scheme with it.
    `target_uri` is the absolute URL as the endpoint sees it, and `content_type` what is sent; both byte for byte.

    Raises SignatureError for schemes that exclude each other, an unknown `hub_method`, a scheme that needs a key pair
    where `keys[0]` has none, and for `rfc9421` values that are not printable ASCII; SecretError where `standard` meets
    a secret that is not base64. `check_schemes` finds most of it earlier.
    """
    signable = Signable(
        keys=tuple(keys),
        delivery_id=delivery_id,
        timestamp=timestamp,
        body=body,
        content_type=content_type,
        target_uri=target_uri,
        key_id=key_id,
        method=method,
        hub_method=hub_method,
    )
    return headers_of(schemes, signable)


def headers_of(schemes: Iterable[Scheme], signable: Signable) -> list[tuple[str, str]]:
    """What `sign` returns, for an attempt that has been put together."""
    if not signable.keys:
        raise SignatureError("Signing needs a key.")
    headers: dict[str, str] = {}
    for scheme in schemes:
        for name, value in _SIGNERS[scheme](signable):
            known = headers.setdefault(name, value)
            if known == value:
                continue
            if name == _SHARED_HEADER:
                headers[name] = f"{known} {value}"
            else:
                raise SignatureError(f"Two of the schemes write {name}: use one of them.")
    return list(headers.items())


def default_schemes(secret: Secret) -> tuple[Scheme, ...]:
    """The schemes that apply when none are asked for: those of the two defaults that the secret can serve."""
    if _has_standard_key(secret):
        return (Scheme.WEBSUB, Scheme.STANDARD)
    return (Scheme.WEBSUB,)


def has_single_valued(schemes: Iterable[Scheme]) -> bool:
    """Whether one of the schemes can carry only one signature, so that a rotation may need a second try."""
    return not SINGLE_VALUED.isdisjoint(schemes)


def check_combination(schemes: Sequence[Scheme]) -> None:
    """Raise SignatureError unless these schemes can be used together. For when the secret is not known yet."""
    if not schemes:
        raise SignatureError("Name at least one scheme, or leave `schemes` out to get the default ones.")
    if len(set(schemes)) != len(schemes):
        raise SignatureError("Name each scheme once.")
    for group, header in _EXCLUSIVE:
        if len(set(group).intersection(schemes)) > 1:
            names = ", ".join(f"`{scheme}`" for scheme in group)
            raise SignatureError(f"Use one of {names}: each of them writes the header {header}.")


def check_schemes(schemes: Sequence[Scheme], key_text: Secret, *, has_key_pair: bool) -> None:
    """Raise SignatureError unless these schemes can be used together, and with this secret and key pair, if any."""
    check_combination(schemes)
    if Scheme.STANDARD in schemes and not _has_standard_key(key_text):
        raise SignatureError(
            "The scheme `standard` needs a base64 secret: the standard alphabet, padded, `whsec_` before it"
            " or not. Use such a secret, or schemes without `standard`, such as `websub` alone."
        )
    if not has_key_pair:
        for scheme in schemes:
            if scheme in ASYMMETRIC:
                raise SignatureError(
                    f"The scheme `{scheme}` needs a key pair, and only subscriptions have a key pair."
                    " Use a scheme that signs with the secret."
                )


def hmac_hex(secret: Secret, body: bytes, method: str) -> str:
    """HMAC of a body in hex. The key is the secret's text as UTF-8, never decoded: `whsec_` is a part of it."""
    return hmac.digest(secret.reveal().encode(), body, method).hex()


def standard_content(delivery_id: str, timestamp: str, body: bytes) -> bytes:
    """What Standard Webhooks signs (1.0.0, "Signature scheme")."""
    return f"{delivery_id}.{timestamp}.".encode() + body


def _websub(signable: Signable) -> list[tuple[str, str]]:
    # W3C WebSub, "Authenticated Content Distribution"
    method = signable.hub_method
    if method not in HUB_METHODS:
        raise SignatureError(f"The hub method is one of {', '.join(HUB_METHODS)}.")
    return [("X-Hub-Signature", f"{method}={hmac_hex(signable.keys[0].secret, signable.body, method)}")]


def _github(signable: Signable) -> list[tuple[str, str]]:
    # GitHub Docs, "Validating webhook deliveries"; the SHA-1 is what its webhooks had before
    secret = signable.keys[0].secret
    return [
        ("X-Hub-Signature-256", f"sha256={hmac_hex(secret, signable.body, 'sha256')}"),
        ("X-Hub-Signature", f"sha1={hmac_hex(secret, signable.body, 'sha1')}"),
    ]


def _servicestack(signable: Signable) -> list[tuple[str, str]]:
    # jezzsantos/ServiceStack.Webhooks, HmacUtils: SHA-256 under the label sha1; its receivers compare the whole text
    return [("X-Hub-Signature", f"sha1={hmac_hex(signable.keys[0].secret, signable.body, 'sha256')}")]


def _timestamped(signable: Signable) -> list[tuple[str, str]]:
    # X-Webhook-Timestamp goes with every delivery; it is not covered here
    return [("X-Webhook-Signature", hmac_hex(signable.keys[0].secret, signable.body, "sha256"))]


def _standard(signable: Signable) -> list[tuple[str, str]]:
    return _standard_headers(signable, _v1)


def _standard_ed25519(signable: Signable) -> list[tuple[str, str]]:
    return _standard_headers(signable, _v1a)


def _v1(key: SigningKey, content: bytes) -> str:
    return "v1," + _base64(hmac.digest(standard_key(key.secret), content, "sha256"))


def _v1a(key: SigningKey, content: bytes) -> str:
    return "v1a," + _base64(_ed25519(key, content))


def _base64(signature: bytes) -> str:
    return binascii.b2a_base64(signature, newline=False).decode("ascii")


def _standard_headers(signable: Signable, signature: Callable[[SigningKey, bytes], str]) -> list[tuple[str, str]]:
    # Standard Webhooks 1.0.0, "Webhook headers"
    timestamp = str(signable.timestamp)
    content = standard_content(signable.delivery_id, timestamp, signable.body)
    text = signature(signable.keys[0], content)
    if len(signable.keys) > 1:
        signatures = [text]
        for older in signable.keys[1:]:
            try:
                signatures.append(signature(older, content))
            except (SecretError, SignatureError):
                continue  # see `sign`
        # a key pair that outlives a rotation signs alike under both secrets
        text = " ".join(dict.fromkeys(signatures))
    return [("webhook-id", signable.delivery_id), ("webhook-timestamp", timestamp), (_SHARED_HEADER, text)]


def _rfc9421(signable: Signable) -> list[tuple[str, str]]:
    def signature(base: bytes) -> bytes:
        return hmac.digest(signable.keys[0].secret.reveal().encode(), base, "sha256")

    return _message_headers(signable, message_signatures.HMAC_SHA256, signature)


def _rfc9421_ed25519(signable: Signable) -> list[tuple[str, str]]:
    return _message_headers(signable, message_signatures.ED25519, lambda base: _ed25519(signable.keys[0], base))


def _message_headers(signable: Signable, alg: str, signature: Callable[[bytes], bytes]) -> list[tuple[str, str]]:
    digest = message_signatures.content_digest(signable.body)
    values = (signable.method, signable.target_uri, digest, signable.content_type, signable.delivery_id)
    try:
        # `alg` is sent because `keyid` alone does not tell it: a subscription has a secret and a key pair under one id.
        # A receiver still decides by its own key (RFC 9421, section 3.2, step 6), and refuses an `alg` that differs.
        params = message_signatures.signature_params(
            MESSAGE_COMPONENTS, created=signable.timestamp, key_id=signable.key_id, alg=alg
        )
        base = message_signatures.signature_base(list(zip(MESSAGE_COMPONENTS, values, strict=True)), params)
    except MessageSignatureError as exc:
        raise SignatureError(str(exc)) from None
    return [("Content-Digest", digest), *message_signatures.signature_fields(MESSAGE_LABEL, params, signature(base))]


def _ed25519(key: SigningKey, content: bytes) -> bytes:
    if key.seed is None:
        raise SignatureError("This scheme needs a key pair, and there is none.")
    return private_key(key.seed).sign(content)


_SIGNERS: dict[Scheme, Callable[[Signable], list[tuple[str, str]]]] = {
    Scheme.WEBSUB: _websub,
    Scheme.GITHUB: _github,
    Scheme.STANDARD: _standard,
    Scheme.STANDARD_ED25519: _standard_ed25519,
    Scheme.TIMESTAMPED: _timestamped,
    Scheme.SERVICESTACK: _servicestack,
    Scheme.RFC9421: _rfc9421,
    Scheme.RFC9421_ED25519: _rfc9421_ed25519,
}


def _has_standard_key(secret: Secret) -> bool:
    try:
        standard_key(secret)
    except SecretError:
        return False
    return True
