"""What a receiver does that knows one secret: it takes only what was signed with that.

Nothing here is ours: standardwebhooks and http-message-signatures where they know a scheme, else plain hmac or Ed25519,
written down once more from the documentation. `verifiers` asks more libraries, but only afterwards.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import http_message_signatures as hms
import standardwebhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.receiver import Received


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a receiver was given to verify with."""

    #: the text that its owner was shown
    secret: str
    #: `whpk_…`
    public_key: str


def is_signed(scheme: str, request: Received, known: Known) -> bool:
    """Whether a request carries a signature of this scheme that the receiver can verify."""
    return _CHECKS[scheme](request, known)


def single_valued(scheme: str) -> bool:
    """Whether a request carries only one signature of this scheme, so that it cannot serve two secrets at once."""
    return not scheme.startswith("standard")


def _hex(request: Received, known: Known, method: str) -> str:
    return hmac.new(known.secret.encode(), request.body, method).hexdigest()


def _same(given: str | None, computed: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), computed.encode())


def _websub(request: Received, known: Known) -> bool:
    given = request.header("X-Hub-Signature") or ""
    method = given.partition("=")[0]
    return method in {"sha1", "sha256", "sha384", "sha512"} and _same(given, f"{method}={_hex(request, known, method)}")


def _github(request: Received, known: Known) -> bool:
    return _same(request.header("X-Hub-Signature-256"), f"sha256={_hex(request, known, 'sha256')}") and _same(
        request.header("X-Hub-Signature"), f"sha1={_hex(request, known, 'sha1')}"
    )


def _servicestack(request: Received, known: Known) -> bool:
    return _same(request.header("X-Hub-Signature"), f"sha1={_hex(request, known, 'sha256')}")


def _timestamped(request: Received, known: Known) -> bool:
    return _same(request.header("X-Webhook-Signature"), _hex(request, known, "sha256"))


def _standard(request: Received, known: Known) -> bool:
    try:
        standardwebhooks.Webhook(known.secret).verify(request.body, dict(request.headers), json_parse=False)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def _public_key(known: Known) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(known.public_key.removeprefix("whpk_")))


def _standard_ed25519(request: Received, known: Known) -> bool:
    content = f"{request.header('webhook-id')}.{request.header('webhook-timestamp')}.".encode() + request.body
    for entry in (request.header("webhook-signature") or "").split(" "):
        version, _, signature = entry.partition(",")
        if version == "v1a":
            try:
                _public_key(known).verify(base64.b64decode(signature), content)
            except InvalidSignature:
                continue
            return True
    return False


class _Resolver(hms.HTTPSignatureKeyResolver):
    def __init__(self, key: bytes | Ed25519PublicKey) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> bytes | Ed25519PublicKey:
        return self._key


def _message(request: Received, key: bytes | Ed25519PublicKey) -> bool:
    algorithm = hms.algorithms.HMAC_SHA256 if isinstance(key, bytes) else hms.algorithms.ED25519
    verifier = hms.HTTPMessageVerifier(signature_algorithm=algorithm, key_resolver=_Resolver(key))
    headers = dict(request.headers)
    seen = SimpleNamespace(
        method=request.method, url=f"http://{request.header('Host')}{request.target}", headers=headers
    )
    digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
    if headers.get("Content-Digest") != f"sha-256=:{digest}:":
        return False
    try:
        return [result.label for result in verifier.verify(seen)] == ["webhook"]
    except hms.InvalidSignature:
        return False


_CHECKS: dict[str, Callable[[Received, Known], bool]] = {
    "websub": _websub,
    "github": _github,
    "standard": _standard,
    "standard-ed25519": _standard_ed25519,
    "timestamped": _timestamped,
    "servicestack": _servicestack,
    "rfc9421": lambda request, known: _message(request, known.secret.encode()),
    "rfc9421-ed25519": lambda request, known: _message(request, _public_key(known)),
}
SCHEMES = tuple(_CHECKS)
