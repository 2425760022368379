"""Ids: UUIDv7 (RFC 9562 §5.7) as 32 hex digits. They sort by the time they were made. Accounts have names."""

from __future__ import annotations

import os
import re
import time

_last_ms = 0
_counter = 0
#: how the ids of this millisecond begin
_beginning = ""

#: random ends that are ready: a call of the system for each id would cost more than all the rest of it
_tails: list[str] = []
#: how many are made together
TOGETHER = 256
#: the bits of their 16 digits that say which variant of UUID it is, and those that are random
_VARIANT = int("8000000000000000" * TOGETHER, 16)
_RANDOM = int("3fffffffffffffff" * TOGETHER, 16)
# A child of a fork must not make ids from the same ones.
os.register_at_fork(after_in_child=_tails.clear)

#: the name of an account
ACCOUNT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")

_ID = re.compile(r"[0-9a-f]{32}\Z")


def new_id() -> str:
    """A new id. Ids made by one process are strictly increasing."""
    global _last_ms, _counter, _beginning  # noqa: PLW0603 - the monotonic counter of RFC 9562 §6.2 is state of the process
    now = time.time_ns() // 1_000_000
    if now > _last_ms:
        _last_ms, _counter = now, int(_tail()[-3:], 16) & 0x1FF
        _beginning = f"{_last_ms:012x}7"
    elif _counter < 0xFFF:
        _counter += 1
    else:
        _last_ms, _counter = _last_ms + 1, 0
        _beginning = f"{_last_ms:012x}7"
    return f"{_beginning}{_counter:03x}{_tail()}"


def _tail() -> str:
    """The variant and 62 random bits, used once."""
    try:
        return _tails.pop()
    except IndexError:
        digits = f"{int.from_bytes(os.urandom(8 * TOGETHER)) & _RANDOM | _VARIANT:x}"
        _tails.extend([digits[at : at + 16] for at in range(0, len(digits), 16)])
        return _tail()


def is_id(text: str) -> bool:
    """Whether a text is written as our ids are."""
    return _ID.match(text) is not None


def id_floor(ms: int) -> str:
    """The least id of a moment (milliseconds since the epoch): what was made before it sorts below."""
    return f"{max(ms, 0) << 80:032x}"
