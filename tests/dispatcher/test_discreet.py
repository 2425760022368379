"""Records that may hold credentials do not show them."""

from __future__ import annotations

import msgspec
import pytest
from rich.pretty import pretty_repr

from dispatcher.bodies import Message
from dispatcher.delivery.transport import Request, Response
from dispatcher.discreet import Discreet
from dispatcher.egress import parse
from dispatcher.store.records import Callback, Endpoint, NewEvent
from subscriptions.secrets import Secret

HEADERS = (("Authorization", "Bearer opaque-thing"),)
URL = "https://api.example.com/results/opaque-thing"

RECORDS = [
    Callback(
        url=Secret(URL),
        secret=Secret("opaque-thing"),
        headers=HEADERS,
        schemes=None,
        origin="https://api.example.com",
        fingerprint="",
        token="none",
        window_end=None,
    ),
    Endpoint(url=Secret(URL), origin="https://api.example.com", key_id="acme", headers=HEADERS),
    Request(target=parse(URL), headers=HEADERS, body=b"opaque-thing", deadline=1.0),
    Response(status=200, headers=HEADERS, body=b"opaque-thing", complete=True),
    parse(URL),
    Message(wire_id="0192", type="order.paid", payload=b'"opaque-thing"', created_at_ms=0),
    NewEvent(id="0192", account="acme", type="order.paid", payload=b'"opaque-thing"'),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_may_be_a_credential_is_not_shown(record: Discreet) -> None:
    for shown in (repr(record), str(record), f"{record}", pretty_repr(record)):
        assert shown.startswith(type(record).__name__)
        assert "opaque-thing" not in shown


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_hidden_are_its_fields(record: Discreet) -> None:
    assert record.HIDDEN
    assert set(record.HIDDEN) < {field.name for field in msgspec.structs.fields(record)}
