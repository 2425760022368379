"""The handshake by which an endpoint says that it wants what we send.

HTTP 1.1 Web Hooks for Event Delivery (CloudEvents, version 1.0.2), section 4, "Abuse Protection": an OPTIONS request
names us and the rate we would like; the answer grants both, now, or later at the URL that the request names.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from subscriptions.keyring import Keyring, KeyringError
from subscriptions.secrets import Secret

_PURPOSE = "handshake"
#: seconds of the unit in which rates are named
_MINUTE = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Handshakes:
    """What our handshakes say of us."""

    #: the DNS name that stands for us
    origin: str
    #: where this service is reached from outside, to name a URL for a later grant; None names none
    public_url: str | None
    keyring: Keyring

    @property
    def named(self) -> tuple[str, str]:
        """The header that says who sends, in the handshake and in each request after it (section 4.1.2)."""
        return "WebHook-Request-Origin", self.origin

    def headers(self, delivery_id: str, rate: float | None) -> list[tuple[str, str]]:
        """What a handshake asks for; `rate` is in requests per second."""
        asked = [self.named]
        if self.public_url is not None:
            token = _token(self.keyring, delivery_id, None)
            url = f"{self.public_url.rstrip('/')}/webhooks/handshakes/{delivery_id}/{token}"
            asked.append(("WebHook-Request-Callback", url))
        if rate is not None:
            asked.append(("WebHook-Request-Rate", str(max(1, round(rate * _MINUTE)))))
        return asked

    def secrets(self, delivery_id: str) -> tuple[Secret, ...]:
        """What lets its holder grant: the token in that URL, and the part of it that is not known otherwise."""
        token = _token(self.keyring, delivery_id, None)
        return Secret(token), Secret(token.rpartition(".")[2])

    def is_granted(self, headers: Mapping[str, str]) -> bool:
        """Whether an answer (names in lower case) lets us send."""
        allowed = {name.strip().lower() for name in headers.get("webhook-allowed-origin", "").split(",")}
        return "*" in allowed or self.origin.lower() in allowed


def granted_rate(headers: Mapping[str, str]) -> float | None:
    """Requests per second that an answer (names in lower case) allows; None if it sets no limit."""
    return rate_of(headers.get("webhook-allowed-rate", ""))


def rate_of(text: str) -> float | None:
    """Requests per second of a text that names them per minute; None for `*`, and for what is no rate."""
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) == 0:
        return None
    return int(text) / _MINUTE


def is_token(keyring: Keyring, delivery_id: str, token: str) -> bool:
    """Whether a token is the one that the handshake of this delivery named."""
    kid, _, _ = token.partition(".")
    try:
        expected = _token(keyring, delivery_id, kid)
    except KeyringError:
        return False
    return hmac.compare_digest(expected.encode(), token.encode("utf-8", "replace"))


def _token(keyring: Keyring, delivery_id: str, kid: str | None) -> str:
    kid, key = keyring.signing_key(_PURPOSE, kid)
    return f"{kid}.{hmac.digest(key, delivery_id.encode(), 'sha256').hex()}"
