"""A relayed payload arrives byte for byte as it was sent, whatever JSON allows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.receiver import Receiver
from tests.support.server import Server

#: payloads that go in with one request
BATCH = 8
EXAMPLES = 200
DEPTH = 60

spaces = st.text(alphabet=" \t\n\r", max_size=3).map(str.encode)

integers = st.one_of(st.integers(), st.integers(min_value=10**15, max_value=10**60)).map(lambda n: str(n).encode())
#: numbers in every form of the grammar, those no float can hold among them
numbers = st.from_regex(rb"\A-?(?:0|[1-9][0-9]{0,40})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,4})?\Z")
literals = st.sampled_from(
    [b"null", b"true", b"false", b"1e400", b"-0", b"-0.0E-0", b"1E+308", b"18446744073709551616"]
)

plain = st.characters(min_codepoint=0x20, exclude_characters='"\\', exclude_categories=["Cs"]).map(str.encode)
short_escapes = st.sampled_from([b'\\"', b"\\\\", b"\\/", b"\\b", b"\\f", b"\\n", b"\\r", b"\\t"])
escapes = st.integers(0, 0xFFFF).filter(lambda unit: not 0xD800 <= unit <= 0xDFFF).map(lambda n: b"\\u%04x" % n)
upper_escapes = escapes.map(lambda escape: b"\\u" + escape[2:].upper())
pairs = st.tuples(st.integers(0xD800, 0xDBFF), st.integers(0xDC00, 0xDFFF)).map(lambda two: b"\\u%04x\\u%04X" % two)
strings = st.lists(st.one_of(plain, short_escapes, escapes, upper_escapes, pairs), max_size=8).map(
    lambda characters: b'"' + b"".join(characters) + b'"'
)


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[bytes]) -> bytes:
    inside = draw(st.lists(items, max_size=3))
    return b"[" + b",".join(_spaced(draw, item) for item in inside) + (b"" if inside else draw(spaces)) + b"]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    # few names, so that some come twice
    names = st.one_of(st.sampled_from([b'"a"', b'"\\u0061"', b'""']), strings)
    members = draw(st.lists(st.tuples(names, values), max_size=3))
    inside = [_spaced(draw, name) + b":" + _spaced(draw, value) for name, value in members]
    return b"{" + b",".join(inside) + (b"" if inside else draw(spaces)) + b"}"


@st.composite
def deep(draw: st.DrawFn, value: st.SearchStrategy[bytes]) -> bytes:
    text = draw(value)
    for kind in draw(st.lists(st.booleans(), min_size=40, max_size=DEPTH - 8)):
        text = b'{"d":%s}' % text if kind else b"[%s]" % text
    return text


def _spaced(draw: st.DrawFn, text: bytes) -> bytes:
    return draw(spaces) + text + draw(spaces)


scalars = st.one_of(integers, numbers, literals, strings)
trees = st.recursive(scalars, lambda inner: st.one_of(arrays(inner), objects(inner)), max_leaves=8)
payloads = st.one_of(trees, trees, trees, deep(scalars)).filter(lambda text: text.count(b"[") + text.count(b"{") <= 62)


@pytest.fixture(scope="module")
def hub() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as running:
        yield running


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(texts=st.lists(payloads, min_size=BATCH, max_size=BATCH))
def test_payload_bytes_arrive_as_they_were_sent(client: httpx.Client, hub: Receiver, texts: list[bytes]) -> None:
    url = json.dumps(f"{hub.url}/cb").encode()
    hub.received.clear()
    tasks = b",".join(b'{"payload": %s , "callback_url":%s}' % (text, url) for text in texts)
    answer = client.post("/tasks/batch", content=b'{"tasks":[%s]}' % tasks)
    assert answer.status_code == 202, answer.text
    items = answer.json()["items"]
    assert [item["status"] for item in items] == [202] * len(texts), items
    sent = {item["task"]["delivery_id"]: text for item, text in zip(items, texts, strict=True)}
    hub.wait_for(len(texts))
    assert {request.delivery: request.body for request in hub.received} == sent


def test_hand_picked_payloads_arrive_as_they_were_sent(client: httpx.Client, hub: Receiver) -> None:
    texts = [
        b'{"a" : 1e400, "a":\t18446744073709551616, "s":"\\u00e9\\/"}',
        b'"\xf0\x9f\x92\xa9 \\ud83d\\udca9 \xe2\x80\xa8\x7f"',
        b'{"__proto__":{},"\\u0000":"\\u0000"}',
        b"[" * 64 + b"]" * 64,
        b"-0.0",
        b'"' + b"x" * (256 * 1024 - 2) + b'"',
        b"123456789" * 20_000,
    ]
    for text in texts:
        hub.received.clear()
        content = b'{"callback_url":"%s","payload":\r\n\t %s \n}' % (hub.url.encode(), text)
        answer = client.post("/tasks", content=content)
        assert answer.status_code == 202, answer.text
        assert hub.wait_for(1)[0].body == text
