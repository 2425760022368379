"""The eight ways to sign a webhook: verifying and signing, written from their descriptions.

What is accepted is what every receiver accepts: hexadecimal in lower case, base64 with its padding, one header of each
name. Sources: W3C WebSub, section 7.1; GitHub Docs, "Validating webhook deliveries"; Standard Webhooks 1.0.0;
ServiceStack.Webhooks; RFC 9421; docs/http-api.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dispatcher.conformance.signatures import http_signatures
from dispatcher.conformance.signatures.http_signatures import Message, Mismatch
from dispatcher.conformance.wire.requests import Headers, Received
from dispatcher.errors import ConfigError

SCHEMES = (
    "websub",
    "github",
    "standard",
    "standard-ed25519",
    "timestamped",
    "servicestack",
    "rfc9421",
    "rfc9421-ed25519",
)
#: those that say when they were made; of `timestamped` the time is not signed
TIMED = frozenset({"standard", "standard-ed25519", "timestamped", "rfc9421", "rfc9421-ed25519"})
#: what X-Hub-Signature may name
HUB_METHODS = ("sha1", "sha256", "sha384", "sha512")
#: what our own signatures by RFC 9421 cover
COVERED = ("@method", "@target-uri", "content-digest", "content-type", "x-webhook-delivery")
#: the label of our own signatures by RFC 9421
LABEL = "webhook"
#: signatures of one kind in one request; each costs a computation by each key
MAX_SIGNATURES = 16

_ALGORITHMS = {"rfc9421": "hmac-sha256", "rfc9421-ed25519": "ed25519"}
_VERSIONS = {"standard": "v1,", "standard-ed25519": "v1a,"}
_HEX = re.compile(r"[0-9a-f]*")
_SECONDS = re.compile(r"0|[1-9][0-9]{0,14}")
# a full stop would leave open where the id ends and the time begins
_MESSAGE_ID = re.compile(r"[!-\-/-~]+")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_URL = re.compile(r"(?P<scheme>[A-Za-z]+)://(?:[^/?#]*@)?(?P<authority>[^/?#]*)(?P<path>[^#]*)(?:#.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What signs or verifies. Its `repr` shows nothing."""

    #: its text, as its owner has it: `whsec_…` or plain
    secret: str = field(default="", repr=False)
    #: an Ed25519 private key, 32 bytes: to sign, and to verify where there is no public one
    seed: bytes | None = field(default=None, repr=False)
    #: an Ed25519 public key, 32 bytes: to verify
    public_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is to be said about a request's signature by one scheme."""

    scheme: str
    is_good: bool
    #: what is wrong, for people; shows neither secret nor signature. Empty when all is good
    reason: str = ""
    #: which of the keys matched, from 0; of a signature that is genuine but too old, too
    key: int | None = None
    #: the time that the request claims, Unix seconds, signed or not: webhook-timestamp, `created`, X-Webhook-Timestamp
    timestamp: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a signature by RFC 9421 has to be like beside being right: the RFC leaves that to each application (1.4)."""

    #: None: any label will do
    label: str | None = LABEL
    #: what it covers at least
    covered: tuple[str, ...] = COVERED
    #: it tells when it was made
    is_dated: bool = True


#: as this dispatcher signs
OURS = Profile()
#: without the digest a signature would say nothing of the body (RFC 9421, section 7.2.8); all else is up to the sender
ANYBODYS = Profile(label=None, covered=("content-digest",), is_dated=False)


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of `whpk_…`, or of their base64 alone. Raises ConfigError."""
    try:
        decoded = base64.b64decode(text.removeprefix("whpk_"), validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != 32:
        raise ConfigError("a public key is `whpk_` and the base64 of 32 bytes")
    return decoded


# --- verifying ----------------------------------------------------------------------------------------------


def verify(
    scheme: str,
    keys: Sequence[Key],
    request: Received,
    *,
    now: float,
    tolerance: float | None = 300.0,
    hub_method: str = "sha256",
    profile: Profile = OURS,
) -> Verdict:
    """Whether a request is signed by one of the keys, and, where the scheme carries a time, made within the tolerance.

    The tolerance is in seconds, before and after `now`; None: any time will do. `profile` is what is asked of a
    signature by RFC 9421. It never raises for anything that came over the wire; ConfigError for a scheme or method
    that there is not.
    """
    _check_settings(scheme, hub_method)
    question = _Question(
        scheme=scheme, keys=keys, request=request, now=now, hub_method=hub_method, profile=profile, label=LABEL
    )
    labels = question.labels() if scheme in _ALGORITHMS else [LABEL]
    verdicts = [_judge(replace(question, label=label), tolerance) for label in labels]
    return next((one for one in verdicts if one.is_good), verdicts[0])


def _judge(question: _Question, tolerance: float | None) -> Verdict:
    timestamp, key = question.claimed_time(), None
    try:
        key = _MATCHERS[question.scheme](question)
        if question.scheme in TIMED and tolerance is not None and (timestamp or question.is_dated):
            _check_age(timestamp, question.now, tolerance)
    except Mismatch as wrong:
        return Verdict(scheme=question.scheme, is_good=False, reason=str(wrong), key=key, timestamp=timestamp)
    return Verdict(scheme=question.scheme, is_good=True, key=key, timestamp=timestamp)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """Which of these keys signed this request?"""

    scheme: str
    keys: Sequence[Key] = field(repr=False)
    request: Received
    now: float
    hub_method: str
    profile: Profile
    #: of the signature by RFC 9421 that is looked at
    label: str

    @property
    def is_dated(self) -> bool:
        """Whether it has to tell its time."""
        return self.scheme not in _ALGORITHMS or self.profile.is_dated

    def labels(self) -> list[str]:
        """The labels of the signatures by RFC 9421 that will do; the usual one where there is none that can be read."""
        if self.profile.label is not None:
            return [self.profile.label]
        try:
            return http_signatures.labels(self.message())[:MAX_SIGNATURES] or [LABEL]
        except Mismatch:
            return [LABEL]

    def only(self, name: str) -> str:
        """The value of a header that has to come exactly once."""
        values = self.request.values(name)
        if not values:
            raise Mismatch(f"no {name} header")
        if len(values) > 1:
            raise Mismatch(f"{name} comes more than once")
        return values[0]

    def digits(self, name: str, label: str, method: str) -> str:
        """What follows a label in a header, if it can be a digest by this method."""
        value = self.only(name)
        if not value.startswith(label):
            raise Mismatch(f"{name} does not begin with {label}")
        digits = value.removeprefix(label)
        if not _HEX.fullmatch(digits):
            raise Mismatch(f"{name} is not hexadecimal in lower case")
        expected = hashlib.new(method).digest_size * 2
        if len(digits) != expected:
            raise Mismatch(f"{name} has {len(digits)} hexadecimal digits instead of {expected}")
        return digits

    def seconds(self, name: str) -> int:
        """A header's Unix time."""
        value = self.only(name)
        if not _SECONDS.fullmatch(value):
            raise Mismatch(f"{name} is not whole Unix seconds")
        return int(value)

    def message(self) -> Message:
        """What of the request a signature by RFC 9421 can cover."""
        host = self.only("Host")
        # with a slash in it, a part of the path could be moved there, and the URL would be the same
        if not _HOST.fullmatch(host):
            raise Mismatch("Host is not a host")
        origin = ("https" if self.request.is_tls else "http") + "://" + host
        if not self.request.target.startswith("/"):
            raise Mismatch("the request's target is not a path")
        return Message(method=self.request.method, url=origin + self.request.target, headers=self.request.headers)

    def claimed_time(self) -> int | None:
        """The time that the request claims, wherever the scheme has it; None if it cannot be read."""
        try:
            if self.scheme in _ALGORITHMS:
                return http_signatures.read(self.message(), self.label).created
            return self.seconds("webhook-timestamp" if self.scheme in _VERSIONS else "X-Webhook-Timestamp")
        except Mismatch:
            return None

    def first_key(self, matches: Callable[[Key], bool]) -> int:
        """The first key that matches. Raises Mismatch: none does, or none is one for this scheme."""
        unfit = "there is no key to verify with"
        is_any_fit = False
        for index, key in enumerate(self.keys):
            try:
                if matches(key):
                    return index
            except ConfigError as exc:
                unfit = str(exc)
            else:
                is_any_fit = True
        raise Mismatch("no signature matches" if is_any_fit else unfit)


def _match_websub(question: _Question) -> int:
    method = question.hub_method
    digits = question.digits("X-Hub-Signature", f"{method}=", method)
    return question.first_key(lambda key: _same(digits, _hex_hmac(key, question.request.body, method)))


def _match_github(question: _Question) -> int:
    """Both headers have to be right, by the same key."""
    newer = question.digits("X-Hub-Signature-256", "sha256=", "sha256")
    older = question.digits("X-Hub-Signature", "sha1=", "sha1")
    body = question.request.body
    found = question.first_key(lambda key: _same(newer, _hex_hmac(key, body, "sha256")))
    if not _same(older, _hex_hmac(question.keys[found], body, "sha1")):
        raise Mismatch("X-Hub-Signature does not match, though X-Hub-Signature-256 does")
    return found


def _match_timestamped(question: _Question) -> int:
    digits = question.digits("X-Webhook-Signature", "", "sha256")
    question.seconds("X-Webhook-Timestamp")
    return question.first_key(lambda key: _same(digits, _hex_hmac(key, question.request.body, "sha256")))


def _match_servicestack(question: _Question) -> int:
    # an HMAC-SHA256 in spite of its label
    digits = question.digits("X-Hub-Signature", "sha1=", "sha256")
    return question.first_key(lambda key: _same(digits, _hex_hmac(key, question.request.body, "sha256")))


def _match_standard(question: _Question) -> int:
    version = _VERSIONS[question.scheme]
    signed = _standard_content(
        question.only("webhook-id"), question.seconds("webhook-timestamp"), question.request.body
    )
    parts = question.only("webhook-signature").split(" ")
    signatures = [part.removeprefix(version) for part in parts if part.startswith(version)]
    if not signatures:
        raise Mismatch(f"webhook-signature has no {version[:-1]} signature")
    if len(signatures) > MAX_SIGNATURES:
        raise Mismatch(f"webhook-signature has more than {MAX_SIGNATURES} {version[:-1]} signatures")

    def is_signed_by(key: Key) -> bool:
        if question.scheme == "standard":
            expected = _base64(hmac.digest(_standard_key(key), signed, "sha256"))
            return any(_same(signature, expected) for signature in signatures)
        public_key = _public_key(key)
        return any(_is_signed(public_key, _from_base64(signature), signed) for signature in signatures)

    return question.first_key(is_signed_by)


def _match_message_signature(question: _Question) -> int:
    message = question.message()
    signature = http_signatures.read(message, question.label)
    missing = [name for name in question.profile.covered if name not in signature.covered]
    if missing:
        raise Mismatch(f"the signature does not cover {', '.join(missing)}")
    if signature.created is None and question.is_dated:
        raise Mismatch("the signature does not say when it was created")
    if signature.algorithm not in {None, _ALGORITHMS[question.scheme]}:
        raise Mismatch(f"alg is not {_ALGORITHMS[question.scheme]}")
    http_signatures.check_content_digest(message, question.request.body)
    base = signature.base(message)

    def is_signed_by(key: Key) -> bool:
        if question.scheme == "rfc9421":
            return hmac.compare_digest(signature.value, hmac.digest(_text_key(key), base, "sha256"))
        return _is_signed(_public_key(key), signature.value, base)

    found = question.first_key(is_signed_by)
    if signature.expires is not None and signature.expires < question.now:
        raise Mismatch("the signature has expired")
    return found


_MATCHERS: dict[str, Callable[[_Question], int]] = {
    "websub": _match_websub,
    "github": _match_github,
    "standard": _match_standard,
    "standard-ed25519": _match_standard,
    "timestamped": _match_timestamped,
    "servicestack": _match_servicestack,
    "rfc9421": _match_message_signature,
    "rfc9421-ed25519": _match_message_signature,
}


def _check_age(timestamp: int | None, now: float, tolerance: float) -> None:
    if timestamp is None:
        raise Mismatch("there is no timestamp")
    age = now - timestamp
    if not abs(age) <= tolerance:
        where = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s ahead"
        raise Mismatch(f"the timestamp is {where}, more than {tolerance:g} s")


# --- signing ------------------------------------------------------------------------------------------------


def sign(
    scheme: str,
    key: Key,
    *,
    method: str,
    url: str,
    headers: Headers,
    body: bytes,
    message_id: str,
    timestamp: int,
    hub_method: str = "sha256",
    key_id: str = "",
) -> list[tuple[str, str]]:
    """The headers to add to a request, so that it is signed.

    X-Webhook-Timestamp, X-Webhook-Delivery and Content-Digest are made where a scheme needs them and `headers` has
    none; those that `headers` has are signed as they stand. `rfc9421` needs a Content-Type in `headers`. `url` is
    absolute, with the host as it stands in the Host header. Raises ConfigError for a key that the scheme cannot use,
    or for what cannot be signed.
    """
    _check_settings(scheme, hub_method)
    have = {name.lower() for name, _ in headers}
    match scheme:
        case "websub":
            return [("X-Hub-Signature", f"{hub_method}={_hex_hmac(key, body, hub_method)}")]
        case "github":
            return [
                ("X-Hub-Signature-256", f"sha256={_hex_hmac(key, body, 'sha256')}"),
                ("X-Hub-Signature", f"sha1={_hex_hmac(key, body, 'sha1')}"),
            ]
        case "servicestack":
            return [("X-Hub-Signature", f"sha1={_hex_hmac(key, body, 'sha256')}")]
        case "timestamped":
            beside = [] if "x-webhook-timestamp" in have else [("X-Webhook-Timestamp", str(timestamp))]
            return [*beside, ("X-Webhook-Signature", _hex_hmac(key, body, "sha256"))]
    try:
        if scheme in _VERSIONS:
            return _sign_standard(scheme, key, message_id, timestamp, body)
        made = [("X-Webhook-Delivery", message_id), ("Content-Digest", http_signatures.content_digest(body))]
        added = [(name, value) for name, value in made if name.lower() not in have]
        signed = http_signatures.create(
            Message(method=method, url=_target_uri(url), headers=(*headers, *added)),
            label=LABEL,
            covered=COVERED,
            created=timestamp,
            key_id=key_id,
            algorithm=_ALGORITHMS[scheme],
            signer=lambda base: (
                hmac.digest(_text_key(key), base, "sha256") if scheme == "rfc9421" else _private_key(key).sign(base)
            ),
        )
    except Mismatch as exc:
        raise ConfigError(f"this cannot be signed: {exc}") from None
    return [*added, *signed]


def _sign_standard(scheme: str, key: Key, message_id: str, timestamp: int, body: bytes) -> list[tuple[str, str]]:
    content = _standard_content(message_id, timestamp, body)
    if scheme == "standard":
        signature = hmac.digest(_standard_key(key), content, "sha256")
    else:
        signature = _private_key(key).sign(content)
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", _VERSIONS[scheme] + _base64(signature)),
    ]


def _target_uri(url: str) -> str:
    """A URL as the endpoint sees it: without user and fragment, with a path."""
    parts = _URL.fullmatch(url)
    if parts is None:
        raise Mismatch("the URL is not absolute")
    path = parts["path"] if parts["path"].startswith("/") else "/" + parts["path"]
    return f"{parts['scheme'].lower()}://{parts['authority']}{path}"


# --- keys and digests ---------------------------------------------------------------------------------------


def _check_settings(scheme: str, hub_method: str) -> None:
    if scheme not in SCHEMES:
        raise ConfigError(f"a scheme is one of {', '.join(SCHEMES)}")
    if hub_method not in HUB_METHODS:
        raise ConfigError(f"a hub method is one of {', '.join(HUB_METHODS)}")


def _standard_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    if not _MESSAGE_ID.fullmatch(message_id):
        raise Mismatch("webhook-id is empty, has a full stop, or is not printable ASCII")
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _text_key(key: Key) -> bytes:
    """The secret's text. An empty one is none: anybody could sign with it."""
    if not key.secret:
        raise ConfigError("the scheme needs a secret")
    return key.secret.encode("utf-8", "surrogatepass")


def _standard_key(key: Key) -> bytes:
    """What Standard Webhooks signs with: the decoded secret, without its prefix."""
    decoded = _from_base64(key.secret.removeprefix("whsec_"))
    if not decoded:
        raise ConfigError("`standard` needs a secret in base64, with or without `whsec_`")
    return decoded


def _private_key(key: Key) -> Ed25519PrivateKey:
    if key.seed is None or len(key.seed) != 32:
        raise ConfigError("the scheme needs an Ed25519 private key of 32 bytes")
    return Ed25519PrivateKey.from_private_bytes(key.seed)


def _public_key(key: Key) -> Ed25519PublicKey:
    if key.public_key is None and key.seed is not None:
        return _private_key(key).public_key()
    try:
        return Ed25519PublicKey.from_public_bytes(key.public_key or b"")
    except ValueError:
        raise ConfigError("the scheme needs an Ed25519 public key of 32 bytes") from None


def _is_signed(public_key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        public_key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _hex_hmac(key: Key, body: bytes, method: str) -> str:
    return hmac.new(_text_key(key), body, method).hexdigest()


def _same(given: str, expected: str) -> bool:
    """Compared in constant time; what is not ASCII is never the same as what we expect."""
    return hmac.compare_digest(given.encode("ascii", "replace"), expected.encode("ascii"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _from_base64(text: str) -> bytes:
    """Decoded, if it is the one padded form of these bytes in the standard alphabet; else nothing."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        return b""
    return decoded if _base64(decoded) == text else b""
