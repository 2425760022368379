from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.bodies import Message, compose
from dispatcher.models import BodyMode, TaskState

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cloudevents_headers.json").read_text())["vectors"]
AT_MS = 1_767_225_600_007
AT = "2026-01-01T00:00:00.007Z"
#: bytes that no serialiser would write back: odd spaces, a repeated key, escapes, a long number
PAYLOAD = b'{ "b" : 1.0000000000000000001,\t"a":"\\u00e9\\/",\n"b":[ ] , "c": "\xc3\xa9 &=+%"}'

EVENT = Message(wire_id="0192ab", type="order.paid", payload=PAYLOAD, created_at_ms=AT_MS)
TASK = replace(EVENT, type="resize", task_id="0192cd")
FAILED = replace(TASK, payload=b'{"message":"no such image"}', status=TaskState.FAILED)


def test_raw_is_the_payload() -> None:
    assert compose(BodyMode.RAW, EVENT) == (PAYLOAD, "application/json", ())
    assert compose(BodyMode.RAW, TASK) == (PAYLOAD, "application/json", ())


def test_raw_of_a_failed_task_can_be_told_from_a_result() -> None:
    assert compose(BodyMode.RAW, FAILED).body == b'{"error":{"message":"no such image"}}'


def test_the_envelope_of_an_event() -> None:
    body, content_type, headers = compose(BodyMode.ENVELOPE, EVENT)
    assert body == b'{"type":"order.paid","timestamp":"%s","data":%s}' % (AT.encode(), PAYLOAD)
    assert (content_type, headers) == ("application/json", ())


def test_the_envelope_of_a_task() -> None:
    body = compose(BodyMode.ENVELOPE, TASK).body
    assert body == (
        b'{"task_id":"0192cd","type":"resize","status":"succeeded","result":%s,"completed_at":"%s"}'
        % (PAYLOAD, AT.encode())
    )


def test_the_envelope_of_a_failed_task() -> None:
    assert json.loads(compose(BodyMode.ENVELOPE, FAILED).body) == {
        "task_id": "0192cd",
        "type": "resize",
        "status": "failed",
        "error": {"message": "no such image"},
        "completed_at": AT,
    }


def test_cloudevents_binary() -> None:
    body, content_type, headers = compose(BodyMode.CLOUDEVENTS_BINARY, replace(EVENT, subject="order 42"))
    assert (body, content_type) == (PAYLOAD, "application/json")
    assert headers == (
        ("ce-specversion", "1.0"),
        ("ce-id", "0192ab"),
        ("ce-source", "/dispatcher"),
        ("ce-type", "order.paid"),
        ("ce-time", AT),
        ("ce-subject", "order%2042"),
    )


def test_cloudevents_structured() -> None:
    body, content_type, headers = compose(BodyMode.CLOUDEVENTS_STRUCTURED, EVENT, source="https://a.example/b")
    assert (content_type, headers) == ("application/cloudevents+json", ())
    assert body == (
        b'{"specversion":"1.0","id":"0192ab","source":"https://a.example/b","type":"order.paid",'
        b'"time":"%s","datacontenttype":"application/json","data":%s}' % (AT.encode(), PAYLOAD)
    )


def test_an_empty_subject_is_no_attribute() -> None:
    message = replace(EVENT, subject="")
    assert "ce-subject" not in dict(compose(BodyMode.CLOUDEVENTS_BINARY, message).headers)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
def test_cloudevents_header_values_as_published(vector: dict[str, str]) -> None:
    headers = dict(compose(BodyMode.CLOUDEVENTS_BINARY, replace(EVENT, subject=vector["value"])).headers)
    assert headers["ce-subject"] == vector["header"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_cloudevents_header_values_are_printable_and_decoded_again(value: str) -> None:
    headers = dict(compose(BodyMode.CLOUDEVENTS_BINARY, replace(EVENT, subject=value)).headers)
    assert all("\x21" <= character <= "\x7e" for character in headers["ce-subject"])
    assert unquote(headers["ce-subject"], errors="strict") == value


def test_form() -> None:
    body, content_type, headers = compose(BodyMode.FORM, replace(EVENT, payload=b'{"a": "b&c=d+e%"}'))
    assert body == b"payload=%7B%22a%22%3A%20%22b%26c%3Dd%2Be%25%22%7D"
    assert (content_type, headers) == ("application/x-www-form-urlencoded", ())


@pytest.mark.parametrize("mode", [mode for mode in BodyMode if mode is not BodyMode.ENVELOPE])
def test_a_failed_task_says_error_in_every_mode(mode: BodyMode) -> None:
    body = compose(mode, FAILED).body
    if mode is BodyMode.FORM:
        body = parse_qs(body.decode(), strict_parsing=True)["payload"][0].encode()
    assert b'{"error":{"message":"no such image"}}' in body


@pytest.mark.parametrize(
    ("unix_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_utc_to_the_millisecond(unix_ms: int, text: str) -> None:
    body = compose(BodyMode.ENVELOPE, replace(EVENT, created_at_ms=unix_ms)).body
    assert json.loads(body)["timestamp"] == text


def test_a_message_does_not_show_its_payload() -> None:
    assert "no such image" not in repr(FAILED)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)


@st.composite
def json_texts(draw: st.DrawFn) -> bytes:
    """JSON text as some serialiser may write it."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
    ascii_only = draw(st.booleans())
    text = json.dumps(draw(JSON_VALUES), separators=separators, ensure_ascii=ascii_only)
    spaces = st.text(" \t\r\n", max_size=3)
    return (draw(spaces) + text + draw(spaces)).encode("utf-8", "replace")


@given(
    json_texts(),
    st.sampled_from(BodyMode),
    st.sampled_from([None, "0192cd"]),
    st.sampled_from([TaskState.SUCCEEDED, TaskState.FAILED]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
def test_the_payload_is_in_every_body_byte_for_byte(
    payload: bytes, mode: BodyMode, task_id: str | None, status: TaskState, name: str
) -> None:
    message = replace(EVENT, payload=payload, task_id=task_id, status=status, type=name)
    body, content_type, _ = compose(mode, message)
    if mode is BodyMode.FORM:
        (field,) = parse_qs(body.decode("ascii"), strict_parsing=True, errors="strict").values()
        body = field[0].encode()
    assert payload in body
    parsed: Any = json.loads(body)
    if content_type != "application/json":
        return
    if mode is BodyMode.ENVELOPE:
        assert parsed["type"] == name
