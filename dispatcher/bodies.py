"""The exact bytes of a delivery's body. A payload goes in as the bytes that its sender wrote, never parsed.

What is carried is the payload of an event or of a relay task, the result of a processed task, or, when the
task failed, `{"error": <error>}`: a receiver of `raw` bodies must be able to tell the two apart. The
envelope says so in its own members instead.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import msgspec

from dispatcher.discreet import Discreet
from dispatcher.models import BodyMode, TaskState

JSON = "application/json"
CLOUDEVENTS_JSON = "application/cloudevents+json"
FORM = "application/x-www-form-urlencoded"
#: the `source` of a CloudEvent where the settings name none
DEFAULT_SOURCE = "/dispatcher"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Message(Discreet, frozen=True, kw_only=True):
    """What a delivery says, before it has a form."""

    HIDDEN = ("payload",)

    #: the id that receivers see, the same on every attempt and redelivery
    wire_id: str
    #: the event's type, or the task's
    type: str
    #: JSON text, as its sender wrote it; of a failed task, its error object
    payload: bytes
    #: Unix milliseconds at which the event was accepted, or the task was done
    created_at_ms: int
    #: the task that this answers; None for an event
    task_id: str | None = None
    #: how the task ended; only `failed` matters, and it makes `payload` an error
    status: TaskState = TaskState.SUCCEEDED
    #: the event's subject, for CloudEvents
    subject: str | None = None


class Body(NamedTuple):
    """A body as it is stored and sent."""

    #: the bytes that are signed and sent
    body: bytes
    #: the value of Content-Type
    content_type: str
    #: headers that belong to the body: the `ce-` ones of CloudEvents
    headers: tuple[tuple[str, str], ...] = ()


def compose(mode: BodyMode, message: Message, *, source: str = DEFAULT_SOURCE) -> Body:
    """The body of a delivery in the form that its endpoint asked for."""
    match mode:
        case BodyMode.RAW:
            return Body(_content(message), JSON)
        case BodyMode.ENVELOPE:
            return Body(_envelope(message), JSON)
        case BodyMode.CLOUDEVENTS_BINARY:
            headers = tuple(
                (f"ce-{name}", _header_value(value)) for name, value in _attributes(message, source).items()
            )
            return Body(_content(message), JSON, headers)
        case BodyMode.CLOUDEVENTS_STRUCTURED:
            data = {"datacontenttype": JSON, "data": msgspec.Raw(_content(message))}
            return Body(msgspec.json.encode(_attributes(message, source) | data), CLOUDEVENTS_JSON)
        case BodyMode.FORM:
            return Body(b"payload=" + quote_from_bytes(_content(message), safe="").encode("ascii"), FORM)


def _content(message: Message) -> bytes:
    if message.status is TaskState.FAILED:
        return b'{"error":' + message.payload + b"}"
    return message.payload


def _envelope(message: Message) -> bytes:
    payload = msgspec.Raw(message.payload)
    time = rfc3339(message.created_at_ms)
    if message.task_id is None:
        return msgspec.json.encode({"type": message.type, "timestamp": time, "data": payload})
    failed = message.status is TaskState.FAILED
    return msgspec.json.encode(
        {
            "task_id": message.task_id,
            "type": message.type,
            "status": message.status.value,
            "error" if failed else "result": payload,
            "completed_at": time,
        }
    )


def _attributes(message: Message, source: str) -> dict[str, object]:
    attributes: dict[str, object] = {
        "specversion": "1.0",
        "id": message.wire_id,
        "source": source,
        "type": message.type,
        "time": rfc3339(message.created_at_ms),
    }
    if message.subject:
        attributes["subject"] = message.subject
    return attributes


def _header_value(value: object) -> str:
    """A CloudEvents attribute as a header value (HTTP Protocol Binding 1.0.2, section 3.1.3.2).

    Space, `"`, `%` and whatever is not printable ASCII are percent-encoded from their UTF-8 bytes.
    """
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b'"%' else f"%{byte:02X}" for byte in str(value).encode()
    )


def rfc3339(unix_ms: int) -> str:
    """Unix milliseconds as text, in UTC (RFC 3339)."""
    moment = _EPOCH + timedelta(milliseconds=unix_ms)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
