"""The rows of the outbox: three parts become one request, and none gets into another."""

from __future__ import annotations

import json

import pytest

from dispatcher.errors import Problem
from dispatcher.parcels import CHANNEL, NEWS, info_of, request_of
from dispatcher.store.news import News, decoded

FIELDS = b'{"type":"relay"}'


def test_a_request_has_all_parts_and_the_payload_as_it_was() -> None:
    request = request_of(FIELDS, b'{"n": 1.50, "n": 2}', b'{"callback_url":"https://a.example"}')
    assert b'"payload":{"n": 1.50, "n": 2}' in request
    assert json.loads(request) == {"type": "relay", "callback_url": "https://a.example", "payload": {"n": 2}}


def test_the_order_of_fields_makes_no_difference() -> None:
    assert request_of(b'{"a":1,"b":2}', b"0") == request_of(b'{"b":2,"a":1}', b"0")


@pytest.mark.parametrize(
    ("payload", "slug"),
    [
        (b'1, "callback_url": "https://evil.example"', "invalid-json"),
        (b'{"n":1}}', "invalid-json"),
        (b"1 2", "invalid-json"),
        (b"", "invalid-json"),
        (b"NaN", "invalid-json"),
        (b'{"n":', "invalid-json"),
        (b'"\xff"', "invalid-json"),
        (b"[" * 100_000, "validation"),
    ],
)
def test_a_payload_is_one_json_value(payload: bytes, slug: str) -> None:
    with pytest.raises(Problem) as caught:
        request_of(FIELDS, payload)
    assert caught.value.slug == slug
    assert [error.field for error in caught.value.errors] == ["/payload"]


@pytest.mark.parametrize("name", ["callback_url", "secret", "headers"])
def test_what_may_be_a_credential_does_not_stand_in_clear(name: str) -> None:
    with pytest.raises(Problem) as caught:
        request_of(json.dumps({name: "s3cr3t"}).encode(), b"0")
    assert [(error.field, error.detail) for error in caught.value.errors] == [(f"/{name}", "must be sealed")]


@pytest.mark.parametrize("part", [b"", b"[]", b"null", b'{"a":1}{', b'{"a":"\xff"}', b'{"a":' * 100_000])
def test_a_part_is_an_object(part: bytes) -> None:
    for fields, opened, field in ((part, b"{}", "/fields"), (FIELDS, part, "/sealed")):
        with pytest.raises(Problem) as caught:
            request_of(fields, b"0", opened)
        assert [error.field for error in caught.value.errors] == [field]


def test_the_payload_is_the_row_s_whatever_the_parts_say() -> None:
    assert json.loads(request_of(b'{"payload":1}', b"2", b'{"payload":3}')) == {"payload": 2}


def test_every_place_is_another() -> None:
    places = [("task", "a", "1"), ("event", "a", "1"), ("task", "b", "1"), ("task", "a", "2"), ("task", 'a","1', "")]
    assert len({info_of(kind=kind, account=account, row=row) for kind, account, row in places}) == len(places)


def test_workers_understand_what_publishers_tell_them() -> None:
    assert CHANNEL == "dispatcher"  # of those that run already
    assert decoded(NEWS) == ("outbox", News(outbox=True))
