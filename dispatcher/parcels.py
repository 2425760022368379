"""What stands in a row of the outbox: packed in the process of whoever publishes, unpacked in one of ours.

A row has the request as the API would get it, in three parts. The payload keeps the bytes that it came in. What may be
a credential is sealed; the rest stands in clear, so that an operator can see what a row is about.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from dispatcher.errors import FieldError, Problem

#: the channel of PostgreSQL on which workers hear what is to be done, and what they are told with each row
CHANNEL = "dispatcher"
NEWS = '{"by":"outbox","outbox":true}'
#: fields of a task that are sealed
SEALED_FIELDS = frozenset({"callback_url", "secret", "headers"})

_encode = msgspec.json.encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode


class Kind(StrEnum):
    """What a row asks for."""

    #: as `POST /tasks`
    TASK = "task"
    #: as `POST /events`
    EVENT = "event"


def info_of(*, kind: str, account: str, row: str) -> bytes:
    """What a row's sealed part belongs to: in another row, or for another account, it cannot be opened."""
    return b"webhook-dispatcher outbox" + _encode([kind, account, row])


def request_of(fields: bytes, payload: bytes, opened: bytes = b"{}") -> bytes:
    """The whole request, as the API would get it. Raises Problem.

    Each part is read for itself before they are put together: none can smuggle a field into another.
    """
    members = _object(fields, "/fields")
    for name in sorted(SEALED_FIELDS & members.keys()):
        raise _invalid(f"/{name}", "must be sealed")
    members |= _object(opened, "/sealed")
    members["payload"] = _value(payload)
    # Sorted, so that the same is the same whoever wrote it: an idempotency key compares bytes.
    return _encode(dict(sorted(members.items())))


def _object(part: bytes, field: str) -> dict[str, msgspec.Raw]:
    try:
        part.decode()
        return _decode_object(part)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise _invalid(field, "must be a JSON object in UTF-8") from None


def _value(payload: bytes) -> msgspec.Raw:
    try:
        payload.decode()
        return _decode_value(payload)
    except RecursionError:
        raise _invalid("/payload", "must not be nested so deeply") from None
    except (UnicodeDecodeError, msgspec.MsgspecError):
        error = FieldError(field="/payload", detail="must be valid JSON in UTF-8")
        raise Problem("invalid-json", "The payload is not valid JSON in UTF-8.", errors=[error]) from None


def _invalid(field: str, detail: str) -> Problem:
    return Problem("validation", "The row is not valid.", errors=[FieldError(field=field, detail=detail)])
