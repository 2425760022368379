"""The answer's reader on its own: every split of the bytes means the same, and no bytes break it or fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatcher.delivery.answer import AnswerReader
from dispatcher.delivery.transport import (
    MAX_ANSWER_BYTES,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIECES,
    Response,
)
from tests.support.answers import CHANGES, SEEDS, cut, mutated

EMPTY_HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX:\r\n\r\n"
EMPTY_TRAILER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT:\r\n\r\n"


@dataclass(frozen=True)
class Read:
    """What a reader made of some bytes."""

    is_over: bool
    fault: str | None
    response: Response | None
    #: another request may follow
    keeps_alive: bool


def read(pieces: Sequence[bytes], *, ends: bool, reader: AnswerReader | None = None) -> Read:
    """Feed the pieces, then perhaps the end."""
    reader = AnswerReader() if reader is None else reader
    for piece in pieces:
        if piece:
            reader.feed(piece)
    if ends:
        reader.end()
    assert not (reader.fault and reader.status)
    assert reader.is_over or not reader.fault
    return Read(
        is_over=reader.is_over,
        fault=reader.fault.detail if reader.fault else None,
        response=reader.response() if reader.status else None,
        keeps_alive=reader.keeps_alive and not reader.has_leftover,
    )


@given(
    seed=st.sampled_from(SEEDS), changes=CHANGES, places=st.lists(st.integers(0, 400), max_size=12), ends=st.booleans()
)
@settings(max_examples=1_500, deadline=None)
def test_every_split_of_the_same_bytes_means_the_same(
    seed: bytes, changes: list[tuple[int, int, bytes]], places: list[int], *, ends: bool
) -> None:
    data = mutated(seed, changes)
    whole, split = read([data], ends=ends), read(cut(data, places), ends=ends)
    if whole.response is not None and split.response is not None and not (whole.is_over and split.is_over):
        # amid a body; how much of it has been given on is the parser's matter
        assert whole.response.status == split.response.status
        return
    if whole.response is not None and not whole.response.complete and split.response is not None:
        # a body that breaks: what came of it before may be less where the break was in the same piece
        assert (split.response.status, split.response.complete) == (whole.response.status, False)
        return
    if data[-1:] in {b"\r", b"\n"}:
        # a line's end behind an answer is passed over if it comes together with it, and else ends the connection
        split = replace(split, keeps_alive=whole.keeps_alive)
    assert split == whole


@given(
    seeds=st.tuples(st.sampled_from(SEEDS), st.sampled_from(SEEDS)),
    changes=st.tuples(CHANGES, CHANGES),
    places=st.lists(st.integers(0, 400), max_size=12),
    ends=st.booleans(),
)
@example(seeds=(SEEDS[2], SEEDS[0]), changes=([], []), places=[], ends=False)
@example(seeds=(SEEDS[4], SEEDS[4]), changes=([], []), places=[], ends=False)
@example(seeds=(EMPTY_HEADER, SEEDS[0]), changes=([], []), places=[], ends=True)
@example(seeds=(EMPTY_TRAILER, SEEDS[0]), changes=([], []), places=[], ends=True)
@settings(max_examples=500, deadline=None)
def test_an_answer_means_the_same_whatever_came_before_it(
    seeds: tuple[bytes, bytes],
    changes: tuple[list[tuple[int, int, bytes]], list[tuple[int, int, bytes]]],
    places: list[int],
    *,
    ends: bool,
) -> None:
    reader = AnswerReader()
    before = read(cut(mutated(seeds[0], changes[0]), places), ends=False, reader=reader)
    following = reader.following()
    if before.keeps_alive:
        assert (following.status, following.is_over, following.has_begun) == (0, False, False)
    pieces = cut(mutated(seeds[1], changes[1]), places)
    assert read(pieces, ends=ends, reader=following) == read(pieces, ends=ends)


def test_a_reader_goes_on_after_a_whole_answer_and_after_no_other() -> None:
    reader = AnswerReader()
    for whole in (SEEDS[0], SEEDS[1], SEEDS[2], EMPTY_HEADER, EMPTY_TRAILER):
        assert read([whole], ends=False, reader=reader).keeps_alive
        assert reader.following() is reader
    for pieces in ([SEEDS[0], b"H"], [SEEDS[6]], [SEEDS[3]], [SEEDS[0][:-1]], [SEEDS[9]], []):
        reader = AnswerReader()
        read(pieces, ends=False, reader=reader)
        assert reader.following() is not reader


@given(data=st.binary(max_size=2_000), places=st.lists(st.integers(0, 2_000), max_size=20))
@example(data=b"", places=[])
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_judged(data: bytes, places: list[int]) -> None:
    found = read(cut(data, places), ends=True)
    assert found.is_over


@given(seed=st.sampled_from(SEEDS), changes=CHANGES)
@settings(max_examples=1_500, deadline=None)
def test_what_is_taken_for_an_answer_is_one_for_a_stricter_reader_too(
    seed: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    """h11 is a reader by others. Where both see a whole answer, they see the same one."""
    data = mutated(seed, changes)
    found = read([data], ends=True)
    status, body = by_h11(data)
    if found.response is not None and found.response.complete and body is not None:
        assert (found.response.status, found.response.body) == (status, body)


def by_h11(data: bytes) -> tuple[int | None, bytes | None]:
    """Status and body as h11 reads them; None where it does not get so far."""
    connection = h11.Connection(our_role=h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = None, b""
    try:
        connection.receive_data(data)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return status, None
    except h11.RemoteProtocolError:
        return status, None


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (HEAD, b"X-Header: y\r\n" * 500),
        (HEAD + b"X: ", b"y" * 10_000),
        (b"", b"HTTP/1.1 103 \r\n\r\n" * 100),
        (HEAD + b"\r\n", b"z" * 10_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"e" * 10_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"T: t\r\n" * 1_000),
        (HEAD + b"Content-Length: 999999999999\r\n\r\n", b"z" * 10_000),
    ],
    ids=["headers", "one header", "interim answers", "a body", "small chunks", "an extension", "trailers", "a length"],
)
def test_what_would_never_end_is_cut(head: bytes, piece: bytes) -> None:
    reader = AnswerReader()
    fed = 0
    for data in (head, *[piece] * 1_000):
        if reader.is_over:
            break
        if data:
            reader.feed(data)
            fed += len(data)
    assert reader.is_over
    assert fed <= MAX_ANSWER_BYTES + len(piece)
    assert not reader.keeps_alive
    if reader.status:
        response = reader.response()
        assert not response.complete
        assert len(response.body) <= MAX_BODY_BYTES


def test_what_comes_in_single_bytes_is_cut() -> None:
    reader = AnswerReader()
    for count, byte in enumerate(HEAD + b"Content-Length: 5000\r\n\r\n" + b"z" * 5_000, 1):  # noqa: B007 - it is counted
        reader.feed(bytes([byte]))
        if reader.is_over:
            break
    assert count <= MAX_PIECES + 1
    assert not reader.response().complete


@pytest.mark.parametrize(
    ("data", "status", "complete", "keeps_alive"),
    [
        (SEEDS[0], 200, True, True),
        (SEEDS[0][:-1], 200, False, False),
        (SEEDS[1], 204, True, True),
        (SEEDS[2], 200, True, True),
        (SEEDS[3], 200, True, False),
        (SEEDS[4], 500, True, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, True, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, True, False),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", 999, True, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, True, True),
    ],
)
def test_answers(data: bytes, status: int, *, complete: bool, keeps_alive: bool) -> None:
    found = read([data], ends=True)
    assert found.response is not None
    assert (found.response.status, found.response.complete, found.keeps_alive) == (status, complete, keeps_alive)


@pytest.mark.parametrize(
    "data",
    [
        SEEDS[5],
        SEEDS[7],
        SEEDS[9],
        SEEDS[10],
        SEEDS[11],
        SEEDS[12],
        SEEDS[15],
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 Long\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
    ],
)
def test_no_answers(data: bytes) -> None:
    found = read([data], ends=False)
    assert found.fault is not None
    assert found.response is None


def test_what_follows_an_answer_is_noticed() -> None:
    assert not read([SEEDS[6]], ends=False).keeps_alive
    assert not read([SEEDS[0], b"x"], ends=False).keeps_alive
    assert not read([SEEDS[0] + b"\x00garbage"], ends=False).keeps_alive
    assert read([SEEDS[0]], ends=False).keeps_alive


def test_kept_headers_are_bounded() -> None:
    many = b"".join(b"X-%d: y\r\n" % n for n in range(150))
    large = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1_000) for n in range(50))
    for extra in (many, large):
        response = read([HEAD + extra + b"Content-Length: 0\r\n\r\n"], ends=False).response
        assert response is not None
        assert len(response.headers) <= MAX_HEADERS
        assert sum(len(name) + len(value) for name, value in response.headers) <= MAX_HEADER_BYTES
