"""Ids: UUIDv7 (RFC 9562 §5.7) as 32 hex digits. They sort by the time they were made."""

from __future__ import annotations

import os
import re
import time

_last_ms = 0
_counter = 0

_ID = re.compile(r"[0-9a-f]{32}\Z")


def new_id() -> str:
    """A new id. Ids made by one process are strictly increasing."""
    global _last_ms, _counter  # noqa: PLW0603 - the monotonic counter of RFC 9562 §6.2 is state of the process
    now = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    if now > _last_ms:
        _last_ms = now
        _counter = random >> 70 & 0x1FF
    else:
        _counter += 1
        if _counter > 0xFFF:
            _last_ms += 1
            _counter = 0
    tail = random & 0x3FFF_FFFF_FFFF_FFFF
    return f"{_last_ms << 80 | 0x7 << 76 | _counter << 64 | 0x2 << 62 | tail:032x}"


def is_id(text: str) -> bool:
    """Whether a text is written as our ids are."""
    return _ID.match(text) is not None


def id_floor(ms: int) -> str:
    """The least id of a moment (milliseconds since the epoch): what was made before it sorts below."""
    return f"{max(ms, 0) << 80:032x}"
