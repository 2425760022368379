"""The headers that are ours to set: a custom header never overrides them (DESIGN §5)."""

from __future__ import annotations

import re

#: ours, those of signatures and CloudEvents, and those that frame the message or speak to the next hop
RESERVED = re.compile(
    r"(?:x-webhook-.*|webhook-.*|x-hub-signature.*|ce-.*|content-.*|signature|signature-input"
    r"|user-agent|traceparent|tracestate|accept-encoding|host|connection|keep-alive|transfer-encoding"
    r"|te|trailer|upgrade|expect|proxy-.*)\Z",
    re.IGNORECASE,
)
