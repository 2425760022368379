"""The headers that are ours to set: a custom header never overrides them (docs/http-api.md lists them)."""

from __future__ import annotations

import re

#: those that frame the message or speak to the next hop (RFC 9110, section 7.6.1)
FRAMING = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "proxy-connection",
        "proxy-authorization",
    }
)

#: names of ours: the message's own, those of signatures and CloudEvents, and whatever may frame it
RESERVED = re.compile(
    r"(?:x-webhook-.*|webhook-.*|x-hub-signature.*|ce-.*|content-.*|proxy-.*|signature|signature-input"
    rf"|user-agent|traceparent|tracestate|accept-encoding|{'|'.join(sorted(FRAMING))})\Z",
    re.IGNORECASE,
)
