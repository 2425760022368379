"""Whether a captured request carries a right signature, and if not, why not: for people who look for a fault.

A receiver in production should use a library of its own; this one explains. It never repeats a secret or an
expected signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from subscriptions import message_signatures
from subscriptions.message_signatures import MessageSignatureError, SignatureInput
from subscriptions.secrets import Secret, SecretError, SigningKey, public_key_bytes, standard_key
from subscriptions.signatures import (
    ASYMMETRIC,
    HUB_METHODS,
    MESSAGE_COMPONENTS,
    MESSAGE_LABEL,
    Scheme,
    SignatureError,
    standard_content,
)

#: seconds between a request's time and now that are taken, as the Standard Webhooks libraries have it
TOLERANCE = 300.0
SHA1_BYTES = 20
SHA256_BYTES = 32

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found in one request, by one scheme."""

    scheme: Scheme
    #: whether a right signature is there, and fresh where the scheme has a time
    ok: bool
    #: what was found, or what is wrong, in a sentence
    detail: str

    def __bool__(self) -> bool:
        return self.ok


def verify(
    scheme: Scheme,
    *,
    keys: Sequence[SigningKey] = (),
    public_keys: Sequence[str] = (),
    headers: Headers,
    body: bytes,
    method: str = "POST",
    target_uri: str | None = None,
    now: float,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Check the signature that `scheme` would have put on a request.

    One right signature, by any of the keys, is enough. `keys` are secrets, with their key pairs if they have one;
    `public_keys` (`whpk_…`) serve the Ed25519 schemes too. Header names are compared without regard to case. `now`
    is in Unix seconds, `tolerance` in seconds either way; freshness is judged last, so that an old capture still
    tells whether its signature is right. `target_uri` is the absolute URL that was called; `rfc9421` needs it.

    What is wrong with the request is in the answer. Raises SignatureError when it cannot be judged: without a key
    that fits the scheme, or without the URL; and SecretError for a malformed public key.
    """
    request = _Request(
        headers=_grouped(headers),
        body=body,
        method=method,
        target_uri=target_uri,
        secrets=tuple(key.secret for key in keys),
        public_keys=_usable_public_keys(keys, public_keys),
        now=now,
        tolerance=tolerance,
    )
    if scheme in ASYMMETRIC and not request.public_keys:
        raise SignatureError(f"The scheme `{scheme}` is verified with a public key (`whpk_…`).")
    if scheme not in ASYMMETRIC and not request.secrets:
        raise SignatureError(f"The scheme `{scheme}` is verified with the secret.")
    try:
        detail = _VERIFIERS[scheme](request)
    except (_WrongError, MessageSignatureError) as exc:
        return Verification(scheme=scheme, ok=False, detail=str(exc))
    return Verification(scheme=scheme, ok=True, detail=detail)


class _WrongError(Exception):
    """The request is not right. The text is the answer's detail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What was captured, and what to judge it by."""

    #: by lower-case name; several lines of one name stay apart
    headers: Mapping[str, Sequence[str]]
    body: bytes = field(repr=False)
    method: str
    target_uri: str | None = field(repr=False)
    secrets: tuple[Secret, ...]
    public_keys: tuple[Ed25519PublicKey, ...]
    now: float
    tolerance: float

    def header(self, name: str) -> str:
        """The value of a header that occurs once."""
        lines = self.headers.get(name.lower(), ())
        if not lines:
            raise _WrongError(f"The header {name} is missing.")
        if len(lines) > 1:
            raise _WrongError(f"The header {name} is there {len(lines)} times; once is right.")
        if not lines[0].isascii():
            raise _WrongError(f"The header {name} is not ASCII.")
        return lines[0].strip(" \t")

    def combined(self, name: str) -> str:
        """The value of a header that may be spread over several lines (RFC 9110, section 5.3)."""
        if name.lower() not in self.headers:
            raise _WrongError(f"The header {name} is missing.")
        return ", ".join(line.strip(" \t") for line in self.headers[name.lower()])

    def check_fresh(self, seconds: int, where: str) -> None:
        """To be called when the signature is known to be right."""
        age = self.now - seconds
        if abs(age) > self.tolerance:
            distance = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s in the future"
            raise _WrongError(
                f"The signature is right, but {where} is {distance}; up to {self.tolerance:.0f} s are taken."
            )


def _websub(request: _Request) -> str:
    method, given = _labelled(request, "X-Hub-Signature")
    if method not in HUB_METHODS:
        raise _WrongError(f"X-Hub-Signature begins with a method (one of {', '.join(HUB_METHODS)}) and `=`.")
    if method == "sha1" and len(given) == SHA256_BYTES:
        raise _WrongError(
            "X-Hub-Signature says sha1 and has the length of SHA-256, as the scheme `servicestack` has it."
        )
    _check_hmac(request, given, method, "X-Hub-Signature")
    return f"X-Hub-Signature is right ({method})."


def _github(request: _Request) -> str:
    for name, method in (("X-Hub-Signature-256", "sha256"), ("X-Hub-Signature", "sha1")):
        label, given = _labelled(request, name)
        if label != method:
            raise _WrongError(f"{name} begins with `{method}=` in the scheme `github`.")
        _check_hmac(request, given, method, name)
    return "X-Hub-Signature-256 and X-Hub-Signature are right."


def _servicestack(request: _Request) -> str:
    label, given = _labelled(request, "X-Hub-Signature")
    if label != "sha1":
        raise _WrongError("X-Hub-Signature begins with `sha1=` in the scheme `servicestack`.")
    if len(given) == SHA1_BYTES:
        raise _WrongError("X-Hub-Signature is as long as a true SHA-1; the scheme `servicestack` has SHA-256 there.")
    _check_hmac(request, given, "sha256", "X-Hub-Signature")
    return "X-Hub-Signature is right (HMAC-SHA256 in spite of its label)."


def _timestamped(request: _Request) -> str:
    given = _unhex(request.header("X-Webhook-Signature"), "X-Webhook-Signature")
    timestamp = _seconds(request, "X-Webhook-Timestamp")
    _check_hmac(request, given, "sha256", "X-Webhook-Signature")
    request.check_fresh(timestamp, "X-Webhook-Timestamp")
    return "X-Webhook-Signature is right (it does not cover X-Webhook-Timestamp)."


def _standard(request: _Request) -> str:
    keys = [key for secret in request.secrets if (key := _standard_key(secret)) is not None]
    if not keys:
        raise SignatureError("The scheme `standard` needs a base64 secret: the standard alphabet, padded.")
    return _check_standard(
        request,
        "v1",
        lambda signature, content: _is_any((hmac.digest(key, content, "sha256") for key in keys), signature),
    )


def _standard_ed25519(request: _Request) -> str:
    return _check_standard(request, "v1a", partial(_is_signed, request))


def _check_standard(request: _Request, version: str, matches: Callable[[bytes, bytes], bool]) -> str:
    delivery_id, stamp = request.header("webhook-id"), request.header("webhook-timestamp")
    timestamp = _seconds(request, "webhook-timestamp")
    entries = [entry.partition(",") for entry in request.header("webhook-signature").split()]
    signatures = [_unbase64(text) for entry_version, _, text in entries if entry_version == version]
    if not signatures:
        raise _WrongError(f"webhook-signature has no signature that begins with `{version},`.")
    content = standard_content(delivery_id, stamp, request.body)
    if not any(matches(signature, content) for signature in signatures if signature):
        raise _WrongError(_mismatch("webhook-signature", "webhook-id, webhook-timestamp and the body"))
    request.check_fresh(timestamp, "webhook-timestamp")
    return f"webhook-signature is right ({version})."


def _rfc9421(request: _Request) -> str:
    keys = [secret.reveal().encode() for secret in request.secrets]
    return _check_message(
        request,
        message_signatures.HMAC_SHA256,
        lambda signature, base: _is_any((hmac.digest(key, base, "sha256") for key in keys), signature),
    )


def _rfc9421_ed25519(request: _Request) -> str:
    return _check_message(request, message_signatures.ED25519, partial(_is_signed, request))


def _check_message(request: _Request, alg: str, matches: Callable[[bytes, bytes], bool]) -> str:
    if request.target_uri is None:
        raise SignatureError("An HTTP message signature covers the URL: the URL that was called is needed.")
    given = message_signatures.read_signature_input(request.combined("Signature-Input"), MESSAGE_LABEL)
    signature = message_signatures.read_byte_sequence(request.combined("Signature"), MESSAGE_LABEL)
    if given is None or signature is None:
        raise _WrongError(f"Signature-Input and Signature do not both have a member `{MESSAGE_LABEL}`.")
    created = _check_input(given, alg)
    values = {"@method": request.method, "@target-uri": request.target_uri}
    components = [(name, values[name] if name in values else request.combined(name)) for name in given.names]
    if not matches(signature, message_signatures.signature_base(components, given.params)):
        raise _WrongError(_mismatch("Signature", "the method, the URL and the headers that Signature-Input names"))
    _check_digest(request)
    if given.expires is not None and given.expires < request.now:
        raise _WrongError(f"The signature is right, but it expired {request.now - given.expires:.0f} s ago.")
    request.check_fresh(created, "`created` in Signature-Input")
    return f"Signature is right ({alg}), and Content-Digest is this body's."


def _check_input(given: SignatureInput, alg: str) -> int:
    """What a signature must say to be worth checking: it covers what matters, by this algorithm. Gives `created`."""
    for name in MESSAGE_COMPONENTS:
        if name not in given.names:
            raise _WrongError(f"Signature-Input does not cover {name}.")
    for name in given.names:
        if given.names.count(name) > 1:
            raise _WrongError("Signature-Input names a component twice.")
        if name.startswith("@") and name not in MESSAGE_COMPONENTS:
            raise _WrongError("Signature-Input covers a derived component that is not checked here.")
    if given.alg not in {None, alg}:
        # RFC 9421, section 3.2, step 6: the key decides, and an `alg` that differs is refused
        raise _WrongError(f"Signature-Input names another algorithm than {alg}.")
    if given.created is None:
        raise _WrongError("Signature-Input does not say when it was made (`created`).")
    return given.created


def _check_digest(request: _Request) -> None:
    digest = message_signatures.read_byte_sequence(request.combined("Content-Digest"), "sha-256")
    if digest is None:
        raise _WrongError("Content-Digest has no member `sha-256`.")
    if not hmac.compare_digest(digest, hashlib.sha256(request.body).digest()):
        raise _WrongError("The signature is right, but Content-Digest is another body's.")


def _check_hmac(request: _Request, given: bytes, method: str, name: str) -> None:
    digests = (hmac.digest(secret.reveal().encode(), request.body, method) for secret in request.secrets)
    if not _is_any(digests, given):
        raise _WrongError(_mismatch(name, "the body"))


def _is_any(expected: Iterable[bytes], given: bytes) -> bool:
    """Whether one is equal; all are compared, each in constant time."""
    found = False
    for digest in expected:
        found |= hmac.compare_digest(digest, given)
    return found


def _is_signed(request: _Request, signature: bytes, content: bytes) -> bool:
    for key in request.public_keys:
        try:
            key.verify(signature, content)
        except InvalidSignature:
            continue
        return True
    return False


def _mismatch(name: str, covered: str) -> str:
    return f"{name} does not match: it is by another key, or {covered} came otherwise than signed."


def _labelled(request: _Request, name: str) -> tuple[str, bytes]:
    label, separator, text = request.header(name).partition("=")
    if not separator:
        raise _WrongError(f"{name} has no `=` after the method.")
    return label, _unhex(text, name)


def _unhex(text: str, name: str) -> bytes:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise _WrongError(f"{name} is not in hex.") from None


def _unbase64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _seconds(request: _Request, name: str) -> int:
    text = request.header(name)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise _WrongError(f"{name} is not a whole number of Unix seconds.")
    return int(text)


def _standard_key(secret: Secret) -> bytes | None:
    try:
        return standard_key(secret)
    except SecretError:
        return None


def _grouped(headers: Headers) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        grouped.setdefault(name.lower(), []).append(value)
    return grouped


def _usable_public_keys(keys: Iterable[SigningKey], public_keys: Iterable[str]) -> tuple[Ed25519PublicKey, ...]:
    texts = [*(key.public_key for key in keys if key.public_key is not None), *public_keys]
    return tuple(Ed25519PublicKey.from_public_bytes(public_key_bytes(text)) for text in texts)


_VERIFIERS: dict[Scheme, Callable[[_Request], str]] = {
    Scheme.WEBSUB: _websub,
    Scheme.GITHUB: _github,
    Scheme.STANDARD: _standard,
    Scheme.STANDARD_ED25519: _standard_ed25519,
    Scheme.TIMESTAMPED: _timestamped,
    Scheme.SERVICESTACK: _servicestack,
    Scheme.RFC9421: _rfc9421,
    Scheme.RFC9421_ED25519: _rfc9421_ed25519,
}
