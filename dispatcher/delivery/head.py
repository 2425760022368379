"""The head of a request, as HTTP/1.1 writes it. No value of a header can begin another header, or another request."""

from __future__ import annotations

import functools
import re

from dispatcher.delivery.transport import Request
from dispatcher.errors import SendError
from dispatcher.headers import FRAMING
from dispatcher.models import Outcome

#: method and target of a request line (RFC 9112, section 3)
_REQUEST = re.compile(r"[A-Z]+ [!-~]+")
#: a field name (RFC 9110, section 5.6.2)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: the bytes of which a field value is made (RFC 9110, section 5.5)
_TEXT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
#: names of headers that are remembered; nearly all that are sent are ours
_NAMES = 1024


def head_of(request: Request) -> bytes:
    """Request line and headers. Raises SendError when they cannot be written as HTTP."""
    target = request.target
    requested = f"{request.method} {target.path}"
    lines = [f"{requested} HTTP/1.1\r\nHost: {target.authority}"]
    for name, value in request.headers:
        opening = _opening(name)
        if opening:
            lines.append(opening + value)
    lines.append(f"Content-Length: {len(request.body)}\r\n\r\n")
    head = "\r\n".join(lines).encode()
    # What is no text must be our own line ends, and no more of them.
    if head.translate(None, _TEXT) != b"\r\n" * (len(lines) + 2) or not _REQUEST.fullmatch(requested):
        raise _unwritable()
    return head


@functools.lru_cache(_NAMES)
def _opening(name: str) -> str:
    """How the line of a header begins; empty for those that frame the message, which are written here."""
    if not _NAME.fullmatch(name):
        raise _unwritable()
    return "" if name.lower() in FRAMING else f"{name}: "


def _unwritable() -> SendError:
    return SendError(Outcome.INTERNAL_ERROR, "the request cannot be written as HTTP")
