"""What of a request may be shown to whoever looks over a shoulder: all but what may be a secret."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dispatcher.conformance.wire.requests import Headers

#: headers whose values are no secrets; signatures prove something, but open nothing
_OPEN_HEADERS = frozenset(
    {
        *("accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-digest"),
        *("content-encoding", "content-length", "content-type", "date", "digest", "expect", "forwarded", "host"),
        *("signature", "signature-input", "traceparent", "tracestate", "transfer-encoding", "user-agent"),
        *("ce-dataschema", "ce-id", "ce-source", "ce-specversion", "ce-subject", "ce-time", "ce-type"),
        *("webhook-attempt", "webhook-id", "webhook-signature", "webhook-timestamp"),
        *("x-forwarded-for", "x-forwarded-proto", "x-request-id"),
        *("x-github-delivery", "x-github-event", "x-hub-signature", "x-hub-signature-256"),
        *("x-webhook-attempt", "x-webhook-delivery", "x-webhook-event"),
        *("x-webhook-signature", "x-webhook-timestamp"),
    }
)
#: a run of characters that may be a token. It is taken as a whole, so that a long one is read once
_RUN = re.compile(r"[A-Za-z0-9_.~+/=-]{16,}+")
#: how secrets begin, or what they hold: Standard Webhooks' keys, JWTs
_TELLTALE = re.compile(r"whsec_|whsk_|eyJ")
#: a member of JSON with a string for its value. A value without an end is taken up to the body's end
_MEMBER = re.compile(r'"(?P<name>[^"\\]{1,100})"(?P<colon>\s*+:\s*+)"(?P<value>(?:[^"\\]++|\\.)*+)"?', re.DOTALL)
_SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|credential|authorization|api.?key|private.?key|access.?key", re.IGNORECASE
)


def masked(value: str) -> str:
    """What stands in the place of a value that is not shown."""
    return f"[masked: {len(value)} characters]"


def mask_headers(headers: Headers, secrets: Sequence[str]) -> list[tuple[str, str]]:
    """Headers with those values that are known to be harmless; of the others, only how long they are."""
    return [
        (name, mask_text(value, secrets) if name.lower() in _OPEN_HEADERS else masked(value)) for name, value in headers
    ]


def mask_text(text: str, secrets: Sequence[str]) -> str:
    """A text without these secrets, without tokens, and without the members of JSON that are called so."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, masked(secret))
    text = _MEMBER.sub(_without_value, text)
    return _RUN.sub(lambda match: masked(match[0]) if _TELLTALE.search(match[0]) else match[0], text)


def _without_value(match: re.Match[str]) -> str:
    if not _SECRET_NAME.search(match["name"]):
        return match[0]
    return f'"{match["name"]}"{match["colon"]}"{masked(match["value"])}"'
