"""What a receiver keeps: bounded, in order, searchable, and silent about secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest

from dispatcher.conformance.receiver.defences import Judgement, refuse
from dispatcher.conformance.receiver.inbox import CLEARED, Criteria, Inbox, delivery_of, event_of, name_shown
from dispatcher.conformance.receiver.masking import mask_headers, mask_text
from dispatcher.conformance.wire.requests import Headers, Received
from dispatcher.errors import ConfigError

SECRET_PATH = "/hooks/eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl"


def received(number: int, body: bytes = b"{}", *, target: str = SECRET_PATH, headers: Headers = ()) -> Received:
    return Received(
        number=number,
        at=1_700_000_000.0 + number,
        clock=float(number),
        connection=1,
        remote="127.0.0.1",
        method="POST",
        target=target,
        headers=headers,
        body=body,
        raw=b"raw " + body,
    )


def numbers(inbox: Inbox, **criteria: str | bool | None) -> list[int]:
    return [entry.request.number for entry in inbox.entries(**criteria)]  # type: ignore[arg-type]  # passed through


def test_requests_stand_in_the_order_in_which_they_came() -> None:
    inbox = Inbox()
    for number in (2, 1, 3):
        inbox.add(received(number))
    assert numbers(inbox) == [2, 1, 3]
    assert len(inbox) == 3
    assert inbox.get(1) is not None
    assert inbox.get(4) is None


def test_the_newest_are_kept() -> None:
    inbox = Inbox(capacity=2)
    for number in (1, 2, 3):
        inbox.add(received(number))
    assert numbers(inbox) == [2, 3]
    assert (inbox.total, inbox.dropped) == (3, 1)
    inbox.note(1, status=202)
    assert numbers(inbox) == [2, 3]


@pytest.mark.parametrize(("size", "kept"), [(43, [1, 2]), (44, [2])])
def test_their_bytes_are_bounded(size: int, kept: list[int]) -> None:
    inbox = Inbox(max_bytes=90)
    for number in (1, 2):
        inbox.add(received(number, b"x" * (size // 2 - 1), target=""))
    assert numbers(inbox) == kept


def test_headers_count_as_what_they_take_in_memory() -> None:
    """Thousands of short headers take twenty times the bytes that they have on the wire."""
    bound = 4 * 1024 * 1024
    inbox = Inbox(max_bytes=bound)
    tracemalloc.start()
    try:
        for number in range(1, 13):
            # texts of their own, as a parser makes them
            headers = tuple((f"{name:x}", f"{name + number:x}") for name in range(1_000, 7_000))
            inbox.add(received(number, headers=headers))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 < len(inbox) < 12
    assert taken < 1.5 * bound


def test_one_that_is_larger_than_the_inbox_is_kept_alone() -> None:
    inbox = Inbox(max_bytes=90)
    inbox.add(received(1))
    inbox.add(received(2, b"x" * 200))
    assert numbers(inbox) == [2]


def test_an_inbox_has_room() -> None:
    with pytest.raises(ConfigError, match="room"):
        Inbox(capacity=0)


def test_search() -> None:
    inbox = Inbox()
    inbox.add(received(1, b'{"type": "order.paid"}', target="/a?x=1"))
    inbox.add(received(2, "ümlaut".encode(), target="/b", headers=(("x-webhook-event", "order.paid"),)))
    inbox.add(received(3, target="/a", headers=(("webhook-id", "msg_1"),)))
    inbox.note(3, status=204)
    inbox.note(2, status=401)
    assert numbers(inbox, path="/a") == [1, 3]
    assert numbers(inbox, event="order.paid") == [1, 2]
    assert numbers(inbox, event="order.paid", path="/b") == [2]
    assert numbers(inbox, delivery="msg_1") == [3]
    assert numbers(inbox, text="ümlaut") == [2]
    assert numbers(inbox, text="Umlaut") == []
    assert numbers(inbox, is_accepted=True) == [3]
    assert numbers(inbox, is_accepted=False) == [1, 2]
    assert inbox.count(Criteria(path="/a")) == 2


@pytest.mark.parametrize(
    ("headers", "body", "event"),
    [
        ((("X-Webhook-Event", "a"), ("ce-type", "b")), b'{"type": "c"}', "a"),
        ((("X-GitHub-Event", "push"),), b"", "push"),
        ((("CE-Type", "b"),), b"", "b"),
        ((), b'{"type": "c.d-1"}', "c.d-1"),
        ((), b'{"type": "what this is about"}', None),
        ((), b'{"type": 1}', None),
        ((), b"[1]", None),
        ((), b"\xff", None),
        ((), b"[" * 100_000, None),
        ((), b"1" * 10_000, None),
    ],
)
def test_the_event_of_a_request(headers: Headers, body: bytes, event: str | None) -> None:
    assert event_of(received(1, body, headers=headers)) == event


def test_the_delivery_of_a_request() -> None:
    assert delivery_of(received(1)) is None
    assert delivery_of(received(1, headers=(("webhook-id", "b"), ("X-Webhook-Delivery", "a")))) == "a"


def test_names_from_the_wire_write_nothing_to_a_terminal() -> None:
    assert name_shown("order.paid") == "order.paid"
    assert name_shown("\x1b[31mred\r\n") == "??31mred??"
    assert name_shown("x" * 65) == "x" * 64 + "~"
    assert name_shown(None) == name_shown("") == "-"


def test_pages_follow_the_order_of_arrival() -> None:
    inbox = Inbox(capacity=4)
    for number in (5, 1, 4, 2):
        inbox.add(received(number))
    found, cursor = inbox.page(Criteria(), limit=2)
    assert [entry.request.number for entry in found] == [5, 1]
    assert cursor is not None
    inbox.add(received(3))
    found, cursor = inbox.page(Criteria(), after=cursor, limit=3)
    assert ([entry.request.number for entry in found], cursor) == ([4, 2, 3], None)


def test_forgetting() -> None:
    inbox = Inbox()
    inbox.add(received(1))
    assert inbox.clear() == 1
    assert numbers(inbox) == []
    assert inbox.total == 1


async def test_what_is_here_already_counts() -> None:
    inbox = Inbox()
    inbox.add(received(1))
    assert [entry.request.number for entry in await inbox.wait_for(within=0)] == [1]


async def test_waiting_ends_when_enough_have_come() -> None:
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.wait_for(2, within=5, event="a"))
    await asyncio.sleep(0)
    for number, event in ((1, "a"), (2, "b"), (3, "a")):
        inbox.add(received(number, headers=(("X-Webhook-Event", event),)))
        await asyncio.sleep(0)
    assert [entry.request.number for entry in await waiting] == [1, 3]


async def test_waiting_for_an_answer_ends_with_the_answer() -> None:
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.wait_for(within=5, is_accepted=True))
    inbox.add(received(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.note(1, status=202)
    assert [entry.status for entry in await waiting] == [202]


async def test_those_that_had_to_make_room_do_not_count() -> None:
    inbox = Inbox(capacity=2)
    waiting = asyncio.create_task(inbox.wait_for(2, within=5, event="a"))
    await asyncio.sleep(0)
    for number, event in ((1, "a"), (2, "b"), (3, "b"), (4, "a"), (5, "a")):
        inbox.add(received(number, headers=(("X-Webhook-Event", event),)))
        await asyncio.sleep(0)
    assert [entry.request.number for entry in await waiting] == [4, 5]


async def test_a_timeout_tells_what_came_and_nothing_that_is_secret() -> None:
    inbox = Inbox()
    headers = (("X-Webhook-Event", "order.paid"), ("webhook-id", "msg_1"), ("Authorization", "Bearer hidden"))
    inbox.add(received(1, b'{"token": "hidden"}', headers=headers))
    inbox.add(received(2, b"hidden"))
    inbox.note(1, status=202)
    refusal = refuse("signature", 401, "websub: no signature matches")
    inbox.note(2, status=401, judgement=Judgement(passed=(), off=(), refusal=refusal))
    with pytest.raises(TimeoutError) as raised:
        await inbox.wait_for(2, within=0.01, event="order.paid", path="/hidden", text="hidden")
    assert str(raised.value) == (
        "0 of 2 requests with event order.paid, a path, a text came within 0.01 s; 2 came in all\n"
        "  1 POST order.paid msg_1 202\n"
        "  2 POST - - 401 signature"
    )
    for entry in inbox.entries():
        assert "hidden" not in repr(entry)
        assert "eyJ" not in repr(entry)


async def test_a_timeout_shows_the_last_of_many() -> None:
    inbox = Inbox()
    for number in range(1, 31):
        inbox.add(received(number))
    with pytest.raises(TimeoutError) as raised:
        await inbox.wait_for(31, within=0)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].startswith("  30 ")


async def test_a_watch_tells_each_number_once() -> None:
    inbox = Inbox()
    with inbox.watch() as watch:
        inbox.add(received(1))
        inbox.note(1, status=202)
        inbox.add(received(2))
        assert await watch.changed() == [1, 2]
        inbox.add(received(3))
        inbox.clear()
        inbox.add(received(4))
        assert await watch.changed() == [CLEARED, 4]
    inbox.add(received(5))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.changed(), 0.01)


def test_export_holds_all() -> None:
    inbox = Inbox()
    inbox.add(received(1, b"\x00\xff", headers=(("A", "\xe4"),)))
    inbox.note(1, status=202, judgement=Judgement(passed=("rate",), off=(), refusal=None))
    lines = inbox.export()
    inbox.clear()
    [line] = lines
    assert line.endswith("\n")
    content = json.loads(line)
    assert content["target"] == SECRET_PATH
    assert content["headers"] == [["A", "\xe4"]]
    assert base64.b64decode(content["body"]) == b"\x00\xff"
    assert base64.b64decode(content["raw"]) == b"raw \x00\xff"
    assert (content["status"], content["judgement"]["passed"]) == (202, ["rate"])


# --- masking --------------------------------------------------------------------------------------------------


def test_headers_that_are_not_known_to_be_harmless_are_masked() -> None:
    headers = (("Content-Type", "application/json"), ("X-Secret", "hidden"), ("X-Webhook-Secret", "hidden"))
    assert mask_headers(headers, ()) == [
        ("Content-Type", "application/json"),
        ("X-Secret", "[masked: 6 characters]"),
        ("X-Webhook-Secret", "[masked: 6 characters]"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"secret": "hidden!"}',
        '{"a": {"API-Key" : "hidden!\\" hidden!"}}',
        '{"accessToken":"hidden!',
        "see whsec_hidden!AAAAAAAAAAAAAAAA".replace("!", "x"),
        "go to /results/eyJhbGciOiJIUzI1NiJ9.hiddenAAAA.BBBB",
        "ours",
    ],
)
def test_bodies_are_masked(text: str) -> None:
    shown = mask_text(text, ("ours",))
    assert "[masked: " in shown
    assert "hidden" not in shown
    assert "ours" not in shown


def test_what_is_no_secret_is_shown_as_it_is() -> None:
    text = '{"type":"order.paid",  "note": "a \\"quoted\\" word", "id": 0192837465564738291019283746}'
    assert mask_text(text, ("ours", "")) == text


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "eyJ" * n,
        lambda n: '"a":"' * n,
        lambda n: '"token":"\\' * n,
        lambda n: '"a"' + " " * n,
        lambda n: '"' + "a" * n,
        lambda n: "whsec_" * n,
        lambda n: "\\" * n,
    ],
)
def test_masking_takes_a_time_in_proportion(make: Callable[[int], str]) -> None:
    started = time.perf_counter()
    mask_text(make(50_000), ("ours",))
    assert time.perf_counter() - started < 10.0
